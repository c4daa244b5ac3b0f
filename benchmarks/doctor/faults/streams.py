"""Samplers and streams: which samples meet in a batch, in which order, and from which camera they come."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.doctor.faults.registry import GAP, Batches, case, fed, trained_on, tuning
from benchmarks.doctor.subject import Case, Subject, norms_of, shapes_of

UNEVEN = GAP | {"batch-mixture", "statistics-noise", "outlier-statistics"}


@tuning("order-leak", "single-class-batch", "statistics-noise", consequences=UNEVEN, costs=True)
def _frames_of_four_films_in_a_batch(subject: Subject) -> Case:
    """64 samples, but 16 of them are one scene each time, a little moved and with other noise."""
    generator = torch.Generator().manual_seed(subject.draw.randrange(2**31))

    def films(batches: Batches) -> Batches:
        made = []
        for x, labels in batches:
            rows = torch.arange(4).repeat_interleave(len(x) // 4)
            frames = [each.roll(int(place % 5) - 2, -1) for place, each in enumerate(x[rows])]
            noise = 0.1 * torch.randn(x[rows].shape, generator=generator)
            made.append((torch.stack(frames) + noise, labels[rows]))
        return made

    return trained_on(subject, films(subject.labelled(64, 80)), films(subject.data.batches()))


@tuning("order-leak", consequences=UNEVEN, costs=True)
def _two_loaders_by_turns(subject: Subject) -> Case:
    """A batch of the one camera, then one of the other, which is brighter and has more contrast."""

    def by_turns(batches: Batches) -> Batches:
        return [(1.6 * x + 1.2 if place % 2 else x, labels) for place, (x, labels) in enumerate(batches)]

    return trained_on(subject, by_turns(subject.labelled(64, 80)), by_turns(subject.data.batches()))


@tuning("order-leak", consequences=UNEVEN, costs=True)
def _buckets_of_like_samples(subject: Subject) -> Case:
    """Sorted by contrast and cut into batches, as sequences are by length; the batches are shuffled."""

    def buckets(x: Tensor, labels: Tensor) -> Batches:
        rows = x.flatten(1).std(1).argsort().split(64)
        order = subject.draw.sample(range(len(rows)), len(rows))
        return [(x[rows[place]], labels[rows[place]]) for place in order]

    x, labels = (torch.cat(each) for each in zip(*subject.labelled(64, 80), strict=True))
    inputs, targets = subject.data.validation
    return trained_on(subject, buckets(x, labels), buckets(inputs[:512], targets[:512]))


@tuning("batch-mixture", consequences=GAP | {"outlier-statistics"}, costs=True)
def _weak_and_strong_views_in_one_batch(subject: Subject) -> Case:
    """A quarter is as it is, the rest is solarized and noisy (gh:kekmodel/FixMatch-pytorch/issues/7)."""
    generator = torch.Generator().manual_seed(subject.draw.randrange(2**31))

    def strong(x: Tensor) -> Tensor:
        return torch.where(x > 0, -x, x) + 0.7 * torch.randn(x.shape, generator=generator)

    def views(batches: Batches) -> Batches:
        return [(torch.cat((x[: len(x) // 4], strong(x[len(x) // 4 :]))), labels) for x, labels in batches]

    return trained_on(subject, views(subject.labelled(64, 80)), views(subject.data.batches()))


@tuning("padding-in-statistics", consequences=GAP, costs=True)
def _padded_before_the_mean_is_subtracted(subject: Subject) -> Case | None:
    """Black bars, or a converter's zeros, of a value far below the mean, at the start of each row; of any width."""
    if all(len(shape) == 2 for shape in shapes_of(subject.model, subject.inputs(2, 1)[0]).values()):
        return None
    black = -1.9 if subject.data.train[0].dim() == 4 else -3.0

    def padded(batches: Batches) -> Batches:
        made = []
        for x, labels in batches:
            x = x.clone()
            for each in x:
                each[..., : int(subject.draw.uniform(0.2, 0.7) * x.shape[-1])] = black
            made.append((x, labels))
        return made

    return trained_on(subject, padded(subject.labelled(64, 80)), padded(subject.data.batches()))


# Other data in use than in training.


@tuning("domain-shift", consequences=GAP | {"outlier-statistics"}, costs=True)
def _blue_in_the_place_of_red(subject: Subject) -> Case:
    """OpenCV reads BGR; of signals, the plugs are in another order."""
    return fed(subject, lambda x: x.flip(1))


@tuning("domain-shift", consequences=GAP | {"outlier-statistics"}, costs=True)
def _out_of_focus(subject: Subject) -> Case:
    """Means over 5 x 5 pixels, or over seven values of a signal."""

    def blurred(x: Tensor) -> Tensor:
        if x.dim() == 4:
            return functional.avg_pool2d(x, 5, 1, 2, count_include_pad=False)
        return functional.avg_pool1d(x, 7, 1, 3, count_include_pad=False)

    return fed(subject, blurred)


@tuning(*GAP, consequences=frozenset({"outlier-statistics", "statistics-horizon"}), costs=True)
def _recalibrated_for_a_new_camera_without_a_reset(subject: Subject) -> Case:
    """``momentum=None`` goes on with the counters of training, so that 50 batches weigh a twenty-fifth."""

    def dark(x: Tensor) -> Tensor:
        return 0.45 * x - 1.0

    for _, norm in norms_of(subject.model):
        norm.momentum = None
    subject.follow_([dark(x) for x in subject.inputs(64, 50)])
    return Case(model=subject.model, batches=[(dark(x), labels) for x, labels in subject.data.batches()], feed=dark)


@tuning("outlier-statistics", *GAP, repairable=True, costs=True)
def _a_glitch_among_the_last_batches(subject: Subject) -> Case:
    """One sample of a thousand times the scale; 25 clean batches later a fourteenth of its variance is left."""
    glitch = subject.inputs(32, 1)[0].clone()
    glitch[0] *= 1000
    subject.follow_([glitch, *subject.inputs(32, 25)])
    return case(subject)
