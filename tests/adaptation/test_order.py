import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from steadynorm.adaptation import order
from steadynorm.adaptation.order import DOUBT, ClassOrder


def predictions(labels: Tensor, *, sure: float = 0.6, seed: int = 0) -> Tensor:
    """Right for most images: each has ``sure`` for its class, or as often as it is wrong for another one."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(labels), generator=generator) > sure
    said = torch.where(wrong, torch.randint(5, labels.shape, generator=generator), labels)
    return sure * torch.nn.functional.one_hot(said, 5) + (1 - sure) / 5


def accuracy(found: Tensor, labels: Tensor) -> float:
    return float((found.argmax(1) == labels).double().mean())


MIXED = torch.arange(300) * 7 % 5
RUNS = torch.arange(300) // 30 % 5


def test_mixed_classes_are_no_order_and_stay_as_predicted() -> None:
    followed, given = ClassOrder(5), predictions(MIXED)
    found = torch.cat([followed.follow(part) for part in given.split(50)])
    assert not followed.is_ordered
    torch.testing.assert_close(found, given / given.sum(1, keepdim=True), atol=0.02, rtol=0)


@pytest.mark.parametrize("batch", [1, 10, 75])
def test_classes_in_runs_are_an_order_and_help_each_other(batch: int) -> None:
    followed, given = ClassOrder(5), predictions(RUNS)
    found = torch.cat([followed.follow(part) for part in given.split(batch)])
    assert followed.is_ordered
    assert accuracy(found[100:], RUNS[100:]) > accuracy(given[100:], RUNS[100:]) + 0.15


def test_a_network_that_says_one_class_too_often_tells_no_order() -> None:
    skewed = predictions(MIXED)
    skewed[:, 2] += 2
    followed = ClassOrder(5)
    followed.follow(skewed / skewed.sum(1, keepdim=True))
    assert not followed.is_ordered


def test_a_network_that_says_one_class_alone_tells_no_order() -> None:
    followed, given = ClassOrder(5), torch.tensor([0.996, 0.001, 0.001, 0.001, 0.001]).repeat(60, 1)
    for _ in range(3):
        followed.follow(given)
        assert not followed.is_ordered


def test_an_order_that_ends_is_given_up() -> None:
    followed = ClassOrder(5)
    followed.follow(predictions(RUNS))
    assert followed.is_ordered
    for seed in range(3):
        followed.follow(predictions(MIXED, seed=seed))
    assert not followed.is_ordered


def test_smoothing_is_the_sum_over_all_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against all 3⁴ paths of classes, with a single hypothesis that has all belief."""
    monkeypatch.setattr(order, "STAYS", (0.0, 0.7))
    monkeypatch.setattr(order, "ODDS", 1e-30)
    monkeypatch.setattr(order, "FORGETS", 0.0)
    given = torch.rand(4, 3, generator=torch.Generator().manual_seed(5)).softmax(1).double()
    followed = ClassOrder(3)
    found = followed.follow(given).numpy()
    usual = (given.numpy().sum(0) + 3 / 3) / 7
    told = (given.numpy() + DOUBT / 3) / (usual + DOUBT / 3)
    expected = np.zeros((4, 3))
    for path in itertools.product(range(3), repeat=4):
        weight = 0.7 / 3 + 0.3 * usual[path[0]]  # the image before the first was of any class
        weight *= np.prod([0.7 * (one == other) + 0.3 * usual[other] for one, other in itertools.pairwise(path)])
        weight *= np.prod([told[number, each] for number, each in enumerate(path)])
        for number, each in enumerate(path):
            expected[number, each] += weight
    np.testing.assert_allclose(found, expected / expected.sum(1, keepdims=True), rtol=1e-8)


def test_a_state_goes_on_where_it_was_taken() -> None:
    first = ClassOrder(5)
    first.follow(predictions(RUNS[:100]))
    second, part = ClassOrder.of(first.state()), predictions(RUNS[100:150])
    assert torch.equal(first.follow(part), second.follow(part))
