"""Batch norms that stay as they are, whatever is done to the model, and back."""

from __future__ import annotations

from torch import nn

from steadynorm.surgery.batches import Batch, Forward
from steadynorm.surgery.change import Change, Journal
from steadynorm.surgery.convert import freeze_parameters_, rebuild_
from steadynorm.surgery.dimensions import Dimensions
from steadynorm.surgery.kinds import BATCH_NORMS, kind_of, label
from steadynorm.surgery.rebuild import ORIGIN, Origin
from steadynorm.surgery.sites import Site, Where, batch_norms_of, check_plain

__all__ = ["freeze_", "unfreeze_"]

_FLAGS = "_frozen_affine"


def freeze_(
    model: nn.Module,
    *,
    statistics: bool = True,
    affine: bool = True,
    where: Where | None = None,
    example: Batch = None,
    forward: Forward | None = None,
) -> Change:
    """Freeze batch norms: their statistics, their weight and bias, or both.

    With ``statistics`` each layer becomes a :class:`steadynorm.FrozenBatchNorm2d` (1d, 3d) with the same state keys: it
    normalizes by its running estimates in either mode, so ``.train()`` does not wake it, nor momentum, nor a wrapper
    that copies buffers; a checkpoint still loads. With ``affine`` weight and bias require no gradient. Evaluation
    stays as it was; gated batch norm, whose own is another, is refused, and so is a layer without running statistics.

    Args:
        model: the root, not wrapped or compiled yet.
        statistics: whether to freeze running mean and variance.
        affine: whether to freeze weight and bias.
        where: qualified name and module -> whether to freeze it; None takes all.
        example: what the model is called with, to run it where a synchronised layer does not tell its dimensions.
        forward: how to run it, see :func:`convert_`.

    Returns:
        the Change. :func:`unfreeze_` brings back class, options, momentum and flags, of a pickled model too.

    Source: He et al. 2016 (arXiv 1512.03385), appendix A; Wu & Johnson 2021 (arXiv 2105.07576).
    """
    check_plain("freeze_", model)
    with Journal("freeze_", model) as journal:
        sites = batch_norms_of(model, where, journal)
        dimensions = Dimensions(model, sites, example, forward)
        for site in sites:
            if affine:
                _freeze_affine(journal, site, noted=not statistics)
            if statistics and not _is_frozen(site.module):
                _freeze_statistics(journal, site, dimensions)
        return journal.finish()


def unfreeze_(model: nn.Module, *, statistics: bool = True, affine: bool = True, where: Where | None = None) -> Change:
    """Make frozen batch norms what they were before :func:`freeze_`, with the numbers that they hold now.

    Class, options, momentum and ``requires_grad`` come back as they were. A frozen layer that nobody's ``freeze_`` has
    made becomes a :class:`steadynorm.BatchNorm2d` (1d, 3d) with its own momentum, its weight and bias learned.

    Args:
        model: the root, not wrapped or compiled yet.
        statistics: whether running mean and variance are to follow the batches again.
        affine: whether weight and bias are to be learned again.
        where: qualified name and module -> whether to unfreeze it; None takes all.
    """
    check_plain("unfreeze_", model)
    with Journal("unfreeze_", model) as journal:
        sites = batch_norms_of(model, where, journal)
        dimensions = Dimensions(model, sites, None, None)
        for site in sites:
            if affine:
                _unfreeze_affine(journal, site, noted=not (statistics and _is_frozen(site.module)))
            if statistics and _is_frozen(site.module):
                _unfreeze_statistics(journal, site, dimensions)
        return journal.finish()


def _is_frozen(module: nn.Module) -> bool:
    return kind_of(module)[0].name == "frozen_batch_norm"


def _flags_of(module: nn.Module) -> dict[str, bool]:
    return {name: each.requires_grad for name, each in module._parameters.items() if each is not None}


def _freeze_affine(journal: Journal, site: Site, *, noted: bool) -> None:
    flags = _flags_of(site.module)
    if not any(flags.values()):
        return
    journal.set_attribute(site.module, _FLAGS, flags)
    freeze_parameters_(journal, site.module)
    if noted:
        journal.note_changed(site.name, label(site.module), "its weight and bias frozen")


def _freeze_statistics(journal: Journal, site: Site, dimensions: Dimensions) -> None:
    kind = kind_of(site.module)[0]
    if not kind.evaluates_as_batch_norm:
        why = "its evaluation looks at the batch; frozen it would be another. convert_ it to batch_norm before."
        journal.refuse(site.name, label(site.module), why)
    elif kind.name == "masked_batch_norm":
        why = "it is called with a mask, which a frozen layer does not take. convert_ it to batch_norm before."
        journal.refuse(site.name, label(site.module), why)
    else:
        rebuild_(journal, [site], BATCH_NORMS["frozen_batch_norm"], {"freeze_affine": False}, dimensions)


def _unfreeze_affine(journal: Journal, site: Site, *, noted: bool) -> None:
    remembered = getattr(site.module, _FLAGS, None)
    if remembered is None and not (_is_frozen(site.module) and not hasattr(site.module, ORIGIN)):
        return
    for name, parameter in site.module._parameters.items():
        if parameter is not None and (remembered is None or remembered.get(name, False)):
            journal.set_attribute(parameter, "requires_grad", True)
    if remembered is not None:
        table = vars(site.module)
        journal.edit(lambda: table.pop(_FLAGS), lambda: table.update({_FLAGS: remembered}), lambda: _FLAGS not in table)
    if noted:
        journal.note_changed(site.name, label(site.module), "its weight and bias learned")


def _unfreeze_statistics(journal: Journal, site: Site, dimensions: Dimensions) -> None:
    origin = getattr(site.module, ORIGIN, None)
    if isinstance(origin, Origin):
        rebuild_(journal, [site], BATCH_NORMS[origin.kind], origin.options, dimensions)
    else:
        rebuild_(journal, [site], BATCH_NORMS["batch_norm"], {}, dimensions)
