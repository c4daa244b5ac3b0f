"""Record a layer's inputs call by call: moments, their standard errors, and the moments of a few samples."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.doctor.batch_evidence import Padding, Sighting
from steadynorm.doctor.padding import padding_of
from steadynorm.statistics import Moments
from steadynorm.statistics.noise import moments_by_sample, moments_of_samples, sampling_error
from steadynorm.surgery.contexts import input_of, replaced_forwards

__all__ = ["MOST_SAMPLES", "sighting_of", "watching"]

MOST_SAMPLES = 16
"""Largest number of samples in a batch whose own moments are kept."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Call:
    """Measurements of an input while the model runs.

    Args:
        number: number of this layer's call within the batch's forward.
        each: moments of its samples, shape (N, C).
        shape: shape of the input.
        padding: see :class:`Sighting`.
    """

    number: int
    each: Moments
    shape: tuple[int, ...]
    padding: Padding | None


@contextmanager
def watching(layers: Mapping[nn.Module, list[Sighting]], batch: int) -> Iterator[None]:
    """Record the moments of every input of the layers while the batch of this number runs."""
    calls: dict[nn.Module, list[_Call]] = {module: [] for module in layers}

    def watched(module: nn.Module, seen: list[_Call]) -> Callable[..., Any]:
        inner = vars(module).get("forward")

        def forward(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 (as the layer takes and gives them)
            x = input_of(arguments, named)
            if isinstance(x, Tensor) and x.numel():
                with torch._C.DisableTorchFunction():  # function modes that track the model skip these
                    seen.append(_measured(x.detach(), len(seen)))
            return inner(*arguments, **named) if inner else type(module).forward(module, *arguments, **named)

        return forward

    with replaced_forwards({module: watched(module, seen) for module, seen in calls.items()}):
        yield
    found = iter(_sightings([call for each in calls.values() for call in each], batch))
    for module, each in calls.items():
        layers[module].extend(itertools.islice(found, len(each)))


def sighting_of(x: Tensor, batch: int, call: int) -> Sighting:
    """Measure one input.

    Args:
        x: shape (N, C, ...), not empty.
        batch: number of the batch.
        call: number of the call within the batch's forward.
    """
    return _sightings([_measured(x, call)], batch)[0]


def _measured(x: Tensor, number: int) -> _Call:
    return _Call(number=number, each=moments_by_sample(x), shape=tuple(x.shape), padding=padding_of(x))


def _sightings(calls: Sequence[_Call], batch: int) -> list[Sighting]:
    """Compute the sightings of a batch's calls, in order."""
    found: dict[int, Sighting] = {}
    for samples in {each.shape[0] for each in calls}:
        group = [at for at, each in enumerate(calls) if each.shape[0] == samples]
        found |= zip(group, _of_alike([calls[at] for at in group], batch), strict=True)
    return [found[at] for at in range(len(calls))]


def _of_alike(calls: Sequence[_Call], batch: int) -> list[Sighting]:
    """Compute calls with the same number of samples at once: for many small layers the number of operations counts."""
    samples, channels = calls[0].shape[0], [each.shape[1] for each in calls]
    counts = torch.tensor([samples * each.each.count for each in calls]).repeat_interleave(torch.tensor(channels))
    means, variances = _joined([each.each.mean for each in calls]), _joined([each.each.var for each in calls])
    own = Moments(mean=means, var=variances, count=1)
    moments = replace(moments_of_samples(own), count=counts)
    errors = sampling_error(own, moments)
    varies = moments.var > 0
    noises = torch.where(varies, samples * errors[0] / moments.var_unbiased, 0.0)
    few = min(samples, MOST_SAMPLES)
    at = _places(samples, few, batch)
    some = [each[torch.tensor(at)].float() for each in (means, variances)]
    columns = (moments.mean, moments.var, *errors, noises, varies, *some)
    parts = zip(*(torch.split(each, channels, -1) for each in columns), strict=True)
    return [
        Sighting(
            batch=batch,
            call=each.number,
            mean=mean,
            var=var,
            count=samples * int(each.each.count),
            samples=samples,
            noise=_noise(noise, varied) if samples > 1 else math.nan,
            mean_error=mean_error,
            var_error=var_error,
            shape=each.shape,
            at=at,
            sample_means=sample_means,
            sample_vars=sample_vars,
            padding=each.padding,
        )
        for each, (mean, var, mean_error, var_error, noise, varied, sample_means, sample_vars) in zip(
            calls, parts, strict=True
        )
    ]


def _places(samples: int, number: int, batch: int) -> tuple[int, ...]:
    """Draw one index from each of equal parts: at equal steps all samples could be of one kind."""
    draw = random.Random(batch)
    return tuple(draw.randrange(at * samples // number, (at + 1) * samples // number) for at in range(number))


def _joined(each: Sequence[Tensor]) -> Tensor:
    """Concatenate the channels of several layers, shape (N, C₁ + C₂ + ...)."""
    return torch.cat([_kept(one) for one in each], 1)


def _kept(value: Tensor) -> Tensor:
    return value.to("cpu", torch.float64)


def _noise(ratios: Tensor, varied: Tensor) -> float:
    """Average, over the channels that vary, a sample mean's variance relative to that of its values."""
    number = int(varied.sum())
    return float(ratios.sum()) / number if number else 1.0
