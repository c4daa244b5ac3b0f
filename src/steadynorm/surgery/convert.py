"""Convert batch norms to another kind of layer, with the same parameters, statistics, flags and hooks."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from steadynorm.functional import Activation
from steadynorm.layers.kinds import BATCH_NORMS, KINDS, Kind
from steadynorm.layers.state import normal_tensors
from steadynorm.surgery.adapters.known_form import known_form
from steadynorm.surgery.around import Around
from steadynorm.surgery.batches import Batch, Batches, Forward
from steadynorm.surgery.change import Change, Transaction
from steadynorm.surgery.dimensions import Dimensions
from steadynorm.surgery.group_norm import Reference, build_group_norm, start_from_data
from steadynorm.surgery.kinds import (
    adapter_of,
    evaluation_of,
    find_kind,
    is_exact,
    kind_of,
    label,
)
from steadynorm.surgery.named_modules import NamedModule, Where, batch_norms_of, check_plain, named_modules_of
from steadynorm.surgery.own_layer import name_of, own_layer
from steadynorm.surgery.rebuild import (
    DIMENSIONS,
    ORIGIN,
    Origin,
    bring_back_with,
    carried_options,
    freeze_affine_,
    fresh_like,
    move_state,
    why_not_rebuilt,
)
from steadynorm.surgery.surprises import surprises_of

__all__ = ["convert_", "from_sync_", "rebuild_", "to_torch_"]


def convert_(
    model: nn.Module,
    to: str | Callable[..., nn.Module],
    *,
    where: Where | None = None,
    example: Batch = None,
    batches: Iterable[Batch] | None = None,
    forward: Forward | None = None,
    **options: Any,  # noqa: ANN401 (those of the new layer)
) -> Change:
    """Convert the batch norms of a model to another kind of layer, in place.

    The new layers hold the same Parameter and buffer objects, so optimizer state, tied parameters and running
    statistics carry over; so do flags, device, dtype, hooks and attributes. A module registered in several places is
    converted once. A fused activation is kept; if the new layer cannot fuse it,
    :class:`steadynorm.layers.NormAddActivation` applies it under the same state keys.

    Converting to another batch norm does not change evaluation, except to gated batch norm, whose evaluation depends on
    the batch. Group and layer norm have no running statistics, so converting to them changes it; they keep weight, bias
    and eps. With ``batches``, their weight and bias are then fitted per channel by least squares to the outputs of the
    old layers, layer by layer in the order in which they run.

    Args:
        model: the root module, not yet wrapped or compiled. torch's batch norms and ours are converted; unknown
            subclasses are refused by name.
        to: a layer class, which selects its family (1d, 2d, 3d), or a name from :data:`steadynorm.layers.kinds.KINDS`:
            ``"batch_norm"``, ``"ghost_batch_norm"``, ``"torch_batch_norm"``, ..., ``"group_norm"`` or ``"layer_norm"``
            (group norm with one group). Or your own class or function, called with the number of channels and the
            options; parameters and buffers carry over if it has them under the same names with the same shapes.
        where: (qualified name, module) -> whether to convert it; None takes all.
        example: inputs to run the model on: a tensor, or a tuple or mapping of arguments. Needed if a synchronized
            layer does not say whether it is 1d, 2d or 3d, or to find layers that are called with a residual.
        batches: for group and layer norm, batches to fit weight and bias on: tensors, (input, ...) or mappings. They
            are run several times.
        forward: (model, example or batch) -> output, if the model is not simply called with the example.
        options: keyword arguments of the new layer, such as ``ghost_batch_size`` or ``eps``; options that both kinds
            have carry over. Group norm takes ``num_groups``; None chooses the largest number up to 32 that divides the
            channels and leaves at least 16 per group.

    Returns:
        the Change; its ``model`` is a new object only if the root itself was converted.

    Raises:
        ValueError: an unknown kind; ``batches`` for a batch norm.
        TypeError: an unknown option, or one that the old layer determines (channels, affine, bias, device, dtype);
            your own class does not make a layer; a model that is wrapped or compiled.
        NothingDoneError: every batch norm was refused.
        RuntimeError: with ``batches``, a replaced batch norm still runs, because something other than its parent holds
            it.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> convert_(model, "ghost_batch_norm", ghost_batch_size=32).changed[0].name
    '1'
    """
    kind = find_kind(to)
    if batches is not None and (kind is None or kind.name in BATCH_NORMS):
        what = "your own class keeps its own initialization" if kind is None else "it keeps the running statistics"
        raise ValueError(
            f"convert_: batches fit group or layer norm; {name_of(to)} does not take them: {what}. "
            "Use recalibrate_ to measure statistics again."
        )
    if kind is not None:
        _check_options(kind, options)
    check_plain("convert_", model)
    given = None if batches is None else list(Batches(batches, "convert_"))
    with Transaction("convert_", model) as edits:
        norms = batch_norms_of(model, where, edits)
        edits.notes += _other_norms(model, norms, edits) if where is None else []
        dimensions = Dimensions(model, norms, example, forward)
        if kind is None:
            for named in norms:
                _put_own(edits, named, to, options, dimensions)  # type: ignore[arg-type]  # a string has a kind
            return edits.finish()
        reference = Reference(edits, [named.module for named in norms])
        converted = rebuild_(edits, norms, kind, options, dimensions, surprises=True)
        if given is None:
            return edits.finish()
        return edits.finish(**start_from_data(edits, reference, converted, given, forward))


def _other_norms(model: nn.Module, norms: list[NamedModule], edits: Transaction) -> list[str]:
    """Say which normalizations are kept because they are not batch norms."""
    found = {named.name for named in norms} | {each.name for each in edits.refused}
    others = Counter(
        type(named.module).__name__
        for named in named_modules_of(model)
        if _NORM.search(type(named.module).__name__) and named.name not in found
    )
    counts = ", ".join(f"{count} {name}" for name, count in others.items())
    return [f"convert_ replaces batch norms and keeps {counts}"] if others else []


_NORM = re.compile(r"Norm([123]d)?$")


def _check_options(kind: Kind, options: dict[str, Any]) -> None:
    for name in _DECIDED:
        if name in options:
            raise TypeError(
                f"convert_: the converted layer determines {name}, got {name}={options[name]!r}. Leave it out."
            )
    known = _known_options(kind)
    for name in options:
        if name not in known:
            raise TypeError(f"convert_: {kind.name} has no option {name!r}. It has {', '.join(known)}.")


_DECIDED = ("num_features", "affine", "bias", "track_running_stats", "device", "dtype")


def _known_options(kind: Kind) -> list[str]:
    if kind.name not in BATCH_NORMS:
        return ["eps"] if kind.name == "layer_norm" else ["num_groups", "eps"]
    parameters = (each for cls in kind.classes.values() for each in inspect.signature(cls).parameters.values())
    return list(
        dict.fromkeys(each.name for each in parameters if each.kind != each.VAR_KEYWORD and each.name not in _DECIDED)
    )


def to_torch_(
    model: nn.Module,
    *,
    where: Where | None = None,
    example: Batch = None,
    forward: Forward | None = None,
) -> Change:
    """Convert our layers to plain ``torch.nn`` classes, which exporters, quantisers and fusers recognise.

    ``SyncBatchNorm`` becomes torch's (see :func:`from_sync_` for a single process), every other kind ``BatchNorm1d``,
    ``2d`` or ``3d``; a fused activation becomes a module after it. Evaluation does not change. In training the new
    layers are plain batch norms; the notes say which options were dropped. Gated batch norm is refused, because its
    evaluation differs; ``convert_(model, "torch_batch_norm")`` converts it anyway.

    Args:
        model: the root module.
        where: (qualified name, module) -> whether to convert it; None takes all.
        example: inputs to run the model on. Needed if a layer without activation is called with a residual.
        forward: (model, example) -> output, if the model is not simply called with the example.

    Returns:
        the Change.

    Raises:
        TypeError: the model is wrapped or compiled.
        NothingDoneError: every batch norm was refused.
    """
    check_plain("to_torch_", model)
    with Transaction("to_torch_", model) as edits:
        found = batch_norms_of(model, where, edits)
        norms = [named for named in found if kind_of(named.module)[0].ours or not is_exact(named.module)]
        dimensions = Dimensions(model, norms, example, forward)
        for named in norms:
            kind = kind_of(named.module)[0]
            if not kind.evaluates_as_batch_norm:
                why = "its evaluation differs from torch's. convert_(model, 'torch_batch_norm') converts it anyway."
                edits.refuse(named.name, label(named.module), why)
                continue
            target = "torch_sync_batch_norm" if kind.name.endswith("sync_batch_norm") else "torch_batch_norm"
            rebuild_(edits, [named], KINDS[target], {}, dimensions, surprises=True)
        return edits.finish()


def from_sync_(
    model: nn.Module,
    *,
    where: Where | None = None,
    example: Batch = None,
    forward: Forward | None = None,
) -> Change:
    """Convert synchronized batch norms, torch's or ours, to ``BatchNorm1d``, ``2d`` or ``3d``.

    A synchronized layer does not know the rank of its input. It is taken from what the layer was before surgery
    converted it, then from ``example``, then from nearby convolutions; if none of these shows it, the layer is
    refused.

    Args:
        model: the root module.
        where: (qualified name, module) -> whether to convert it; None takes all.
        example: inputs to run the model on, to see the rank.
        forward: (model, example) -> output, if the model is not simply called with the example.

    Returns:
        the Change.

    Raises:
        TypeError: the model is wrapped or compiled.
        NothingDoneError: every layer was refused.
    """
    check_plain("from_sync_", model)
    with Transaction("from_sync_", model) as edits:
        norms = [named for named in batch_norms_of(model, where, edits) if kind_of(named.module)[0].name in _PLAIN]
        dimensions = Dimensions(model, norms, example, forward)
        for named in norms:
            rebuild_(edits, [named], KINDS[_PLAIN[kind_of(named.module)[0].name]], {}, dimensions)
        return edits.finish()


_PLAIN = {"torch_sync_batch_norm": "torch_batch_norm", "sync_batch_norm": "batch_norm"}


def rebuild_(
    edits: Transaction,
    norms: list[NamedModule],
    kind: Kind,
    options: dict[str, Any],
    dimensions: Dimensions,
    *,
    surprises: bool = False,
) -> list[tuple[NamedModule, nn.Module]]:
    """Replace each batch norm by a layer of a kind.

    Args:
        edits: of the verb.
        norms: the batch norms.
        kind: of the new layers.
        options: of the new layers, in addition to those that both kinds have.
        dimensions: of the norms.
        surprises: whether to note how the new kind behaves differently; False if the caller asks for just that.

    Returns:
        each batch norm with the layer that replaces it, except those refused or of this kind already.
    """
    converted = []
    for named in norms:
        if kind_of(named.module)[0] is kind and is_exact(named.module) and not options:
            continue
        new = _rebuild(edits, named, kind, options, dimensions, surprises=surprises)
        if new is not None:
            converted.append((named, new))
    return converted


def _rebuild(
    edits: Transaction,
    named: NamedModule,
    kind: Kind,
    options: dict[str, Any],
    dimensions: Dimensions,
    *,
    surprises: bool,
) -> nn.Module | None:
    old = named.module
    spatial = dimensions.of(named)
    cls = kind.class_for(spatial)
    form, tail = known_form(old)
    why = _why_not(form, kind) or (None if cls else _why_no_class(kind, spatial))
    if why is not None or cls is None:
        edits.refuse(named.name, label(old), why or "")
        return None
    around = Around.of(named, form, tail, kind)
    with normal_tensors():
        new, notes = _build(form, kind, cls, around.activation, options)
    if surprises:
        notes += surprises_of(old, new)
    notes += _absolute_weight(edits, old)
    if 0 in kind.classes:
        vars(new)[DIMENSIONS] = spatial or 0
    if kind.name == "frozen_batch_norm":
        vars(new)[ORIGIN] = Origin.of(form)
        if options.get("freeze_affine", True):
            freeze_affine_(edits, new)
    _place(edits, named, around, new, kind, options, dimensions, notes)
    return new


def _put_own(
    edits: Transaction,
    named: NamedModule,
    make: Callable[..., nn.Module],
    options: dict[str, Any],
    dimensions: Dimensions,
) -> None:
    """Replace a batch norm by a layer of a class that surgery does not know."""
    form, tail = known_form(named.module)
    if why := why_not_rebuilt(form):
        edits.refuse(named.name, label(named.module), why)
        return
    kind = KINDS["torch_batch_norm"]  # like torch's layer, it takes no residual or activation
    around = Around.of(named, form, tail, kind)
    new, notes = own_layer(make, form, options)
    if new._parameters.get("weight") is form._parameters.get("weight"):
        notes += _absolute_weight(edits, named.module)
    _place(edits, named, around, new, kind, options, dimensions, notes)


def _place(
    edits: Transaction,
    named: NamedModule,
    around: Around,
    new: nn.Module,
    kind: Kind,
    options: dict[str, Any],
    dimensions: Dimensions,
    notes: Iterable[str],
) -> None:
    """Replace a batch norm by a new layer and the modules after it, and record the change."""
    old = named.module
    placed = around.put(new, kind, adds_residual=dimensions.adds_residual(old))
    bring_back_with(edits, old, new)
    edits.replace(around.absorbed or old, placed)
    edits.note_changed(named.name, label(old), label(new, **options) + around.after(new, placed), *notes)


def _absolute_weight(edits: Transaction, old: nn.Module) -> list[str]:
    """Write the effective weight of a norm that uses its absolute value, since the new layer uses it directly."""
    adapter, weight = adapter_of(old), evaluation_of(old).weight
    if adapter is None or not adapter.absolute_weight or weight is None:
        return []
    edits.write_(old.weight, weight)  # type: ignore[arg-type]
    return ["its weight is now the |weight| + eps that it multiplied by"]


def _build(
    old: nn.Module, kind: Kind, cls: type[nn.Module], activation: Activation | None, options: dict[str, Any]
) -> tuple[nn.Module, list[str]]:
    """Build the new layer with the old one's state, and note what it drops."""
    if kind.name not in BATCH_NORMS:
        new, notes = build_group_norm(old, layer_norm=kind.name == "layer_norm", **options)
        move_state(old, new)
        return new, notes
    carried, notes = carried_options(old, kind)
    named = carried | ({"activation": activation} if kind.ours else {}) | options
    new = fresh_like(old, cls, **named)
    return new, [*notes, *move_state(old, new)]


def _why_not(old: nn.Module, kind: Kind) -> str | None:
    if kind.needs_statistics and old._buffers.get("running_mean") is None:
        return f"{kind.name} needs running statistics, and it has none."
    return why_not_rebuilt(old)


def _why_no_class(kind: Kind, dimensions: int | None) -> str:
    if dimensions is None:
        return "it is unknown whether its input is 1d, 2d or 3d. Give an example to run the model on."
    return f"there is no {kind.name} of {dimensions} spatial dimensions."
