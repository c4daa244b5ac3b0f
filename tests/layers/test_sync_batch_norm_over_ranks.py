"""Synchronized batch norm on four processes: what one process computes from the batches put together."""

import copy
import re
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

import steadynorm
from steadynorm.layers import SyncBatchNorm
from tests.support.layers import drawn, randomize_
from tests.support.ranks import SIZES, Collectives, on_ranks, part_of, together

SHAPE = (sum(SIZES), 3, 4)


def second_gradients(layer, x, residual, dy):
    """Gradients of a gradient penalty, of this rank's part."""
    x, residual = x.requires_grad_(), residual.requires_grad_()
    (dx,) = torch.autograd.grad(layer(x, residual), x, dy, create_graph=True)
    return [dx.detach(), *torch.autograd.grad(dx.pow(3).sum(), [x, residual, layer.weight])]


def float64_layer(cls=SyncBatchNorm, **arguments):
    return randomize_(cls(3, **arguments).double())


def collectives():
    layer, x = float64_layer(), part_of(drawn(*SHAPE)).requires_grad_()
    seen = []
    for training in (True, True, False):
        layer.train(training)
        with Collectives() as forward:
            y = layer(x)
        with Collectives() as backward:
            y.backward(torch.ones_like(y))
        seen.append((forward.seen, backward.seen))
    with Collectives() as counted:
        layer.train()(part_of(drawn(*SHAPE))).sum().backward()
    return [*seen, (counted.seen,)]


def moved(**arguments):
    """Buffers after four batches, of which the ranks have different shares."""
    layer = float64_layer(**arguments)
    for seed in range(4):
        layer(part_of(drawn(*SHAPE, seed=seed), SIZES[seed:] + SIZES[:seed]))
    return dict(layer.named_buffers())


def overflowed():
    """Of a batch whose middle channel has a variance that does not fit float32."""
    x = part_of(drawn(*SHAPE).float() * torch.tensor([1, 1e30, 1]).view(-1, 1))
    return SyncBatchNorm(3)(x).detach()


def checkpointed(use_reentrant):
    first, second = float64_layer(activation="silu"), float64_layer()
    x = part_of(drawn(*SHAPE)).requires_grad_()
    y = checkpoint(lambda x: second(first(x).square()), x, use_reentrant=use_reentrant)
    y.backward(part_of(drawn(*SHAPE, seed=1)))
    return {"dx": x.grad, **{f"first.{n}": b for n, b in first.named_buffers()}}


def of_a_pair():
    """What ranks 0 and 1, and ranks 2 and 3, compute each for themselves, by a copy of the layer."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    layer = copy.deepcopy(float64_layer(process_group=groups[dist.get_rank() // 2]))
    return layer(part_of(drawn(*SHAPE))).detach()


def of_a_group_of_others():
    group = dist.new_group([0, 1])
    layer = float64_layer(process_group=group if dist.get_rank() < 2 else dist.GroupMember.NON_GROUP_MEMBER)
    return layer(drawn(6, 3, seed=dist.get_rank())).detach()


def nothing_anywhere():
    layer = float64_layer(activation="relu")
    x = torch.empty(0, 3, 4, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y.backward(torch.empty_like(y))
    return {"y": y.detach(), "dx": x.grad, "dweight": layer.weight.grad, **dict(layer.named_buffers())}


def one_value():
    layer = float64_layer()
    y = layer(part_of(drawn(1, 3), (0, 1, 0, 0)))
    return {"y": y.detach(), "bias": layer.bias.detach(), **dict(layer.named_buffers())}


def evaluated_without_estimates():
    layer = float64_layer(track_running_stats=False).eval()
    return layer(part_of(drawn(*SHAPE))).detach()


def without_a_gradient_of_x():
    layer = float64_layer()
    y = layer(part_of(drawn(*SHAPE)))
    y.backward(part_of(drawn(*SHAPE, seed=1)))
    return layer.weight.grad


def refused():
    layer, x = float64_layer(nonfinite="raise"), part_of(drawn(*SHAPE))
    if dist.get_rank() == 1:
        x[0, 1] = float("nan")
    with pytest.raises(RuntimeError) as error:
        layer(x)
    return str(error.value)


def transformed():
    """Reverse-mode transforms of this rank's part, and the expected answer for the others."""
    layer = float64_layer(activation="silu", track_running_stats=False)
    x, dy = part_of(drawn(*SHAPE)), part_of(drawn(*SHAPE, seed=1))
    leaf = x.clone().requires_grad_()
    found = {
        "vjp": torch.func.vjp(layer, x)[1](dy)[0],
        "mapped": torch.func.vmap(torch.func.vjp(layer, x)[1])(torch.stack((dy, 2 * dy)))[0][1] / 2,
    }
    for name, run in {
        "jvp": lambda: torch.func.jvp(layer, (x,), (dy,)),
        "vmap": lambda: torch.func.vmap(layer)(torch.stack((x, dy))),
        "batched": lambda: torch.autograd.grad(layer(leaf), leaf, torch.stack((dy, dy)), is_grads_batched=True),
    }.items():
        with pytest.raises(NotImplementedError) as error:
            run()
        found[name] = str(error.value)
    return found


def on_each_rank() -> dict[str, Any]:
    return {
        "transformed": transformed(),
        "second": second_gradients(
            float64_layer(activation="silu"), *(part_of(drawn(*SHAPE, seed=seed)) for seed in range(3))
        ),
        "collectives": collectives(),
        "moved": {"0.3": moved(momentum=0.3), "None": moved(momentum=None), "window": moved(update_every=2)},
        "checkpointed": {flag: checkpointed(flag) for flag in (True, False)},
        "pair": of_a_pair(),
        "others": of_a_group_of_others(),
        "nothing": nothing_anywhere(),
        "one value": one_value(),
        "overflowed": overflowed(),
        "untracked": evaluated_without_estimates(),
        "data": without_a_gradient_of_x(),
        "refused": refused(),
    }


@pytest.fixture
def each_backend():
    """The processes choose by themselves."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_ranks(on_each_rank, len(SIZES), tmp_path_factory.mktemp("ranks"))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("at", range(4), ids=["dx", "ddx", "ddresidual", "ddweight"])
def test_gradients_of_gradients_are_those_of_one_process(ranks, at):
    whole = float64_layer(steadynorm.BatchNorm1d, activation="silu")
    expected = second_gradients(whole, *(drawn(*SHAPE, seed=seed) for seed in range(3)))[at]
    found = [each["second"][at] for each in ranks]
    assert_close(torch.stack(found).sum(0) if at == 3 else together(found), expected)


@pytest.mark.parametrize("transform", ["vjp", "mapped"])
def test_reverse_mode_transforms_are_those_of_one_process(ranks, transform):
    whole = float64_layer(steadynorm.BatchNorm1d, activation="silu", track_running_stats=False)
    x = drawn(*SHAPE).requires_grad_()
    (expected,) = torch.autograd.grad(whole(x), x, drawn(*SHAPE, seed=1))
    assert_close(together([each["transformed"][transform] for each in ranks]), expected)


def test_other_transforms_are_refused_with_what_to_do(ranks):
    for each in ranks:
        assert re.search("moments over ranks: forward-mode .* Use vjp or jacrev", each["transformed"]["jvp"])
        assert re.search(r"moments over ranks: is_grads_batched.* Use torch.func.vmap", each["transformed"]["batched"])
        assert re.search(r"moments over ranks: .* cannot be mapped .* Call .eval\(\)", each["transformed"]["vmap"])


def test_the_first_forward_compares_the_ranks_and_gathers_their_moments(ranks):
    for each in ranks:
        assert each["collectives"][0][0] == ["all_gather_into_tensor"] * 2


def test_a_training_step_is_one_collective_forward_and_one_backward(ranks):
    for each in ranks:
        assert each["collectives"][1] == (["all_gather_into_tensor"], ["all_reduce"])


def test_an_evaluation_needs_no_collective(ranks):
    for each in ranks:
        assert each["collectives"][2] == ([], [])


def test_an_evaluation_without_running_estimates_is_of_each_rank_alone(ranks):
    for each, part in zip(ranks, drawn(*SHAPE).split(SIZES), strict=True):
        alone = float64_layer(steadynorm.BatchNorm1d, track_running_stats=False).eval()
        assert_close(each["untracked"], alone(part).detach())


def test_no_rank_normalizes_a_batch_that_overflows_by_its_own_part(ranks):
    whole = steadynorm.BatchNorm1d(3)(drawn(*SHAPE).float()).detach()
    found = together([each["overflowed"] for each in ranks])
    torch.testing.assert_close(found[:, ::2], whole[:, ::2])


def test_input_without_a_gradient_needs_no_collective_backward(ranks):
    for each in ranks:
        assert each["collectives"][3] == (["all_gather_into_tensor"],)


@pytest.mark.parametrize(
    ("name", "arguments"), [("0.3", {"momentum": 0.3}), ("None", {"momentum": None}), ("window", {"update_every": 2})]
)
def test_estimates_follow_the_batches_of_all_ranks(ranks, name, arguments):
    whole = float64_layer(steadynorm.BatchNorm1d, **arguments)
    for seed in range(4):
        whole(drawn(*SHAPE, seed=seed))
    for each in ranks:
        for buffer, expected in whole.named_buffers():
            assert_close(each["moved"][name][buffer], expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("what", ["dx", "first.running_var", "first.num_batches_tracked"])
def test_checkpointing_changes_neither_gradients_nor_statistics(ranks, use_reentrant, what):
    first = float64_layer(steadynorm.BatchNorm1d, activation="silu")
    x = drawn(*SHAPE).requires_grad_()
    float64_layer(steadynorm.BatchNorm1d)(first(x).square()).backward(drawn(*SHAPE, seed=1))
    expected = {"dx": x.grad, **{f"first.{n}": b for n, b in first.named_buffers()}}[what]
    found = [each["checkpointed"][use_reentrant][what] for each in ranks]
    assert_close(together(found) if what == "dx" else found[0], expected)


def test_a_process_group_normalizes_by_its_own_ranks(ranks):
    pairs = drawn(*SHAPE).split([sum(SIZES[:2]), sum(SIZES[2:])])
    expected = [float64_layer(steadynorm.BatchNorm1d)(pair).detach() for pair in pairs]
    assert_close(together([each["pair"] for each in ranks]), together(expected))


def test_a_rank_outside_of_the_process_group_normalizes_alone(ranks):
    for rank in (2, 3):
        alone = float64_layer(steadynorm.BatchNorm1d)(drawn(6, 3, seed=rank)).detach()
        assert_close(ranks[rank]["others"], alone)


@pytest.mark.parametrize("what", ["running_mean", "running_var"])
def test_empty_batches_everywhere_move_no_estimate(ranks, what):
    for each in ranks:
        assert torch.equal(each["nothing"][what], getattr(float64_layer(), what))


def test_empty_batches_everywhere_give_empty_results_and_gradients_of_zero(ranks):
    for each in ranks:
        assert each["nothing"]["y"].shape == each["nothing"]["dx"].shape == (0, 3, 4)
        assert torch.equal(each["nothing"]["dweight"], torch.zeros(3, dtype=torch.float64))


def test_one_value_on_all_ranks_together_becomes_the_bias(ranks):
    assert_close(ranks[1]["one value"]["y"][0], ranks[1]["one value"]["bias"])


def test_one_value_on_all_ranks_together_leaves_every_estimate_finite(ranks):
    for each in ranks:
        assert each["one value"]["running_var"].isfinite().all()


def test_a_weights_gradient_without_a_gradient_of_x_is_that_of_one_process(ranks):
    whole = float64_layer(steadynorm.BatchNorm1d)
    whole(drawn(*SHAPE)).backward(drawn(*SHAPE, seed=1))
    assert_close(torch.stack([each["data"] for each in ranks]).sum(0), whole.weight.grad)


def test_a_batch_that_is_not_finite_on_one_rank_is_refused_on_all(ranks):
    for each in ranks:
        assert "with nonfinite='raise' a training batch must be finite" in each["refused"]
