import math

import pytest
import torch
from torch import Tensor

from steadynorm.adaptation.evidence import Seen, Votes, features, read_row
from steadynorm.statistics import Moments, measure

SURE = 200.0
INFORMATION, CONFIDENCE, ENTROPY, SPREAD = range(4)


def predicted(batch: Tensor) -> Tensor:
    """What a window without layers tells of predictions by batch statistics."""
    return features(Votes.of(torch.zeros_like(batch), batch), {}, {})[4:8]


def test_sure_predictions_of_all_classes_tell_the_logarithm_of_their_number() -> None:
    found = predicted(SURE * torch.eye(5).repeat(3, 1))
    assert found[INFORMATION] == pytest.approx(math.log(5), rel=1e-6)
    assert found[CONFIDENCE] == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("each", [[0.0, 0.0, 0.0], [SURE, 0.0, 0.0], [1.0, 2.0, 3.0]])
def test_equal_predictions_tell_nothing(each: list[float]) -> None:
    assert predicted(torch.tensor([each] * 4))[INFORMATION] == pytest.approx(0, abs=1e-6)


def test_information_is_entropy_of_the_mean_less_mean_of_the_entropies() -> None:
    def entropy(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    found = predicted(torch.tensor([[0.9, 0.1], [0.3, 0.7]]).log())
    expected = entropy(0.6) - (entropy(0.9) + entropy(0.3)) / 2
    assert found[INFORMATION] == pytest.approx(expected, rel=1e-5)
    assert found[ENTROPY] == pytest.approx(entropy(0.6), rel=1e-5)
    assert found[CONFIDENCE] == pytest.approx(0.8, rel=1e-5)


def test_the_variance_of_logits_leaves_out_what_all_classes_share() -> None:
    logits = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    apart = (logits - logits.mean(1, keepdim=True)).var(0, correction=0).sum()
    shared = torch.arange(40.0)[:, None]
    assert predicted(logits + shared)[SPREAD] == pytest.approx(math.log(apart), rel=1e-4)


def test_agreement_of_both_predictions() -> None:
    stored, batch = torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([[0.7, 0.3], [0.2, 0.8]])
    agree, product, apart = features(Votes.of(stored.log(), batch.log()), {}, {})[-3:].tolist()
    assert agree == 0.5
    assert product == pytest.approx((0.66 + 0.44) / 2, rel=1e-5)

    def entropy(p: Tensor) -> float:
        return float(torch.special.entr(p).sum(1).mean())

    expected = entropy((stored + batch) / 2) - (entropy(stored) + entropy(batch)) / 2
    assert apart == pytest.approx(expected, rel=1e-4)


def test_votes_of_two_batches_are_those_of_all_images() -> None:
    generator = torch.Generator().manual_seed(0)
    stored, batch = (torch.randn(9, 4, generator=generator) for _ in range(2))
    both = Votes.of(stored[:2], batch[:2]) + Votes.of(stored[2:], batch[2:])
    torch.testing.assert_close(features(both, {}, {}), features(Votes.of(stored, batch), {}, {}))


def test_a_batch_without_the_stored_path_has_what_that_said_before() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (Votes.of(*torch.randn(2, n, 4, generator=generator).unbind()) for n in (6, 3))
    found = features(second.with_stored_of(first), {}, {})
    torch.testing.assert_close(found[:4], features(first, {}, {})[:4])
    torch.testing.assert_close(found[4:8], features(second, {}, {})[4:8])


def test_dense_predictions_are_means_over_places() -> None:
    logits = torch.randn(2, 6, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    flat = logits.movedim(2, -1).flatten(1, 3)
    torch.testing.assert_close(
        features(Votes.of(*logits), {}, {}), features(Votes.of(*flat), {}, {}), rtol=1e-5, atol=1e-6
    )


def seen_of(x: Tensor) -> Seen:
    return Seen.of(torch.stack([read_row(part) for part in x.split([2, 5])]))


def images() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    means = torch.randn(7, 3, 1, 1, generator=generator)
    return means + 2 * torch.randn(7, 3, 4, 4, generator=generator)


def test_a_layer_is_told_by_its_moments_and_by_the_share_between_images() -> None:
    x = images()
    nothing = Votes.of(torch.zeros(1, 2), torch.zeros(1, 2))
    stored = Moments(mean=torch.tensor([1.0, 0.0, -1.0]), var=torch.tensor([1.0, 2.0, 4.0]), count=0)
    found = features(nothing, {"a": seen_of(x)}, {"a": stored})[:4].tolist()
    batch = measure(x)
    ratio = (batch.var / stored.var).log() / 2
    share = x.mean((2, 3)).var(0, correction=0) / batch.var
    assert found == pytest.approx(
        [
            float(((batch.mean - stored.mean).square() / stored.var).mean().log()),
            float(ratio.mean()),
            float(ratio.square().mean().log()),
            float((share + 1e-4).log().mean()),
        ],
        rel=1e-4,
    )


def test_batches_of_unequal_size_are_joined() -> None:
    x = images()
    found, expected = seen_of(x), measure(x)
    torch.testing.assert_close(found.moments.mean, expected.mean)
    torch.testing.assert_close(found.moments.var, expected.var)
    torch.testing.assert_close(found.within, x.flatten(2).var(2, correction=0).mean(0))


def test_vectors_vary_between_inputs_alone() -> None:
    assert torch.equal(read_row(torch.randn(5, 3))[3], torch.zeros(3))


def test_a_channel_that_never_varies_is_unchanged() -> None:
    still = Moments(mean=torch.zeros(1), var=torch.zeros(1), count=5)
    nothing = Votes.of(torch.zeros(1, 2), torch.zeros(1, 2))
    found = features(nothing, {"a": Seen(moments=still, within=torch.zeros(1))}, {"a": still})
    assert found[:4].tolist() == pytest.approx([math.log(1e-6), 0, math.log(1e-6), math.log(1e-4)])


def test_what_is_at_stake_is_the_share_of_the_class_that_batch_statistics_take_most_from() -> None:
    stored, batch = torch.tensor([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1]]), torch.tensor([[0.3, 0.6, 0.1], [0.3, 0.1, 0.6]])
    assert Votes.of(stored.log(), batch.log()).at_stake == pytest.approx(0.4, rel=1e-5)
    assert Votes.of(batch.log(), stored.log()).at_stake == pytest.approx(0.25, rel=1e-5)
