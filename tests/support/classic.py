"""Records of the sigmoid network with made-up numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steadynorm.reporting.records import Cell, Measurement, Record

__all__ = ["cell", "made_record"]

STEPS = (0, 1, 10, 20, 30)


def cell(
    arm: str,
    seed: int,
    accuracies: Sequence[float],
    *,
    drift: Sequence[float] = (0.1, 0.2, 0.9),
    width_ratio: Sequence[float] = (2.0, 3.0, 4.0),
    diverged: bool = False,
) -> Cell:
    """Make a measured cell of a layer of three sigmoids: an accuracy for each of the steps 0, 1, 10, 20, 30."""
    steps = STEPS[: len(accuracies)]
    shares = zip(steps, accuracies, strict=True)
    rows = [Measurement(step=step, quantity="test_accuracy", value=share) for step, share in shares]
    rows += [Measurement(step=step, quantity="train_loss", value=1 / step) for step in steps[1:]]
    for unit in range(3):
        for name, place in (("p15", -1.0), ("p50", 0.0), ("p85", 1.5)):
            rows += [
                Measurement(subject=f"unit {unit}", step=step, quantity=name, value=place * (1 + step / 10) + unit)
                for step in steps
            ]
    if diverged:
        rows.append(Measurement(step=STEPS[len(accuracies)], quantity="train_loss", value=float("nan")))
        rows.append(Measurement(step=STEPS[len(accuracies)], quantity="diverged", value=1.0))
    else:
        for mode, times in (("", 1.0), ("eval_", 10.0)):
            for name, values in (("drift", drift), ("path", (1.0, 2.0, 5.0)), ("width_ratio", width_ratio)):
                rows += [
                    Measurement(subject=f"unit {unit}", step=30, quantity=mode + name, value=value * times)
                    for unit, value in enumerate(values)
                ]
    return Cell(
        factors={"arm": arm, "seed": seed},
        status="diverged" if diverged else "finished",
        measurements=tuple(rows),
        seconds=12.0,
    )


def made_record(
    cells: Sequence[Cell], *, arms: Sequence[str] = ("batch_norm", "none"), seeds: Sequence[int] = (0, 1)
) -> Record:
    """Make the record of an experiment that has measured these cells."""
    known: Mapping[str, Cell] = {one.name: one for one in cells}
    grid = [Cell(factors={"arm": arm, "seed": seed}) for seed in seeds for arm in arms]
    return Record(
        experiment="classic",
        command="steadynorm classic",
        created="2026-01-01T00:00:00+00:00",
        config={
            "arms": list(arms),
            "seeds": list(seeds),
            "data": "digits",
            "quick": False,
            "widths": [100, 100, 100],
            "steps": 30,
            "batch_size": 60,
            "lr": 1.0,
            "init_std": 0.1,
        },
        resolved={"device": "cpu", "precision": "fp32", "train_images": 1400, "validation_images": 397, "classes": 10},
        versions={"steadynorm": "0"},
        machine={"cores": 2},
        cells=tuple(known.get(one.name, one) for one in grid),
    )
