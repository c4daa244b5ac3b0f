"""Merge running statistics that differ between ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from steadynorm.statistics.moments import mixture
from steadynorm.surgery.change import Change, Transaction
from steadynorm.surgery.estimation.one_pass import Target
from steadynorm.surgery.estimation.rank_group import RankGroup
from steadynorm.surgery.estimation.write_statistics import summary, write_statistics_
from steadynorm.surgery.kinds import channels_of, eps_of, label
from steadynorm.surgery.named_modules import Where, batch_norms_of
from steadynorm.surgery.runnable import why_not_readable
from steadynorm.surgery.statistics import shares_of

__all__ = ["reconcile_statistics_"]


def reconcile_statistics_(
    model: nn.Module,
    *,
    process_group: dist.ProcessGroup | None = None,
    weight: float = 1.0,
    where: Where | None = None,
) -> Change:
    r"""Set the running statistics on all ranks to their merged value, identical bit for bit.

    $$
    \mathrm{mean} = \sum_r w_r\,\mathrm{mean}_r \qquad \mathrm{var} = \sum_r w_r\,\left(\mathrm{var}_r +
    (\mathrm{mean}_r - \mathrm{mean})^2\right)
    $$

    Call it before evaluation or a checkpoint, which would otherwise use the statistics of one rank. Averaging the
    variances alone would ignore the differences between the means. ``num_batches_tracked`` becomes the largest. Nothing
    changes if all ranks agree. Costs one collective for all layers, after a small one that checks that the ranks have
    the same layers.

    Args:
        model: the root module. Every rank of the group must call this.
        process_group: None is the default group.
        weight: of this rank, at least 0, for example its number of samples.
        where: (qualified name, module) -> whether to include it, the same on all ranks; None takes all.

    Returns:
        the Change. With a single process it changes nothing and says so.

    Raises:
        ValueError: on all ranks, if on one of them statistics are not finite or the weight is invalid.
        RuntimeError: on all ranks, if their layers differ.

    Source: law of total variance.
    """
    with Transaction("reconcile_statistics_", model) as edits:
        group = RankGroup("reconcile_statistics_", model, process_group)
        targets = []
        for named in batch_norms_of(model, where, edits):
            why = why_not_readable(named.module)
            if why is not None:
                edits.refuse(named.name, label(named.module), why)
            else:
                targets.append(Target(name=named.name, module=named.module))
        if group.size == 1:
            why = "this process is alone: torch.distributed is not set up, or the group has no other rank."
            edits.refuse("", "all running statistics", why)
            return edits.finish(ranks=1)
        group.check_same((f"{each.name} {channels_of(each.module)}" for each in targets), "layers")
        _reconcile(edits, group, targets, weight)
        return edits.finish(group=group.size)


def _reconcile(edits: Transaction, group: RankGroup, targets: list[Target], weight: float) -> None:
    own = [target.stored() for target in targets]
    counters = [getattr(target.module, "num_batches_tracked", None) for target in targets]
    head = torch.tensor([weight, *(-1 if each is None else int(each) for each in counters)], dtype=torch.float64)
    rows = group.gather(torch.cat([head, *(each.mean for each in own), *(each.var for each in own)]))
    weights, counts, numbers = rows[:, 0], rows[:, 1 : len(head)], rows[:, len(head) :]
    if not bool((weights.isfinite() & (weights >= 0)).all()) or float(weights.sum()) <= 0:
        raise ValueError(
            "reconcile_statistics_: weights must be finite and at least 0, with a positive sum, got "
            f"{weights.tolist()} on the ranks."
        )
    sizes = [len(each.mean) for each in own]
    all_means, all_variances = (torch.split(each, sizes, dim=1) for each in numbers.chunk(2, dim=1))
    for target, means, variances in zip(targets, all_means, all_variances, strict=True):
        finite = (means.isfinite() & variances.isfinite() & (variances >= 0)).all(1)
        if not bool(finite.all()):
            ranks = ", ".join(str(rank) for rank, fine in enumerate(finite.tolist()) if not fine)
            raise ValueError(
                f"reconcile_statistics_: statistics must be finite and no variance negative, got others at "
                f"{target.describe()} on rank {ranks}. "
                "Repair them with repair_statistics_ first."
            )
    shares = shares_of(weights)
    for target, means, variances, each in zip(targets, all_means, all_variances, counts.long().T, strict=True):
        if bool((means == means[0]).all() & (variances == variances[0]).all() & (each == each[0]).all()):
            continue
        before = target.stored()
        mean, var = mixture(means, variances, shares.unsqueeze(1))
        notes = write_statistics_(edits, target.module, mean, var, batches=int(each.max()))
        after = target.stored()
        apart = float(((means - mean).abs() / (var + eps_of(target.module)).sqrt()).max())
        notes.append(f"a rank's mean was up to {apart:.2g} standard deviations off")
        edits.note_changed(target.name, summary(before.mean, before.var), summary(after.mean, after.var), *notes)
