"""Whether a model is fit to be exported: in evaluation mode, with statistics that mean something."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from steadynorm.reporting.failure import UserError
from steadynorm.surgery.kinds import evaluation_of, is_batch_norm, kind_of, label, why_unknown

__all__ = ["check_ready"]


def check_ready(model: nn.Module) -> int:
    """Refuse a model whose evaluation is not what it was trained for.

    Args:
        model: as it is to be exported; it is left as it is.

    Returns:
        the number of batch norms, other packages' among them.

    Raises:
        UserError: a module is in training mode; a batch norm has no running statistics or normalizes by the batch in
            evaluation; a running mean or variance is not finite; a variance is negative; or the statistics were never
            updated since they were made. The message names the module and says what to do.

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
    norms = 0
    for name, module in model.named_modules():
        known, why = is_batch_norm(module), why_unknown(module)
        norms += known
        fault = _fault_of(module) if known else _fault_of_statistics(module) if why else ""
        if fault:
            raise UserError(f"{name} ({label(module)}): {fault}")
        if why:
            warnings.warn(f"check_ready: {name} ({label(module)}) is left as it is: {why}", stacklevel=2)
    return norms


def _fault_of(norm: nn.Module) -> str:
    """Say what is wrong with a batch norm; nothing if it is sound."""
    kind, _ = kind_of(norm)
    if not kind.evaluates_as_batch_norm:
        return "its evaluation depends on the batch. Turn it into batch norm first: surgery.convert_(model, ...)."
    numbers = evaluation_of(norm)
    if numbers.mean is None or numbers.var is None:
        return (
            "it has no running statistics and normalizes by the batch in evaluation as well. Build it with "
            "track_running_stats=True and estimate them: surgery.recalibrate_(model, batches)."
        )
    return _fault_of_statistics(norm)


def _fault_of_statistics(module: nn.Module) -> str:
    """Say what is wrong with running statistics; nothing if they are sound or absent."""
    mean, var = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    if not (isinstance(mean, Tensor) and isinstance(var, Tensor)):
        return ""
    for what, bad in (
        ("a running mean that is not finite", ~mean.isfinite()),
        ("a running variance that is not finite", ~var.isfinite()),
        ("a negative running variance", var < 0),
    ):
        if bad.any():
            return (
                f"it has {what} in {int(bad.sum())} of {bad.numel()} channels. "
                "Repair it: surgery.repair_statistics_(model, batches)."
            )
    counted = getattr(module, "num_batches_tracked", None)
    untouched = bool((mean == 0).all() and (var == 1).all())
    if untouched and (counted is None or not torch.any(counted)):
        return (
            "its statistics were never updated: mean 0 and variance 1, as it was built. Load the trained weights, or "
            "estimate them: surgery.recalibrate_(model, batches)."
        )
    return ""
