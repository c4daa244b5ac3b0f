"""A checkpoint in whatever form people keep it, by the names of the model's own state dict."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from steadynorm.surgery.checkpoints import state_for
from tests.support.layers import randomize_


class Holder(nn.Module):
    """Like a LightningModule or an EMA wrapper: the network under an attribute, and something beside it."""

    def __init__(self, **networks):
        super().__init__()
        for name, network in networks.items():
            setattr(self, name, network)
        self.register_buffer("step", torch.tensor(7))


def network(seed=0):
    return randomize_(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4))), seed=seed)


def assert_is_state_of(found, model):
    expected = model.state_dict()
    assert list(found.tensors) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=0, atol=0)
    assert (found.missing, found.unknown) == ((), ())


def prefixed(prefix, model):
    return {prefix + name: each for name, each in model.state_dict().items()}


def test_the_models_own_state_dict_is_taken_without_a_note():
    found = state_for(network(seed=1), network().state_dict(), verb="load")
    assert_is_state_of(found, network())
    assert found.notes == ()


FORMS = {
    "module.": lambda net: prefixed("module.", net),
    "_orig_mod.": lambda net: prefixed("_orig_mod.", net),
    "module._orig_mod.": lambda net: prefixed("module._orig_mod.", net),
    "state_dict.model.": lambda net: {"state_dict": prefixed("model.", net), "epoch": 3},
    "model.": lambda net: {"model": net.state_dict(), "optimizer": {"state": {0: {"exp_avg": torch.zeros(4)}}}},
    "checkpoint.model.state_dict.": lambda net: {"checkpoint": {"model": {"state_dict": net.state_dict()}}},
    "ema.module.": lambda net: {"ema": AveragedModel(net)},
    "ema_model.": lambda net: Holder(ema_model=net).state_dict(),
    "shadow.": lambda net: Holder(shadow=net).state_dict(),
    "state_dict.backbone.": lambda net: {"state_dict": Holder(backbone=net, head=nn.Linear(2, 2)).state_dict()},
}


@pytest.mark.parametrize("prefix", FORMS)
def test_a_nested_or_prefixed_state_is_understood_and_told(prefix):
    found = state_for(network(seed=1), FORMS[prefix](network()), verb="load")
    assert_is_state_of(found, network())
    assert found.notes[0] == f"names are taken without {prefix!r}"


def test_the_count_of_an_average_is_passed_over_by_name():
    found = state_for(network(seed=1), AveragedModel(network()).state_dict(), verb="load")
    assert_is_state_of(found, network())
    assert found.notes == ("names are taken without 'module.'", "passed over beside them: n_averaged")


def test_compiled_modules_inside_are_understood():
    net = network()
    net[2][0] = torch.compile(net[2][0], backend="eager")
    assert "2.0._orig_mod.weight" in net.state_dict()
    found = state_for(network(seed=1), net.state_dict(), verb="load")
    assert_is_state_of(found, network())
    assert found.notes == ("5 names of wrapped modules are understood, as '2.0._orig_mod.weight' for '2.0.weight'",)


def test_a_wrapped_model_takes_plain_names():
    wrapped = Holder(module=network(seed=1))
    del wrapped.step
    found = state_for(wrapped, network().state_dict(), verb="load")
    assert list(found.tensors) == list(wrapped.state_dict())
    assert torch.equal(found.tensors["module.1.weight"], network()[1].weight)


def test_a_model_that_is_a_wrapper_takes_the_plain_names_of_what_it_holds():
    wrapper = Holder(ema_model=network(seed=1))
    del wrapper.step
    found = state_for(wrapper, {"state_dict": network().state_dict()}, verb="load")
    assert torch.equal(found.tensors["ema_model.1.weight"], network()[1].weight)
    assert len(found.tensors) == 12


def test_a_model_that_is_held_under_an_unusual_name_takes_no_plain_names():
    model = Holder(encoder=network())
    del model.step
    with pytest.raises(ValueError, match=r"by the model's names, encoder\.0\.weight, .*got 0\.weight"):
        state_for(model, network().state_dict(), verb="load")


def test_names_that_are_one_without_a_wrappers_part_stay_two():
    made = [randomize_(Holder(module=nn.Linear(2, 3), bias=nn.Parameter(torch.ones(3))), seed=at) for at in range(2)]
    assert not torch.equal(made[0].bias, made[0].module.bias)
    assert_is_state_of(state_for(made[1], made[0].state_dict(), verb="load"), made[0])


@pytest.mark.parametrize(
    "counter", [torch.tensor([5]), np.array(5), np.array([5]), np.int64(5), 5, torch.tensor([[5]])], ids=repr
)
def test_a_counter_of_another_form_has_the_models(counter):
    state = network().state_dict() | {"1.num_batches_tracked": counter}
    found = state_for(network(), state, verb="load").tensors["1.num_batches_tracked"]
    assert (found.shape, found.item()) == ((), 5)


@pytest.mark.parametrize("drop", [True, False])
def test_an_absent_or_empty_counter_is_not_missing(drop):
    state = {**network().state_dict()}
    state["1.num_batches_tracked"] = torch.zeros(0, dtype=torch.long)
    if drop:
        del state["1.num_batches_tracked"]
    found = state_for(network(), state, verb="load")
    assert "1.num_batches_tracked" not in found.tensors
    assert found.missing == ()


def test_numpy_arrays_are_taken():
    found = state_for(network(seed=1), {name: each.numpy() for name, each in network().state_dict().items()}, verb="l")
    assert_is_state_of(found, network())


@pytest.mark.parametrize("beside", [np.array(["cat", "dog"]), np.array([None]), np.array(3 + 4j)], ids=str)
def test_arrays_that_are_no_numbers_are_passed_over(beside):
    assert_is_state_of(state_for(network(seed=1), network().state_dict() | {"classes": beside}, verb="load"), network())


@pytest.mark.parametrize("value", [None, 0.5, "none", {}], ids=repr)
def test_statistics_that_are_no_numbers_are_passed_over(value):
    loaded = network().state_dict() | {"config": {"running_mean": value}}
    assert_is_state_of(state_for(network(seed=1), loaded, verb="load"), network())


def test_what_is_missing_and_what_is_unknown_is_named_in_the_models_form():
    state = prefixed("module.", network())
    state["module.9.weight"] = state.pop("module.1.weight")
    found = state_for(network(), state, verb="load")
    assert (found.missing, found.unknown) == (("1.weight",), ("9.weight",))


def test_bare_names_are_preferred_to_prefixed_ones():
    state = network().state_dict() | prefixed("ema_model.", network(seed=1))
    found = state_for(network(), state, verb="load")
    assert torch.equal(found.tensors["1.weight"], network()[1].weight)


def test_two_parts_that_fit_and_differ_are_refused_by_name():
    with pytest.raises(ValueError, match=r"load: one part .* got several that differ: model, ema\. Choose one"):
        state_for(network(), {"model": network().state_dict(), "ema": network(seed=1).state_dict()}, verb="load")
    same = state_for(network(), {"model": network().state_dict(), "ema": network().state_dict()}, verb="load")
    assert_is_state_of(same, network())


def test_an_unusual_prefix_with_a_gap_is_not_believed():
    state = prefixed("encoder.", network())
    del state["encoder.1.weight"]
    message = r"load: the checkpoint must have tensors by the model's names, 0\.weight, .*got encoder\.0\.weight"
    with pytest.raises(ValueError, match=message):
        state_for(network(), state, verb="load")


def test_an_unusual_prefix_is_believed_in_the_models_shapes_alone():
    wide = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.Sequential(nn.BatchNorm2d(5)))
    both = prefixed("teacher.", wide) | prefixed("student.", network())
    found = state_for(network(seed=1), both, verb="load")
    assert found.notes[0] == "names are taken without 'student.'"
    with pytest.raises(ValueError, match=r"must have tensors by the model's names, .*got teacher\.0\.weight"):
        state_for(network(), prefixed("teacher.", wide), verb="load")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_an_unusual_prefix_before_a_nested_tensor_is_not_believed():
    state = {"encoder.weight": torch.nested.nested_tensor([torch.ones(2)] * 3), "encoder.bias": torch.ones(3)}
    with pytest.raises(ValueError, match="must have tensors by the model's names"):
        state_for(nn.Linear(2, 3), state, verb="load")


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_an_unusual_prefix_is_not_believed_of_a_model_without_shapes():
    with pytest.raises(ValueError, match=r"must have tensors by the model's names, weight, bias, got encoder\.weight"):
        state_for(nn.LazyLinear(3), prefixed("encoder.", nn.Linear(2, 3)), verb="load")


@pytest.mark.parametrize("loaded", [{}, {"epoch": 3}, {"state_dict": {"a": {"b": {"c": {"0.weight": torch.ones(1)}}}}}])
def test_a_checkpoint_without_the_models_tensors_raises(loaded):
    with pytest.raises(ValueError, match="must have tensors by the model's names"):
        state_for(network(), loaded, verb="load")


def test_what_is_no_mapping_raises():
    with pytest.raises(TypeError, match="load: a checkpoint must be a mapping of names to tensors, got list"):
        state_for(network(), [torch.ones(1)], verb="load")


def test_state_that_is_no_tensor_is_left_to_its_layer():
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"steps": 3}

        def set_extra_state(self, state):
            assert state["steps"] == 3

    found = state_for(Counting(2, 2), prefixed("module.", Counting(2, 2)), verb="load")
    assert (list(found.tensors), found.missing) == (["weight", "bias"], ())
