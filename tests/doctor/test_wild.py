"""Norms of other packages and of every kind of the registry: known ones are checked, unknown ones named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steadynorm.doctor import Severity, diagnose, observe
from steadynorm.layers.kinds import KINDS
from steadynorm.surgery import recalibrate_
from tests.support.foreign import FOREIGN, FROZEN, chain


def maps(number: int = 4, size: int = 32) -> list[Tensor]:
    x = torch.randn(number * size, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return list(x.split(size))


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("training", [False, True])
def test_a_foreign_norm_is_known_and_does_what_its_formula_says(name: str, training: bool) -> None:
    model = chain(FOREIGN[name])
    if name not in FROZEN and "frozen" not in name:
        recalibrate_(model, maps())
    evidence = observe(model.train(training), maps())
    assert [each.unknown for each in evidence.norms] == ["", ""]
    assert evidence.batches is not None
    assert [each.error for each in evidence.batches.parity.values()] == ([] if name == "inplace abn" else [0.0, 0.0])
    assert all(len(seen) == 4 for seen in evidence.batches.sightings.values())


@pytest.mark.parametrize("name", FOREIGN)
def test_a_healthy_foreign_model_gives_no_warning(name: str) -> None:
    model = chain(FOREIGN[name])
    for norm in (model[1], model[3]):
        with torch.no_grad():
            norm.weight.fill_(1.0)
            norm.bias.zero_()
    for _ in range(2):  # the second norm's inputs follow from the first one's statistics
        for at in (1, 3):
            measure_(model, at)
    diagnosis = diagnose(model, maps())
    assert [each for each in diagnosis if each.severity >= Severity.WARNING] == []
    lossy = {each.layer for each in diagnosis.of("lossy-subclass")}
    assert lossy == ({"1", "3"} if ("timm" in name and "nothing" not in name) or name == "inplace abn" else set())


@torch.no_grad()
def measure_(model: Any, at: int) -> None:
    """Store the moments of what one layer is given, as one does before freezing it."""
    x = model[:at](torch.cat(maps()))
    model[at].running_mean.copy_(x.mean((0, 2, 3)))
    model[at].running_var.copy_(x.var((0, 2, 3)))


@pytest.mark.parametrize("name", FROZEN)
def test_a_frozen_norm_with_lost_statistics_is_found(name: str) -> None:
    model = chain(FROZEN[name])
    model[3].running_mean.zero_()
    model[3].running_var.fill_(1.0)
    assert [(each.layer, each.severity) for each in diagnose(model).of("statistics-at-init")] == [("3", Severity.ERROR)]


def test_a_frozen_norm_that_does_something_else_is_named() -> None:
    class FrozenBatchNorm2d(FROZEN["torchvision"]):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    FrozenBatchNorm2d.__qualname__, FrozenBatchNorm2d.__module__ = "FrozenBatchNorm2d", "elsewhere.layers"
    found = diagnose(chain(FrozenBatchNorm2d), maps())
    assert [each.layer for each in found.of("lossy-subclass")] == ["1", "3"]
    assert "off by" in found.of("lossy-subclass")[0].problem


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_every_kind_of_the_registry_is_looked_at(kind: str, training: bool) -> None:
    cls: Any = KINDS[kind].class_for(1)
    options = {"ghost_batch_norm": {"ghost_batch_size": 16}}.get(kind, {})
    sizes = (2, 6) if kind == "group_norm" else (6,)
    torch.manual_seed(0)
    linear = nn.Linear(4, 6, bias=False)
    model = nn.Sequential(linear, cls(*sizes, **options), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for batch in x.split(32) * 20 if getattr(model[1], "running_mean", None) is not None else ():
            model(batch)
    diagnosis = diagnose(model.train(training), list(x.split(32)))
    expected = {"statistics-at-init"} if kind == "frozen_batch_norm" else set()
    assert {each.check for each in diagnosis if each.severity >= Severity.WARNING} <= expected
    assert not any("lossy" in each.check for each in diagnosis)


def test_a_tracked_instance_norm_is_looked_at() -> None:
    model = nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True, affine=True)).double()
    for x in maps():
        model(x)
    assert diagnose(model.eval(), maps()).is_healthy
    model[0].running_var[1] = torch.nan
    found = diagnose(model.eval(), maps()).of("nonfinite-statistics")
    assert [each.layer for each in found] == ["0"]
