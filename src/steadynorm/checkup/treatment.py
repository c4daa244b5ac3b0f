"""``--treat``: repair a model, write its weights, and diagnose a new model built with them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from steadynorm.checkup.data import Sample
from steadynorm.checkup.saved import save_model
from steadynorm.deploy.source import is_built, load_source
from steadynorm.doctor import Diagnosis, Treatment, accuracy, treat_
from steadynorm.reporting.diagnosis import Treated

__all__ = ["reloaded", "treat"]

IN_CODE = {
    "evaluate": "call model.eval() before predictions",
    "from_sync": "build the model with plain batch norms",
    "momentum": "set this momentum where the model is built",
    "eps": "set this eps where the model is built",
    "freeze": "call steadynorm.surgery.freeze_ on these layers after the model is built",
}
"""Treatment that a weights file cannot store -> its equivalent in code."""


def treat(
    model: nn.Module,
    diagnosis: Diagnosis,
    sample: Sample | None,
    *,
    source: str,
    out: Path,
    checkpoint: Mapping[str, Any] | None = None,
) -> Treated:
    """Treat a model, and write its state if a treatment was kept.

    Args:
        model: the diagnosed model; changed in place.
        diagnosis: its diagnosis.
        sample: without one nothing is measured, and statistics are only repaired.
        source: source of the model.
        out: file for the state dict.
        checkpoint: the checkpoint that the model should equal.

    Raises:
        OSError: the file cannot be written.
    """
    scored = sample is not None and sample.classes > 0
    treatment = treat_(
        model,
        diagnosis,
        None if sample is None else list(sample.batches),
        metric=accuracy if scored else None,
        checkpoint=checkpoint,
    )
    kept = [each for each in treatment.applied if each.kept]
    if kept:
        save_model(treatment.model, out, source)
    before, after = (_accuracy(scores) if scored else None for scores in (treatment.before, treatment.after))
    return Treated(
        applied=tuple(str(replace(each, after=math.nan)) for each in treatment.applied),  # the score is printed once
        left=treatment.advice,
        before=before,
        after=after,
        file=str(out) if kept else "",
        in_code=tuple(_in_code(treatment)),
    )


def reloaded(source: str, file: Path, *, code: Collection[str] = ()) -> nn.Module:
    """Build a new model with the written weights."""
    if is_built(source):
        return load_source(source, weights=file).model
    return load_source(str(file), weights=None, code=code).model


def _accuracy(scores: tuple[float, ...]) -> float | None:
    return -sum(scores) / len(scores) if scores else None


def _in_code(treatment: Treatment) -> list[str]:
    """Describe the kept treatments that a weights file cannot store, one sentence each."""
    return [
        f"Not in the file: {each.treatment} at {', '.join(one.name or '(the model)' for one in each.change.changed)}; "
        f"{IN_CODE[each.treatment]}."
        for each in treatment.applied
        if each.kept and each.change is not None and each.treatment in IN_CODE
    ]
