"""Forwards that leave the running statistics alone."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from steadynorm import layers
from steadynorm.layers.norm_add_activation import NormAddActivation
from steadynorm.surgery.contexts import (
    no_statistics_update,
    replaced_forwards,
    use_batch_statistics,
    use_running_statistics,
)
from tests.support.layers import drawn, randomize_
from tests.support.ranks import on_ranks
from tests.support.versions import skip_at

CONTEXTS = (no_statistics_update, use_batch_statistics, use_running_statistics)
NORMS = {
    "torch": lambda: nn.BatchNorm1d(3),
    "torch cumulative": lambda: nn.BatchNorm1d(3, momentum=None),
    "torch within": lambda: NormAddActivation(nn.BatchNorm1d(3), "relu"),
    "ours": lambda: layers.BatchNorm1d(3, activation="silu"),
    "window": lambda: layers.BatchNorm1d(3, update_every=3),
    "skipping": lambda: layers.BatchNorm1d(3, nonfinite="skip"),
    "self-tuned": lambda: layers.BatchNorm1d(3, running="self_tuned"),
    "renorm": lambda: layers.BatchRenorm1d(3, warmup_steps=1, ramp_steps=1),
    "gated": lambda: layers.GatedBatchNorm1d(3),
    "ghost": lambda: layers.GhostBatchNorm1d(3, ghost_batch_size=2),
    "sync": lambda: layers.SyncBatchNorm(3),
    "masked": lambda: layers.MaskedBatchNorm1d(3),
    "frozen": lambda: layers.FrozenBatchNorm1d(3),
}

KEPT = ("_window", "_window_at", "_window_seen", "_before")

each_context = pytest.mark.parametrize("context", CONTEXTS)
each_norm = pytest.mark.parametrize("name", NORMS)


def built(name):
    """A small network with such a norm, after two training batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), NORMS[name](), nn.Linear(3, 2)).double()
    for seed in range(2):
        model(drawn(6, 3, seed=seed))
    return model


def everything(model):
    """Every buffer and plain attribute of every module, tensors as copies."""
    found = {}
    for name, module in model.named_modules():
        for key, value in (vars(module) | module._buffers).items():
            if key.startswith("_") and key not in KEPT and key not in module._buffers:
                continue
            found[name, key] = copy.deepcopy(value)
        found[name, "keys"] = sorted(vars(module))
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, torch.Tensor | tuple):
            torch.testing.assert_close(found[key], value, rtol=0, atol=0, equal_nan=True, msg=str(key))
        else:
            assert found[key] == value, key


@each_context
@each_norm
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
@pytest.mark.parametrize("value", [1.0, torch.nan], ids=["finite", "nan"])
def test_nothing_moves_and_no_trace_is_left(context, name, training, value):
    model = built(name).train(training)
    before, versions = everything(model), [each._version for each in model.buffers()]
    with context(model):
        for seed in range(2):
            model(drawn(6, 3, seed=seed + 5) * value)
    assert_same(everything(model), before)
    assert [each._version for each in model.buffers()] == versions


@each_context
def test_no_trace_is_left_by_what_raises(context):
    model = built("window")
    before = everything(model)
    with pytest.raises(ZeroDivisionError), context(model):
        model(drawn(6, 3))
        raise ZeroDivisionError
    assert_same(everything(model), before)


def test_a_forward_that_raises_in_the_layer_leaves_no_trace():
    model = nn.Sequential(layers.BatchNorm1d(3, nonfinite="raise")).double()
    before = everything(model)
    with no_statistics_update(model), pytest.raises(RuntimeError, match="must be finite"):
        model(torch.full((4, 3), torch.nan, dtype=torch.float64))
    assert_same(everything(model), before)


@each_norm
def test_batch_statistics_give_the_training_output_in_evaluation(name):
    model = built(name)
    expected = copy.deepcopy(model)(drawn(6, 3, seed=7))
    model.eval()
    with use_batch_statistics(model):
        torch.testing.assert_close(model(drawn(6, 3, seed=7)), expected, rtol=0, atol=0)


@each_norm
def test_running_statistics_give_the_evaluation_output_in_training(name):
    model = built(name)
    expected = copy.deepcopy(model).eval()(drawn(6, 3, seed=7))
    with use_running_statistics(model):
        torch.testing.assert_close(model(drawn(6, 3, seed=7)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_without_update_the_output_is_that_of_the_mode(training):
    model = built("ours").train(training)
    expected = copy.deepcopy(model)(drawn(6, 3, seed=7))
    with no_statistics_update(model):
        torch.testing.assert_close(model(drawn(6, 3, seed=7)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["torch", "ours", "ghost"])
def test_the_gradient_flows_through_the_moments_of_the_batch(name):
    norm = NORMS[name]().double().eval()
    x = drawn(6, 3).requires_grad_()
    with use_batch_statistics(norm):
        y = norm(x)
    (dx,) = torch.autograd.grad(y, x, drawn(6, 3, seed=1))
    expected = copy.deepcopy(norm).train()
    (other,) = torch.autograd.grad(expected(x), x, drawn(6, 3, seed=1))
    torch.testing.assert_close(dx, other)


@each_context
@pytest.mark.parametrize("name", ["torch", "ours", "renorm", "gated"])
def test_two_forwards_can_be_followed_by_one_backward(context, name):
    model = built(name)
    x = drawn(6, 3).requires_grad_()
    with context(model):
        first, second = model(x), model(x * 2)
    model(drawn(6, 3, seed=3))  # a training batch, which moves the running statistics in place
    (first + second).backward(drawn(6, 2, seed=1))
    assert x.grad.isfinite().all()


def test_other_layers_keep_their_mode():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(1.0)).eval()
    with use_batch_statistics(model):
        assert model(torch.randn(4, 3)).abs().sum() > 0


def test_only_chosen_layers_are_held():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    with no_statistics_update(model, where=lambda name, module: name == "1"):
        model(torch.randn(4, 3))
    assert [int(each.num_batches_tracked) for each in model] == [1, 0]


@pytest.mark.parametrize(
    ("outer", "inner", "training"),
    [
        (use_batch_statistics, use_running_statistics, False),
        (use_running_statistics, use_batch_statistics, True),
        (use_batch_statistics, no_statistics_update, True),
        (use_running_statistics, no_statistics_update, False),
        (no_statistics_update, use_running_statistics, False),
    ],
)
@pytest.mark.parametrize("mode", [True, False])
def test_nested_the_innermost_that_says_so_chooses_the_statistics(outer, inner, training, mode):
    model = built("ours").train(mode)
    x = drawn(6, 3, seed=7)
    expected, around = (copy.deepcopy(model).train(each)(x) for each in (training, outer is not use_running_statistics))
    before = everything(model)
    with outer(model):
        with inner(model):
            torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
        if outer is not no_statistics_update:
            torch.testing.assert_close(model(x), around, rtol=0, atol=0)
    assert_same(everything(model), before)


def test_a_mask_passes_through():
    norm = randomize_(layers.MaskedBatchNorm1d(3).double()).eval()
    x, lengths = drawn(2, 3, 5), torch.tensor([5, 2])
    expected = copy.deepcopy(norm).train()(x, lengths=lengths)
    with use_batch_statistics(norm):
        torch.testing.assert_close(norm(x, lengths=lengths), expected, rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["torch", "renorm", "gated"])
def test_a_checkpoint_within_gives_the_gradient_of_none(name, reentrant):
    model = built(name)
    with torch.no_grad():
        model(drawn(6, 3, seed=2))  # leaves renorm and gated what they would find when recomputing this batch
    model[1].train()
    x, other = (drawn(6, 3, seed=4).requires_grad_() for _ in range(2))
    before = everything(model)
    with use_batch_statistics(model):
        checkpoint(model, x, use_reentrant=reentrant).backward(drawn(6, 2, seed=1))
        model(other).backward(drawn(6, 2, seed=1))
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-12, atol=1e-12)
    assert_same(everything(model), before)


def test_running_statistics_that_are_not_there_are_named():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ValueError, match=r"got torch.nn.BatchNorm1d\(3\) '1' without"), use_running_statistics(model):
        pass
    with use_running_statistics(model, where=lambda name, module: name != "1"):
        model(torch.randn(4, 3))
    assert int(model[0].num_batches_tracked) == 0


class Activated(nn.BatchNorm1d):
    def forward(self, input):
        return super().forward(input).relu()


@each_context
@pytest.mark.parametrize(
    "build", [lambda: Activated(3), nn.LazyBatchNorm1d, lambda: torch.jit.script(nn.BatchNorm1d(3))]
)
def test_what_nobody_knows_is_refused_by_name(context, build):
    model = nn.Sequential(nn.Identity(), build())
    with (
        pytest.raises(TypeError, match=r"every batch norm must be one of torch's or ours, got .*'1': it "),
        context(model),
    ):
        pass
    with context(model, where=lambda name, module: name != "1"):
        pass


@pytest.mark.parametrize("wrap", [torch.compile, lambda model, **named: model.compile(**named) or model])
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_held_too(wrap):
    if wrap is torch.compile:
        skip_at((2, 9), "a compiled wrapper that has run does not see that a forward was exchanged")
    model = built("torch")
    compiled = wrap(model, backend="eager")
    compiled(drawn(6, 3))
    before = everything(model)
    with use_running_statistics(model):
        found = [compiled(drawn(6, 3, seed=seed)) for seed in (7, 8)]
    assert_same(everything(model), before)
    evaluating = built("torch").eval()
    evaluating.load_state_dict(model.state_dict())
    torch.testing.assert_close(found, [evaluating(drawn(6, 3, seed=seed)) for seed in (7, 8)])
    compiled(drawn(6, 3))
    assert int(model[1].num_batches_tracked) == int(before["1", "num_batches_tracked"]) + 1


def wrapped_on_each_rank():
    model = built("ours")
    parallel = DistributedDataParallel(model)
    before = everything(model)
    with no_statistics_update(parallel):
        first, second = (parallel(drawn(6, 3, seed=dist.get_rank() + each)) for each in (5, 7))
        (first + second).sum().backward()
    assert_same(everything(model), before)
    parallel(drawn(6, 3))
    return int(model[1].num_batches_tracked)


def test_a_distributed_model_is_held_too(tmp_path):
    assert on_ranks(wrapped_on_each_rank, 2, tmp_path) == [3, 3]


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def averaged(model):
    return AveragedModel(model).module


@each_norm
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved, averaged], ids=lambda way: way.__name__)
def test_a_copy_made_within_is_as_the_model_is_outside(name, copied):
    model, expected = built(name), built(name)
    with use_batch_statistics(model), no_statistics_update(model), use_running_statistics(model):
        other = copied(model)
    assert [sorted(vars(each)) for each in other.modules()] == [sorted(vars(each)) for each in model.modules()]
    for training in (True, True, False):
        x = drawn(6, 3, seed=9)
        y = expected.train(training)(x)
        torch.testing.assert_close(other.train(training)(x), y, rtol=0, atol=0)
    assert_same(everything(other), everything(expected))
    assert_same(everything(model), everything(built(name)))


def test_a_copy_made_within_keeps_a_forward_that_was_replaced_before():
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].forward = torch.neg
    with replaced_forwards({model[0]: torch.exp}), replaced_forwards({model[0]: torch.sin}):
        other = copy.deepcopy(model)
    x = drawn(2, 3)
    assert torch.equal(other(x), -x)
    assert torch.equal(model(x), -x)
