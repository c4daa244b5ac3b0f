"""Synchronized batch norm in what surrounds it on two processes: compilers, DistributedDataParallel, failures."""

import re
import warnings
from collections import OrderedDict
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import steadynorm
from steadynorm.layers import SyncBatchNorm
from tests.support.layers import drawn, randomize_
from tests.support.ranks import on_ranks, part_of, together

SIZES = (5, 2)
SHAPE = (sum(SIZES), 3, 4)


def train_step(layer, run, *, seed=0):
    x, residual = (part_of(drawn(*SHAPE, seed=seed + each), SIZES).requires_grad_() for each in range(2))
    y = run(x, residual)
    gradients = torch.autograd.grad(y, [x, residual, layer.weight], part_of(drawn(*SHAPE, seed=9), SIZES))
    return [y.detach(), *gradients, layer.running_mean.clone(), layer.running_var.clone()]


def compiled(**arguments):
    layer = randomize_(SyncBatchNorm(3, activation="silu", **arguments).double())
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings():
        # Dynamo itself instantiates an autograd function that it traces.
        warnings.filterwarnings("ignore", ".*should not be instantiated", DeprecationWarning)
        return [train_step(layer, run, seed=seed) for seed in range(2)]


def network(norm):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), norm(4, momentum=0.3), nn.ReLU(), nn.Conv2d(4, 4, 3), norm(4), nn.Flatten(), nn.Linear(4, 2)
    ).double()


def trained(model, halves):
    """Parameters and buffers after three steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for seed in range(3):
        optimizer.zero_grad()
        x, target = drawn(8, 2, 5, 5, seed=seed), drawn(8, 2, seed=seed + 20)
        x, target = (part_of(each, (4, 4)) if halves else each for each in (x, target))
        nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()
    return {name.removeprefix("module."): value for name, value in model.state_dict().items()}


def refusal(act):
    with pytest.raises(RuntimeError) as error:
        act()
    return str(error.value)


def of_different_channels():
    channels = 4 + dist.get_rank()
    model = nn.Sequential(OrderedDict(first=nn.Identity(), norm=SyncBatchNorm(channels)))
    return refusal(lambda: model(torch.ones(2, channels, 3)))


def of_different_dtypes():
    dtype = (torch.float32, torch.float64)[dist.get_rank()]
    return refusal(lambda: SyncBatchNorm(4, dtype=dtype)(torch.ones(2, 4, dtype=dtype)))


def where_the_other_is_missing(how):
    group = dist.new_group(timeout=timedelta(seconds=2))
    model = nn.Sequential(OrderedDict(norm=SyncBatchNorm(4, process_group=group)))
    x = torch.ones(2, 4, requires_grad=True)
    message = None
    if how == "forward" and dist.get_rank() == 0:
        message = refusal(lambda: model(x))
    if how == "backward":
        y = model(x)
        message = refusal(lambda: y.sum().backward()) if dist.get_rank() == 0 else None
    dist.barrier()
    return message


def on_each_rank():
    return {
        "compiled": compiled(),
        "compiled window": compiled(update_every=2, momentum=None),
        "trained": trained(DistributedDataParallel(network(SyncBatchNorm)), halves=True),
        "channels": of_different_channels(),
        "dtypes": of_different_dtypes(),
        "forward": where_the_other_is_missing("forward"),
        "backward": where_the_other_is_missing("backward"),
    }


@pytest.fixture
def each_backend():
    """The processes choose by themselves."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_ranks(on_each_rank, 2, tmp_path_factory.mktemp("ranks"))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "arguments"), [("compiled", {}), ("compiled window", {"update_every": 2, "momentum": None})]
)
@pytest.mark.parametrize("at", range(6), ids=["y", "dx", "dresidual", "dweight", "running_mean", "running_var"])
def test_a_layer_compiles_in_one_graph_into_the_numbers_of_one_process(ranks, name, arguments, at):
    whole = randomize_(steadynorm.BatchNorm1d(3, activation="silu", **arguments).double())
    for step in range(2):
        x, residual = (drawn(*SHAPE, seed=step + each).requires_grad_() for each in range(2))
        y = whole(x, residual)
        gradients = torch.autograd.grad(y, [x, residual, whole.weight], drawn(*SHAPE, seed=9))
        found = [each[name][step][at] for each in ranks]
        joined = together(found) if at < 3 else sum(found) if at == 3 else found[1]
        assert_close(joined, [y.detach(), *gradients, whole.running_mean, whole.running_var][at])


def test_distributed_training_is_that_of_one_process_on_the_whole_batch(ranks):
    expected = trained(network(steadynorm.BatchNorm2d), halves=False)
    for each in ranks:
        assert list(each["trained"]) == list(expected)
        for name, value in expected.items():
            assert_close(each["trained"][name], value)


def test_ranks_of_different_channels_are_refused_on_each(ranks):
    for rank, each in enumerate(ranks):
        assert re.match(
            rf"SyncBatchNorm\({4 + rank}\) 'norm': all ranks must normalize as many channels in the same dtype, got "
            r"rank 0 4 in torch.float32, rank 1 5 in torch.float32\. Build the same model",
            each["channels"],
        )


def test_ranks_of_different_dtypes_are_refused_on_each(ranks):
    for each in ranks:
        assert "got rank 0 4 in torch.float32, rank 1 4 in torch.float64" in each["dtypes"]


@pytest.mark.parametrize("how", ["forward", "backward"])
def test_a_rank_that_waits_in_vain_names_the_layer(ranks, how):
    assert re.match(r"SyncBatchNorm\(4\) 'norm': every rank must take part .* rank 0 of 2 got no answer", ranks[0][how])
