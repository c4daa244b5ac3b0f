"""Statistics over a smaller batch than the optimizer's step.

Looks at: independent values per channel of each forward (N/noise, see ``statistics-noise``), compared with those of one
optimizer step: times accumulated forwards, times workers.

Harm: gradients are accumulated over forwards and workers, statistics are not. Accumulating 8 forwards of 8 to a batch
of 64 trains with the statistics of 8 and moves the running statistics eight times per step; eight workers with 2 images
each normalize by 2.

Remedy: synchronise over workers (``convert_`` to sync_batch_norm). For accumulation over k forwards, fine-tuning:
freeze the statistics. From scratch: ``convert_(model, "batch_norm", update_every=k)`` moves the running statistics once
a step, by all k forwards; each forward is still normalized by its own batch. With 64 batches of 2 that reached 51.2 %
after one pass over CIFAR-10, gated batch norm 50.6 %, group norm 46.0 %, renorm 44.2 % (``docs/family.md``).

Threshold: a note if a step takes more samples together than a layer; a warning if a forward has fewer independent
values than ``statistics-noise`` requires, or fewer than 8 samples, while the step has enough, so that the larger batch
does not help as intended: eight workers with 8, 4 and 2 images each lost 1, 4 and 11 points of ImageNet.

Source: Wu & He 2018 (arXiv 1803.08494), figure 1; pytorch issue 46516; ultralytics/yolov5 issue 1630; mmdetection issue
3621.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.checks.statistics_noise import FEWEST
from steadynorm.doctor.compared import independent_of
from steadynorm.doctor.evidence import Evidence, NormState, Step
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

NEEDS = ("batches", "step")
FEWEST_SAMPLES = 8
_SYNC = Remedy(advice="Synchronise the statistics over workers (convert_ to sync_batch_norm).")
_FREEZE = Remedy(
    advice="If you fine-tune, freeze the statistics (freeze_). Else update the running ones once in k forwards "
    "(convert_(model, 'batch_norm', update_every=k)), or convert_ to group_norm."
)


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    assert evidence.batches is not None and evidence.step is not None
    samples = min(evidence.batches.sizes, default=FEWEST_SAMPLES)
    for norm in evidence.batch_norms:
        independent = independent_of(evidence.batches.sightings.get(norm.name, ()))
        times, workers = _left_out(norm, evidence.step)
        if not norm.moves or independent is None or times * workers == 1:
            continue
        synchronised = evidence.step.world_size / workers
        one = independent * synchronised
        step = one * times * workers
        what = " and ".join([f"{times} forwards"] * (times > 1) + [f"{workers} workers"] * (workers > 1))
        problem = (
            f"It normalizes by {one:.3g} independent values per channel, while an optimizer step takes {what} "
            f"together, {step:.3g}."
        )
        small = one < FEWEST or samples * synchronised < FEWEST_SAMPLES
        yield at(
            norm,
            Severity.WARNING if small and step >= FEWEST else Severity.NOTE,
            problem,
            _SYNC if workers > 1 else _FREEZE,
            independent=one,
            of_step=step,
        )


def _left_out(norm: NormState, step: Step) -> tuple[int, int]:
    """Return the forwards and workers of a step that a norm's statistics do not cover."""
    return step.accumulation, 1 if "sync" in norm.kind else step.world_size
