"""Custom layers that replace a norm, or surround one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.doctor.faults.registry import BATCH, FAR, case, tuning
from benchmarks.doctor.subject import Case, Norm, Subject, norms_of, put, shapes_of
from benchmarks.doctor.training import fit_


def _plain(subject: Subject) -> list[tuple[str, Norm]]:
    return [(name, norm) for name, norm in norms_of(subject.model) if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d)]


def _exchange(subject: Subject, name: str, norm: Norm, kinds: tuple[type[Norm], type[Norm]]) -> Norm:
    """Put a norm of another class in the place of one, with its state."""
    new = kinds[isinstance(norm, nn.BatchNorm2d)](norm.num_features)
    new.load_state_dict(norm.state_dict())
    put(subject.model, name, new.train(norm.training))
    return new


# What comes out.


class _Centred(nn.Module):
    """γ is stored as its distance from 1, as in zero-centred norms, and this layer adds the 1."""

    def forward(self, input: Tensor) -> Tensor:
        assert isinstance(self, Norm)
        weight = 1 + self.weight
        return functional.batch_norm(
            input, self.running_mean, self.running_var, weight, self.bias, self.training, self.momentum or 0.0, self.eps
        )


class _Centred1d(_Centred, nn.BatchNorm1d):
    pass


class _Centred2d(_Centred, nn.BatchNorm2d):
    pass


@tuning("backend-parity", consequences=FAR | {"lossy-subclass"})
def _a_gamma_that_is_counted_from_zero(subject: Subject) -> Case | None:
    """Two layers' class adds 1 to a weight, and the file's weights have it already."""
    plain = _plain(subject)
    if len(plain) < 2:
        return None
    chosen = subject.draw.sample(plain, 2)
    for name, norm in chosen:
        _exchange(subject, name, norm, (_Centred1d, _Centred2d))
    return case(subject, *(name for name, _ in chosen))


class _Short(nn.Module):
    """A kernel that goes through channels by four, and leaves the last ones as they are: its bound is too low."""

    def forward(self, input: Tensor) -> Tensor:
        assert isinstance(self, Norm)
        y: Tensor = super().forward(input)
        last = (input.shape[1] - 1) // 4 * 4
        return torch.cat((y[:, :last], input[:, last:]), 1)


class _Short1d(_Short, nn.BatchNorm1d):
    pass


class _Short2d(_Short, nn.BatchNorm2d):
    pass


@tuning("backend-parity", consequences=FAR | {"lossy-subclass"})
def _a_kernel_that_stops_four_channels_short(subject: Subject) -> Case | None:
    plain = _plain(subject)
    if not plain:
        return None
    name, norm = subject.draw.choice(plain)
    _exchange(subject, name, norm, (_Short1d, _Short2d))
    return case(subject, name)


class _Method(nn.Module):
    """Keeps what is to be called, not the module that it belongs to."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.normalize = norm.forward

    def forward(self, x: Tensor) -> Tensor:
        return self.normalize(x)


@tuning("hidden-module", consequences=BATCH)
def _a_norm_held_by_its_method(subject: Subject) -> Case:
    """``self.normalize = norm.forward``: modes, moves and state dicts do not reach it."""
    name, norm = subject.one_norm()
    norm.train()
    put(subject.model, name, _Method(norm))
    return case(subject)


# What is kept.


class _Thrifty(nn.Module):
    """Estimates in bfloat16 to save memory; they are computed with in float32, and written back."""

    def forward(self, input: Tensor) -> Tensor:
        assert isinstance(self, Norm)
        assert self.running_mean is not None and self.running_var is not None
        mean, var = self.running_mean.float(), self.running_var.float()
        y = functional.batch_norm(
            input, mean, var, self.weight, self.bias, self.training, self.momentum or 0.0, self.eps
        )
        if self.training:
            self.running_mean.copy_(mean)
            self.running_var.copy_(var)
        return y


class _Thrifty1d(_Thrifty, nn.BatchNorm1d):
    pass


class _Thrifty2d(_Thrifty, nn.BatchNorm2d):
    pass


@tuning("low-precision-statistics", consequences=FAR | {"lossy-subclass"})
def _estimates_kept_in_half_of_the_memory(subject: Subject) -> Case | None:
    """All of them, in training with a momentum of 0.01: steps below a 256th of the value are lost."""
    plain = _plain(subject)
    for name, norm in plain:
        new = _exchange(subject, name, norm, (_Thrifty1d, _Thrifty2d))
        assert new.running_mean is not None and new.running_var is not None
        new.momentum = 0.01
        new.running_mean, new.running_var = new.running_mean.bfloat16(), new.running_var.bfloat16()
    subject.model.train()
    return case(subject, *(name for name, _ in plain)) if plain else None


class _Twice(nn.Module):
    """Keeps the estimates by hand, for a version of torch that did not, and calls torch's forward."""

    def forward(self, input: Tensor) -> Tensor:
        assert isinstance(self, Norm)
        assert self.running_mean is not None and self.running_var is not None
        if self.training:
            dims = [dim for dim in range(input.dim()) if dim != 1]
            with torch.no_grad():
                self.running_mean.lerp_(input.mean(dims), self.momentum or 0.0)
                self.running_var.lerp_(input.var(dims), self.momentum or 0.0)
        y: Tensor = super().forward(input)
        return y


class _Twice1d(_Twice, nn.BatchNorm1d):
    pass


class _Twice2d(_Twice, nn.BatchNorm2d):
    pass


@tuning("double-update", consequences=FAR | {"lossy-subclass"})
def _estimates_moved_by_hand_and_by_torch(subject: Subject) -> Case | None:
    plain = _plain(subject)
    if not plain:
        return None
    name, norm = subject.draw.choice(plain)
    _exchange(subject, name, norm, (_Twice1d, _Twice2d))
    subject.model.train()
    return case(subject, name)


# Which samples, and which channels.


class _Gate(nn.Module):
    """Weighs samples' maps by a softmax; ``dim`` was left out where torch once took the first one."""

    def forward(self, y: Tensor) -> Tensor:
        scores = y.flatten(1).mean(1) * 3
        weights = scores.softmax(0) * len(y)
        return y * weights.view(-1, *(1 for _ in y.shape[1:]))


@tuning("batch-dependence", consequences=FAR)
def _a_softmax_over_the_batch(subject: Subject) -> Case:
    name, norm = subject.one_norm()
    put(subject.model, name, nn.Sequential(norm, _Gate()))
    fit_(subject.model, subject.labelled(64, 80), rate=subject.rate / 10)
    return case(subject, f"{name}.1", name)


class _Windows(nn.Module):
    """Cuts the time, or the rows, into two windows by ``reshape``, as if the channels stood behind them."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        samples, channels, length, *rest = x.shape
        y: Tensor = self.norm(x.reshape(2 * samples, channels, length // 2, *rest))
        return y.reshape(x.shape)


@tuning("axis-suspect", consequences=FAR)
def _windows_cut_by_a_reshape(subject: Subject) -> Case | None:
    """Of a map (N, C, L) one of (2 N, C, L / 2) is made, in which each channel has values of two; training goes on."""
    shapes = shapes_of(subject.model, subject.inputs(2, 1)[0])
    found = [
        (name, norm)
        for name, norm in _plain(subject)
        if name in shapes and len(shapes[name]) > 2 and shapes[name][2] % 2 == 0
    ]
    if not found:
        return None
    name, norm = subject.draw.choice(found)
    put(subject.model, name, _Windows(norm))
    fit_(subject.model, subject.labelled(64, 100), rate=subject.rate / 10)
    return case(subject, f"{name}.norm")
