"""The evidence that checks read: plain data, collected once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from steadynorm.doctor.batch_evidence import Runs

__all__ = [
    "CheckpointState",
    "Evidence",
    "ModuleState",
    "NormState",
    "OptimizerState",
    "RankStatistics",
    "Step",
    "Twins",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class NormState:
    """State of a normalization layer. Tensors are copies in float64 on the CPU.

    Args:
        name: qualified name, the first of several; the path of its holder if it is not a submodule.
        label: class and size.
        kind: name in :data:`steadynorm.layers.kinds.KINDS`, ``instance_norm``, or ``unknown``.
        unknown: why its computation is unknown; empty if it is known.
        hidden: whether it is not a registered submodule of the model.
        training: whether it is in training mode.
        tracks: its flag ``track_running_stats``; True if it has none.
        moves: whether a training forward would update its running statistics in its present state.
        momentum: weight of the new batch; None for a cumulative average or if it has none of its own.
        has_momentum: whether a fixed momentum moves its running statistics.
        eps: constant added to the variance.
        mean: running mean, shape (C,); None without one.
        var: running variance, shape (C,); None without one.
        weight: γ; None for 1.
        bias: β; None for 0.
        learns: whether weight or bias requires a gradient.
        affine: whether it has a weight or a bias.
        dtype: dtype of its running statistics; None without any.
        batches: its counter of batches; None without one.
        groups: number of groups of a group norm; 0 for others.
        channels: C.
        tail: names of the modules that another package's norm runs after normalizing.
    """

    name: str
    label: str
    kind: str
    unknown: str = ""
    hidden: bool = False
    training: bool
    tracks: bool = True
    moves: bool = False
    momentum: float | None = None
    has_momentum: bool = False
    eps: float
    mean: Tensor | None = None
    var: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    learns: bool = False
    affine: bool = False
    dtype: torch.dtype | None = None
    batches: int | None = None
    groups: int = 0
    channels: int = 0
    tail: tuple[str, ...] = ()

    @property
    def is_batch_norm(self) -> bool:
        """Whether it normalizes each channel by batch or running statistics."""
        return self.kind.endswith("batch_norm") or self.kind == "batch_renorm"

    @property
    def is_frozen(self) -> bool:
        """Whether its class never updates its running statistics."""
        return self.kind == "frozen_batch_norm"

    @cached_property
    def at_start(self) -> bool:
        """Whether its running statistics are exactly those of a new layer: mean 0, variance 1."""
        return self.mean is not None and self.var is not None and not self.mean.any() and bool((self.var == 1).all())

    @cached_property
    def affine_at_start(self) -> bool:
        """Whether weight and bias are those of a new layer: 1 (or 0, as some start residual branches) and 0.

        InPlaceABN's weight takes effect as |weight| + eps, so 1 + eps counts as 1, up to the rounding of float32.
        Any weight with a bias of zeros counts as initial (timm's RepVGG draws it): training moves both.
        """
        weight, bias = self.weight, self.bias
        first = 1.0 if weight is None else float(weight.flatten()[0])
        plain = weight is None or bool((weight == first).all() and min(abs(first), abs(first - 1)) <= self.eps + 1e-6)
        return plain if bias is None else not bias.any()


@dataclass(frozen=True, kw_only=True)
class ModuleState:
    """A module of any kind, with what the checks need to know.

    Args:
        name: qualified.
        label: class and size.
        kind: ``linear`` (convolutions too), ``norm``, ``dropout``, ``activation``, ``shape`` (flatten and the like), or
            ``other``.
        training: whether it is in training mode.
        bias: whether a linear layer has a bias.
        probability: probability of a dropout.
        following: name of the next module in the same nn.Sequential; empty if there is none.
        last: name of the last module of an nn.Sequential; empty for others.
        checkpoints: whether it uses activation checkpointing.
        per_sample: whether its gradients are computed per sample (Opacus, or vmap in its code).
    """

    name: str
    label: str
    kind: str
    training: bool
    bias: bool = False
    probability: float = 0.0
    following: str = ""
    last: str = ""
    checkpoints: bool = False
    per_sample: bool = False


@dataclass(frozen=True, kw_only=True)
class OptimizerState:
    """An optimizer's settings by parameter name.

    Args:
        decay: name of a parameter -> its weight decay; without parameters that the optimizer does not have.
        shrinks: name of a parameter -> fraction that decay alone removes in a step, with momentum, at the largest
            known learning rate; without the same parameters.
        moved: names of the parameters whose learning rate is not zero.
        per_sample: whether it uses per-sample gradients (Opacus).
    """

    decay: Mapping[str, float]
    shrinks: Mapping[str, float] = field(default_factory=dict)
    moved: frozenset[str] = frozenset()
    per_sample: bool = False


@dataclass(frozen=True, kw_only=True)
class Step:
    """Forwards and workers that one optimizer step combines.

    Args:
        accumulation: forwards of one worker for each step.
        world_size: number of workers.
    """

    accumulation: int = 1
    world_size: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckpointState:
    """Comparison of a checkpoint with the model, by the model's names.

    Args:
        missing: names of the model that the checkpoint lacks, except counters of batches.
        unknown: names of the checkpoint that the model lacks.
        misshapen: name -> the two shapes, in words.
        different: names of the tensors that differ from the model's, without statistics and counters.
        compared: number of tensors compared, without statistics and counters.
        matrices: number of these with two dimensions or more.
        apart: name of a differing tensor of two dimensions or more -> distance relative to the root mean square of
            the two norms: √2 for independent draws.
        moved: name of a norm whose running statistics differ -> distance in standard deviations: root mean square
            over channels of the shift of the mean and the logarithm of the ratio of standard deviations.
    """

    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    misshapen: Mapping[str, str]
    different: tuple[str, ...]
    compared: int
    matrices: int
    apart: Mapping[str, float]
    moved: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class RankStatistics:
    """A norm's running statistics on all R ranks; float64 on the CPU.

    Args:
        means: running means, shape (R, C).
        vars: running variances, shape (R, C).
    """

    means: Tensor
    vars: Tensor


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Two parts of a model with the same structure and nearly the same weights.

    Args:
        first: qualified name of one part.
        second: qualified name of the other part.
        weights: distance of their weights relative to the first's.
        frozen: whether one of them has no parameter that requires a gradient, like a teacher or an average.
        norms: their norms in pairs, by name.
    """

    first: str
    second: str
    weights: float
    frozen: bool
    norms: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that checks may read.

    Args:
        norms: every normalization layer, also those that are not registered submodules.
        modules: every module, in order of registration.
        training: the model's mode.
        optimizer: None if none was given.
        batches: what the batches showed; None without batches.
        reference: what batches showed on which the model is known to be good; None without.
        checkpoint: comparison with a checkpoint; None without.
        ranks: name of a norm -> its statistics on every rank; None for a single rank.
        step: what an optimizer step combines; None if unknown.
        twins: parts of the model that are copies of each other.
        averaged: whether the model is a torch AveragedModel that averages parameters but not buffers.
        unread: what could not be examined, one line each.
    """

    norms: tuple[NormState, ...]
    modules: tuple[ModuleState, ...]
    training: bool
    optimizer: OptimizerState | None = None
    batches: Runs | None = None
    reference: Runs | None = None
    checkpoint: CheckpointState | None = None
    ranks: Mapping[str, RankStatistics] | None = None
    step: Step | None = None
    twins: tuple[Twins, ...] = ()
    averaged: bool = False
    unread: tuple[str, ...] = ()
    by_name: Mapping[str, ModuleState] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {each.name: each for each in self.modules})

    @property
    def batch_norms(self) -> tuple[NormState, ...]:
        """The batch norms among the norms."""
        return tuple(norm for norm in self.norms if norm.is_batch_norm)

    @property
    def described(self) -> Runs | None:
        """Batches that the running statistics should describe: the reference if given; None without any."""
        return self.reference or self.batches

    @property
    def last_module(self) -> ModuleState | None:
        """The last module, if the model is nested ``nn.Sequential``; else None."""
        at = self.by_name.get("")
        while at is not None and at.last:
            at = self.by_name.get(at.last)
        return at if at is not None and at.name else None

    @property
    def score(self) -> str | None:
        """Name of the score; None without one."""
        return self.batches.score or None if self.batches is not None else None
