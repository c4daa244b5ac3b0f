"""Whether a model is fit to be exported: in evaluation mode, with statistics that mean something."""

from __future__ import annotations

import torch
from torch import nn

from steadynorm.lab.failure import UserError
from steadynorm.surgery.kinds import is_batch_norm, kind_of, label

__all__ = ["check_ready"]


def check_ready(model: nn.Module) -> int:
    """Refuse a model whose evaluation is not what it was trained for.

    Args:
        model: as it is to be exported; it is left as it is.

    Returns:
        the number of batch norms.

    Raises:
        UserError: a module is in training mode; a batch norm has no running statistics or normalizes by the batch in
            evaluation; a running mean or variance is not finite; a variance is negative; or the statistics were never
            updated since they were made. The message names the module and says what to do.
    """
    training = [name for name, module in model.named_modules() if module.training]
    if training:
        raise UserError(
            f"{training[0] or 'the model'}: is in training mode, so an export would normalize by the batch and drop "
            "at random. Call model.eval() first."
        )
    norms = [(name, module) for name, module in model.named_modules() if is_batch_norm(module)]
    for name, module in norms:
        fault = _fault_of(module)
        if fault:
            raise UserError(f"{name} ({label(module)}): {fault}")
    return len(norms)


def _fault_of(norm: nn.Module) -> str:
    """Say what is wrong with a batch norm, nothing where it is sound."""
    kind, _ = kind_of(norm)
    mean, var = norm._buffers.get("running_mean"), norm._buffers.get("running_var")
    if not kind.evaluates_as_batch_norm:
        return "its evaluation depends on the batch. Turn it into batch norm first: surgery.convert_(model, ...)."
    if mean is None or var is None:
        return (
            "it has no running statistics and normalizes by the batch in evaluation as well. Build it with "
            "track_running_stats=True and estimate them: surgery.recalibrate_(model, batches)."
        )
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
    counted = norm._buffers.get("num_batches_tracked")
    untouched = bool((mean == 0).all() and (var == 1).all())
    if untouched and (counted is None or not torch.any(counted)):
        return (
            "its statistics were never updated: mean 0 and variance 1, as it was built. Load the trained weights, or "
            "estimate them: surgery.recalibrate_(model, batches)."
        )
    return ""
