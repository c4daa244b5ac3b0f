import numpy as np
import pytest
import torch

from steadynorm.lab.data import Images
from steadynorm.lab.data.streams import STREAMS, mix_domains, stream

# 300 images: 12, 24, 36, 48, 60 and 120 of six classes, one of them not among the numbers 0 to 5.
LABELS = torch.tensor(np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3, 4, 9], [12, 24, 36, 48, 60, 120])))
EVERY = pytest.mark.parametrize("kind", STREAMS)
WHOLE = pytest.mark.parametrize("kind", ["iid", "class_ordered", "bursts"])


def _order(kind, *, seed=0, labels=LABELS):
    return torch.cat(stream(labels, kind, batch_size=7, seed=seed))


def _runs(labels):
    return 1 + int((labels[1:] != labels[:-1]).sum())


@WHOLE
def test_every_image_comes_once(kind):
    assert sorted(_order(kind).tolist()) == list(range(300))


@EVERY
def test_the_last_batch_holds_what_is_left(kind):
    *whole, last = [len(batch) for batch in stream(LABELS, kind, batch_size=11, seed=0)]
    count = len(_order(kind))
    assert set(whole) == {11} and last == (count % 11 or 11) and sum(whole) + last == count


@EVERY
def test_batches_may_be_of_one_image(kind):
    batches = stream(LABELS, kind, batch_size=1, seed=0)
    assert {len(batch) for batch in batches} == {1}
    assert torch.equal(torch.cat(batches), _order(kind))


@EVERY
def test_the_same_seed_gives_the_same_order(kind):
    assert torch.equal(_order(kind, seed=5), _order(kind, seed=5))


@EVERY
def test_another_seed_gives_another_order(kind):
    assert not torch.equal(_order(kind, seed=5), _order(kind, seed=6))


@EVERY
def test_indices_are_int64(kind):
    assert _order(kind).dtype == torch.int64


def test_iid_mixes_the_classes():
    # With these shares, neighbours are of one class with probability 0.24, so about 228 of 299 places change.
    assert 190 < _runs(LABELS[_order("iid")]) < 265


def test_class_ordered_gives_each_class_in_one_run():
    assert _runs(LABELS[_order("class_ordered")]) == 6


def test_class_ordered_gives_classes_in_random_order():
    orders = [LABELS[_order("class_ordered", seed=seed)].unique_consecutive().tolist() for seed in range(4)]
    assert len({tuple(order) for order in orders}) > 1
    assert any(order != sorted(order) for order in orders)


@pytest.mark.parametrize("kind", ["class_ordered", "single_class"])
def test_images_are_shuffled_inside_a_class(kind):
    order = _order(kind)
    own = order[LABELS[order] == LABELS[order[0]]].tolist()
    assert own != sorted(own)


def test_single_class_gives_all_images_of_one_class():
    order = _order("single_class")
    label = LABELS[order[0]]
    assert sorted(order.tolist()) == torch.nonzero(label == LABELS).flatten().tolist()


def test_single_class_draws_the_class_from_the_seed():
    assert len({int(LABELS[_order("single_class", seed=seed)[0]]) for seed in range(10)}) > 1


def test_bursts_come_in_runs_and_classes_return():
    # Ten parts of ten classes make at most 100 runs; iid would make about 9,000, and class_ordered 10.
    labels = torch.arange(10_000) % 10
    runs = [_runs(labels[_order("bursts", seed=seed, labels=labels)]) for seed in range(5)]
    assert all(20 < count <= 100 for count in runs)


def test_bursts_spread_each_class_as_a_dirichlet_distribution_does():
    # The expected sum of squared shares of a symmetric Dirichlet of K parts is (a + 1) / (K a + 1) = 0.55.
    labels = torch.arange(20_000) % 10
    squares = []
    for seed in range(40):
        order = labels[_order("bursts", seed=seed, labels=labels)]
        kinds, lengths = order.unique_consecutive(return_counts=True)
        squares += [(lengths[kinds == label] / 2000).square().sum().item() for label in range(10)]
    assert np.mean(squares) == pytest.approx(0.55, abs=5 * np.std(squares) / len(squares) ** 0.5)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"stream: kind must be one of iid, class_ordered, .*, got 'sorted'"):
        stream(LABELS, "sorted", batch_size=2, seed=0)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match=r"stream: batch_size must be at least 1, got 0"):
        stream(LABELS, "iid", batch_size=0, seed=0)


@pytest.mark.parametrize("labels", [torch.zeros(0, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64)])
def test_labels_must_be_a_row_with_at_least_one(labels):
    with pytest.raises(ValueError, match=r"stream: labels must be of shape \(N,\), N at least 1, got \("):
        stream(labels, "iid", batch_size=1, seed=0)


def _domains(count, images=20):
    """Images whose first byte tells their number and whose second byte tells their domain."""
    domains = []
    for domain in range(count):
        rows = torch.zeros(images, 4, 4, 3, dtype=torch.uint8)
        rows[:, 0, 0, 0] = torch.arange(images)
        rows[:, 0, 0, 1] = domain
        domains.append(Images(pixels=rows.permute(0, 3, 1, 2), labels=torch.arange(images) % 7))
    return domains


def test_each_image_comes_from_one_domain():
    mixed, _ = mix_domains(_domains(3), seed=0)
    assert sorted(mixed.pixels[:, 0, 0, 0].tolist()) == list(range(20))


def test_domains_take_turns():
    mixed, source = mix_domains(_domains(3), seed=0)
    assert mixed.pixels[:, 1, 0, 0].tolist() == source.tolist() == [place % 3 for place in range(20)]


def test_labels_stay_with_their_images():
    mixed, _ = mix_domains(_domains(3), seed=0)
    assert mixed.labels.tolist() == [number % 7 for number in mixed.pixels[:, 0, 0, 0].tolist()]


def test_mixed_images_are_shuffled_by_the_seed():
    first, again, other = (mix_domains(_domains(3), seed=seed)[0].pixels[:, 0, 0, 0].tolist() for seed in (4, 4, 5))
    assert first == again and first != other and first != sorted(first)


def test_mixing_leaves_the_domains_unchanged():
    domains, untouched = _domains(3), _domains(3)
    mix_domains(domains, seed=0)
    assert all(torch.equal(one.pixels, two.pixels) for one, two in zip(domains, untouched, strict=True))


def test_mixed_images_are_stored_channels_last():
    assert mix_domains(_domains(3), seed=0)[0].pixels.is_contiguous(memory_format=torch.channels_last)


def test_domains_must_hold_the_same_images():
    domains = [*_domains(2), Images(pixels=_domains(1)[0].pixels, labels=torch.zeros(20, dtype=torch.int64))]
    with pytest.raises(ValueError, match=r"mix_domains: domains must have equal shapes and labels, got .* domain 2"):
        mix_domains(domains, seed=0)


def test_domains_must_have_equal_shapes():
    larger = Images(pixels=torch.zeros(20, 3, 5, 5, dtype=torch.uint8), labels=_domains(1)[0].labels)
    with pytest.raises(ValueError, match=r"mix_domains: domains must have equal shapes and labels, got .* domain 1"):
        mix_domains([*_domains(1), larger], seed=0)


def test_there_must_be_a_domain():
    with pytest.raises(ValueError, match=r"mix_domains: there must be at least 1 domain, got 0"):
        mix_domains([], seed=0)
