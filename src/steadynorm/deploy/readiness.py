"""Check that a model is ready for export: in evaluation mode, with statistics in which the doctor finds no error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from torch import nn

from steadynorm.doctor import CHECKS, Evidence, Severity, observe
from steadynorm.doctor.evidence import NormState
from steadynorm.reporting.failure import UserError
from steadynorm.surgery.kinds import is_batch_norm, kind_of, label, why_unknown

__all__ = ["READY", "check_ready"]

READY = ("nonfinite-statistics", "negative-variance", "statistics-at-init")
"""The doctor's checks whose errors make an exported model wrong."""


def check_ready(model: nn.Module) -> int:
    """Refuse a model whose evaluation does not match its training.

    Args:
        model: as it is to be exported; it is left as it is.

    Returns:
        the number of batch norms, other packages' among them.

    Raises:
        UserError: a module is in training mode; a batch norm has no running statistics or normalizes by the batch in
            evaluation; a check of :data:`READY` finds an error; or statistics are those of a new layer. The message
            names the module and says what to do.

    Warns:
        UserWarning: a module keeps running statistics and is no known batch norm; of those the statistics alone are
            looked at.
    """
    training = [name for name, module in model.named_modules() if module.training]
    if training:
        raise UserError(
            f"{training[0] or 'the model'}: is in training mode, so an export would normalize by the batch and drop "
            "at random. Call model.eval() first."
        )
    for name, module in model.named_modules():
        if is_batch_norm(module) and not kind_of(module)[0].evaluates_as_batch_norm:
            raise UserError(
                f"{name} ({label(module)}): its evaluation depends on the batch. Turn it into batch norm first: "
                "surgery.convert_(model, ...)."
            )
    for fault in _faults(observe(model)):
        raise UserError(fault)
    for name, module in model.named_modules():
        if why := why_unknown(module):
            warnings.warn(f"check_ready: {name} ({label(module)}) is left as it is: {why}", stacklevel=2)
    return sum(is_batch_norm(module) for module in model.modules())


def _faults(evidence: Evidence) -> Iterator[str]:
    """Yield the doctor's errors, and layers that are not trained yet."""
    for check in READY:
        for finding in CHECKS[check].findings(evidence):
            if finding.severity == Severity.ERROR:
                yield f"{finding.place} ({finding.what}): {finding.problem} {finding.remedy.advice}"
    for norm in evidence.norms:
        if why := _why_untrained(norm):
            yield f"{norm.name} ({norm.label}): {why}"


def _why_untrained(norm: NormState) -> str:
    """Say why a layer's running statistics describe no data; empty if they do."""
    if norm.is_batch_norm and (norm.mean is None or norm.var is None):
        return (
            "it has no running statistics and normalizes by the batch in evaluation as well. Build it with "
            "track_running_stats=True and estimate them: surgery.recalibrate_(model, batches)."
        )
    if norm.at_start:
        return (
            "its statistics were never updated: mean 0 and variance 1, as it was built. Load the trained weights, or "
            "estimate them: surgery.recalibrate_(model, batches)."
        )
    return ""
