import math

import pytest
import torch
from torch import Tensor

from steadynorm.adaptation.class_moments import ClassMoments, ClassSums, Steps, distance, shifted_stored
from steadynorm.statistics import Moments, measure


def moments(mean: float, var: float) -> Moments:
    return Moments(mean=torch.tensor([float(mean)]), var=torch.tensor([float(var)]), count=0)


def draw(count: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % 3
    return torch.randn(count, 4, 5, generator=generator) * (1 + labels[:, None, None]) + 7 * labels[
        :, None, None
    ], labels


def of_all(x: Tensor, labels: Tensor) -> ClassMoments:
    sums = ClassSums()
    for part, some in zip(x.split(7), labels.split(7), strict=True):
        sums.add("a", part, some)
    return sums.finish(3)


def test_moments_of_a_class_are_those_of_its_images() -> None:
    x, labels = draw()
    found = of_all(x, labels)
    for label in range(3):
        expected = measure(x[labels == label])
        torch.testing.assert_close(found.of["a"][0, label], expected.mean)
        torch.testing.assert_close(found.of["a"][1, label], expected.var)


def test_a_mixture_has_the_moments_of_such_images() -> None:
    x, labels = draw()
    rows = torch.cat([(labels == 0).nonzero()[:5, 0], (labels == 2).nonzero()[:15, 0]])
    found = of_all(x[rows], labels[rows]).mixture("a", torch.tensor([0.25, 0.0, 0.75]))
    expected = measure(x[rows])
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.var, expected.var)


def test_a_class_without_images_has_the_moments_of_all() -> None:
    x, labels = draw()
    sums = ClassSums()
    sums.add("a", x[labels < 2], labels[labels < 2])
    every = measure(x[labels < 2])
    torch.testing.assert_close(sums.finish(3).of["a"][:, 2], torch.stack((every.mean, every.var)))


def test_a_layer_whose_rows_are_no_images_is_left_out() -> None:
    sums = ClassSums()
    sums.add("a", torch.ones(8, 3), torch.zeros(4, dtype=torch.int64))
    assert sums.finish(2).of == {}


@pytest.mark.parametrize("classes", [[0], [0, 2], [0, 1, 2]])
def test_the_stored_moments_follow_an_affine_shift_whichever_classes_are_seen(classes: list[int]) -> None:
    x, labels = draw()
    known, stored = of_all(x, labels), measure(x)
    scale, offset = torch.tensor([0.5, 2.0, 3.0, 0.1])[:, None], torch.tensor([5.0, -3.0, 0.0, 1.0])[:, None]
    rows = torch.isin(labels, torch.tensor(classes))
    shares = torch.isin(torch.arange(3), torch.tensor(classes)).float() / len(classes)
    found = shifted_stored(stored, measure((scale * x + offset)[rows]), known.mixture("a", shares))
    expected = measure(scale * x + offset)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.var, expected.var, rtol=1e-4, atol=1e-5)


def test_a_channel_that_never_varies_stays_finite() -> None:
    found = shifted_stored(moments(1.0, 4.0), moments(2.0, 0.0), moments(2.0, 0.0))
    assert (found.mean.item(), found.var.item()) == (pytest.approx(1.0), pytest.approx(4.0))


def test_distance_is_in_standard_deviations_and_in_logarithms() -> None:
    assert distance(moments(0, 4), moments(2, 4)) == pytest.approx(1, rel=1e-4)
    assert distance(moments(0, 1), moments(0, math.exp(2))) == pytest.approx(1, rel=1e-4)


def test_a_step_is_measured_by_what_lies_between_classes() -> None:
    single = [{"a": moments(0, 1), "b": moments(0, 1)}, {"a": moments(2, 1), "b": moments(9, 1)}]
    steps = Steps.measure(single)
    assert list(steps.apart) == ["a"]
    assert steps.between(*single) == pytest.approx(1)
    assert steps.between({"a": moments(0, 1)}, {"a": moments(6, 1)}) == pytest.approx(3)
