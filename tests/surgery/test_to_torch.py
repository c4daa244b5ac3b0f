import pickle
import pickletools

import pytest
import torch
from torch import nn

import steadynorm
from steadynorm.surgery import to_torch_
from tests.support.family import EVALUATING_AS_BATCH_NORM, build
from tests.support.layers import drawn, randomize_
from tests.support.surgery import MIXED_INPUT, assert_state_equal, mixed, refusals, snapshot


@pytest.mark.parametrize("name", EVALUATING_AS_BATCH_NORM)
@pytest.mark.parametrize("dimensions", [2, 4, 5])
def test_every_kind_becomes_torchs_and_evaluates_alike(name, dimensions):
    model = nn.Sequential(build(name, dimensions)).eval()
    x = drawn(4, 3, *[2] * (dimensions - 2))
    y = model(x)
    to_torch_(model)
    assert type(model[0]) is {2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[dimensions]
    torch.testing.assert_close(model(x), y, rtol=1e-12, atol=1e-12)


def test_only_torchs_classes_are_left_among_the_norms():
    model = mixed()
    to_torch_(model)
    norms = [type(module) for module in model.modules() if hasattr(module, "running_mean")]
    assert norms == [nn.BatchNorm2d, nn.BatchNorm2d, nn.BatchNorm1d]


def test_torchs_fuser_recognises_them():
    from torch.fx.experimental.optimization import fuse

    model = mixed()
    y = model(MIXED_INPUT)
    to_torch_(model)
    fused = fuse(model)
    assert not [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
    torch.testing.assert_close(fused(MIXED_INPUT), y)


def test_a_synchronised_layer_becomes_torchs_synchronised_one():
    model = nn.Sequential(steadynorm.SyncBatchNorm(3))
    to_torch_(model)
    assert type(model[0]) is nn.SyncBatchNorm


def test_gated_is_refused():
    model = nn.Sequential(steadynorm.GatedBatchNorm2d(3))
    assert "evaluation differs" in refusals(to_torch_, model)[0].why
    assert type(model[0]) is steadynorm.GatedBatchNorm2d


def test_torchs_own_are_not_touched():
    model = mixed()
    own = model[1]
    assert [each.name for each in to_torch_(model).changed] == ["4"]
    assert model[1] is own


def test_nothing_of_ours_is_left_on_torchs_layers():
    """Else a pickled model could not be loaded without this package."""
    model = nn.Sequential(steadynorm.BatchNorm2d(3), steadynorm.SyncBatchNorm(3), steadynorm.FrozenBatchNorm2d(3))
    to_torch_(model)
    assert "steadynorm" not in pickletools_strings(pickle.dumps(model))


def pickletools_strings(data):
    return " ".join(str(value) for _, value, _ in pickletools.genops(data))


def test_undo_is_bit_for_bit():
    model = randomize_(mixed())
    before = snapshot(model)
    to_torch_(model).undo()
    assert_state_equal(model, before)


def test_what_is_lost_is_noted():
    model = nn.Sequential(steadynorm.FrozenBatchNorm2d(3), steadynorm.GhostBatchNorm2d(3, ghost_batch_size=8))
    change = to_torch_(model)
    assert ["no longer frozen" in change.changed[0].notes[0], "ghost_batch_size=8" in change.changed[1].notes[0]] == [
        True,
        True,
    ]
