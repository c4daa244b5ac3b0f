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
        HomemadeRMSNorm(),
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


def test_other_vectors_decay():
    model = nn.ParameterList([torch.ones(3)])
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


def test_negative_decay_is_refused():
    with pytest.raises(ValueError, match="at least 0, got -1"):
        param_groups(mixed(), -1)
