import math

import pytest
import torch

from steadynorm.adaptation.evidence import Votes, deviation, information
from steadynorm.statistics import Moments

SURE = 200.0


def votes_of(batch: torch.Tensor) -> Votes:
    return Votes.of(torch.zeros_like(batch), batch)


def test_sure_predictions_of_all_classes_tell_the_logarithm_of_their_number() -> None:
    assert information(votes_of(SURE * torch.eye(5).repeat(3, 1))) == pytest.approx(math.log(5), rel=1e-6)


@pytest.mark.parametrize("each", [[0.0, 0.0, 0.0], [SURE, 0.0, 0.0], [1.0, 2.0, 3.0]])
def test_equal_predictions_tell_nothing(each: list[float]) -> None:
    assert information(votes_of(torch.tensor([each] * 4))) == pytest.approx(0, abs=1e-6)


def test_information_is_entropy_of_the_mean_less_mean_of_the_entropies() -> None:
    batch = torch.tensor([[0.9, 0.1], [0.3, 0.7]]).log()

    def entropy(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    expected = entropy(0.6) - (entropy(0.9) + entropy(0.3)) / 2
    assert information(votes_of(batch)) == pytest.approx(expected, rel=1e-5)


def test_votes_of_two_batches_are_those_of_all_images() -> None:
    generator = torch.Generator().manual_seed(0)
    stored, batch = (torch.randn(9, 4, generator=generator) for _ in range(2))
    both = Votes.of(stored[:2], batch[:2]) + Votes.of(stored[2:], batch[2:])
    expected = Votes.of(stored, batch)
    torch.testing.assert_close(both.probabilities, expected.probabilities)
    assert (both.images, both.entropy) == (9, pytest.approx(expected.entropy, rel=1e-5))
    assert both.confidence == pytest.approx(float(stored.softmax(1).max(1).values.sum()), rel=1e-5)


def test_deviation_is_the_root_mean_square_of_the_log_ratio_of_variances() -> None:
    stored = Moments(mean=torch.zeros(2), var=torch.tensor([1.0, 3.0]), count=0)
    batch = Moments(mean=torch.ones(2), var=torch.tensor([math.e**3, 3 * math.e**-4]), count=5)
    assert deviation({"a": batch}, {"a": stored}) == {"a": pytest.approx(math.sqrt((9 + 16) / 2), rel=1e-5)}


def test_a_channel_that_never_varies_does_not_deviate() -> None:
    still = Moments(mean=torch.zeros(1), var=torch.zeros(1), count=5)
    assert deviation({"a": still}, {"a": still}) == {"a": 0.0}
