"""The headline of a summary as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

__all__ = ["results_table"]

TITLES = {"shared": "at the same learning rate", "tuned": "each at its own best learning rate"}


def results_table(summary: dict[str, Any]) -> Table:
    """Give one row per arm and learning rate.

    Args:
        summary: the content of ``summary.json``.
    """
    table = Table("arm", "learning rate", "seeds", "validation accuracy", "gradient norm", "s/epoch", box=None)
    for name, arms in summary["pictures"].items():
        if len(summary["pictures"]) > 1:
            table.add_row(f"[bold]{TITLES[name]}[/bold]")
        for arm in arms.values():
            table.add_row(*_row(arm))
    return table


def _row(arm: dict[str, Any]) -> list[str]:
    accuracy, norm, seconds = arm["val_accuracy"], arm["grad_norm"], arm["seconds_per_epoch"]
    if accuracy is None:
        shown = f"epoch {arm['reached_epoch']}, not finished"
    else:
        spread = "" if accuracy["sd"] is None else f" ± {accuracy['sd']:.1%}"
        shown = f"{accuracy['mean']:.1%}{spread}"
    if arm["diverged"]:
        steps = ", ".join(map(str, arm["diverged_at_step"]))
        shown = f"{'' if accuracy is None else shown + '; '}diverged at step {steps}"
    return [
        arm["arm"],
        f"{arm['lr']:g}",
        str(arm["seeds"]),
        shown,
        "" if norm is None else f"{norm['mean']:.2f}",
        "" if seconds is None else f"{seconds:.1f}",
    ]
