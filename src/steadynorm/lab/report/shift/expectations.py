"""What was expected of decays and of ways to adapt, each held against what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from steadynorm.lab.analysis import Spread
from steadynorm.lab.chance import Chance
from steadynorm.lab.report.document import Expectation
from steadynorm.lab.report.quantities import percent, points
from steadynorm.lab.report.question import unless_guessing
from steadynorm.lab.report.shift.summary import Decayed, Shown, kept_share, mean_error, swap_changes, worst
from steadynorm.lab.report.shift.wording import kind_label, shift_label
from steadynorm.lab.report.wording import listing

__all__ = ["LIMIT", "expectations"]

LIMIT = 0.005
"""A way that loses more to the stored statistics on a stream is not safe there."""
SHARE = 0.9
"""Of batch statistics' gain, that the gate is to keep."""
SAME = 0.01
"""Changes of error that differ by less are called the same."""


def expectations(
    found: Sequence[Shown], kept: Sequence[Decayed], chance: Chance, trained: Spread | None
) -> tuple[Expectation, ...]:
    """Judge what was expected, in the order of the experiment's question.

    Args:
        found: every way to adapt on every stream.
        kept: the stored statistics of every decay.
        chance: accuracy of guessing.
        trained: accuracy of the networks on images as they are.
    """
    judged = (_swap(kept), _batch_wins(found), _batch_fails(found), _safe(found), _keeps(found))
    return tuple(unless_guessing(item, chance, {"the network": trained}) for item in judged)


def _swap(kept: Sequence[Decayed]) -> Expectation:
    claim = "Swapping the labels of two classes costs every decay the same: no activation moves."
    changes = swap_changes(kept)
    if not changes:
        return Expectation(claim=claim, verdict="not measured", measured="It was not measured.")
    texts = [f"{100 * change:+.1f} at {decay.replace('_', '-')}" for decay, change in changes.items()]
    apart = max(changes.values()) - min(changes.values())
    return Expectation(
        claim=claim,
        verdict="met" if apart < SAME else "not met",
        measured=f"Change of the error in points: {listing(texts)}.",
    )


def _batch_wins(found: Sequence[Shown]) -> Expectation:
    claim = "On corrupted, well-mixed streams a batch's own statistics err less than the stored ones."
    return _compared(claim, found, kind="iid", corrupted=True, batch_is_better=True)


def _batch_fails(found: Sequence[Shown]) -> Expectation:
    claim = "On streams ordered by class they err more."
    return _compared(claim, found, kind="class_ordered", corrupted=False, batch_is_better=False)


def _compared(claim: str, found: Sequence[Shown], *, kind: str, corrupted: bool, batch_is_better: bool) -> Expectation:
    def error(method: str) -> float | None:
        mine = (one for one in found if (one.method, one.kind) == (method, kind))
        return mean_error(one for one in mine if one.severity > 0 or not corrupted)

    batch, stored = error("batch"), error("stored")
    if batch is None or stored is None:
        return Expectation(claim=claim, verdict="not measured", measured="It was not measured.")
    return Expectation(
        claim=claim,
        verdict="met" if (batch < stored) == batch_is_better else "not met",
        measured=f"{percent(batch)} by the batch, {percent(stored)} by the stored ones.",
    )


def _safe(found: Sequence[Shown]) -> Expectation:
    claim = f"The gate loses at most {points(LIMIT)} to the stored statistics on any stream."
    least = worst(found, "gate")
    if least is None or least.gain is None:
        return Expectation(claim=claim, verdict="not measured", measured="The gate was not measured.")
    lost = [one for one in found if one.method == "gate" and one.gain and one.gain.mean < -LIMIT]
    streams = {(one.kind, one.shift, one.severity) for one in found}
    where = f"{kind_label(least.kind)}, {shift_label(least.shift)}"
    return Expectation(
        claim=claim,
        verdict="not met" if lost else "met",
        measured=f"At worst {100 * least.gain.mean:+.2f} points ({where}); more than {points(LIMIT)} are lost on "
        f"{len(lost)} of {len(streams)} streams.",
    )


def _keeps(found: Sequence[Shown]) -> Expectation:
    claim = f"It keeps {percent(SHARE, digits=0)} of what batch statistics win on corrupted, well-mixed streams."
    share = kept_share(found, "gate")
    if share is None:
        return Expectation(claim=claim, verdict="not measured", measured="The gate was not measured.")
    return Expectation(
        claim=claim, verdict="met" if share >= SHARE else "not met", measured=f"It keeps {percent(share, digits=0)}."
    )
