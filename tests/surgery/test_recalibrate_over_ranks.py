"""Running statistics measured again by several processes: the numbers of one on all batches together."""

import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from steadynorm import layers
from steadynorm.surgery.estimation.rank_group import RankGroup
from steadynorm.surgery.recalibrate import recalibrate_
from tests.support.layers import drawn, randomize_
from tests.support.ranks import on_ranks

SIZES = ((5, 2, 4), (1,))
"""Samples of each batch, of each of two ranks."""
MANY = (40, 4)


def network(norm=nn.BatchNorm1d):
    torch.manual_seed(0)
    parts = [part for _ in range(3) for part in (nn.Linear(3, 3), norm(3), nn.Tanh())]
    return randomize_(nn.Sequential(*parts).double())


def batches_of(rank, sizes=SIZES):
    return [drawn(size, 3, seed=10 * rank + at) * (1 + rank) + at for at, size in enumerate(sizes[rank])]


def mine():
    return batches_of(dist.get_rank())


def numbers(model, change):
    state = {name.removeprefix("module."): value for name, value in model.state_dict().items()}
    return {"state": state, "measured": change.measured}


def recalibrated(model, batches, **named):
    return numbers(model, recalibrate_(model, batches, **named))


def refusal(act):
    """Kind and message of what was raised, and whether the model is as it was."""
    model = network()
    with pytest.raises(Exception) as error:
        act(model)
    kept = all(torch.equal(each, other) for each, other in zip(model.buffers(), network().buffers(), strict=True))
    return error.type.__name__, str(error.value), kept


def with_a_bad_batch(model):
    batches = mine()
    if dist.get_rank() == 1:
        batches[0][0, 1] = torch.nan
    recalibrate_(model, batches)


def with_a_broken_loader(model):
    def loader():
        yield from mine()
        if dist.get_rank() == 0:
            raise OSError("no such file")

    recalibrate_(model, loader())


def of_other_layers(model):
    recalibrate_(model, mine(), where=lambda name, module: dist.get_rank() == 0 or name != "1")


def steady(rank):
    return [drawn(8, 3, seed=100 * rank + seed) for seed in range(MANY[rank])]


def on_each_rank():
    rank = dist.get_rank()
    drifted = network()
    for norm in drifted[1::3]:
        norm.running_var.mul_(1 + 1e12 * rank)  # in whose units hardly anything moves
    return {
        "plain": recalibrated(network(), mine(), settled=0),
        "sync": recalibrated(network(layers.SyncBatchNorm), mine(), settled=0),
        "wrapped": recalibrated(DistributedDataParallel(network()), mine(), settled=0),
        "none here": recalibrated(network(), mine() if rank == 0 else [], settled=0),
        "prior": recalibrated(network(), mine(), settled=0, prior=6),
        "drifted": recalibrated(drifted, mine(), prior=6, settled=1e-6),
        "tolerance": recalibrated(network(), iter(steady(rank)), tolerance=0.1, passes=1),
        "error": recalibrated(network(), steady(rank), passes=1),
        "decisions": [RankGroup("verb_", network()).agree(rank == first) for first in range(2)],
        "none": refusal(lambda model: recalibrate_(model, [])),
        "nan": refusal(with_a_bad_batch),
        "loader": refusal(with_a_broken_loader),
        "layers": refusal(of_other_layers),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_ranks(on_each_rank, 2, tmp_path_factory.mktemp("ranks"))


def assert_alike(ranks, name, expected):
    for each in ranks:
        torch.testing.assert_close(each[name]["state"], expected["state"], rtol=1e-10, atol=1e-10)
        assert each[name]["measured"]["samples"] == expected["measured"]["samples"]
        assert each[name]["measured"]["batches"] == expected["measured"]["batches"]
        assert each[name]["measured"]["passes"] == ranks[0][name]["measured"]["passes"]


@pytest.mark.parametrize("name", ["plain", "sync", "wrapped"])
def test_the_numbers_are_those_of_one_process_on_all_batches(ranks, name):
    norm = layers.SyncBatchNorm if name == "sync" else nn.BatchNorm1d
    batches = list(itertools.chain(*map(batches_of, range(2))))
    assert_alike(ranks, name, recalibrated(network(norm), batches, settled=0))


def test_a_rank_without_batches_gets_the_numbers_of_the_others(ranks):
    assert_alike(ranks, "none here", recalibrated(network(), batches_of(0), settled=0))


def test_a_prior_counts_once_for_all_ranks(ranks):
    batches = list(itertools.chain(*map(batches_of, range(2))))
    assert_alike(ranks, "prior", recalibrated(network(), batches, settled=0, prior=6))


def test_ranks_whose_estimates_have_drifted_stop_at_the_same_pass(ranks):
    passes = [each["drifted"]["measured"]["passes"] for each in ranks]
    assert passes[0] == passes[1]


def test_the_first_rank_decides_for_all(ranks):
    assert [each["decisions"] for each in ranks] == [[True, False]] * 2


def test_all_ranks_stop_taking_batches_together(ranks):
    found = [each["tolerance"]["measured"] for each in ranks]
    assert found[0] == found[1]
    assert found[0]["standard_error"] <= 0.1
    assert 12 < found[0]["batches"] < sum(MANY)


def test_the_standard_error_is_that_of_all_batches_together(ranks):
    expected = recalibrated(network(), steady(0) + steady(1), passes=1)
    for each in ranks:
        error = each["error"]["measured"]["standard_error"]
        assert error == pytest.approx(expected["measured"]["standard_error"], rel=1e-9)


@pytest.mark.parametrize(
    ("name", "kinds", "message"),
    [
        ("none", ("ValueError", "ValueError"), "at least one batch, got none"),
        ("nan", ("ValueError", "ValueError"), "BatchNorm1d(3) '1' in batch 1, counted from 1"),
        ("loader", ("OSError", "RuntimeError"), "no such file"),
        ("layers", ("RuntimeError", "RuntimeError"), "the same layers, got rank 0 3, rank 1 2"),
    ],
)
def test_what_fails_on_one_rank_fails_on_all_and_changes_nothing(ranks, name, kinds, message):
    for each, kind in zip(ranks, kinds, strict=True):
        assert each[name][0] == kind
        assert message in each[name][1]
        assert each[name][2]
    assert name not in ("nan", "loader") or any("on rank" in each[name][1] for each in ranks)
