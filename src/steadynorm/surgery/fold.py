"""Fold batch norms into the layers that feed them, or that they feed."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from steadynorm.layers.norm_add_activation import NormAddActivation
from steadynorm.layers.state import normal_tensors
from steadynorm.surgery.adapters.norm_then import fused_activation
from steadynorm.surgery.batches import Batch, Forward
from steadynorm.surgery.change import Change, Transaction
from steadynorm.surgery.flow.channel_pad import ChannelPad
from steadynorm.surgery.flow.dataflow import Call, Flow, trace
from steadynorm.surgery.flow.links import Link, is_transposed, link_after, link_before, reach_of, why_not_alone
from steadynorm.surgery.flow.scale import Affine, affine_of, with_scaled_inputs, with_scaled_outputs
from steadynorm.surgery.flow.trial import check_agreement, run
from steadynorm.surgery.kinds import adapter_of, evaluation_of, kind_of, label
from steadynorm.surgery.named_modules import NamedModule, Where, batch_norms_of, check_plain
from steadynorm.surgery.runnable import check_runnable

__all__ = ["fold_"]

_LARGE_GAIN = 100


def fold_(
    model: nn.Module,
    example: Batch,
    *,
    where: Where | None = None,
    forward: Forward | None = None,
    tolerance: float | None = None,
) -> Change:
    r"""Fold every batch norm into the linear or convolutional layer beside it, so that it costs nothing at inference.

    $$
    \mathrm{norm}(Wx + b) = (\mathrm{gain} \cdot W)\,x + (\mathrm{gain} \cdot b + \mathrm{shift}) \qquad
    W\,\mathrm{norm}(x) + b = (W \cdot \mathrm{gain})\,x + (b + W\,\mathrm{shift})
    $$

    $$
    \mathrm{gain} = \frac{\mathrm{weight}}{\sqrt{\mathrm{running\_var} + \mathrm{eps}}} \qquad \mathrm{shift} =
    \mathrm{bias} - \mathrm{running\_mean} \cdot \mathrm{gain}
    $$

    Pairs are found by running the example, not from names or registration order: the layer's output must go to the norm
    only, or the norm's output to the layer only, and both must run once. The layer before is preferred. Linear,
    convolutional and transposed convolutional layers with any groups are supported. If a convolution after the norm
    pads with zeros, a :class:`steadynorm.surgery.flow.channel_pad.ChannelPad` replaces the norm and pads with the value
    that the norm maps to zero. A fused activation or residual is kept as :class:`steadynorm.layers.NormAddActivation`;
    other norms become ``nn.Identity``. Parameters keep their objects and dtypes. Afterwards the outputs for the example
    are compared.

    Args:
        model: in evaluation mode.
        example: typical inputs: a tensor, or the model's arguments as tuple, list or dict. Not modified.
        where: (qualified name, module) -> whether to fold this batch norm; None takes all.
        forward: (model, example) -> outputs to compare, if the model is not simply called with the example.
        tolerance: largest error of an output tensor relative to its largest magnitude. None depends on the dtypes of
            the computation: 1e-10 for float64, 1e-4 for float32, 1e-2 for float16 (and for float32 on a GPU, which may
            round to TF32), 5e-2 for bfloat16. For integer outputs, the fraction that may differ, by default 0.

    Returns:
        the Change, with a reason for every batch norm that was not folded; ``measured`` has ``largest_error`` and
            ``largest_relative_error`` over the outputs.

    Raises:
        RuntimeError: outputs differ by more than the tolerance, or a folded norm still runs, because something other
            than its parent holds it. Nothing is changed then.
        TypeError: the model is wrapped or compiled.
        ValueError: the model or a batch norm is in training mode; the outputs contain no tensor; a part of the model is
            lazy or on the meta device.
        NothingDoneError: no batch norm can be folded.

    Source: Jacob et al. 2018 (arXiv 1712.05877), section 3.2, for the layer before.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> [type(each).__name__ for each in fold_(model, torch.randn(2, 3, 8, 8)).model]
    ['Conv2d', 'Identity', 'ReLU']
    """
    check_plain("fold_", model)
    check_runnable("fold_", model)
    with Transaction("fold_", model) as edits:
        norms = batch_norms_of(model, where, edits)
        _check_evaluating(model, norms)
        expected = run(model, example, forward)
        flow = trace(model, example, forward)
        left: list[tuple[NamedModule, Call, str]] = []
        for named in norms:
            why = _why_not_foldable(flow, named.module)
            if why:
                edits.refuse(named.name, label(named.module), why)
                continue
            call = flow.calls_of(named.module)[0]
            why = _fold_before(edits, flow, named, call)
            if why:
                left.append((named, call, why))
        for named, call, before in left:
            why = _fold_behind(edits, flow, named, call)
            if why:
                edits.refuse(named.name, label(named.module), f"before: {before}; after: {why}.")
        measured = {"largest_error": 0.0, "largest_relative_error": 0.0}
        if edits.changed:
            with edits.replaced_stand_still():
                actual = run(edits.model, example, forward)
            measured = check_agreement("fold_", expected, actual, tolerance=tolerance, dtypes=flow.dtypes())
        return edits.finish(**measured)


def _check_evaluating(model: nn.Module, norms: list[NamedModule]) -> None:
    training = [repr(named.name) for named in norms if named.module.training]
    if model.training or training:
        what = "the model" if model.training else ", ".join(training)
        raise ValueError(
            f"fold_: the model and its batch norms must be in evaluation mode, got {what} in training mode: no weights "
            "can hold batch statistics. Call model.eval()."
        )


def _why_not_foldable(flow: Flow, norm: nn.Module) -> str | None:
    """Say why a batch norm is not an affine map of its own; None if it is."""
    kind, _ = kind_of(norm)
    if not kind.evaluates_as_batch_norm:
        return "its evaluation depends on the batch. Convert it to batch_norm or frozen_batch_norm first."
    numbers = evaluation_of(norm)
    if numbers.mean is None or numbers.var is None:
        return "it has no running statistics, so it normalizes by the batch in evaluation as well."
    why = why_not_alone(flow, norm)
    if why is not None:
        return why
    extras = flow.calls_of(norm)[0].extras
    odd = [name for name in extras if name not in _residual_names(norm)]
    if odd:
        return f"it is called with {', '.join(odd)}, which no layer's weights can express."
    affine = affine_of(norm)
    bad = ~(affine.gain.isfinite() & affine.shift.isfinite())
    if bad.any():
        return (
            f"its statistics or parameters are not finite, or its variance is negative, in {int(bad.sum())} channels."
        )
    return None


def _residual_names(norm: nn.Module) -> tuple[str, ...]:
    kind, _ = kind_of(norm)
    masked = kind.name == "masked_batch_norm"  # its second argument is the mask
    return ("residual",) if masked else ("residual", "argument 2") if kind.ours else ()


def _fold_before(edits: Transaction, flow: Flow, named: NamedModule, call: Call) -> str:
    """Fold a batch norm into the layer before it, or say why not."""
    link = link_before(flow, call)
    if isinstance(link, str):
        return link
    affine = affine_of(named.module)
    why = _write(edits, link, *with_scaled_outputs(link.layer.module, affine.at(link.channels)))
    if not why:
        _leave(edits, named, _rest_of(call), link, affine)
    return why


def _fold_behind(edits: Transaction, flow: Flow, named: NamedModule, call: Call) -> str:
    """Fold a batch norm into the layer after it, or say why not."""
    link = link_after(flow, call)
    if isinstance(link, str):
        return link
    if not isinstance(_rest_of(call), nn.Identity):
        return "a residual or an activation comes between"
    if is_transposed(link.layer.module):
        return f"{link.layer.name!r} is transposed, so fewer inputs reach its border"
    affine, conv = affine_of(named.module), link.layer.module
    rest: nn.Module = nn.Identity()
    pads = getattr(conv, "padding_mode", "") == "zeros" and any(reach_of(conv))
    if pads:
        border = _border(link, affine)
        if isinstance(border, str):
            return border
        rest = ChannelPad(border, reach_of(conv))
    why = _write(edits, link, *with_scaled_inputs(conv, affine.at(link.channels)))
    if not why:
        if pads:
            edits.set_attribute(conv, "padding", (0,) * (len(reach_of(conv)) // 2))
        _leave(edits, named, rest, link, affine)
    return why


def _border(link: Link, affine: Affine) -> Tensor | str:
    """Return the value that the norm maps to zero in each channel, or say why the padding cannot be made explicit."""
    name = link.layer.name
    if not link.same_view:
        return f"{name!r} pads with zeros another view than the norm's own output"
    stuck = (affine.gain == 0) & (affine.shift != 0)
    if stuck.any():
        return f"{name!r} pads with zeros, but in {int(stuck.sum())} channels no value maps to zero: the weight is 0"
    value = torch.where(affine.shift == 0, 0.0, -affine.shift / affine.gain)
    assert link.norm.input is not None
    value = value.to(dtype=link.norm.input.dtype, device=link.norm.input.device)
    if not value.isfinite().all():
        return f"{name!r} pads with zeros, but the value that maps to zero is too large for {value.dtype}"
    return value


def _write(edits: Transaction, link: Link, weight: Tensor, bias: Tensor) -> str:
    """Write folded weights into a layer, or say why they cannot be."""
    layer = link.layer.module
    old, old_bias = layer._parameters["weight"], layer._parameters["bias"]
    assert old is not None
    weight, bias = (each.to(dtype=old.dtype, device=old.device) for each in (weight, bias))
    if old.isfinite().all() and not (weight.isfinite().all() and bias.isfinite().all()):
        return f"the folded weights of {link.layer.name!r} would be too large for {old.dtype}"
    edits.write_(old, weight)
    if old_bias is None:
        with normal_tensors():
            new = nn.Parameter(bias.clone(), requires_grad=old.requires_grad)
        edits.set_entry(layer._parameters, "bias", new)
    else:
        edits.write_(old_bias, bias)
    return ""


def _rest_of(call: Call) -> nn.Module:
    """Return what remains of a batch norm once the layer before it normalizes."""
    adapter = adapter_of(call.module)
    if adapter is not None:
        tail = adapter.tail(call.module)
        empty = fused_activation(tail.values()) == (True, None)
        return nn.Identity() if empty else nn.Sequential(OrderedDict(tail))
    activation = getattr(call.module, "activation", None) if kind_of(call.module)[0].ours else None
    if activation is None and not call.extras:
        return nn.Identity()
    return NormAddActivation(nn.Identity(), activation)


def _named(rest: nn.Module) -> str:
    """Name the modules that replace a norm."""
    parts = rest if isinstance(rest, nn.Sequential) else [rest]
    return " + ".join(label(each) for each in parts if len(parts) == 1 or type(each) is not nn.Identity)


def _leave(edits: Transaction, named: NamedModule, rest: nn.Module, link: Link, affine: Affine) -> None:
    """Replace the norm by the rest, and record it."""
    notes = []
    largest = affine.gain.abs().max() if affine.gain.numel() else affine.gain.new_zeros(())
    if largest > _LARGE_GAIN:
        channel = int(affine.gain.abs().argmax())
        notes.append(f"largest gain {largest:.3g}, of channel {channel}: nearly constant in training")
    edits.replace(named.module, rest.train(named.module.training))
    layer = link.layer
    edits.note_changed(
        named.name,
        label(named.module),
        f"{_named(rest)}, folded into {layer.name!r} ({label(layer.module)})",
        *notes,
    )
