"""What is known of a model when it is diagnosed: plain data, taken once, which the checks read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

__all__ = [
    "CheckpointState",
    "Evidence",
    "ModuleState",
    "NormState",
    "OptimizerState",
    "Padding",
    "Parity",
    "RankStatistics",
    "Runs",
    "Sighting",
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
        moves: whether a training forward would move its running estimates, as it stands.
        momentum: weight of the new batch; None for a cumulative average, and where it has none of its own.
        has_momentum: whether a fixed momentum moves its running estimates.
        eps: a small number.
        mean: running mean, shape (C,); None where it has none.
        var: running variance, likewise.
        weight: γ; None for 1.
        bias: β; None for 0.
        learns: whether weight or bias requires a gradient.
        affine: whether it has a weight or a bias.
        dtype: of its running estimates; None where it has none.
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
        """Whether it normalizes each channel over the batch, or by running estimates."""
        return self.kind.endswith("batch_norm") or self.kind == "batch_renorm"

    @property
    def is_frozen(self) -> bool:
        """Whether its class never moves its running estimates."""
        return self.kind == "frozen_batch_norm"

    @cached_property
    def at_start(self) -> bool:
        """Whether its running estimates are exactly those of a new layer: mean 0, variance 1."""
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
        moved: norms whose running estimates differ from the checkpoint's, name -> by how much, in standard deviations:
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
    """A norm's running estimates on every rank, by rank; float64 on the CPU.

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Padding:
    """Positions at the ends of an input's axis that repeat their neighbours, in every channel.

    Args:
        share: of all positions along this axis.
        axis: of the input along which they lie.
        ragged: whether samples have different numbers of them.
        background: of maps, share of the lines next to them that are as they are; 0 for other inputs.
        mean: of the positions that are at the end of no axis in this manner, shape (C,), float64.
        var: likewise, biased.
    """

    share: float
    axis: int
    ragged: bool
    background: float
    mean: Tensor
    var: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Sighting:
    """What one call of a layer was given, in evaluation.

    Args:
        batch: number of the batch, from 0.
        call: number of the call within the batch's forward, from 0.
        mean: shape (C,), float64 on the CPU.
        var: likewise, biased.
        count: values per channel.
        samples: N.
        noise: variance of one sample's mean in units of the variance of its values, as
            :func:`steadynorm.statistics.noise.sample_noise` estimates it, but from all samples; NaN for a single one.
        mean_error: squared standard error of the mean, shape (C,), see
            :func:`steadynorm.statistics.noise.sampling_error`; NaN for a single sample.
        var_error: likewise of the variance.
        shape: of the input.
        at: places in the batch of a few samples, in their order, spread over it.
        sample_means: each of those samples' own means, shape (K, C), float32.
        sample_vars: likewise their variances over positions.
        padding: what looks like padding in it; None where there is none.
    """

    batch: int
    call: int
    mean: Tensor
    var: Tensor
    count: int
    samples: int
    noise: float
    mean_error: Tensor
    var_error: Tensor
    shape: tuple[int, ...]
    at: tuple[int, ...]
    sample_means: Tensor
    sample_vars: Tensor
    padding: Padding | None = None


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far a norm's output in evaluation is from the formula, beyond what rounding explains.

    Args:
        error: largest, relative to the root mean square of the output; 0 where rounding explains all.
        other_backend: likewise of the layer on a GPU without cuDNN.
    """

    error: float
    other_backend: float


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What the batches showed. Of scores less is better; there is one for each batch.

    Args:
        batches: that were looked at.
        sightings: name of a batch norm -> its inputs.
        score: what was scored; empty where nothing was, and then there are no scores.
        evaluation: in evaluation.
        by_batch: in evaluation, but with the batch's statistics in every batch norm.
        one_layer: name -> with the batch's statistics in this layer alone, on the first batches; empty where
            ``by_batch`` is not better by as much as :func:`steadynorm.doctor.compared.may_matter` asks for.
        few_layers: likewise of a few layers together, whose own running estimates are further off than all others'.
        off: name of a batch norm -> how far its running estimates are, in standard deviations beyond sampling, from the
            moments of what it is given while every batch norm takes the batch's statistics, so that none is off
            because one before it is; empty where ``recalibrated`` is.
        recalibrated: on every second batch, with statistics measured on the others; empty where that was
            not possible.
        moved: modules whose running estimates a forward moved though every module evaluated.
        dependent: the innermost modules that gave a sample another output in evaluation when the rest of its
            batch was left out, while their input for it was the same, and not by chance.
        dependence: largest difference of the model's output for the same samples in those two batches, relative to the
            largest magnitude of the output.
        updates: name of a norm -> how often one forward and backward in training moved its running estimates
            beyond once for each call; empty where that could not be tried.
        pieces: name of a norm that training calls on parts of the batch, one after the other -> samples of the largest.
        parity: name of a norm of any kind -> its output beside the formula; those of which it is not known are missing.
        axes: name of a norm -> axis on which the layers before it have put the features, where that is not axis 1;
            :data:`steadynorm.doctor.axes.CUT` where a change of shape has cut across them.
        dropout: name of a norm that is given what comes out of dropout, through layers and activations at most -> the
            probability of that dropout.
        raw: norms that are given a tensor of the batch as it is.
        single: group and layer norms of which a group of a sample has a single value.
        copies: name of a norm in a part that the forward leaves out and that is a copy of one that it calls -> what it
            is given there, while it and its like normalize by the batch.
        linear_calls: most calls of a linear layer or convolution in a forward.
        maps: group norms that are given maps, or sequences of at most 64 values.
        labels: of each batch, in its order; empty where there are none.
        classes: of each batch, label -> number of samples; empty where there are no labels.
        sizes: samples of each batch.
        last_samples: samples of the last batch of an epoch, where the loader tells and it is smaller than the others.
        unread: what could not be tried, and why, a line each.
    """

    batches: int
    sightings: Mapping[str, tuple[Sighting, ...]]
    score: str = ""
    evaluation: tuple[float, ...] = ()
    by_batch: tuple[float, ...] = ()
    one_layer: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    few_layers: Mapping[tuple[str, ...], tuple[float, ...]] = field(default_factory=dict)
    off: Mapping[str, float] = field(default_factory=dict)
    recalibrated: tuple[float, ...] = ()
    moved: tuple[str, ...] = ()
    dependent: tuple[str, ...] = ()
    dependence: float = 0.0
    updates: Mapping[str, int] = field(default_factory=dict)
    pieces: Mapping[str, int] = field(default_factory=dict)
    parity: Mapping[str, Parity] = field(default_factory=dict)
    copies: Mapping[str, tuple[Sighting, ...]] = field(default_factory=dict)
    axes: Mapping[str, int] = field(default_factory=dict)
    dropout: Mapping[str, float] = field(default_factory=dict)
    raw: tuple[str, ...] = ()
    single: tuple[str, ...] = ()
    linear_calls: int = 0
    maps: tuple[str, ...] = ()
    labels: tuple[tuple[int, ...], ...] = ()
    classes: tuple[Mapping[int, int], ...] = ()
    sizes: tuple[int, ...] = ()
    last_samples: int | None = None
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that checks may read.

    Args:
        norms: every normalization layer, those that are no submodules included.
        modules: every module, in the order of registration.
        training: the model's mode.
        optimizer: None where none was given.
        batches: None where none were given.
        reference: batches that the model is known to be good on; None where none were given.
        checkpoint: None where none was given.
        ranks: name of a norm -> its statistics on every rank; None where there is one rank, or others were not asked.
        step: None where it is not known what a step of the optimizer takes together.
        twins: parts of the model that are copies of each other.
        averaged: whether the model is a torch AveragedModel that averages parameters and no buffers.
        unread: what could not be looked at, a line each.
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
        """The norms that are batch norms."""
        return tuple(norm for norm in self.norms if norm.is_batch_norm)

    @property
    def described(self) -> Runs | None:
        """The batches that running estimates should describe: the reference where one was given; None without any."""
        return self.reference or self.batches

    @property
    def last_module(self) -> ModuleState | None:
        """The module that runs last, where the model is an nn.Sequential all the way down; else None."""
        at = self.by_name.get("")
        while at is not None and at.last:
            at = self.by_name.get(at.last)
        return at if at is not None and at.name else None

    @property
    def score(self) -> str | None:
        """What was scored; None where nothing was."""
        return self.batches.score or None if self.batches is not None else None
