"""Labels: what a score is made of, and batches in the order of classes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from steadynorm.doctor import accuracy, diagnose, observe
from steadynorm.doctor.checks import single_class_batch
from steadynorm.doctor.score import score_from
from tests.support.doctor import batches, images


def test_without_labels_nothing_is_scored(model: Any) -> None:
    model[4].running_mean += 3 * model[4].running_var.sqrt()
    evidence = observe(model, [x for x, _ in batches()])
    assert evidence.batches is not None
    assert evidence.batches.score == ""
    diagnosis = diagnose(model, [x for x, _ in batches()])
    assert diagnosis.not_run["train-eval-gap"] == diagnosis.not_run["needs-recalibration"] == "loss or metric"
    assert "loss or metric (2)" in diagnosis.scope


class Detector(nn.Module):
    """Gives its own loss for labels that are no classes, as detectors and speech models do."""

    def __init__(self, body: nn.Module, wrap: Any) -> None:
        super().__init__()
        self.body, self.wrap = body, wrap

    def forward(self, x: torch.Tensor, labels: list[int] | None = None) -> Any:
        y = self.body(x)
        loss = None if labels is None else nn.functional.cross_entropy(y, torch.tensor(labels))
        return self.wrap(loss=loss, boxes=y)


@pytest.mark.parametrize("wrap", [dict, SimpleNamespace])
def test_the_loss_that_a_model_gives_is_the_score(model: Any, wrap: Any) -> None:
    model[4].running_mean += 3 * model[4].running_var.sqrt()
    given = [{"x": x, "labels": y.tolist()} for x, y in batches()]
    (gap,) = diagnose(Detector(model, wrap), given).of("train-eval-gap")
    (same,) = diagnose(model, batches()).of("train-eval-gap")
    assert gap.cost is not None and same.cost is not None
    assert (gap.cost.quantity, same.cost.quantity) == ("loss", "cross-entropy")
    assert gap.cost.value == pytest.approx(same.cost.value, rel=1e-4)
    without = observe(Detector(model, wrap), [x for x, _ in batches()])
    assert without.score is None


class Dense(nn.Module):
    """Gives logits for each of two places of an image, as segmentation does, in one of the forms that are about."""

    def __init__(self, body: nn.Module, wrap: Any) -> None:
        super().__init__()
        self.body, self.wrap = body, wrap

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        return self.wrap(torch.stack((y, y), 2).unsqueeze(3))  # (N, K, 2, 1)


@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: {"out": y}, lambda y: SimpleNamespace(logits=y)])
@pytest.mark.parametrize("left_out", [255, -100])
def test_labels_of_pixels_are_scored_but_for_those_left_out(model: Any, wrap: Any, left_out: int) -> None:
    model[4].running_mean += 3 * model[4].running_var.sqrt()
    given = [(x, torch.stack((y, torch.full_like(y, left_out)), 1).unsqueeze(2), "name") for x, y in batches()]
    evidence, same = observe(Dense(model, wrap), given), observe(model, batches())
    assert evidence.score == same.score == "cross-entropy"
    assert evidence.batches is not None and same.batches is not None
    assert evidence.batches.evaluation == pytest.approx(same.batches.evaluation)
    wrong = [(x, y + 7) for x, y, _ in given]
    assert observe(Dense(model, wrap), wrong).score is None


@pytest.mark.parametrize(("classes", "counted"), [(256, 2), (255, 1)])
def test_the_last_of_256_classes_is_one(classes: int, counted: int) -> None:
    """As of codes and bytes; with fewer it leaves a pixel out."""
    logits, labels = torch.randn(1, classes, 2), torch.tensor([[3, 255]])
    score = score_from(None, None, logits, (None, labels))
    assert score is not None
    right = functional.cross_entropy(logits.double()[..., :counted], labels[:, :counted])
    assert score(logits, (None, labels)) == pytest.approx(float(right))


def test_shares_of_classes_are_scored_by_their_cross_entropy(model: Any) -> None:
    share = 0.3
    given = [
        (
            share * x + (1 - share) * x.flip(0),
            torch.stack((1 - y, y), 1) * share + torch.stack((1 - y, y), 1).flip(0) * 0.7,
        )
        for x, y in batches()
    ]
    evidence = observe(model, given)
    assert evidence.score == "cross-entropy" and evidence.batches is not None and evidence.batches.mixed
    with torch.no_grad():
        right = [float(-(shares * model(x).log_softmax(1)).sum(1).mean()) for x, shares in given]
    assert evidence.batches.evaluation == pytest.approx(right, rel=1e-5)
    whole = observe(model, [(x, functional.one_hot(y, 2).float()) for x, y in batches()]).batches
    assert whole is not None and not whole.mixed
    assert observe(model, [(x, functional.one_hot(y, 2).float() + 0.5) for x, y in batches()]).score is None


def ordered(size: int) -> list[tuple[Tensor, Tensor]]:
    x, y = images(8 * size)
    order = y.argsort(stable=True)
    return list(zip(x[order].split(size), y[order].split(size), strict=True))


def test_batches_of_one_class_are_named(model: Any) -> None:
    (found,) = diagnose(model.train(), ordered(32)).of("single-class-batch")
    assert "8 of 8" in found.problem
    assert diagnose(model.eval(), ordered(32)).of("single-class-batch") == ()


def test_small_batches_of_one_class_are_no_copies(model: Any) -> None:
    """Six batches of eight are of one class, the rest of the other, as where folders are gone through."""
    x, y = images(128)
    rows = torch.cat(((y == 0).nonzero().flatten()[:51], (y == 1).nonzero().flatten()[:13]))
    (found,) = diagnose(model.train(), list(zip(x[rows].split(8), y[rows].split(8), strict=True))).of(
        "single-class-batch"
    )
    assert "7 of 8" in found.problem


@pytest.mark.parametrize(
    ("outputs", "number", "knows", "found"),
    [(10, 256, True, True), (10, 248, True, False), (2, 256, True, False), (10, 256, False, False)],
)
@pytest.mark.parametrize("metric", [None, accuracy])
def test_the_beginning_of_data_in_the_order_of_classes_has_one(
    outputs: int, number: int, knows: bool, found: bool, metric: Any
) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(8, outputs))
    with torch.no_grad():
        model[4].bias[1] += 9 if knows else -9  # a folder that stands for no class
    x = torch.randn(number, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    given = [(each, torch.ones(len(each), dtype=torch.long)) for each in x.split(number // 8)]
    spoken = diagnose(model, given, metric=metric).of("single-class-batch")
    assert [f"All {number} samples" in each.problem for each in spoken] == [True] * found
    assert diagnose(model.eval(), given).of("single-class-batch") == ()


@pytest.mark.parametrize(("longest", "found"), [(2, True), (40, False)])
def test_lengths_behind_the_inputs_are_no_labels(model: Any, longest: int, found: bool) -> None:
    """As in (tokens, lengths, labels), bucketed by length; the second of three is a label where it can be one."""
    x, y = images(256)
    lengths = torch.arange(256) * longest // 256
    given = list(zip(x.split(32), lengths.split(32), y.split(32), strict=True))
    assert bool(diagnose(model.train(), given).of("single-class-batch")) is found


@pytest.mark.parametrize("copies", [2, 3, 4])
def test_copies_of_an_image_side_by_side_count_once(model: Any, copies: int) -> None:
    x, y = images(256)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))[: 8 * (32 // copies)]
    rows = [each.repeat_interleave(copies) for each in order.chunk(8)]
    assert diagnose(model.train(), [(x[each], y[each]) for each in rows]).of("single-class-batch") == ()
    assert diagnose(model, ordered(32)).of("single-class-batch") != ()


def test_shuffled_batches_are_silent_at_the_stated_rate(model: Any) -> None:
    x, y = images(256)
    for seed in range(20):
        order = torch.randperm(256, generator=torch.Generator().manual_seed(seed))
        shuffled = list(zip(x[order].split(32), y[order].split(32), strict=True))
        assert diagnose(model.train(), shuffled).of("single-class-batch") == ()


def test_the_probability_of_unequal_classes_is_that_of_the_chi_squared_test() -> None:
    statistic = single_class_batch._chi_squared([{0: 10, 1: 20}, {0: 20, 1: 10}])
    assert statistic == (pytest.approx(20 / 3), 1)
    assert single_class_batch._probability(*statistic) == pytest.approx(0.009823, rel=1e-3)
    assert single_class_batch._probability(*single_class_batch._chi_squared([{0: 10}, {0: 20}])) == 1.0


@pytest.mark.parametrize(("first", "found"), [(43, False), (51, True)])
def test_classes_that_lean_to_some_batches_a_little_are_let_pass(model: Any, first: int, found: bool) -> None:
    x = torch.randn(512, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0] * first + [1] * (64 - first) + [1] * first + [0] * (64 - first)).repeat(4)  # odd: no copies
    assert single_class_batch._probability(512 * ((2 * first - 64) / 64) ** 2, 7) < 1e-6  # of both
    batches = list(zip(x.split(64), y.split(64), strict=True))
    assert (diagnose(model.train(), batches).of("single-class-batch") != ()) == found
