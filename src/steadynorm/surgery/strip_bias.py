"""Remove biases that a batch norm subtracts again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from steadynorm.layers.base import BatchNormBase
from steadynorm.surgery.batches import Batch, Forward
from steadynorm.surgery.change import Change, Transaction
from steadynorm.surgery.estimation.write_statistics import edit_batch_memory_
from steadynorm.surgery.flow.dataflow import Flow, trace
from steadynorm.surgery.flow.links import Link, link_before, why_not_alone
from steadynorm.surgery.flow.trial import check_agreement, run
from steadynorm.surgery.kinds import is_batch_norm, kind_of, label, why_unknown
from steadynorm.surgery.named_modules import Where, batch_norms_of, check_plain
from steadynorm.surgery.runnable import check_runnable

__all__ = ["strip_bias_"]

_NO_BIAS = "has no bias."
_NONE = "no convolution or linear layer feeds it"
"""Both say that there is no bias to remove, which is not a failure."""


def strip_bias_(
    model: nn.Module,
    example: Batch,
    *,
    where: Where | None = None,
    forward: Forward | None = None,
    tolerance: float | None = None,
) -> Change:
    r"""Remove the bias of every layer whose output goes only to a batch norm, which subtracts it with the mean.

    $$
    \mathrm{running\_mean} \leftarrow \mathrm{running\_mean} - b \qquad b \leftarrow \mathrm{None}
    $$

    Training outputs and all other gradients do not change: the bias had no gradient except rounding. In evaluation the
    running mean compensates. Layers and norms are paired as by :func:`steadynorm.surgery.fold_`, in one run of the
    example in evaluation and one in training (so that a dropout between them is seen). Afterwards the evaluation
    outputs are compared. Before a gated batch norm the bias does have a gradient; the norm's own bias has it too.

    Args:
        model: in either mode, which is kept.
        example: typical inputs: a tensor, or the model's arguments as tuple, list or dict.
        where: (qualified name, module) -> whether to remove the bias before this batch norm; None takes all.
        forward: (model, example) -> outputs to compare, if the model is not simply called with the example.
        tolerance: largest relative error, as for :func:`steadynorm.surgery.fold_`.

    Returns:
        the Change, with a reason for every batch norm whose layer keeps its bias; ``measured`` as in
            :func:`steadynorm.surgery.fold_`. Recreate the optimizer, which still holds the biases.

    Raises:
        RuntimeError: evaluation outputs differ by more than the tolerance; nothing is changed then.
        TypeError: the model is wrapped or compiled.
        ValueError: the outputs contain no tensor; a part of the model is lazy or on the meta device.
    """
    check_plain("strip_bias_", model)
    check_runnable("strip_bias_", model)
    with Transaction("strip_bias_", model) as edits:
        norms = batch_norms_of(model, where, edits)
        with _modes(model, training=False):
            expected = run(model, example, forward)
            evaluating = trace(model, example, forward)
        with _modes(model, training=True):
            training = trace(model, example, forward)
        for named in norms:
            frozen = model.training and not named.module.training
            link = _find(evaluating, training, named.module, frozen=frozen)
            if isinstance(link, str):
                edits.refuse(
                    named.name, label(named.module), link, moot=link.startswith(_NONE) or link.endswith(_NO_BIAS)
                )
            else:
                _strip(edits, named.name, link)
        measured = {"largest_error": 0.0, "largest_relative_error": 0.0}
        if edits.changed:
            with _modes(model, training=False):
                actual = run(model, example, forward)
            dtypes = evaluating.dtypes()
            measured = check_agreement("strip_bias_", expected, actual, tolerance=tolerance, dtypes=dtypes)
        return edits.finish(**measured)


@contextmanager
def _modes(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put all modules into a mode, except batch norms: they evaluate, so that their statistics do not move."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = training and not is_batch_norm(module) and why_unknown(module) is None
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _find(evaluating: Flow, training: Flow, norm: nn.Module, *, frozen: bool) -> Link | str:
    """Find the layer whose bias the norm makes redundant, or say why there is none."""
    found: list[Link] = []
    for mode, flow in (("", evaluating), ("in training, ", training)):
        why = why_not_alone(flow, norm)
        link = link_before(flow, flow.calls_of(norm)[0]) if why is None else why
        if isinstance(link, str):
            return f"{mode}{link.removesuffix('.')}."
        found.append(link)
    first, second = found
    if first.layer.module is not second.layer.module:
        return f"{first.layer.name!r} feeds it in evaluation, {second.layer.name!r} in training."
    return _why_needed(evaluating, first, frozen=frozen) or first


def _why_needed(flow: Flow, link: Link, *, frozen: bool) -> str:
    """Say why the bias is missing or not redundant; empty if it can be removed."""
    name, norm = link.layer.name, link.norm.module
    bias = link.layer.module._parameters["bias"]
    kind, _ = kind_of(norm)
    if bias is None:
        return f"the layer before, {name!r}, {_NO_BIAS}"
    masks = [value for name, value in link.norm.extras.items() if name != "residual" and value is not None]
    if kind.name == "masked_batch_norm" and masks:
        return "it is called with a mask, and masked values pass through it with the bias."
    channels = sorted(link.channels.tolist())
    if channels != list(range(len(channels))):
        return f"several channels of {name!r} share one of its channels, and their biases differ."
    if (kind.name == "frozen_batch_norm" or frozen) and bias.requires_grad:
        return f"its statistics are frozen, so the bias of {name!r} is learned: set its requires_grad to False."
    for statistic in norm.buffers():
        if len(flow.owners_of(statistic)) > 1:
            return f"its statistics are shared by {', '.join(map(repr, flow.owners_of(statistic)))}."
    return ""


def _strip(edits: Transaction, norm: str, link: Link) -> None:
    layer, norm_module = link.layer.module, link.norm.module
    bias, mean = layer._parameters["bias"], norm_module._buffers.get("running_mean")
    assert bias is not None
    wide = bias.detach().cpu().double()
    moved = torch.empty_like(wide).index_copy_(0, link.channels, wide)
    if mean is not None:
        edits.write_(mean, (mean.detach().cpu().double() - moved).to(mean))
        if isinstance(norm_module, BatchNormBase):
            edit_batch_memory_(edits, norm_module, lambda: norm_module.shift_batch_memory_(-moved))
    edits.set_entry(layer._parameters, "bias", None)
    notes = ["an existing optimizer still holds the bias; recreate it"]
    if not kind_of(link.norm.module)[0].evaluates_as_batch_norm:
        notes.append("the gate mixes in stored statistics, so the bias had a gradient; the norm's own bias has it too")
    after = "without one" + ("" if mean is None else f", moved into the running mean of {norm!r}")
    edits.note_changed(link.layer.name, f"{label(layer)} with a bias", after, *notes)
