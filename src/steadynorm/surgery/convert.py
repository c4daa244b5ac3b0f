"""Batch norms become another kind of layer, with the same parameters, statistics, flags and hooks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from steadynorm.functional import Activation
from steadynorm.layers.kinds import BATCH_NORMS, KINDS, Kind
from steadynorm.layers.norm_add_activation import NormAddActivation
from steadynorm.layers.state import normal_tensors
from steadynorm.surgery.adapters.known_form import known_form
from steadynorm.surgery.adapters.norm_then import NormThen, fused_activation, tail_of
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
from steadynorm.surgery.named_modules import NamedModule, Where, batch_norms_of, check_plain
from steadynorm.surgery.rebuild import (
    DIMENSIONS,
    ORIGIN,
    Origin,
    activation_of,
    bring_back_with,
    carried_options,
    freeze_affine_,
    fresh_like,
    has_hooks,
    move_state,
    share_hooks,
    why_not_rebuilt,
    with_activation,
    wrapped,
)
from steadynorm.surgery.surprises import surprises_of

__all__ = ["convert_", "from_sync_", "rebuild_", "to_torch_"]


def convert_(
    model: nn.Module,
    to: str | type[nn.Module],
    *,
    where: Where | None = None,
    example: Batch = None,
    batches: Iterable[Batch] | None = None,
    forward: Forward | None = None,
    **options: Any,  # noqa: ANN401 (those of the new layer)
) -> Change:
    """Make the batch norms of a model another kind of layer, in place.

    The new layers hold the same Parameter and buffer objects, so that an optimizer's state, tied parameters and
    statistics go on; flags, device, dtype, hooks and attributes that were set on them go with them. A module that is
    registered in several places is converted once and put in all of them. A fused activation stays: where the new
    layer cannot have it, :class:`steadynorm.layers.NormAddActivation` puts it after, under the same state keys.

    To another batch norm evaluation does not change (gated batch norm's own, which looks at the batch, excepted). To
    group or layer norm, which have no statistics, it does; weight, bias and eps are kept. With ``batches`` weight and
    bias are then set so that each layer's output comes as near as it can, by least squares per channel, to what stood
    there before: one after the other in the order in which they run, each on what the ones before now give it.

    Args:
        model: the root, not wrapped or compiled yet. torch's batch norms and ours are converted; unknown
            subclasses are refused by name.
        to: a layer's class, which stands for its whole family (1d, 2d, 3d), or its name in
            :data:`steadynorm.layers.kinds.KINDS`: ``batch_norm``, ``ghost_batch_norm``, ``torch_batch_norm``, ... or
            ``group_norm``, ``layer_norm`` (over channels and positions of a sample: group norm with one group).
        where: qualified name and module -> whether to convert it; None takes all.
        example: what the model is called with (a tensor; a tuple or mapping of its arguments), to run it where a
            synchronised layer does not tell its dimensions, or to see which layers are called with a residual.
        batches: for group and layer norm, a loader's: a tensor, ``(input, ...)`` or a mapping; run several times.
        forward: model and example or batch -> output, where the model is called otherwise.
        options: keyword arguments of the new layer, as ``ghost_batch_size`` or ``eps``; without them those that both
            kinds have are carried over. Group norm takes ``num_groups``: None finds the most, up to 32, that divide the
            channels and leave 16 of them to a group.

    Returns:
        the Change; its ``model`` is another module only where the root itself was converted.

    Raises:
        ValueError: no such kind; ``batches`` for a batch norm.
        TypeError: an option that the layer does not know, or that the old layer decides (channels, weight and bias,
            device, dtype); a model that is wrapped or compiled.
        RuntimeError: with ``batches``, a batch norm is called from outside the submodules, and so runs on.
    """
    kind = find_kind(to)
    if batches is not None and kind.name in BATCH_NORMS:
        raise ValueError(
            f"convert_: batches start group or layer norm; {kind.name} keeps the statistics that are there. "
            "Use recalibrate_ to measure them again."
        )
    _check_options(options)
    check_plain("convert_", model)
    given = None if batches is None else list(Batches(batches, "convert_"))
    with Transaction("convert_", model) as edits:
        norms = batch_norms_of(model, where, edits)
        dimensions = Dimensions(model, norms, example, forward)
        reference = Reference(edits, [named.module for named in norms])
        converted = rebuild_(edits, norms, kind, options, dimensions, surprises=True)
        if given is None:
            return edits.finish()
        return edits.finish(**start_from_data(edits, reference, converted, given, forward))


def _check_options(options: dict[str, Any]) -> None:
    for name in ("num_features", "affine", "bias", "track_running_stats", "device", "dtype"):
        if name in options:
            raise TypeError(
                f"convert_: {name} is that of the layer which is converted, got {name}={options[name]!r}. Leave it out."
            )


def to_torch_(
    model: nn.Module,
    *,
    where: Where | None = None,
    example: Batch = None,
    forward: Forward | None = None,
) -> Change:
    """Make our layers exact ``torch.nn`` classes, which exporters, quantisers and fusers recognise.

    ``SyncBatchNorm`` becomes torch's (:func:`from_sync_` makes it one of a single process), every other kind
    ``BatchNorm1d``, ``2d`` or ``3d``, and an activation a module after it. Evaluation stays as it was. In training
    they are plain batch norms; what was lost with that is in the notes. Gated batch norm evaluates otherwise and is
    refused; ``convert_(model, "torch_batch_norm")`` does it all the same.

    Args:
        model: the root.
        where: qualified name and module -> whether to convert it; None takes all.
        example: what the model is called with, needed where a layer without activation is called with a residual:
            only the call shows that.
        forward: how to run it, see :func:`convert_`.
    """
    check_plain("to_torch_", model)
    with Transaction("to_torch_", model) as edits:
        found = batch_norms_of(model, where, edits)
        norms = [named for named in found if kind_of(named.module)[0].ours or not is_exact(named.module)]
        dimensions = Dimensions(model, norms, example, forward)
        for named in norms:
            kind = kind_of(named.module)[0]
            if not kind.evaluates_as_batch_norm:
                why = "it evaluates otherwise than torch's layer would. convert_(model, 'torch_batch_norm') does it."
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
    """Make synchronised batch norms, torch's or ours, plain ones again: ``BatchNorm1d``, ``2d`` or ``3d``.

    A synchronised layer takes input of any rank and has forgotten which it was. What tells it is named in
    :class:`steadynorm.surgery.dimensions.Dimensions`; a layer of which nothing does is refused.

    Args:
        model: the root.
        where: qualified name and module -> whether to convert it; None takes all.
        example: what the model is called with, to run it and see.
        forward: how to run it, see :func:`convert_`.
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
    """Put a layer of a kind in the place of each batch norm.

    Args:
        edits: of the verb.
        norms: the batch norms.
        kind: of the new layers.
        options: of the new layers, beside those that both kinds have.
        dimensions: of the norms.
        surprises: whether to note what the new kind does otherwise; not where just that was asked for.

    Returns:
        each of them with the layer that now stands there; those refused, or of this kind already, are left out.
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
    old, what = named.module, label(named.module)
    spatial = dimensions.of(named)
    cls = kind.class_for(spatial)
    form, tail = known_form(old)
    why = _why_not(form, kind) or (None if cls else _why_no_class(kind, spatial))
    if why is not None or cls is None:
        edits.refuse(named.name, what, why or "")
        return None
    around = _Around.of(named, form, tail, kind)
    with normal_tensors():
        new, notes = _build(form, kind, cls, around.activation, options)
    if surprises:
        notes += surprises_of(old, new)
    notes += _absolute_weight(edits, old)
    placed = around.put(new, kind, adds_residual=dimensions.adds_residual(old))
    if 0 in kind.classes:
        vars(new)[DIMENSIONS] = spatial or 0
    if kind.name == "frozen_batch_norm":
        vars(new)[ORIGIN] = Origin.of(form)
        if options.get("freeze_affine", True):
            freeze_affine_(edits, new)
    bring_back_with(edits, old, new)
    edits.replace(around.absorbed or old, placed)
    edits.note_changed(named.name, what, label(new) + around.after(new, placed), *notes)
    return new


@dataclass(frozen=True, kw_only=True)
class _Around:
    """What is computed after a norm, and how the new layer has it.

    Args:
        activation: that the new layer fuses, or that stands after it by name.
        tail: modules that stand after it, by name.
        absorbed: a module around the old norm whose work the new layer does itself; None where it stays.
    """

    activation: Activation | None
    tail: dict[str, nn.Module]
    absorbed: nn.Module | None

    @classmethod
    def of(cls, named: NamedModule, form: nn.Module, tail: dict[str, nn.Module], kind: Kind) -> Self:
        """See what a norm has around it.

        Args:
            named: the norm.
            form: the norm, in a form that is known.
            tail: what a foreign norm runs after itself.
            kind: of the new layer.
        """
        holder = named.holder if kind.ours and not has_hooks(named.module) else None
        if isinstance(holder, NormAddActivation):
            return cls(activation=activation_of(holder), tail={}, absorbed=holder)
        inside = tail_of(holder) if isinstance(holder, NormThen) else tail
        fits, activation = fused_activation(inside.values())
        if fits and kind.ours and (inside or holder):
            return cls(activation=activation, tail={}, absorbed=holder)
        fused = getattr(form, "activation", None) if kind_of(form)[0].ours else None
        left = {} if fits and activation is None else tail
        return cls(activation=fused, tail=left, absorbed=None)

    def put(self, new: nn.Module, kind: Kind, *, adds_residual: bool) -> nn.Module:
        """Give what takes the old norm's place: the new layer, or a module around it."""
        if self.absorbed is not None:
            share_hooks(self.absorbed, new)
        elif self.tail:
            return wrapped(new, NormThen(new, self.tail))
        elif not kind.ours and (self.activation is not None or adds_residual):
            return with_activation(new, self.activation)
        return new

    def after(self, new: nn.Module, placed: nn.Module) -> str:
        """Name what stands after the new layer."""
        if isinstance(placed, NormThen):
            return "".join(f" + {label(each)}" for each in self.tail.values() if type(each) is not nn.Identity)
        return f" + {self.activation}" if placed is not new and self.activation else ""


def _absolute_weight(edits: Transaction, old: nn.Module) -> list[str]:
    """Write the weight by which a norm with an absolute one has multiplied, since the new layer multiplies by it."""
    adapter, weight = adapter_of(old), evaluation_of(old).weight
    if adapter is None or not adapter.absolute_weight or weight is None:
        return []
    edits.write_(old.weight, weight)  # type: ignore[arg-type]
    return ["its weight is now the |weight| + eps that it multiplied by"]


def _build(
    old: nn.Module, kind: Kind, cls: type[nn.Module], activation: Activation | None, options: dict[str, Any]
) -> tuple[nn.Module, list[str]]:
    """Build the new layer with the old one's state, and say what it does not have."""
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
        return "nothing tells whether its input is 1d, 2d or 3d. Give an example to run the model on."
    return f"there is no {kind.name} of {dimensions} spatial dimensions."
