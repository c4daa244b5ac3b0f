"""What networks are fed: devices, crops, fillers, scales."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.doctor.faults.registry import FAR, GAP, Batches, case, fed, trained_on, tuning
from benchmarks.doctor.subject import Case, Subject, norms_of, shapes_of
from benchmarks.doctor.training import fit_
from steadynorm.surgery import recalibrate_

UNEVEN = FAR | {"batch-mixture", "statistics-noise"}


def _generator(subject: Subject) -> torch.Generator:
    return torch.Generator().manual_seed(subject.draw.randrange(2**31))


# Which samples meet in a batch.


@tuning("single-class-batch", "order-leak", consequences=UNEVEN, costs=True)
def _a_stream_in_which_a_class_stays_for_long(subject: Subject) -> Case:
    """As a camera on the move sees them (gh:TaesikGong/NOTE): runs of 20 to 60 samples of one class."""

    def stream(inputs: Tensor, labels: Tensor, count: int) -> Batches:
        members = [(labels == label).nonzero().flatten().tolist() for label in range(10)]
        rows: list[int] = []
        while len(rows) < count:
            rows += subject.draw.choices(subject.draw.choice(members), k=subject.draw.randrange(20, 61))
        kept = torch.tensor(rows[:count])
        return list(zip(inputs[kept].split(64), labels[kept].split(64), strict=True))

    x, labels = (torch.cat(each) for each in zip(*subject.labelled(64, 80), strict=True))
    return trained_on(subject, stream(x, labels, 64 * 80), stream(*subject.data.validation, 512))


@tuning("order-leak", consequences=UNEVEN, costs=True)
def _a_device_for_each_batch(subject: Subject) -> Case:
    """Files of twelve devices are read one after another without a shuffle buffer; gains and offsets are theirs."""
    generator = _generator(subject)
    inputs = torch.Size((12, 3, *(1 for _ in subject.data.train[0].shape[2:])))
    gains = 1 + 0.6 * (2 * torch.rand(inputs, generator=generator) - 1)
    offsets = 0.9 * torch.randn(inputs, generator=generator)

    def read(batches: Batches) -> Batches:
        devices = [subject.draw.randrange(12) for _ in batches]
        return [(gains[each] * x + offsets[each], y) for each, (x, y) in zip(devices, batches, strict=True)]

    return trained_on(subject, read(subject.labelled(64, 80)), read(subject.data.batches()))


@tuning("batch-mixture", "padding-in-statistics", consequences=UNEVEN | {"order-leak"}, costs=True)
def _batches_filled_up_with_blank_samples(subject: Subject) -> Case:
    """A compiled graph wants 64 samples; where a filter left fewer, zeros fill up, and the loss skips them."""

    def blank(batches: Batches, *, skipped: bool) -> Batches:
        made = []
        for x, labels in batches:
            kept = subject.draw.randrange(20, 40)
            x, labels = x.clone(), labels.clone()
            x[kept:] = 0
            labels[kept:] = -100 if skipped else labels[kept:]
            made.append((x, labels))
        return made

    shown = blank(subject.data.batches(), skipped=False)
    return trained_on(subject, blank(subject.labelled(64, 80), skipped=True), shown)


@tuning("values-per-channel", "statistics-noise", consequences=FAR | {"batch-dependence"})
def _tiny_crops_in_tiny_batches(subject: Subject) -> Case | None:
    """Progressive resizing begins with a quarter of the size, in batches of two; the last maps are tiny."""
    side = subject.data.train[0].shape[-1] // 4

    def crop(x: Tensor) -> Tensor:
        return x[..., :side, :side] if x.dim() == 4 else x[..., :side]

    try:
        shapes = shapes_of(subject.model, crop(subject.inputs(2, 1)[0]))
    except (RuntimeError, ValueError):  # a head of fixed size
        return None
    few = [name for name, shape in shapes.items() if shape.numel() // shape[1] <= 4]
    if not few:
        return None
    subject.model.train()
    batches = [(crop(x), labels) for x, labels in subject.data.batches(2)]
    return Case(model=subject.model, batches=batches, layers=frozenset(few))


# What is done to each sample.


class _Divided(nn.Module):
    """Pixels, or counts, that the loader has scaled already, are scaled once more."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x / 65535)
        return logits


@tuning("near-zero-variance", consequences=FAR)
def _divided_twice_by_the_largest_count(subject: Subject) -> Case | None:
    """By 65535, in training as well: what the first norm gets varies less than eps lets it see."""
    model = _Divided(subject.model)
    fit_(model, subject.labelled(64, 120), rate=subject.rate / 20)
    recalibrate_(model, subject.inputs(64, 20))
    tiny = [
        name
        for name, norm in norms_of(model)
        if norm.running_var is not None and bool((norm.running_var < norm.eps / 100).all())
    ]
    return Case(model=model, batches=subject.data.batches(), layers=frozenset(tiny)) if tiny else None


class _ByExtremes(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        low, high = x.min(), x.max()
        logits: Tensor = self.inner(4 * (x - low) / (high - low) - 2)
        return logits


@tuning("batch-dependence", consequences=FAR)
def _inputs_scaled_by_their_batchs_extremes(subject: Subject) -> Case:
    """``(x - x.min()) / (x.max() - x.min())`` in ``forward``, over all samples at once."""
    model = _ByExtremes(subject.model)
    fit_(model, subject.labelled(64, 120), rate=subject.rate / 10)
    return Case(model=model, batches=subject.data.batches())


class _Scales(nn.Module):
    """One backbone at whole, half and quarter size; logits are averaged."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        size = torch.tensor(x.shape[2:])
        found = [self.backbone(x)]
        for part in (2, 4):
            found.append(self.backbone(functional.interpolate(x, size=(size // part).tolist())))
        return torch.stack(found).mean(0)


@tuning("reused-norm", *GAP, consequences=frozenset({"outlier-statistics", "statistics-noise"}), costs=True)
def _one_backbone_at_three_scales(subject: Subject) -> Case | None:
    model = _Scales(subject.model)
    try:
        with torch.no_grad():
            model(subject.inputs(2, 1)[0])
    except (RuntimeError, ValueError):  # a head of fixed size
        return None
    fit_(model, subject.labelled(64, 80), rate=subject.rate / 10)
    return Case(model=model, batches=subject.data.batches())


# Other data in use than in training.


@tuning("domain-shift", consequences=FAR, costs=True)
def _pictures_on_their_side(subject: Subject) -> Case:
    """The note of how the camera was held is not read; of signals, the sampling rate is half as large again."""

    def turned(x: Tensor) -> Tensor:
        if x.dim() == 4:
            return x.rot90(1, (2, 3))
        return functional.interpolate(x[..., : x.shape[-1] * 2 // 3], size=x.shape[-1], mode="linear")

    return fed(subject, turned)


@tuning("domain-shift", consequences=FAR, costs=True)
def _noise_of_a_dark_scene(subject: Subject) -> Case:
    """Noise as large as the picture's deviation, or as the signal's own once more; the same for the same sample."""

    def noisy(x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return x + (1.0 if x.dim() == 4 else 2.0) * torch.randn(x.shape, generator=generator)

    return fed(subject, noisy)


@tuning("rank-divergence", consequences=frozenset({"checkpoint-diff"}))
def _a_rank_that_does_not_normalize_its_inputs(subject: Subject) -> Case:
    """Its node has another version of the loader; gradients are averaged, and statistics are not."""
    states = [{key: value.clone() for key, value in subject.model.state_dict().items()} for _ in range(4)]
    other = copy.deepcopy(subject.model).train()
    with torch.no_grad():
        for x in subject.inputs(64, 30):
            other(0.25 * x + 0.5)
    states[2] = other.state_dict()
    return case(subject, ranks=states)
