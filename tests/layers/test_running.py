"""When the running statistics move: batches that are not finite, windows of several batches, recomputation."""

import math
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import steadynorm
from steadynorm.statistics import SelfTuned, measure
from tests.support.backends import as_chosen
from tests.support.family import build, each_follower, torchs
from tests.support.layers import drawn
from tests.support.versions import skip_before

SHAPE = (5, 3, 2, 3)


def statistics(layer):
    return {name: getattr(layer, name).clone() for name in ("running_mean", "running_var", "num_batches_tracked")}


def assert_statistics(layer, expected):
    for name, value in expected.items():
        torch.testing.assert_close(getattr(layer, name), value, rtol=1e-10, atol=1e-10)


def faulty(value=math.nan):
    x = drawn(*SHAPE, seed=9)
    x[1, 2, 0, 0] = value
    return x


@each_follower
@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_skipped_batch_leaves_no_trace_in_the_statistics(name, momentum, value):
    layer, without = (build(name, nonfinite="skip", momentum=momentum) for _ in range(2))
    for seed in range(2):
        layer(drawn(*SHAPE, seed=seed)), without(drawn(*SHAPE, seed=seed))
    layer(faulty(value))
    assert_statistics(layer, statistics(without))
    layer(drawn(*SHAPE, seed=3)), without(drawn(*SHAPE, seed=3))
    assert_statistics(layer, statistics(without))


@each_follower
def test_by_default_a_fault_enters_for_ever_as_in_torchs(name):
    layer = build(name)
    layer(faulty())
    layer(drawn(*SHAPE))
    assert layer.running_mean.isnan().tolist() == [False, False, True]


@each_follower
def test_a_batch_that_is_not_finite_raises_before_the_statistics_move(name):
    layer = build(name, nonfinite="raise")
    layer(drawn(*SHAPE))
    before = statistics(layer)
    with pytest.raises(RuntimeError, match=f"{name}2d: with nonfinite='raise' a training batch must be finite.*3 chan"):
        layer(faulty())
    assert_statistics(layer, before)
    layer(drawn(*SHAPE))
    assert layer.num_batches_tracked.item() == 2


@each_follower
@pytest.mark.parametrize("arguments", [{"nonfinite": "skip"}, {"nonfinite": "raise"}, {"update_every": 1}])
def test_finite_batches_are_followed_as_by_torchs(name, arguments):
    ours, native = build(name, **arguments), torchs()
    for seed in range(3):
        ours(drawn(*SHAPE, seed=seed)), native(drawn(*SHAPE, seed=seed))
    assert_statistics(ours, statistics(native))


@each_follower
@pytest.mark.parametrize("momentum", [0.3, None])
def test_a_window_moves_the_statistics_once_by_all_its_values(name, momentum):
    layer = build(name, update_every=3, momentum=momentum)
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    for window in range(2):
        batches = [drawn(size, 3, 2, 3, seed=10 * window + size) + size for size in (2, 5, 4)]
        for x in batches:
            torch.testing.assert_close(layer.running_mean, mean)
            layer(x)
        values = torch.cat(batches).transpose(0, 1).flatten(1)
        share = 1 / (window + 1) if momentum is None else 1 - (1 - momentum) ** 3
        mean = (1 - share) * mean + share * values.mean(1)
        var = (1 - share) * var + share * values.var(1)
        torch.testing.assert_close(layer.running_mean, mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(layer.running_var, var, rtol=1e-10, atol=1e-10)
    assert layer.num_batches_tracked.item() == 6


def test_a_window_leaves_out_what_is_not_finite_and_weighs_as_many_steps_as_are_left():
    layer = build("BatchNorm", update_every=3, nonfinite="skip", momentum=0.3)
    before = layer.running_mean.clone()
    good = [drawn(*SHAPE, seed=1), drawn(*SHAPE, seed=2)]
    for x in (good[0], faulty(), good[1]):
        layer(x)
    share = 1 - 0.7**2
    expected = (1 - share) * before + share * torch.cat(good).mean((0, 2, 3))
    torch.testing.assert_close(layer.running_mean, expected)
    assert layer.num_batches_tracked.item() == 2


def test_resetting_begins_a_new_window():
    layer = build("BatchNorm", update_every=2)
    layer(drawn(*SHAPE))
    layer.reset_running_stats()
    layer(drawn(*SHAPE, seed=1))
    assert torch.equal(layer.running_mean, torch.zeros(3, dtype=torch.float64))
    layer(drawn(*SHAPE, seed=2))
    assert not torch.equal(layer.running_mean, torch.zeros(3, dtype=torch.float64))


def test_a_window_is_no_part_of_the_state_dict():
    assert list(build("BatchNorm", update_every=2).state_dict()) == list(torchs().state_dict())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_recomputed_batch_counts_once(use_reentrant):
    layer, x = build("BatchNorm"), drawn(*SHAPE).requires_grad_()
    expected = build("BatchNorm")
    expected(x)
    checkpoint(layer, x, use_reentrant=use_reentrant).sum().backward()
    assert_statistics(layer, statistics(expected))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nonfinite": "ignore"}, r"nonfinite must be one of \('propagate', 'skip', 'raise'\), got 'ignore'"),
        ({"running": "tuned"}, r"running must be one of \('exponential', 'self_tuned'\), got 'tuned'"),
        ({"update_every": 0}, "update_every counts forwards, a whole number of at least 1, got 0"),
        ({"update_every": 2.5}, r"update_every counts forwards, a whole number of at least 1, got 2\.5"),
        ({"update_every": "2"}, "update_every counts forwards, a whole number of at least 1, got '2'"),
        ({"update_every": True}, "update_every counts forwards, a whole number of at least 1, got True"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"BatchNorm2d: {message}"):
        steadynorm.BatchNorm2d(3, **arguments)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@as_chosen
def test_a_compiled_layer_raises_for_what_is_not_finite_too():
    layer = build("BatchNorm", nonfinite="raise")
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(drawn(*SHAPE))
    with pytest.raises(RuntimeError, match="with nonfinite='raise' a training batch must be finite"):
        compiled(faulty())
    torch._dynamo.reset()


def self_tuned_by_hand(batches):
    state = SelfTuned.begin(3, dtype=torch.float64)
    for x in batches:
        state = state.follow(measure(x))
    return state.estimate()


@each_follower
def test_self_tuned_statistics_are_those_of_the_bank(name):
    layer = build(name, running="self_tuned")
    batches = [drawn(*SHAPE, seed=seed) + seed / 4 for seed in range(5)]
    for x in batches:
        layer(x)
    mean, var = self_tuned_by_hand(batches)
    torch.testing.assert_close(layer.running_mean, mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.running_var, var, rtol=1e-9, atol=1e-9)
    assert layer.num_batches_tracked.item() == 5


def test_self_tuned_statistics_follow_a_window_as_one_batch():
    layer = build("BatchNorm", running="self_tuned", update_every=2)
    batches = [drawn(*SHAPE, seed=seed) + seed / 4 for seed in range(6)]
    for x in batches:
        layer(x)
    mean, _ = self_tuned_by_hand([torch.cat(batches[i : i + 2]) for i in (0, 2, 4)])
    torch.testing.assert_close(layer.running_mean, mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("how", ["reset", "load"])
def test_the_bank_starts_again_with_other_statistics(how):
    layer, fresh = (build("BatchNorm", running="self_tuned") for _ in range(2))
    layer(drawn(*SHAPE) + 100)
    if how == "reset":
        layer.reset_running_stats()
    else:
        with pytest.warns(UserWarning, match="its bank of momenta"):
            layer.load_state_dict(torchs().state_dict())
    layer(drawn(*SHAPE, seed=1)), fresh(drawn(*SHAPE, seed=1))
    torch.testing.assert_close(layer.running_mean, fresh.running_mean)


def test_the_bank_stays_float32_in_a_half_precision_module():
    layer = steadynorm.BatchNorm2d(3, running="self_tuned").bfloat16()
    assert {buffer.dtype for buffer in layer.buffers() if buffer.is_floating_point()} == {torch.float32}


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@as_chosen
def test_a_compiled_layer_keeps_its_windows_where_batches_are_skipped():
    layer, eager = (build("BatchNorm", update_every=2, nonfinite="skip") for _ in range(2))
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for x in (drawn(*SHAPE), faulty(), drawn(*SHAPE, seed=1), drawn(*SHAPE, seed=2), drawn(*SHAPE, seed=3)):
        compiled(x), eager(x)
        assert_statistics(layer, statistics(eager))
    torch._dynamo.reset()


def test_a_batch_counts_once_under_selective_checkpointing():
    layer, expected, x = build("BatchNorm"), build("BatchNorm"), drawn(*SHAPE).requires_grad_()
    expected(x.detach())
    kept = partial(create_selective_checkpoint_contexts, [torch.ops.aten.mul.Tensor])
    checkpoint(lambda x: layer(x * 2 / 2) * 3, x, use_reentrant=False, context_fn=kept).pow(3).sum().backward()
    assert_statistics(layer, statistics(expected))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(("name", "reentrant"), [("BatchNorm", False), ("BatchNorm", True), ("BatchRenorm", False)])
@as_chosen
def test_a_batch_counts_once_where_what_calls_checkpoint_is_compiled(name, reentrant):
    skip_before((2, 9), "a checkpoint within a compiled function runs its forward twice")
    layer, expected = build(name), build(name)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: checkpoint(layer, x, use_reentrant=reentrant), backend="aot_eager")
    for seed in range(2):
        x = drawn(*SHAPE, seed=seed).requires_grad_()
        expected(x.detach())
        compiled(x).pow(3).sum().backward()
        assert_statistics(layer, statistics(expected))
    torch._dynamo.reset()
