"""What is known of a model when it is diagnosed: plain data, taken once, which the checks read."""

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
    """A normalization layer as it stands. Tensors are copies in float64 on the CPU.

    Args:
        name: qualified; the first where it has several. Of one that is no submodule, the path of what holds it.
        label: class and size.
        kind: name in :data:`steadynorm.layers.kinds.KINDS`, ``instance_norm``, or ``unknown``.
        unknown: why it is not known what it computes; empty where it is.
        hidden: whether it is no submodule of the model.
        training: its mode.
        tracks: its flag ``track_running_stats``; True where it has none.
        moves: whether a training forward would move its running statistics, as it stands.
        momentum: weight of the new batch; None for a cumulative average, and where it has none of its own.
        has_momentum: whether a fixed momentum moves its running statistics.
        eps: a small number.
        mean: running mean, shape (C,); None where it has none.
        var: running variance, likewise.
        weight: γ; None for 1.
        bias: β; None for 0.
        learns: whether weight or bias requires a gradient.
        affine: whether it has a weight or a bias.
        dtype: of its running statistics; None where it has none.
        batches: its counter; None where it has none.
        groups: of a group norm; 0 for others.
        channels: C.
        tail: names of the modules that a foreign norm runs after normalizing.
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
        """Whether it normalizes each channel over the batch, or by running statistics."""
        return self.kind.endswith("batch_norm") or self.kind == "batch_renorm"

    @property
    def is_frozen(self) -> bool:
        """Whether its class never moves its running statistics."""
        return self.kind == "frozen_batch_norm"

    @cached_property
    def at_start(self) -> bool:
        """Whether its running statistics are exactly those of a new layer: mean 0, variance 1."""
        return self.mean is not None and self.var is not None and not self.mean.any() and bool((self.var == 1).all())

    @cached_property
    def affine_at_start(self) -> bool:
        """Whether weight and bias are those of a new layer: 1 (or 0, as some start residual branches) and 0.

        InPlaceABN's weight takes effect as |weight| + eps, so 1 + eps counts as 1, up to the rounding of float32.
        A weight beside a bias of zeros is a start whatever it is (timm's RepVGG draws it): training moves both.
        """
        weight, bias = self.weight, self.bias
        first = 1.0 if weight is None else float(weight.flatten()[0])
        plain = weight is None or bool((weight == first).all() and min(abs(first), abs(first - 1)) <= self.eps + 1e-6)
        return plain if bias is None else not bias.any()


@dataclass(frozen=True, kw_only=True)
class ModuleState:
    """A module of any kind, as far as checks ask about it.

    Args:
        name: qualified.
        label: class and size.
        kind: ``linear`` (convolutions too), ``norm``, ``dropout``, ``activation``, ``shape`` (flatten and the like), or
            ``other``.
        training: its mode.
        bias: whether a linear layer has a bias.
        probability: of a dropout.
        following: name of the module that runs next, where it stands in an nn.Sequential and is not its last; else "".
        last: of an nn.Sequential, the name of its last module; else "".
        checkpoints: whether it runs its forward again in the backward (activation checkpointing).
        per_sample: whether its gradients are taken sample by sample (Opacus, or vmap in its code).
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
    """An optimizer, by the model's names.

    Args:
        decay: name of a parameter -> its weight decay; parameters that the optimizer does not have are missing.
        shrinks: name of a parameter -> share of it that decay alone takes away in a step, with momentum, at the largest
            learning rate that is known; likewise.
        moved: names of the parameters whose learning rate is not zero.
        per_sample: whether it takes gradients per sample (Opacus).
    """

    decay: Mapping[str, float]
    shrinks: Mapping[str, float] = field(default_factory=dict)
    moved: frozenset[str] = frozenset()
    per_sample: bool = False


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step of the optimizer takes together.

    Args:
        accumulation: forwards of one worker for each step.
        world_size: workers.
    """

    accumulation: int = 1
    world_size: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckpointState:
    """A checkpoint beside the model, by the model's names.

    Args:
        missing: names of the model that the checkpoint does not have; counters of batches are not needed.
        unknown: names of the checkpoint that the model does not have.
        misshapen: name -> the two shapes, in words.
        different: names of the tensors whose numbers differ from the model's, statistics and counters aside.
        compared: how many tensors were compared, statistics and counters aside.
        matrices: how many of these have two dimensions or more.
        apart: of those of two dimensions or more that differ, name -> the distance, relative to the root mean square of
            the two norms: √2 for independent draws.
        moved: norms whose running statistics differ from the checkpoint's, name -> by how much, in standard deviations:
            the root mean square over channels of the shift of the mean and the logarithm of the deviations' ratio.
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
    """A norm's running statistics on every rank, by rank; float64 on the CPU.

    Args:
        means: shape (R, C).
        vars: likewise.
    """

    means: Tensor
    vars: Tensor


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Two parts of a model that are built alike and whose weights are nearly the same.

    Args:
        first: qualified name.
        second: likewise.
        weights: distance of their weights, relative to the first's.
        frozen: whether one of them has no parameter that requires a gradient, as a teacher or an average has.
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
