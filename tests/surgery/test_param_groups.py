import math

import numpy as np
import pytest
import torch
from torch import nn

import steadynorm
from steadynorm.surgery import param_groups
from tests.support.surgery import MIXED_INPUT, mixed


class HomemadeRMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


def foreign(name, shape=(3,), statistics=False):
    """A norm of a model library, of which only the class name or the buffers tell what it is."""
    module = type(name, (nn.Module,), {})()
    module.gamma, module.beta = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
    if statistics:
        module.register_buffer("running_mean", torch.zeros(3))
        module.register_buffer("running_var", torch.ones(3))
    return module


def names(model, groups):
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[known[id(parameter)] for parameter in group["params"]] for group in groups]


def test_norms_and_biases_do_not_decay():
    model = mixed()
    groups = param_groups(model, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert names(model, groups) == [
        ["0.weight", "3.weight", "7.weight"],
        ["1.weight", "1.bias", "3.bias", "4.weight", "4.bias", "7.bias", "8.weight", "8.bias"],
    ]


@pytest.mark.parametrize(
    "norm",
    [
        nn.GroupNorm(1, 3),
        nn.LayerNorm(3),
        nn.RMSNorm(3),
        nn.InstanceNorm2d(3, affine=True),
        steadynorm.GatedBatchNorm2d(3),
        nn.LayerNorm((3, 4, 4)),
        nn.LazyBatchNorm2d(),
        HomemadeRMSNorm(),
        foreign("GRN", (1, 1, 1, 3)),
        foreign("LayerNorm2d", (1, 3, 1, 1)),
        foreign("ChannelNorm", (3, 1, 1)),
        foreign("InPlaceABN"),
        foreign("SyncBN_2d"),
        foreign("Frozen", statistics=True),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_every_kind_of_norm_is_spared(norm):
    groups = param_groups(nn.Sequential(nn.Linear(3, 3, bias=False), norm), 0.1)
    assert [len(group["params"]) for group in groups] == [1, len(list(norm.parameters()))]


def test_every_parameter_is_there_once():
    model = mixed()
    model.append(model[8])
    model[0].weight.requires_grad_(False)
    found = [id(parameter) for group in param_groups(model, 0.1) for parameter in group["params"]]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())


def test_matrices_decay_wherever_they_are():
    norm = HomemadeRMSNorm()
    norm.table_bias = nn.Parameter(torch.ones(3, 3))
    groups = param_groups(norm, 0.1)
    assert names(norm, groups) == [["table_bias"], ["scale"]]


def test_a_bias_of_any_shape_that_is_a_vector_does_not_decay():
    model = nn.Module()
    model.bias, model.position_bias = nn.Parameter(torch.ones(1, 3, 1, 1)), nn.Parameter(torch.ones(1, 3, 3))
    assert names(model, param_groups(model, 0.1)) == [["position_bias"], ["bias"]]


def test_a_map_with_norm_in_its_name_is_no_norm():
    model = type("NormalizedLinear", (nn.Linear,), {})(3, 1)
    assert names(model, param_groups(model, 0.1)) == [["weight"], ["bias"]]


def test_lazy_parameters_are_split_before_and_after_the_first_batch():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2))
    groups = param_groups(model, 0.5)
    assert names(model, groups) == [["0.weight", "3.weight"], ["0.bias", "1.weight", "1.bias", "3.bias"]]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    model(torch.randn(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    assert names(model, param_groups(model, 0.5)) == names(model, groups)


@pytest.mark.parametrize("name", ["CNN", "FPN", "BNeck", "DropIN3", "Main"])
def test_other_vectors_decay(name):
    model = foreign(name)
    assert [group["weight_decay"] for group in param_groups(model, 0.1)] == [0.1]


def test_an_optimizer_takes_them_and_decays_only_the_first():
    model = mixed()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(param_groups(model, 0.5), lr=0.1)
    (model(MIXED_INPUT) * 0).sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        decayed = name.split(".")[0] in "037" and name.endswith("weight")
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if decayed else 1))


@pytest.mark.parametrize("decay", [-1, math.nan, math.inf])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match=f"weight_decay must be at least 0 and finite, got {decay}"):
        param_groups(mixed(), decay)


@pytest.mark.parametrize("decay", ["0.1", None, True, [0.1]])
def test_a_decay_that_is_no_number_is_refused(decay):
    with pytest.raises(TypeError, match=r"param_groups: weight_decay must be a number, such as 5e-4, got"):
        param_groups(mixed(), decay)


@pytest.mark.parametrize("decay", [0, 1, np.float32(0.5), np.float64(0.5)])
def test_whole_numbers_and_numpys_are_numbers(decay):
    assert param_groups(mixed(), decay)[0]["weight_decay"] == decay


@pytest.mark.parametrize("model", [(parameter for parameter in mixed().parameters()), [nn.Linear(2, 2)], None])
def test_a_model_that_is_none_is_refused(model):
    with pytest.raises(TypeError, match=r"param_groups: model must be a torch.nn.Module, got .*\. Pass the model"):
        param_groups(model, 0.1)
