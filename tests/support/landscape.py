"""Records of probes around a network, with made-up numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from steadynorm.reporting.records import Cell, Measurement, Record
from tests.support.records import record

__all__ = ["cell", "made", "probe"]

RATES, SHARES = (0.5, 1.0, 2.0, 4.0), (0.0025, 0.005, 0.01, 0.02)
LAYERS = ("conv1", "conv2", "classifier")
EVERY, PER_EPOCH = 10, 20


def probe(step: int, *, loss: float = 2.0, g: float = 1.0, w: float = 20.0, beta: float = 3.0) -> list[Measurement]:
    """A probe of a quadratic loss: a step eta along g lowers it by eta g² - eta² beta g² / 2."""
    rows = [("", {"loss": loss, "gradient_norm": g, "weight_norm": w, "learning_rate": 0.1, "rounding": 0.01})]
    rows += [(name, {"gradient_norm": g / 2, "weight_norm": w / 2}) for name in LAYERS]
    lengths = [(f"rate {length!r}", 0.1 * length) for length in RATES]
    lengths += [(f"weights {length!r}", length * w / g) for length in SHARES]
    for subject, eta in lengths:
        after = loss - eta * g**2 + eta**2 * beta * g**2 / 2
        rows.append((subject, {"eta": eta, "loss": after, "change": eta * beta * g, "cosine": 0.5, "smoothness": beta}))
    return [
        Measurement(subject=subject, step=step, quantity=quantity, value=value)
        for subject, values in rows
        for quantity, value in values.items()
    ]


def cell(
    arm: str,
    seed: int = 0,
    *,
    accuracy: Sequence[float] = (0.3, 0.5),
    diverged_at: int | None = None,
    change: Callable[[int], dict[str, float]] = lambda step: {},
) -> Cell:
    """A measured network; ``change`` gives arguments of :func:`probe` at a step."""
    rows: list[Measurement] = []
    for epoch, value in enumerate(accuracy):
        for step in range(epoch * PER_EPOCH, (epoch + 1) * PER_EPOCH, EVERY):
            rows += probe(step, **change(step))
        end = (epoch + 1) * PER_EPOCH
        numbers = {"train_loss": 2.3 * (1 - value), "val_loss": 2.4 * (1 - value), "val_accuracy": value}
        rows += [Measurement(step=end, quantity=quantity, value=number) for quantity, number in numbers.items()]
    if diverged_at is not None:
        rows += probe(len(accuracy) * PER_EPOCH, **change(len(accuracy) * PER_EPOCH))
        rows.append(Measurement(step=diverged_at, quantity="diverged", value=diverged_at))
    return Cell(
        factors={"arm": arm, "seed": seed},
        status="finished" if diverged_at is None else "diverged",
        measurements=tuple(rows),
        seconds=1.5,
    )


def made(cells: Sequence[Cell], **changes: Any) -> Record:
    """A record around ``cells``; ``changes`` are changes of its configuration."""
    config = {
        "arms": ["batch_norm", "noisy_batch_norm", "none"],
        "seeds": sorted({int(one.factors["seed"]) for one in cells}) or [0],
        "epochs": 2,
        "milestones": [],
        "augment": "none",
        "probe_every": EVERY,
        "rate_steps": list(RATES),
        "weight_steps": list(SHARES),
    }
    return replace(record([], **(config | changes)), experiment="landscape", cells=tuple(cells))
