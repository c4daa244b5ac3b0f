"""Evidence from batches: inputs and outputs of each norm, and the model's scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Padding", "Parity", "Runs", "Sighting"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Padding:
    """Positions at the ends of an input's axis that repeat their neighbours, in every channel.

    Args:
        share: fraction of all positions along this axis.
        axis: axis of the input along which they lie.
        ragged: whether their number differs between samples.
        background: for maps, the fraction of the adjacent lines that equals the padding; 0 for other inputs.
        mean: mean of the positions that are padding along no axis, shape (C,), float64.
        var: biased variance of the same positions.
    """

    share: float
    axis: int
    ragged: bool
    background: float
    mean: Tensor
    var: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Sighting:
    """Input of one call of a layer in evaluation.

    Args:
        batch: number of the batch, from 0.
        call: number of the call within the batch's forward, from 0.
        mean: mean of the input, shape (C,), float64 on the CPU.
        var: biased variance of the input, same shape.
        count: values per channel.
        samples: N.
        noise: variance of one sample's mean in units of the variance of its values, as
            :func:`steadynorm.statistics.noise.sample_noise` estimates it, but from all samples; NaN for a single one.
        mean_error: squared standard error of the mean, shape (C,), see
            :func:`steadynorm.statistics.noise.sampling_error`; NaN for a single sample.
        var_error: the same for the variance.
        shape: shape of the input.
        at: indices in the batch of a few samples spread over it, in order.
        sample_means: means of those samples, shape (K, C), float32.
        sample_vars: their variances over positions, same shape.
        padding: positions that look like padding; None without any.
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
    """Error of a norm's output in evaluation against the formula, beyond rounding.

    Args:
        error: largest error relative to the output's root mean square; 0 if rounding explains it.
        other_backend: the same for the layer on a GPU without cuDNN.
    """

    error: float
    other_backend: float


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Evidence from a run over batches. Scores are one for each batch, and less is better.

    Args:
        batches: number of batches run.
        sightings: name of a batch norm -> its inputs.
        score: name of the score; empty if nothing was scored, and then there are no scores.
        evaluation: scores in evaluation.
        by_batch: scores in evaluation with batch statistics in every batch norm.
        one_layer: name -> scores with batch statistics in this layer alone, on the first batches; empty where
            ``by_batch`` is not better by as much as :func:`steadynorm.doctor.compared.may_matter` asks for.
        few_layers: the same for the few layers together whose running statistics are further off than all others'.
        off: name of a batch norm -> distance of its running statistics, in standard deviations beyond sampling, from
            the moments of its inputs while every batch norm uses batch statistics, so that no layer is off because
            an earlier one is; empty where ``recalibrated`` is.
        recalibrated: scores on every second batch, with statistics measured on the others; empty if that was not
            possible.
        by_sample: scores while instance norms with running statistics use each sample's own, as in training; empty
            without such norms.
        of_constants: scores while frozen norms of mean 0 and variance 1 use batch statistics; empty without such norms.
        moved: modules whose running statistics a forward moved although every module was in evaluation mode.
        dependent: the innermost modules that gave a sample another output in evaluation when the rest of its
            batch was left out, while their input for it was the same, and not by chance.
        dependence: largest difference of the model's output for the same samples in those two batches, relative to the
            largest magnitude of the output.
        updates: name of a norm -> updates of its running statistics beyond one for each call, in one forward and
            backward in training; empty where that could not be tried.
        pieces: name of a norm that training calls on parts of the batch, one after the other -> samples of the largest.
        followed: name of a norm that training calls once -> share of the way to the batch's mean that its running mean
            went.
        parity: name of a norm of any kind -> its output against the formula; norms without a known formula are missing.
        axes: name of a norm -> axis on which the layers before it put the features, if that is not axis 1;
            :data:`steadynorm.doctor.axes.CUT` if a change of shape has cut across them.
        misled: name of a group or layer norm that takes another axis than the features' for theirs, and of one size
            with it -> the shape of its input, and the features' axis.
        flattened: name of a norm that is given maps as rows (N, C·places), and whose output is made maps again -> C.
        dropout: name of a norm whose input comes out of dropout, with only layers and activations between -> the
            probability of that dropout.
        raw: norms whose input is a tensor of the batch itself.
        single: group and layer norms that have one value in each group of a sample.
        copies: name of a norm in a part that the forward does not call and that is a copy of one it calls -> its
            inputs there, while all norms of the copy use batch statistics.
        linear_calls: most calls of a linear layer or convolution in a forward.
        maps: group norms that are given maps, or sequences of at most 64 values.
        labels: labels of each batch, in order; empty without labels.
        outputs: number of classes that the model distinguishes; 0 if unknown.
        mixed: whether samples are mixtures of two, as their labels say.
        classes: for each batch, label -> number of samples; empty without labels.
        sizes: number of samples of each batch.
        last_samples: samples of an epoch's last batch, if the loader tells and it is smaller than the others.
        unread: what could not be tried, and why, one line each.
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
