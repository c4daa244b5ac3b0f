import pytest
import torch
from torch import nn

from steadynorm.surgery import NothingDoneError, convert_, freeze_, recalibrate_
from steadynorm.surgery.change import Transaction
from tests.support.layers import drawn
from tests.support.surgery import MIXED_INPUT, assert_state_equal, mixed, snapshot


def edited(edits, model):
    edits.write_(model[0].weight, torch.zeros_like(model[0].weight))
    edits.set_attribute(model[1], "momentum", 0.7)
    edits.set_attribute(model[1], "a_new_one", 3)
    edits.set_entry(model[3]._parameters, "bias", None)
    edits.replace(model[2], nn.SiLU())


def test_undo_takes_every_kind_of_edit_back():
    model = mixed()
    before, momentum = snapshot(model), model[1].momentum
    with Transaction("test", model) as edits:
        edited(edits, model)
        change = edits.finish()
    assert model[3].bias is None
    assert change.undo() is model
    assert_state_equal(model, before)
    assert model[1].momentum == momentum
    assert not hasattr(model[1], "a_new_one")


def test_an_exception_takes_every_edit_back():
    model = mixed()
    before = snapshot(model)
    with pytest.raises(KeyError), Transaction("test", model) as edits:
        edited(edits, model)
        raise KeyError
    assert_state_equal(model, before)


def test_undo_restores_nan_bit_for_bit():
    tensor = torch.tensor([float("nan"), -0.0])
    before = tensor.clone().view(torch.int32)
    with Transaction("test", nn.Module()) as edits:
        edits.write_(tensor, torch.zeros(2))
    edits.finish().undo()
    assert torch.equal(tensor.view(torch.int32), before)


def test_a_change_cannot_be_undone_twice():
    change = convert_(mixed(), "batch_norm")
    change.undo()
    with pytest.raises(RuntimeError, match="undone already"):
        change.undo()


def test_a_change_under_a_later_one_is_not_undone():
    model = mixed()
    first = convert_(model, "batch_renorm")
    second = convert_(model, "torch_batch_norm")
    after = snapshot(model)
    with pytest.raises(RuntimeError, match="Undo the later change first"):
        first.undo()
    assert_state_equal(model, after)
    second.undo()
    first.undo()


def test_undo_gives_the_old_root_back():
    root = nn.BatchNorm2d(3)
    change = convert_(root, "batch_norm")
    assert change.model is not root
    assert change.undo() is root
    assert change.model is root


def test_a_module_in_two_places_is_replaced_in_both():
    shared = nn.ReLU()
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    new = nn.SiLU()
    with Transaction("test", model) as edits:
        edits.replace(shared, new)
    assert model["a"] is new
    assert model["b"][0] is new


def test_a_layer_comes_back_in_the_mode_that_the_model_has_come_to():
    model = mixed()
    layer = model[1]
    change = convert_(model, "batch_renorm")
    model.train()
    change.undo()
    assert model[1] is layer
    assert layer.training


@pytest.mark.parametrize("to", ["batch_renorm", "group_norm"])
def test_a_layer_comes_back_in_the_dtype_that_the_model_has_come_to(to):
    model = mixed().float()
    change = convert_(model, to)
    model.double()
    change.undo()
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float64, torch.int64}
    assert model(MIXED_INPUT).dtype == torch.float64


def test_a_layer_comes_back_with_the_statistics_that_have_followed():
    model = mixed().train()
    change = convert_(model, "batch_norm")
    model(MIXED_INPUT)
    followed = model[1].running_mean.clone()
    change.undo()
    assert torch.equal(model[1].running_mean, followed)


def test_numbers_are_taken_back_where_the_buffer_has_been_moved():
    model = nn.Sequential(nn.BatchNorm1d(4))
    change = recalibrate_(model, [drawn(20, 4).float() + 3])
    model.double()
    assert not torch.equal(model[0].running_mean, torch.zeros(4).double())
    change.undo()
    assert torch.equal(model[0].running_mean, torch.zeros(4).double())


def test_a_change_says_what_was_done():
    model = mixed(nonfinite="skip")
    change = convert_(model, "torch_batch_norm")
    text = str(change)
    assert repr(change) == text
    assert text.splitlines() == [
        "convert_: 1 changed, 0 refused",
        "  4: steadynorm.BatchNorm2d(48, 'relu') -> torch.nn.BatchNorm2d(48) + relu",
        "    note: nonfinite='skip' is not known there",
    ]


def test_a_note_on_several_layers_is_said_once_with_their_number():
    change = convert_(nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(5), nn.LayerNorm(3)), "batch_renorm", r_max=2)
    lines = str(change).splitlines()
    assert lines[:3] == [
        "convert_: 2 changed, 0 refused",
        "  note: convert_ replaces batch norms and keeps 1 LayerNorm",
        "  0: torch.nn.BatchNorm2d(4) -> steadynorm.BatchRenorm2d(4, r_max=2)",
    ]
    assert lines[3].startswith("    note: plain batch norm for 5,000 more") and lines[3].endswith(" (2 layers)")
    assert lines[4:] == ["  1: torch.nn.BatchNorm2d(5) -> steadynorm.BatchRenorm2d(5, r_max=2)"]
    assert "(2 layers)" not in str(change.changed[1]) and "plain batch norm" in str(change.changed[1])


def test_where_that_chooses_no_batch_norm_is_no_success():
    model = mixed()
    with pytest.raises(
        NothingDoneError, match=r"freeze_: where must select .* none of the 3 in the model: '1', '4', '8'\."
    ):
        freeze_(model, where=lambda name, module: name.startswith("layer"))
    plain = nn.Sequential(nn.Linear(3, 3))
    assert not freeze_(plain, where=lambda name, module: True).changed


def test_a_model_that_is_as_wanted_is_no_failure():
    model = mixed()
    convert_(model, "batch_norm")
    assert not convert_(model, "batch_norm").changed
    assert not convert_(nn.Sequential(nn.Linear(3, 3)), "batch_norm").changed
