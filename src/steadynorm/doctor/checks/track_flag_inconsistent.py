"""A flag for running statistics that contradicts the buffers.

Looks at: ``track_running_stats`` and ``momentum`` compared with running_mean, running_var and num_batches_tracked.

Harm: set to False on a layer that exists, the flag stops the updates, but evaluation still uses the old buffers; given
to the constructor it makes evaluation use the batch. The two look alike in ``repr``. The reverse, True without buffers,
silently evaluates by the batch. A cumulative average without its counter never moves. An instance norm whose flag was
set to False moves its remaining buffers in evaluation too.

Remedy: freeze the layer with ``freeze_``, or set the buffers to None as the constructor does.

Threshold: none.

Source: pytorch issues 20967 and 38084.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence, NormState
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

_FREEZE = Remedy(advice="If it should be frozen, use freeze_; else set track_running_stats back to True.")
_BUILD = Remedy(advice="Build the layer with track_running_stats=False if it should evaluate by the batch.")
_COUNT = Remedy(advice="Give it a momentum, or restore its counter: num_batches_tracked = torch.tensor(0).")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    for norm in evidence.norms:
        if norm.kind == "instance_norm":
            if not norm.tracks and norm.mean is not None:
                problem = (
                    "track_running_stats is False but the buffers are there: it evaluates by each sample, and moves "
                    "the buffers with every forward."
                )
                yield at(norm, Severity.WARNING, problem, _BUILD)
        elif not norm.is_batch_norm:
            continue
        elif norm.tracks and norm.mean is not None and norm.momentum is None and norm.batches is None and _counts(norm):
            problem = "It averages over all batches (momentum=None) but has no counter, so nothing ever moves."
            yield at(norm, Severity.WARNING, problem, _COUNT)
        elif not norm.tracks and norm.mean is not None:
            problem = (
                "track_running_stats is False but the buffers are there: training does not move them, and evaluation "
                "still uses them."
            )
            yield at(norm, Severity.WARNING, problem, _FREEZE)
        elif norm.tracks and norm.mean is None and norm.dtype is None and norm.kind == "torch_batch_norm":
            problem = "track_running_stats is True but there are no buffers, so evaluation normalizes by the batch."
            yield at(norm, Severity.WARNING, problem, _BUILD)


def _counts(norm: NormState) -> bool:
    """Return whether torch's own layer takes a batch's weight from the counter."""
    return norm.kind in ("torch_batch_norm", "torch_sync_batch_norm")
