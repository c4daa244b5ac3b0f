"""Freeze batch norms, and unfreeze them."""

from __future__ import annotations

from torch import nn

from steadynorm.layers.kinds import BATCH_NORMS
from steadynorm.surgery.batches import Batch, Forward
from steadynorm.surgery.change import Change, Transaction
from steadynorm.surgery.convert import rebuild_
from steadynorm.surgery.dimensions import Dimensions
from steadynorm.surgery.kinds import kind_of, label
from steadynorm.surgery.named_modules import NamedModule, Where, batch_norms_of, check_plain
from steadynorm.surgery.rebuild import FLAGS, ORIGIN, Origin, freeze_affine_

__all__ = ["freeze_", "unfreeze_"]


def freeze_(
    model: nn.Module,
    *,
    statistics: bool = True,
    affine: bool = True,
    where: Where | None = None,
    example: Batch = None,
    forward: Forward | None = None,
) -> Change:
    """Freeze batch norms: their running statistics, their weight and bias, or both.

    With ``statistics`` each layer becomes a :class:`steadynorm.FrozenBatchNorm2d` (1d, 3d) with the same state keys. It
    normalizes by its running statistics in training and evaluation; neither ``.train()`` nor momentum nor a wrapper
    that copies buffers changes that, and checkpoints still load. With ``affine`` weight and bias get no gradient.
    Evaluation does not change. Gated batch norm, whose evaluation depends on the batch, and layers without running
    statistics are refused.

    Args:
        model: the root module, not yet wrapped or compiled.
        statistics: whether to freeze running mean and variance.
        affine: whether to freeze weight and bias.
        where: (qualified name, module) -> whether to freeze it; None takes all.
        example: inputs to run the model on, if a synchronized layer does not say whether it is 1d, 2d or 3d.
        forward: (model, example) -> output, if the model is not simply called with the example.

    Returns:
        the Change. :func:`unfreeze_` restores class, options, momentum and flags, also of a pickled model.

    Raises:
        TypeError: the model is wrapped or compiled.
        NothingDoneError: no layer can be frozen.

    Source: He et al. 2016 (arXiv 1512.03385), appendix A; Wu & Johnson 2021 (arXiv 2105.07576).

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> type(freeze_(model).model[1]).__name__
    'FrozenBatchNorm2d'
    """
    check_plain("freeze_", model)
    with Transaction("freeze_", model) as edits:
        norms = batch_norms_of(model, where, edits)
        dimensions = Dimensions(model, norms, example, forward)
        for named in norms:
            frozen = affine and freeze_affine_(edits, named.module)
            rebuilt = statistics and not _is_frozen(named.module) and _freeze_statistics(edits, named, dimensions)
            if frozen and not rebuilt:
                edits.note_changed(named.name, label(named.module), "its weight and bias frozen")
        return edits.finish()


def unfreeze_(model: nn.Module, *, statistics: bool = True, affine: bool = True, where: Where | None = None) -> Change:
    """Unfreeze batch norms: restore what they were before :func:`freeze_`, with their current values.

    Class, options, momentum and ``requires_grad`` are restored. A frozen layer that ``freeze_`` did not make becomes a
    :class:`steadynorm.BatchNorm2d` (1d, 3d) with its own momentum and a learnable weight and bias.

    Args:
        model: the root module, not yet wrapped or compiled.
        statistics: whether batches update running mean and variance again.
        affine: whether weight and bias are learned again.
        where: (qualified name, module) -> whether to unfreeze it; None takes all.

    Returns:
        the Change.

    Raises:
        TypeError: the model is wrapped or compiled.
    """
    check_plain("unfreeze_", model)
    with Transaction("unfreeze_", model) as edits:
        norms = batch_norms_of(model, where, edits)
        dimensions = Dimensions(model, norms, None, None)
        for named in norms:
            learned = affine and _unfreeze_affine(edits, named.module)
            rebuilt = statistics and _is_frozen(named.module) and _unfreeze_statistics(edits, named, dimensions, affine)
            if learned and not rebuilt:
                edits.note_changed(named.name, label(named.module), "its weight and bias learned")
        return edits.finish()


def _is_frozen(module: nn.Module) -> bool:
    return kind_of(module)[0].name == "frozen_batch_norm"


def _freeze_statistics(edits: Transaction, named: NamedModule, dimensions: Dimensions) -> bool:
    """Replace a norm with a frozen layer; tell whether that was possible."""
    kind = kind_of(named.module)[0]
    if not kind.evaluates_as_batch_norm:
        why = "its evaluation depends on the batch, and freezing would change it. convert_ it to batch_norm first."
    elif kind.name == "masked_batch_norm":
        why = "it is called with a mask, which a frozen layer does not take. convert_ it to batch_norm first."
    else:
        return bool(rebuild_(edits, [named], BATCH_NORMS["frozen_batch_norm"], {"freeze_affine": False}, dimensions))
    edits.refuse(named.name, label(named.module), why)
    return False


def _unfreeze_affine(edits: Transaction, module: nn.Module) -> bool:
    """Restore whether weight and bias require a gradient; tell whether that changed anything."""
    table = vars(module)
    remembered = table.get(FLAGS)
    if remembered is None and not (_is_frozen(module) and ORIGIN not in table):
        return False
    moved = False
    for name, parameter in module._parameters.items():
        wanted = remembered is None or remembered.get(name, False)
        if parameter is not None and wanted and not parameter.requires_grad:
            edits.set_attribute(parameter, "requires_grad", True)
            moved = True
    if remembered is not None:
        edits.edit(lambda: table.pop(FLAGS), lambda: table.update({FLAGS: remembered}), lambda: FLAGS not in table)
    return moved


def _unfreeze_statistics(edits: Transaction, named: NamedModule, dimensions: Dimensions, affine: bool) -> bool:
    """Restore the layer that was frozen; tell whether that was possible."""
    origin = getattr(named.module, ORIGIN, None)
    kind, options = (origin.kind, origin.options) if isinstance(origin, Origin) else ("batch_norm", {})
    rebuilt = rebuild_(edits, [named], BATCH_NORMS[kind], options, dimensions)
    for _, new in rebuilt:
        if affine and not named.module._parameters:  # a foreign frozen layer, whose weight and bias were buffers
            new.requires_grad_(True)
    return bool(rebuilt)
