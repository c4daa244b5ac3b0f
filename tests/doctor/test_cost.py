"""What a diagnosis costs, counted in forwards of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from steadynorm.doctor import observe
from steadynorm.doctor.batch_evidence import Runs
from steadynorm.surgery import convert_, use_batch_statistics
from steadynorm.surgery.batches import feed
from tests.support.doctor import batches

SIZE = 32


def observed(model: nn.Module) -> tuple[Runs, float]:
    """Give what eight batches show, and in how many forwards of a batch."""
    samples = 0

    def forward(model: nn.Module, batch: Any) -> Any:
        nonlocal samples
        samples += len(batch[0])
        return feed(model, batch)

    runs = observe(model, batches(8, SIZE), forward=forward).batches
    assert runs is not None
    return runs, samples / SIZE


def stale(model: Any) -> None:
    model[4].running_mean += 3 * model[4].running_var.sqrt()


@pytest.mark.parametrize(("fault", "layers"), [(lambda model: None, []), (stale, ["1", "4"])])
def test_layers_are_tried_one_by_one_where_the_batches_own_statistics_are_better(
    model: Any, fault: Callable[[Any], None], layers: list[str]
) -> None:
    fault(model)
    runs, _ = observed(model)
    assert list(runs.one_layer) == layers
    assert all(len(scores) == 2 for scores in runs.one_layer.values())


def test_eight_batches_take_three_passes_at_most(model: Any) -> None:
    """All in evaluation, and two samples; all by their own statistics; four again; four samples in training."""
    assert observed(model)[1] == 8 + 2 / SIZE + 8 + 4 + 4 / SIZE


def test_a_layer_takes_one_forward_of_two_batches_where_layers_are_tried(model: Any) -> None:
    stale(model)
    assert observed(model)[1] == 8 + 2 / SIZE + 8 + 4 + 4 / SIZE + 2 * 2


def test_a_kind_that_trains_by_more_than_its_batch_is_measured_in_a_run_of_its_own(model: Any) -> None:
    convert_(model, "batch_renorm")
    assert observed(model)[1] == 8 + 2 / SIZE + 8 + 4 + 4 + 4 / SIZE


@pytest.mark.parametrize("kind", ["torch_batch_norm", "batch_norm", "batch_renorm", "ghost_batch_norm"])
def test_scores_by_batch_are_those_of_the_layers_training(model: Any, kind: str) -> None:
    convert_(model, kind, **({"ghost_batch_size": 8} if kind == "ghost_batch_norm" else {}))
    runs, _ = observed(model)
    with torch.no_grad(), use_batch_statistics(model):
        expected = [float(functional.cross_entropy(model(x), y)) for x, y in batches(8, SIZE)]
    assert runs.by_batch == pytest.approx(expected, rel=1e-4)


def test_by_batches_with_one_value_per_channel_nothing_is_scored() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(1, 2)).eval()
    runs = observe(model, batches(4, 1)).batches
    assert runs is not None
    assert all(map(math.isnan, runs.by_batch)) and len(runs.by_batch) == 4
    assert all(map(math.isfinite, runs.evaluation))


class Choosy(nn.Module):
    """Trains on batches of at least eight samples."""

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) >= 8 or not self.training
        return x


def test_a_model_that_cannot_train_on_a_few_samples_trains_on_the_batch(model: Any) -> None:
    runs, forwards = observed(nn.Sequential(Choosy(), model))
    assert runs.updates == {"1.1": 0, "1.4": 0}
    assert runs.unread == ()
    assert forwards == 8 + 2 / SIZE + 8 + 4 + 4 / SIZE + 1
