import math

import pytest
import torch

from steadynorm.reporting.chance import Chance, chance_in_training, chance_of, entropy, loss_of_guessing
from tests.support.records import record


def tail(images: int, hits: int, share: float) -> float:
    """Probability that guessing is right at least ``hits`` times, summed term by term."""
    return sum(math.comb(images, k) * share**k * (1 - share) ** (images - k) for k in range(hits, images + 1))


@pytest.mark.parametrize(("images", "share"), [(20, 0.1), (60, 0.1), (500, 0.1), (1000, 0.25)])
def test_guessing_rarely_looks_better_than_guessing(images: int, share: float) -> None:
    chance = Chance(share=share, images=images)
    least = next(hits for hits in range(images + 1) if chance.is_beaten(hits / images))
    assert 1e-5 < tail(images, least, share) <= 1e-3
    assert all(chance.is_beaten(hits / images) for hits in range(least, images + 1))


@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.105, math.nan])
def test_accuracy_about_that_of_guessing_is_not_better(accuracy: float) -> None:
    assert not Chance(share=0.1, images=10_000).is_beaten(accuracy)


def test_chance_is_the_share_of_the_most_frequent_class() -> None:
    made = record(())
    assert chance_of(made) == Chance(share=0.1, images=10_000)
    made.resolved["chance"] = 0.4
    assert chance_of(made) == Chance(share=0.4, images=10_000)


@pytest.mark.parametrize("classes", [4, ["a", "b", "c", "d"]])
def test_a_record_that_does_not_know_chance_has_equal_classes(classes: int | list[str]) -> None:
    made = record(())
    made.resolved.pop("chance", None)
    made.resolved["classes"] = classes
    assert chance_of(made).share == 0.25


def test_guessing_in_training_goes_by_the_training_images() -> None:
    made = record(())
    assert chance_in_training(made).share == chance_of(made).share
    made.resolved.update(train_chance=0.6, train_images=70)
    assert chance_in_training(made) == Chance(share=0.6, images=70)


def test_the_loss_of_guessing_is_the_entropy_of_the_classes() -> None:
    labels = torch.tensor([0, 0, 0, 2])
    logits = torch.log(torch.tensor([0.75, 1e-30, 0.25])).expand(4, 3)
    assert entropy(labels) == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item())
    made = record(())
    assert loss_of_guessing(made) == pytest.approx(math.log(10))
    made.resolved["train_entropy"] = 0.5
    assert loss_of_guessing(made) == 0.5
