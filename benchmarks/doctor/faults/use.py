"""Use: how data are fed, and what code stands in a norm's place or around it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.doctor.faults.registry import BATCH, FAR, GAP, case, tuning
from benchmarks.doctor.subject import Case, Norm, Subject, norms_of, put, shapes_of
from benchmarks.doctor.training import fit_

# How data are fed; CIFAR-10's mean and standard deviation are about those of its pixels in [0, 1].

MEAN, STD = 0.473, 0.251


def _fed(subject: Subject, feed: Callable[[Tensor], Tensor], *, reference: bool) -> Case:
    clean = subject.data.batches()
    return Case(
        model=subject.model,
        batches=[(feed(x), labels) for x, labels in clean],
        options={"reference": subject.data.batches(of="train")} if reference else {},
        feed=feed,
    )


@tuning(*GAP, consequences=frozenset({"outlier-statistics"}), costs=True)
def _inputs_normalized_twice(subject: Subject) -> Case:
    """The model's server does it, and so does its client; signals, of which training used raw values, once."""
    images = subject.data.train[0].dim() == 4
    return _fed(subject, (lambda x: (x - MEAN) / STD) if images else (lambda x: (x - 0.9) / 4), reference=False)


@tuning("domain-shift", consequences=FAR, costs=True)
def _bytes_instead_of_normalized_values(subject: Subject) -> Case:
    """Pixels in 0...255, or counts of a 12-bit converter."""
    images = subject.data.train[0].dim() == 4
    return _fed(subject, (lambda x: 255 * (x * STD + MEAN)) if images else (lambda x: 2048 + 256 * x), reference=True)


@tuning("domain-shift", consequences=FAR, costs=True)
def _a_camera_without_colour(subject: Subject) -> Case:
    """Three equal channels; of signals, one sensor goes to all inputs."""
    images = subject.data.train[0].dim() == 4
    return _fed(subject, lambda x: (x.mean(1, keepdim=True) if images else x[:, :1]).expand_as(x), reference=True)


@tuning("domain-shift", consequences=FAR, costs=True)
def _inputs_of_half_the_size(subject: Subject) -> Case | None:
    """A smaller size is taken for speed (Touvron et al. 2019, arXiv 1906.06423: it shifts what pooled norms see)."""
    x = subject.inputs(2, 1)[0]

    def feed(x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=0.5, mode="bilinear" if x.dim() == 4 else "linear")

    try:
        with torch.no_grad():
            subject.model(feed(x))
    except RuntimeError:  # a head of fixed size
        return None
    return _fed(subject, feed, reference=True)


# Code in a norm's place or around it.


@tuning("sync-in-inference")
def _synchronised_norms_in_a_service(subject: Subject) -> Case | None:
    """They were for training on many devices, and are not converted back."""
    if any(type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d) for _, norm in norms_of(subject.model)):
        return None  # torch's own conversion would lose what a subclass does
    model = nn.SyncBatchNorm.convert_sync_batchnorm(subject.model)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.SyncBatchNorm)]
    return Case(model=model.eval(), batches=None, layers=frozenset(names))


class _Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _closed_over(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: norm(x)


@tuning("hidden-module", consequences=BATCH)
def _a_norm_in_a_closure(subject: Subject) -> Case:
    """``Lambda(lambda x: norm(x))``: modes, moves and state dicts do not reach it."""
    name, norm = subject.one_norm()
    norm.train()
    put(subject.model, name, _Lambda(_closed_over(norm)))
    return case(subject)


def _wrong(norm: Norm, x: Tensor) -> Tensor:
    shape = (1, -1) + (1,) * (x.dim() - 2)
    assert norm.running_mean is not None and norm.running_var is not None
    y = (x - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps)  # the root is forgotten
    return y * norm.weight.view(shape) + norm.bias.view(shape)


class _Own1d(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.training else _wrong(self, input)


class _Own2d(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.training else _wrong(self, input)


@tuning("backend-parity", "train-eval-gap", consequences=frozenset({"needs-recalibration", "lossy-subclass"}))
def _an_evaluation_of_ones_own_without_the_root(subject: Subject) -> Case | None:
    """Training is torch's, and the two are never compared."""
    if any(type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d) for _, norm in norms_of(subject.model)):
        return None
    for name, norm in norms_of(subject.model):
        own = (_Own1d if isinstance(norm, nn.BatchNorm1d) else _Own2d)(norm.num_features)
        own.load_state_dict(norm.state_dict())
        put(subject.model, name, own.eval())
    return case(subject)


class _ChannelsLast(nn.Module):
    """Code from a framework whose channels are the last axis; the norm behind it still takes axis 1."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.movedim(1, -1))
        return y.movedim(-1, 1)


@tuning("axis-suspect", consequences=GAP | {"batch-dependence"})
def _channels_on_the_last_axis(subject: Subject) -> Case | None:
    """The constructor gets the size of axis 1, because it complained of any other, and training goes on."""
    shapes = shapes_of(subject.model, subject.inputs(2, 1)[0])
    plain = {name for name, norm in norms_of(subject.model) if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d)}
    found = [(name, shape[-1]) for name, shape in shapes.items() if name in plain and len(shape) > 2 and shape[-1] >= 8]
    if not found:
        return None
    name, size = subject.draw.choice(found)
    kind = nn.BatchNorm1d if subject.data.train[0].dim() == 3 else nn.BatchNorm2d
    put(subject.model, name, _ChannelsLast(kind(size)))
    fit_(subject.model, subject.labelled(64, 100), rate=subject.rate / 10)
    return case(subject, f"{name}.norm")
