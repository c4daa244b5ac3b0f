"""What people reported of norms of their own, and of what they built around norms; each with its thread."""

from __future__ import annotations

import copy
import math
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.doctor.faults.registry import BATCH, FAR, GAP, case, tuning
from benchmarks.doctor.subject import Case, Norm, Subject, norms_of, put, shapes_of
from benchmarks.doctor.training import fit_


def _plain(subject: Subject) -> list[tuple[str, Norm]]:
    return [(name, norm) for name, norm in norms_of(subject.model) if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d)]


def _places(subject: Subject) -> list[tuple[str, Norm, int]]:
    """List plain norms of maps, with the number of places."""
    shapes = shapes_of(subject.model, subject.inputs(2, 1)[0])
    return [
        (name, norm, math.prod(shapes[name][2:])) for name, norm in _plain(subject) if len(shapes.get(name, ())) > 2
    ]


# Custom norms, and the modules around them.


def _without_mean(norm: Norm, x: Tensor) -> Tensor:
    dims, shape = [0, *range(2, x.dim())], (1, -1) + (1,) * (x.dim() - 2)
    assert norm.running_var is not None
    if norm.training:
        var = x.var(dims)
        norm.running_var.lerp_(var.detach(), 0.1)
        std = (var + norm.eps).sqrt()
    else:
        std = norm.running_var.sqrt() + norm.eps
    return norm.weight.view(shape) * (x / std.view(shape))


class _BiasFree1d(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return _without_mean(self, input)


class _BiasFree2d(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return _without_mean(self, input)


@tuning("backend-parity", *GAP, consequences=FAR | {"lossy-subclass"})
def _norms_without_mean_that_were_converted_in_training(subject: Subject) -> Case | None:
    """Synchronised ones subtract it, these do not (gh:LabForComputationalVision/bias_free_denoising/issues/3)."""
    plain = _plain(subject)
    for name, norm in plain:
        kind = _BiasFree1d if isinstance(norm, nn.BatchNorm1d) else _BiasFree2d
        new = kind(norm.num_features, norm.eps, norm.momentum)
        new.load_state_dict(norm.state_dict())
        put(subject.model, name, new.eval())
    return case(subject) if plain else None


class _Book(nn.Module):
    """The norm of a textbook; averages are plain tensors, and whether there are gradients tells the mode."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.gamma, self.beta = norm.weight, norm.bias
        self.moving_mean, self.moving_var = torch.zeros(norm.num_features), torch.ones(norm.num_features)

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (x.dim() - 2)
        mean, var = self.moving_mean, self.moving_var
        if torch.is_grad_enabled():
            dims = [0, *range(2, x.dim())]
            mean, var = x.mean(dims), x.var(dims, unbiased=False)
            self.moving_mean = 0.9 * self.moving_mean + 0.1 * mean.detach()
            self.moving_var = 0.9 * self.moving_var + 0.1 * var.detach()
        normal = (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
        return self.gamma.view(shape) * normal + self.beta.view(shape)


@tuning("statistics-at-init", *GAP, consequences=FAR | BATCH)
def _a_books_averages_that_no_file_has(subject: Subject) -> Case | None:
    """Loaded by ``state_dict``, means are 0 and variances 1 again (gh:d2l-ai/d2l-zh/pull/1265)."""
    plain = _plain(subject)
    for name, norm in plain:
        put(subject.model, name, _Book(norm).eval())
    return case(subject) if plain else None


class _Meta(nn.Module):
    """A norm for meta-learning; estimates are parameters without gradient."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.running_mean = nn.Parameter(norm.running_mean.clone(), requires_grad=False)
        self.running_var = nn.Parameter(norm.running_var.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=True, momentum=0.1, eps=self.eps
        )


@tuning(*BATCH, consequences=FAR)
def _training_true_in_a_norm_for_meta_learning(subject: Subject) -> Case | None:
    """``forward`` has a flag, its call of torch has not (gh:AntreasAntoniou/HowToTrainYourMAMLPytorch/issues/24)."""
    plain = _plain(subject)
    for name, norm in plain:
        put(subject.model, name, _Meta(norm).eval())
    return case(subject) if plain else None


@tuning(*BATCH, consequences=FAR)
def _traced_before_it_evaluates(subject: Subject) -> Case | None:
    """The trace keeps the mode it was made in, and ``eval`` says otherwise (gh:mlr-org/mlr3torch/issues/354)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            traced = torch.jit.trace(subject.model.train(), subject.inputs(32, 1)[0], check_trace=False)
            for size in (2, 7):  # a size that was traced as a number
                copy.deepcopy(traced)(subject.inputs(size, 1)[0])
        except RuntimeError:
            return None
    return Case(model=traced.eval(), batches=subject.data.batches())


class _Ensemble(nn.Module):
    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members, self.shares = members, nn.Parameter(torch.ones(len(members)) / len(members))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("m,mnc->nc", self.shares, torch.stack([member(x) for member in self.members]))


@tuning("hidden-module", *BATCH, consequences=FAR)
def _members_of_an_ensemble_in_a_plain_list(subject: Subject) -> Case:
    """``eval`` does not reach the networks that it is made of (gh:pytorch/pytorch/issues/23309)."""
    members = [copy.deepcopy(subject.model) for _ in range(3)]
    for member in members[1:]:
        fit_(member, subject.labelled(64, 20), rate=subject.rate / 20)
    return Case(
        model=_Ensemble([member.train() for member in members]).eval(),
        batches=subject.data.batches(),
    )


@tuning("reused-norm", *GAP, consequences=FAR, damages=True)
def _a_decoder_that_is_its_encoders_list(subject: Subject) -> Case | None:
    """``decoder = encoder``: of each size the last norm is the first (gh:yassouali/pytorch-segmentation/pull/159)."""
    sizes: dict[tuple[type[nn.Module], int], list[str]] = {}
    for name, norm in _plain(subject):
        sizes.setdefault((type(norm), norm.num_features), []).append(name)
    shared = [pair for names in sizes.values() for pair in zip(names[: len(names) // 2], reversed(names), strict=False)]
    for first, last in shared:
        put(subject.model, last, subject.model.get_submodule(first))
    if not shared:
        return None
    fit_(subject.model, subject.labelled(64, 120), rate=subject.rate / 4)
    return case(subject, *(first for first, _ in shared))


class _Twins(nn.Module):
    """A norm for training's candidates, and one for those that evaluation compares them with."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.first, self.second = norm, type(norm)(norm.num_features)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (self.first if self.training else self.second)(x)
        return y


@tuning("statistics-at-init", *GAP, consequences=FAR, repairable=True, damages=True)
def _a_second_candidates_norm_that_is_not_shared(subject: Subject) -> Case | None:
    """Evaluation has two candidates, and nothing trains one's norm (gh:zhougr1993/DeepInterestNetwork/pull/70)."""
    plain = _plain(subject)
    if not plain:
        return None
    name, norm = subject.draw.choice(plain)
    put(subject.model, name, _Twins(norm).eval())
    return case(subject, f"{name}.second")


class _Proposals(nn.Module):
    """A norm on (N, places, features), which has as many channels as there are places."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(places)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.flatten(2).transpose(1, 2))
        return y.transpose(1, 2).reshape(x.shape)


@tuning("axis-suspect", consequences=GAP | {"batch-dependence"}, damages=True)
def _as_many_channels_as_the_error_asked_for(subject: Subject) -> Case | None:
    """Should contain 36 elements: that is proposals, not features (gh:ruotianluo/self-critical.pytorch/issues/44)."""
    found = [(name, places) for name, _, places in _places(subject) if places >= 8]
    if not found:
        return None
    name, places = subject.draw.choice(found)
    put(subject.model, name, _Proposals(places))
    fit_(subject.model, subject.labelled(64, 100), rate=subject.rate / 10)
    return case(subject, f"{name}.norm")


class _Flat(nn.Module):
    """A norm for each value of a map."""

    def __init__(self, norm: Norm, places: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(norm.num_features * places)
        state = {"weight": norm.weight.repeat_interleave(places), "bias": norm.bias.repeat_interleave(places)}
        self.norm.load_state_dict(state, strict=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.flatten(1))
        return y.view(x.shape)


@tuning("axis-suspect", "statistics-noise", "values-per-channel", consequences=GAP, damages=True)
def _statistics_of_each_place_of_a_map(subject: Subject) -> Case | None:
    """Maps are flattened first, so that each value is a channel (gh:parasdahal/deepnet/issues/11)."""
    found = [(name, norm, places) for name, norm, places in _places(subject) if norm.num_features * places <= 4096]
    if not found:
        return None
    name, norm, places = subject.draw.choice(found)
    put(subject.model, name, _Flat(norm, places))
    fit_(subject.model, subject.labelled(64, 100), rate=subject.rate / 10)
    return case(subject, f"{name}.norm")


@tuning(*GAP, consequences=FAR, costs=True)
def _instance_norms_that_evaluate_by_averages(subject: Subject) -> Case | None:
    """``track_running_stats=True`` in two (gh:junyanz/pytorch-CycleGAN-and-pix2pix/issues/395)."""
    maps = [(name, norm) for name, norm, _ in _places(subject)]
    if len(maps) < 2:
        return None
    chosen = subject.draw.sample(maps, 2)
    for name, norm in chosen:
        kind = nn.InstanceNorm1d if isinstance(norm, nn.BatchNorm1d) else nn.InstanceNorm2d
        new = kind(norm.num_features, affine=True, track_running_stats=True)
        new.load_state_dict(norm.state_dict())
        put(subject.model, name, new)
    fit_(subject.model, subject.labelled(64, 120), rate=subject.rate / 5)
    return case(subject, *(name for name, _ in chosen))
