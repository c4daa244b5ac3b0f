"""What a layer is given, call by call: its moments, how sure they are, and a few samples' own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.doctor.evidence import Padding, Sighting
from steadynorm.statistics import Moments, measure
from steadynorm.statistics.noise import moments_by_sample, sampling_error
from steadynorm.surgery.contexts import replaced_forwards

__all__ = ["MOST_SAMPLES", "sighting_of", "watching"]

MOST_SAMPLES = 16
"""Samples of a batch whose own moments are kept, of more."""


@contextmanager
def watching(layers: Mapping[nn.Module, list[Sighting]], batch: int) -> Iterator[None]:
    """Note the moments of every input of the layers while a batch runs, whose number is given."""

    def watched(module: nn.Module, seen: list[Sighting]) -> Callable[..., Any]:
        inner = vars(module).get("forward")
        before = len(seen)

        def forward(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 (as the layer takes and gives them)
            x = arguments[0] if arguments else named["input"]
            if isinstance(x, Tensor) and x.numel():
                with torch._C.DisableTorchFunction():  # who follows the model's functions need not follow these
                    seen.append(sighting_of(x.detach(), batch, len(seen) - before))
            return inner(*arguments, **named) if inner else type(module).forward(module, *arguments, **named)

        return forward

    with replaced_forwards({module: watched(module, seen) for module, seen in layers.items()}):
        yield


def sighting_of(x: Tensor, batch: int, call: int) -> Sighting:
    """Take down what an input shows.

    Args:
        x: shape (N, C, ...), not empty.
        batch: its number.
        call: likewise, within the batch.
    """
    moments = measure(x)
    each = moments_by_sample(x)
    mean_error, var_error = sampling_error(each, moments)
    picked = torch.arange(min(len(x), MOST_SAMPLES)) * len(x) // min(len(x), MOST_SAMPLES)
    at = picked.to(x.device)
    return Sighting(
        batch=batch,
        call=call,
        mean=_kept(moments.mean),
        var=_kept(moments.var),
        count=int(moments.count),
        samples=len(x),
        noise=_noise(moments, mean_error, len(x)),
        mean_error=_kept(mean_error),
        var_error=_kept(var_error),
        shape=tuple(x.shape),
        at=tuple(picked.tolist()),
        sample_means=each.mean[at].to("cpu", torch.float32),
        sample_vars=each.var[at].to("cpu", torch.float32),
        padding=_padding(x),
    )


def _kept(value: Tensor) -> Tensor:
    return value.to("cpu", torch.float64)


def _noise(moments: Moments, mean_error: Tensor, samples: int) -> float:
    """Give the variance of one sample's mean in units of that of its values, from all samples; NaN for one."""
    if samples < 2:
        return math.nan
    varies = moments.var > 0
    ratio = samples * mean_error[varies] / moments.var_unbiased[varies]
    return float(ratio.mean()) if len(ratio) else 1.0


def _padding(x: Tensor) -> Padding | None:
    """Find the axis at whose end most positions repeat the last one exactly, in all channels."""
    lengths = {axis: _repeated(x, axis) for axis in range(2, x.dim())}
    shares = {axis: float(found.sum()) / (len(x) * x.shape[axis]) for axis, found in lengths.items()}
    axis = max((each for each in shares if 0 < shares[each] < 1), key=lambda each: shares[each], default=None)
    if axis is None:
        return None
    content = torch.arange(x.shape[axis], device=x.device) < x.shape[axis] - lengths[axis].unsqueeze(1)
    whole = [1] * x.dim()
    whole[0], whole[axis] = len(x), x.shape[axis]
    kept = content.view(whole).expand(len(x), 1, *x.shape[2:])
    values = x.transpose(0, 1)[:, kept.squeeze(1)]
    rest = measure(values.unsqueeze(0))
    return Padding(
        share=shares[axis],
        axis=axis,
        ragged=bool((lengths[axis] != lengths[axis][0]).any()),
        mean=_kept(rest.mean),
        var=_kept(rest.var),
    )


def _repeated(x: Tensor, axis: int) -> Tensor:
    """Count for each sample the positions at an axis's end that equal the last, of two or more; shape (N,)."""
    nothing = torch.zeros(len(x), dtype=torch.long, device=x.device)
    if x.shape[axis] < 2:
        return nothing
    others = [at for at in range(1, x.dim()) if at != axis]
    last = x.narrow(axis, x.shape[axis] - 1, 1)
    if not (x.narrow(axis, x.shape[axis] - 2, 1) == last).all([*others, axis]).any():
        return nothing
    same = (x == last).all(others) if others else x == last
    run = same.flip(1).long().cumprod(1).sum(1)
    return torch.where(run > 1, run, nothing)
