"""Running statistics of several ranks made the same."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from steadynorm import layers
from steadynorm.surgery.reconcile import reconcile_statistics_
from steadynorm.surgery.statistics import merge_statistics, statistics_of
from tests.support.layers import randomize_
from tests.support.ranks import Collectives, on_ranks

SIZE = 3
WEIGHTS = (5.0, 0.0, 2.0)


def network(rank, dtype=torch.float32):
    norms = [nn.BatchNorm1d(3), layers.BatchNorm1d(5, running="self_tuned"), nn.BatchNorm1d(2)]
    model = randomize_(nn.Sequential(*norms).to(dtype), seed=100 + 10 * rank)
    for at, norm in enumerate(model):
        norm.num_batches_tracked.fill_(3 * rank + at)
    return model


def reconciled(model, **named):
    change = reconcile_statistics_(model, **named)
    return statistics_of(getattr(model, "module", model)), [each.name for each in change.changed]


def refusal(model, **named):
    before = statistics_of(model)
    with pytest.raises((ValueError, RuntimeError)) as error:
        reconcile_statistics_(model, **named)
    after = statistics_of(model)
    return str(error.value), all(torch.equal(after[key].nan_to_num(7), before[key].nan_to_num(7)) for key in before)


def undone(rank):
    model = network(rank)
    before = {name: each.clone() for name, each in model.named_buffers()}
    reconcile_statistics_(model).undo()
    return all(torch.equal(each, before[name]) for name, each in model.named_buffers())


def counted(rank):
    with Collectives() as collectives:
        reconcile_statistics_(network(rank))
    return len(collectives.seen)


def of_a_bad_variance(rank, variance=torch.nan):
    model = network(rank)
    if rank == 1:
        model[1].running_var[2] = variance
    return model


def of_a_smaller_group(rank):
    group = dist.new_group([0, 2])
    return reconciled(network(rank), process_group=group)[0] if rank != 1 else None


def on_each_rank():
    rank = dist.get_rank()
    same = network(0)
    same[2].num_batches_tracked.fill_(rank)
    other = nn.Sequential(nn.BatchNorm1d(3 + rank))
    return {
        "plain": reconciled(network(rank)),
        "weighed": reconciled(network(rank), weight=WEIGHTS[rank]),
        "wrapped": reconciled(
            DistributedDataParallel(network(rank), broadcast_buffers=False), where=lambda name, _: name == "module.0"
        ),
        "same": reconciled(same),
        "collectives": counted(rank),
        "undone": undone(rank),
        "group": of_a_smaller_group(rank),
        "huge": reconciled(network(rank), weight=1e308),
        "nan": refusal(of_a_bad_variance(rank)),
        "negative": refusal(of_a_bad_variance(rank, -1e-3)),
        "layers": refusal(other),
        "weights": refusal(network(rank), weight=-1.0 if rank == 2 else 1.0),
        "no weight": refusal(network(rank), weight=0.0),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_ranks(on_each_rank, SIZE, tmp_path_factory.mktemp("ranks"))


def before(*which):
    return [statistics_of(network(rank)) for rank in which or range(SIZE)]


def assert_all_hold(ranks, name, expected, take=lambda found: found[0]):
    for each in ranks:
        for key, value in expected.items():
            assert torch.equal(take(each[name])[key], value), key


def test_every_rank_holds_the_merged_statistics_bit_for_bit(ranks):
    assert_all_hold(ranks, "plain", merge_statistics(before()))


def test_the_distance_of_the_means_counts(ranks):
    """The average of the variances, which others take, is less in every channel."""
    average = torch.stack([each["0.running_var"] for each in before()]).mean(0)
    assert (ranks[0]["plain"][0]["0.running_var"] > average + 0.01).all()


def test_ranks_are_weighed(ranks):
    assert_all_hold(ranks, "weighed", merge_statistics(before(), WEIGHTS))


def test_weights_whose_sum_is_too_large_count_by_their_ratios(ranks):
    assert_all_hold(ranks, "huge", merge_statistics(before()))


def test_only_what_is_chosen_is_reconciled_in_a_wrapped_model(ranks):
    merged = merge_statistics(before())
    for rank, each in enumerate(ranks):
        assert torch.equal(each["wrapped"][0]["0.running_mean"], merged["0.running_mean"])
        assert torch.equal(each["wrapped"][0]["2.running_mean"], before(rank)[0]["2.running_mean"])


def test_what_is_the_same_on_all_ranks_stays_but_for_the_counter(ranks):
    expected = before(0)[0] | {"2.num_batches_tracked": torch.tensor(SIZE - 1)}
    assert_all_hold(ranks, "same", expected)
    assert [each["same"][1] for each in ranks] == [["2"]] * SIZE


def test_one_collective_carries_all_layers(ranks):
    assert [each["collectives"] for each in ranks] == [2] * SIZE


def test_undo_puts_back_every_bit(ranks):
    assert all(each["undone"] for each in ranks)


def test_a_group_of_some_ranks_leaves_the_others_alone(ranks):
    expected = merge_statistics(before(0, 2))
    for rank in (0, 2):
        for key, value in expected.items():
            assert torch.equal(ranks[rank]["group"][key], value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nan",
            "must be finite and no variance negative, got others at steadynorm.BatchNorm1d(5) '1' on rank 1.",
        ),
        ("negative", "no variance negative, got others at steadynorm.BatchNorm1d(5) '1' on rank 1."),
        ("layers", "all ranks must have the same layers, got rank 0 1, rank 1 1, rank 2 1, which differ in name, size"),
        ("weights", "weights must be finite and at least 0, with a positive sum, got [1.0, 1.0, -1.0]"),
        ("no weight", "got [0.0, 0.0, 0.0] on the ranks"),
    ],
)
def test_what_is_wrong_on_one_rank_is_refused_on_all(ranks, name, message):
    for each in ranks:
        assert message in each[name][0]
        assert each[name][1]


def test_alone_nothing_changes_and_that_is_said():
    model = network(0)
    state = copy.deepcopy(model.state_dict())
    change = reconcile_statistics_(model)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert not change.changed
    assert "this process is alone" in str(change)
    assert change.measured == {"ranks": 1}
