"""Flags, numbers, types and owners of norms."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from benchmarks.doctor.faults.registry import BATCH, GAP, case, tuning
from benchmarks.doctor.subject import Case, Norm, Subject, norms_of, put


@tuning("momentum-convention", consequences=GAP | {"statistics-noise", "statistics-horizon"}, repairable=True)
def _a_momentum_of_one_left_from_a_calibration(subject: Subject) -> Case:
    """Set to take one large batch's statistics as they are; training goes on, and the last batch stays."""
    for _, norm in norms_of(subject.model):
        norm.momentum = 1.0
    subject.follow_(subject.inputs(16, 3))
    return case(subject)


@tuning("track-flag-inconsistent", "batch-dependence", consequences=BATCH | GAP)
def _buffers_removed_and_the_flag_left(subject: Subject) -> Case:
    """As adaptation at test time is written by hand (gh:DequanWang/tent), in one layer, without its third line."""
    name, norm = subject.one_norm()
    norm.running_mean = norm.running_var = None
    return case(subject, name)


class _Cast(nn.Module):
    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.norm = norm.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.bfloat16())
        return y.to(x.dtype)


@tuning("low-precision-statistics", consequences=GAP)
def _one_norm_between_two_casts(subject: Subject) -> Case:
    """A layer is cast, buffers with it, because its input was complained of (gh:NVIDIA/apex/issues/121); it trains."""
    name, norm = subject.one_norm()
    put(subject.model, name, _Cast(norm))
    subject.model.train()
    return case(subject, f"{name}.norm")


class _ByDomain(nn.Module):
    """Norms of several domains (gh:pytorch/pytorch/issues/48929) in a dict that registers nothing."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.norms = {"source": norm, "target": copy.deepcopy(norm)}
        self.domain = "source"

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norms[self.domain](x)
        return y


@tuning("hidden-module", consequences=BATCH)
def _norms_of_two_domains_in_a_plain_dict(subject: Subject) -> Case:
    """``eval`` does not reach them, and they go on as they were built."""
    name, norm = subject.one_norm()
    norm.train()
    put(subject.model, name, _ByDomain(norm))
    return case(subject)


class GradSampleModule(nn.Module):
    """Opacus' wrapper in small: hooks give each sample's gradient of the linear layers, as ``grad_sample``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        for parameter in module.parameters():
            parameter.grad_sample = None  # type: ignore[attr-defined]
        for each in module.modules():
            if isinstance(each, nn.Linear):
                each.register_forward_hook(_keep)
                each.register_full_backward_hook(_sample)

    def forward(self, x: Tensor) -> Tensor:
        """Run the module."""
        logits: Tensor = self._module(x)
        return logits


def _keep(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
    if layer.training:
        layer.activations = inputs[0].detach()


def _sample(layer: nn.Module, _: object, slopes: tuple[Tensor, ...]) -> None:
    if isinstance(layer.weight, Tensor) and isinstance(layer.activations, Tensor):
        gradients = torch.einsum("n...o,n...i->noi", slopes[0], layer.activations)
        layer.weight.grad_sample = gradients  # type: ignore[attr-defined]


@tuning("transform-unsafe")
def _private_training_that_keeps_its_norms(subject: Subject) -> Case:
    """Opacus refuses them, unless it gets ``strict=False`` (gh:meta-pytorch/opacus/issues/472)."""
    model = GradSampleModule(subject.model).train()
    return Case(
        model=model, batches=subject.data.batches(), layers=frozenset(name for name, _ in norms_of(model)) or None
    )


# Code of one's own in a norm's place.


def _plain(subject: Subject) -> list[tuple[str, Norm]]:
    return [(name, norm) for name, norm in norms_of(subject.model) if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d)]


def _affine(norm: Norm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def _applied(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    shape = (1, -1) + (1,) * (x.dim() - 2)
    return x * scale.view(shape) + shift.view(shape)


class _Cached(nn.Module):
    """In evaluation one multiplication and one addition, which are worked out at the first call, and never again."""

    cached: tuple[Tensor, Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        assert isinstance(self, Norm)
        if self.training:
            return super().forward(input)
        if self.cached is None:
            scale, shift = _affine(self)
            self.cached = scale.detach(), shift.detach()
        return _applied(input, *self.cached)


class _Cached1d(_Cached, nn.BatchNorm1d):
    pass


class _Cached2d(_Cached, nn.BatchNorm2d):
    pass


@tuning("backend-parity", consequences=GAP | {"lossy-subclass"})
def _a_cached_affine_that_outlives_its_estimates(subject: Subject) -> Case | None:
    """Two layers were run once before the weights were loaded."""
    plain = _plain(subject)
    if len(plain) < 2:
        return None
    chosen = subject.draw.sample(plain, 2)
    for name, norm in chosen:
        new = (_Cached1d if isinstance(norm, nn.BatchNorm1d) else _Cached2d)(norm.num_features)
        put(subject.model, name, new.eval())
    with torch.no_grad():
        subject.model(subject.inputs(8, 1)[0])
    for name, norm in chosen:
        subject.model.get_submodule(name).load_state_dict(norm.state_dict())
    return case(subject, *(name for name, _ in chosen))


class _Scaling(nn.Module):
    """In evaluation it divides by the standard deviation, and leaves the mean where it is."""

    def forward(self, input: Tensor) -> Tensor:
        assert isinstance(self, Norm)
        if self.training:
            return super().forward(input)
        return _applied(input, _affine(self)[0], self.bias)


class _Scaling1d(_Scaling, nn.BatchNorm1d):
    pass


class _Scaling2d(_Scaling, nn.BatchNorm2d):
    pass


def _offset(norm: Norm) -> float:
    """Give the means in standard deviations, at the root of their mean square."""
    assert norm.running_mean is not None and norm.running_var is not None
    return float((norm.running_mean.square() / (norm.running_var + norm.eps)).mean().sqrt())


@tuning("backend-parity", consequences=GAP | {"lossy-subclass"})
def _a_fast_path_that_leaves_out_the_mean(subject: Subject) -> Case | None:
    """In that of three layers whose means are farthest from zero."""
    plain = _plain(subject)
    if not plain:
        return None
    name, norm = max(subject.draw.sample(plain, min(3, len(plain))), key=lambda each: _offset(each[1]))
    new = (_Scaling1d if isinstance(norm, nn.BatchNorm1d) else _Scaling2d)(norm.num_features)
    new.load_state_dict(norm.state_dict())
    put(subject.model, name, new.eval())
    return case(subject, name)
