"""The treatments: functions that change a model and can be undone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from steadynorm.doctor.compared import usual_eps
from steadynorm.surgery.batches import Forward
from steadynorm.surgery.change import Change, Transaction
from steadynorm.surgery.convert import from_sync_
from steadynorm.surgery.freeze import freeze_
from steadynorm.surgery.kinds import eps_of, is_batch_norm, label
from steadynorm.surgery.load import load_tensors_
from steadynorm.surgery.named_modules import Where, batch_norms_of
from steadynorm.surgery.recalibrate import recalibrate_
from steadynorm.surgery.repair import repair_statistics_
from steadynorm.surgery.statistics import load_statistics_

__all__ = ["TREATMENTS", "Case"]

_HALF = (torch.float16, torch.bfloat16)
_NO_BATCHES = "it needs batches"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Input of a treatment.

    Args:
        model: the plain model as it is now.
        names: layers that findings name; the model's name, or none, for all.
        batches: batches to measure on; may be empty.
        forward: runs the model on a batch.
        scored: whether the treatment's effect on the score is measured.
        checkpoint: the checkpoint that the model should equal; None without one.
    """

    model: nn.Module
    names: frozenset[str]
    batches: list[Any]
    forward: Forward
    scored: bool = False
    checkpoint: Mapping[str, Any] | nn.Module | None = None

    @property
    def where(self) -> Where:
        """Selects the layers that findings name; all if one names the model."""
        return lambda name, module: not self.names or "" in self.names or name in self.names


def _repair(case: Case) -> Change:
    return repair_statistics_(case.model, case.batches or None, where=case.where, forward=case.forward)


def _load(case: Case) -> Change | str:
    """Load the named layers' statistics from the checkpoint, or all tensors that fit if a finding names the model.

    Weights are loaded only if the effect is measured: the model may have been trained since.
    """
    if case.checkpoint is None:
        return "it needs the checkpoint"
    if "" not in case.names:
        return load_statistics_(case.model, case.checkpoint, where=case.where)
    if not case.scored:
        return "it would replace weights, and needs batches with labels or a loss to measure whether that helps"
    return load_tensors_(case.model, case.checkpoint)


def _recalibrate(case: Case) -> Change | str:
    """Recalibrate the named layers, or all if a finding names the model."""
    if not case.batches:
        return _NO_BATCHES
    stored = {module for module in case.model.modules() if is_batch_norm(module) and module.running_mean is not None}
    return recalibrate_(
        case.model,
        case.batches,
        where=lambda name, module: module in stored and case.where(name, module),
        forward=case.forward,
    )


def _freeze(case: Case) -> Change:
    return freeze_(case.model, where=case.where)


def _from_sync(case: Case) -> Change:
    return from_sync_(case.model)


def _evaluate(case: Case) -> Change:
    """Set layers to evaluation mode."""
    with Transaction("evaluate_", case.model) as edits:
        for named in batch_norms_of(case.model, case.where):
            if named.module.training:
                edits.set_attribute(named.module, "training", False)
                edits.note_changed(named.name, "in training mode", "in evaluation mode")
        return edits.finish()


def _momentum(case: Case) -> Change:
    """Set the momentum equivalent to another framework's decay; torch's default for 0 and 1."""
    with Transaction("momentum_", case.model) as edits:
        for named in batch_norms_of(case.model, case.where):
            before = named.module.momentum
            if isinstance(before, int | float) and 0 <= before <= 1:
                edits.set_attribute(named.module, "momentum", round(1 - before, 12) if 0 < before < 1 else 0.1)
                edits.note_changed(named.name, f"momentum {before:g}", f"momentum {named.module.momentum:g}")
        return edits.finish()


def _eps(case: Case) -> Change | str:
    """Set the eps that most layers have, if the effect is measured."""
    if not case.scored:
        return "the right eps depends on the weights: it needs batches with labels or a loss to choose it"
    norms = [each for each in batch_norms_of(case.model) if getattr(each.module, "running_var", None) is not None]
    usual = usual_eps(eps_of(each.module) for each in norms)
    with Transaction("eps_", case.model) as edits:
        for named in batch_norms_of(case.model, case.where):
            before = named.module.eps
            if isinstance(before, int | float) and before != usual:
                edits.set_attribute(named.module, "eps", usual)
                edits.note_changed(named.name, f"eps {before:g}", f"eps {usual:g}")
        return edits.finish()


def _float32(case: Case) -> Change:
    """Store running statistics in float32, and weight and bias too: torch needs equal dtypes on a CPU."""
    with Transaction("float32_", case.model) as edits:
        for named in batch_norms_of(case.model, case.where):
            module = named.module
            stored = {name: module._buffers.get(name) for name in ("running_mean", "running_var")}
            halves = {name: each for name, each in stored.items() if each is not None and each.dtype in _HALF}
            for name, half in halves.items():
                edits.set_entry(module._buffers, name, half.float())
            for parameter in module._parameters.values() if halves else ():
                if parameter is not None and parameter.dtype in _HALF:
                    _widen(edits, parameter)
            if halves:
                edits.note_changed(named.name, label(module), "running statistics, weight and bias in float32")
        return edits.finish()


def _widen(edits: Transaction, parameter: nn.Parameter) -> None:
    """Store a parameter in float32 in place, so that an optimizer keeps its reference."""
    half, wide = parameter.data, parameter.data.float()

    def store(data: torch.Tensor) -> None:
        parameter.data = data

    edits.edit(lambda: store(wide), lambda: store(half), lambda: parameter.data_ptr() == wide.data_ptr())


TREATMENTS: dict[str, Callable[[Case], Change | str]] = {
    "evaluate": _evaluate,
    "from_sync": _from_sync,
    "float32": _float32,
    "momentum": _momentum,
    "eps": _eps,
    "load": _load,
    "repair": _repair,
    "recalibrate": _recalibrate,
    "freeze": _freeze,
}
"""Treatments of :func:`steadynorm.treat_` in their order. Each returns its change, or why there is none."""
