import copy
import pickle

import pytest
import torch
from torch import nn

import steadynorm
from steadynorm.surgery import convert_, freeze_, unfreeze_
from tests.support.layers import drawn, randomize_
from tests.support.ranks import on_ranks
from tests.support.surgery import MIXED_INPUT, assert_state_equal, mixed, snapshot

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
NORMS = (1, 4, 8)


def train(model, steps=3):
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, weight_decay=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        model(MIXED_INPUT * (step + 2) + step).backward(drawn(5, 7, seed=step))
        optimizer.step()


def norm_state(model):
    return {key: value.clone() for key, value in model.state_dict().items() if int(key.split(".")[0]) in NORMS}


def moved(model, before):
    now = model.state_dict()
    return {key.split(".")[1] for key, value in before.items() if not torch.equal(now[key], value)}


def test_frozen_survives_training():
    model = mixed()
    before = norm_state(model)
    conv = model[0].weight.clone()
    freeze_(model)
    train(model)
    assert moved(model, before) == set()
    assert not torch.equal(model[0].weight, conv)


def test_in_training_mode_it_normalizes_by_the_running_statistics():
    """Where a frozen layer uses batch statistics in training, its outputs of the two modes differ."""
    model = mixed()
    y = model(MIXED_INPUT)
    freeze_(model)
    torch.testing.assert_close(model.train()(MIXED_INPUT), y)


def test_statistics_alone():
    model = mixed()
    before = norm_state(model)
    freeze_(model, affine=False)
    train(model)
    assert moved(model, before) == {"weight", "bias"}


def test_affine_alone():
    model = mixed()
    before = norm_state(model)
    change = freeze_(model, statistics=False)
    assert [each.name for each in change.changed] == ["1", "4", "8"]
    assert type(model[1]) is nn.BatchNorm2d
    train(model)
    assert moved(model, before) == set(STATISTICS)


@pytest.mark.parametrize("arguments", [{}, {"affine": False}, {"statistics": False}], ids=str)
def test_unfreeze_brings_everything_back(arguments):
    model = mixed(nonfinite="skip", momentum=0.3)
    model[1].weight.requires_grad_(False)
    model[4].eval()
    classes = [type(module) for module in model.modules()]
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    objects = dict(model.named_parameters())
    freeze_(model, **arguments)
    unfreeze_(model)
    assert [type(module) for module in model.modules()] == classes
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert all(objects[name] is parameter for name, parameter in model.named_parameters())
    assert (model[4].nonfinite, model[4].momentum, model[8].momentum) == ("skip", 0.3, None)
    assert (model[4].activation, model[8].eps) == ("relu", 1e-3)
    statistics = norm_state(model)
    train(model)
    assert moved(model, statistics) == {"weight", "bias", *STATISTICS}


def test_unfreezing_leaves_nothing_on_the_layers():
    model = mixed()
    before = [set(vars(module)) for module in model.modules()]
    freeze_(model)
    unfreeze_(model)
    assert [set(vars(module)) for module in model.modules()] == before


def test_a_layer_that_convert_has_frozen_is_learned_again():
    model = mixed()
    model[1].bias.requires_grad_(False)
    convert_(model, "frozen_batch_norm")
    assert not any(parameter.requires_grad for place in NORMS for parameter in model[place].parameters())
    unfreeze_(model)
    assert [parameter.requires_grad for parameter in model[1].parameters()] == [True, False]
    assert all(parameter.requires_grad for parameter in model[4].parameters())


@pytest.mark.parametrize(
    "norm",
    [lambda: steadynorm.GatedBatchNorm2d(3), lambda: steadynorm.FrozenBatchNorm2d(3, freeze_affine=False)],
    ids=["gated", "frozen"],
)
def test_weights_that_are_frozen_where_the_statistics_are_not_to_be_are_named(norm):
    model = nn.Sequential(norm())
    change = freeze_(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [each.after for each in change.changed] == ["its weight and bias frozen"]
    assert [each.after for each in unfreeze_(model, statistics=False).changed] == ["its weight and bias learned"]


@pytest.mark.parametrize("arguments", [{}, {"running": "self_tuned"}], ids=str)
def test_training_after_unfreezing_is_training_without_freezing(arguments):
    plain, other = mixed(**arguments), mixed(**arguments)
    train(plain)
    train(other)
    freeze_(other)
    unfreeze_(other)
    train(plain)
    train(other)
    for a, b in zip(plain.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_unfreezing_the_affine_part_leaves_statistics_frozen():
    model = mixed()
    freeze_(model)
    before = norm_state(model)
    unfreeze_(model, statistics=False)
    train(model)
    assert moved(model, before) == {"weight", "bias"}


def test_a_checkpoint_loads_into_a_frozen_model_and_stays_frozen():
    source = randomize_(mixed(), seed=7)
    model = mixed()
    freeze_(model)
    model.load_state_dict(source.state_dict())
    assert list(model.state_dict()) == list(source.state_dict())
    torch.testing.assert_close(model(MIXED_INPUT), source(MIXED_INPUT))
    before = norm_state(source)
    train(model)
    assert moved(model, before) == set()


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_can_be_unfrozen(copied):
    model = mixed()
    freeze_(model)
    other = copied(model)
    unfreeze_(other)
    assert [type(other[place]).__module__.split(".")[0] for place in NORMS] == ["torch", "steadynorm", "torch"]
    assert all(parameter.requires_grad for parameter in other.parameters())


class ProcessGroup:
    """As torch's cannot be copied."""

    def __deepcopy__(self, memo):
        raise TypeError("cannot pickle a process group")


def test_a_copy_of_a_layer_that_had_a_process_group_can_be_unfrozen():
    group = ProcessGroup()
    model = nn.Sequential(nn.Conv2d(3, 3, 1), steadynorm.SyncBatchNorm(3, process_group=group))
    freeze_(model)
    other = copy.deepcopy(model)
    unfreeze_(other)
    assert type(other[1]) is steadynorm.SyncBatchNorm
    assert other[1].process_group is group


def test_undo_is_bit_for_bit():
    model = mixed()
    before = snapshot(model)
    freeze_(model).undo()
    assert_state_equal(model, before)


def test_freezing_twice_changes_nothing_more():
    model = mixed()
    freeze_(model)
    assert freeze_(model).changed == ()
    unfreeze_(model)
    assert type(model[1]) is nn.BatchNorm2d
    assert model[1].weight.requires_grad


def test_a_layer_frozen_by_hand_is_unfrozen_to_ours():
    model = nn.Sequential(steadynorm.FrozenBatchNorm2d(3, momentum=0.2, activation="relu"))
    unfreeze_(model)
    assert type(model[0]) is steadynorm.BatchNorm2d
    assert (model[0].momentum, model[0].activation) == (0.2, "relu")
    assert model[0].weight.requires_grad


@pytest.mark.parametrize(
    ("norm", "why"),
    [
        (lambda: nn.BatchNorm2d(3, track_running_stats=False), "needs running statistics"),
        (lambda: steadynorm.GatedBatchNorm2d(3), "depends on the batch"),
        (lambda: steadynorm.MaskedBatchNorm1d(3), "mask"),
    ],
    ids=["untracked", "gated", "masked"],
)
def test_what_cannot_be_frozen_is_refused(norm, why):
    model = nn.Sequential(norm())
    cls = type(model[0])
    change = freeze_(model)
    assert type(model[0]) is cls
    assert why in change.refused[0].why


def test_where_chooses():
    model = mixed()
    freeze_(model, where=lambda name, module: isinstance(module, nn.BatchNorm1d))
    assert [type(model[place]).__name__ for place in NORMS] == ["BatchNorm2d", "BatchNorm2d", "FrozenBatchNorm1d"]


def in_parallel():
    """Three steps of DistributedDataParallel on a frozen model whose ranks have different batches."""
    model = mixed()
    freeze_(model)
    before = norm_state(model)
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    parallel.train()
    rank = torch.distributed.get_rank()
    for step in range(3):
        parallel(MIXED_INPUT * (rank + step + 2)).backward(drawn(5, 7, seed=step))
    return sorted(moved(model, before)), [model[0].weight.grad.abs().sum() > 0]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_frozen_survives_distributed_data_parallel(tmp_path):
    assert on_ranks(in_parallel, 2, tmp_path) == [([], [True])] * 2
