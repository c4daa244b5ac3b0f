"""What batches show of a model: what each norm is given and gives, and what the model scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Padding", "Parity", "Runs", "Sighting"]


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
        few_layers: likewise of a few layers together, whose own running statistics are further off than all others'.
        off: name of a batch norm -> how far its running statistics are, in standard deviations beyond sampling, from
            the moments of what it is given while every batch norm takes the batch's statistics, so that none is off
            because one before it is; empty where ``recalibrated`` is.
        recalibrated: on every second batch, with statistics measured on the others; empty where that was
            not possible.
        by_sample: scores while instance norms with running statistics take each sample's own, as in training; empty
            where there are none.
        of_constants: scores while frozen norms of mean 0 and variance 1 take the batch's own, likewise.
        moved: modules whose running statistics a forward moved though every module evaluated.
        dependent: the innermost modules that gave a sample another output in evaluation when the rest of its
            batch was left out, while their input for it was the same, and not by chance.
        dependence: largest difference of the model's output for the same samples in those two batches, relative to the
            largest magnitude of the output.
        updates: name of a norm -> how often one forward and backward in training moved its running statistics
            beyond once for each call; empty where that could not be tried.
        pieces: name of a norm that training calls on parts of the batch, one after the other -> samples of the largest.
        followed: name of a norm that training calls once -> share of the way to the batch's mean that its running mean
            went.
        parity: name of a norm of any kind -> its output beside the formula; those of which it is not known are missing.
        axes: name of a norm -> axis on which the layers before it have put the features, where that is not axis 1;
            :data:`steadynorm.doctor.axes.CUT` where a change of shape has cut across them.
        misled: name of a group or layer norm that takes another axis than the features' for theirs, and of one size
            with it -> the shape of its input, and the features' axis.
        flattened: name of a norm that is given maps as rows (N, C·places), and whose output is made maps again -> C.
        dropout: name of a norm that is given what comes out of dropout, through layers and activations at most -> the
            probability of that dropout.
        raw: norms that are given a tensor of the batch as it is.
        single: group and layer norms of which a group of a sample has a single value.
        copies: name of a norm in a part that the forward leaves out and that is a copy of one that it calls -> what it
            is given there, while it and its like normalize by the batch.
        linear_calls: most calls of a linear layer or convolution in a forward.
        maps: group norms that are given maps, or sequences of at most 64 values.
        labels: of each batch, in its order; empty where there are none.
        outputs: classes that the model tells apart; 0 where that is not known.
        mixed: whether samples are mixtures of two, as their labels say.
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
    by_sample: tuple[float, ...] = ()
    of_constants: tuple[float, ...] = ()
    moved: tuple[str, ...] = ()
    dependent: tuple[str, ...] = ()
    dependence: float = 0.0
    updates: Mapping[str, int] = field(default_factory=dict)
    pieces: Mapping[str, int] = field(default_factory=dict)
    followed: Mapping[str, float] = field(default_factory=dict)
    parity: Mapping[str, Parity] = field(default_factory=dict)
    copies: Mapping[str, tuple[Sighting, ...]] = field(default_factory=dict)
    axes: Mapping[str, int] = field(default_factory=dict)
    misled: Mapping[str, tuple[tuple[int, ...], int]] = field(default_factory=dict)
    flattened: Mapping[str, int] = field(default_factory=dict)
    dropout: Mapping[str, float] = field(default_factory=dict)
    raw: tuple[str, ...] = ()
    single: tuple[str, ...] = ()
    linear_calls: int = 0
    maps: tuple[str, ...] = ()
    labels: tuple[tuple[int, ...], ...] = ()
    outputs: int = 0
    mixed: bool = False
    classes: tuple[Mapping[int, int], ...] = ()
    sizes: tuple[int, ...] = ()
    last_samples: int | None = None
    unread: tuple[str, ...] = ()
