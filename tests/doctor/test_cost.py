"""What a diagnosis costs, counted in forwards of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from steadynorm.doctor import observe
from steadynorm.doctor.evidence import Runs
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


@pytest.mark.parametrize(("spoil", "layers"), [(lambda model: None, []), (stale, ["1", "4"])])
def test_layers_are_tried_one_by_one_where_the_batches_own_statistics_are_better(
    model: Any, spoil: Callable[[Any], None], layers: list[str]
) -> None:
    spoil(model)
    runs, _ = observed(model)
    assert list(runs.one_layer) == layers
    assert all(len(scores) == 2 for scores in runs.one_layer.values())
