"""Readings of a model's norms for logging: gates, corrections, momenta, distances."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.layers.base import BatchNormBase
from steadynorm.ops.observers import is_recomputing
from steadynorm.rules import gate, renorm_bounds, renorm_corrections
from steadynorm.statistics import Moments, measure
from steadynorm.statistics.noise import apart, standardized_distance
from steadynorm.surgery.contexts import input_of
from steadynorm.surgery.kinds import Norm, eps_of, kind_of
from steadynorm.surgery.named_modules import NamedModule, Where, batch_norms_of
from steadynorm.surgery.runnable import why_not_readable
from steadynorm.surgery.statistics import MEAN, VAR

__all__ = ["readings_during", "readings_of"]


def readings_of(
    model: nn.Module, stored: Mapping[str, Tensor] | None = None, *, where: Where | None = None
) -> dict[str, float]:
    """Return readings of the batch norms' state for logging, without running the model.

    | reading | meaning |
    |---|---|
    | ``layer/distance`` | from ``stored`` to the running statistics, in standard deviations of shift and log-gain |
    | ``layer/momentum_mean``, ``layer/momentum_var`` | momentum that self-tuned statistics choose, Σ w_k·2^-k |
    | ``layer/noise`` | of a gated layer: variance of a sample's mean relative to the variance of its values |
    | ``layer/r_max``, ``layer/d_max`` | of batch renorm: the bounds at its step |

    Args:
        model: the root module; a layer that is the root is called ``model``.
        stored: earlier running statistics from :func:`steadynorm.surgery.statistics_of`; None gives no distances.
        where: (qualified name, module) -> whether to include the layer; None takes all.

    Returns:
        numbers by ``layer/reading``, in the order of the layers.

    Raises:
        ValueError: ``stored`` has none of the layers.
    """
    norms = batch_norms_of(model, where)
    readings: dict[str, float] = {}
    for named in norms:
        if why_not_readable(named.module) is None:
            for what, value in (_own(named.module) | _distance(named, stored)).items():
                readings[f"{named.name or 'model'}/{what}"] = value
    if stored is not None and norms and not any(each.endswith("/distance") for each in readings):
        raise ValueError(
            "readings_of: stored must have running statistics of the model's layers, as statistics_of(model) gives "
            f"them, got {', '.join(list(stored)[:3]) or 'none'}."
        )
    return readings


@contextmanager
def readings_during(
    model: nn.Module, stored: Mapping[str, Tensor] | None = None, *, where: Where | None = None
) -> Iterator[dict[str, float]]:
    """Context that also takes readings of the forwards inside; see :func:`readings_of`.

    | reading | meaning |
    |---|---|
    | ``layer/gate`` | weight of the batch statistics in a gated layer, from 0 to 1 |
    | ``layer/r`` | of batch renorm in training: mean over channels |
    | ``layer/d`` | of batch renorm in training: root mean square over channels |
    | ``layer/clipped`` | of batch renorm in training: fraction of channels with r or d at its bound |

    Readings use the running statistics before each forward; over several forwards they are averaged. The cost is one
    more pass over the input of gated and renorm layers. A compiled model breaks its graph there.

    Args:
        model: the root module.
        stored: as for :func:`readings_of`.
        where: (qualified name, module) -> whether to include the layer; None takes all.

    Yields:
        a dict, filled when the context ends without an error; it also has the readings of :func:`readings_of`.

    >>> import steadynorm
    >>> norm = steadynorm.GatedBatchNorm1d(3)
    >>> with readings_during(norm) as readings:
    ...     _ = norm(torch.randn(8, 3))
    >>> sorted(readings)
    ['model/gate', 'model/noise']
    """
    heard: dict[str, list[Tensor]] = {}
    readings: dict[str, float] = {}
    handles = [
        named.module.register_forward_pre_hook(_hear(named, read, heard), with_kwargs=True)
        for named in batch_norms_of(model, where)
        if (read := _READ.get(kind_of(named.module)[0].name)) is not None
    ]
    try:
        yield readings
    finally:
        for handle in handles:
            handle.remove()
    readings |= {name: float(torch.stack(each).mean()) for name, each in heard.items()}
    readings |= readings_of(model, stored, where=where)


def _hear(
    named: NamedModule, read: Callable[[Norm, Tensor], Mapping[str, Tensor]], heard: dict[str, list[Tensor]]
) -> Callable[..., None]:
    """Return a hook that records readings of a layer's input before its forward."""

    @torch.no_grad()
    def note(module: nn.Module, arguments: tuple[Any, ...], by_name: dict[str, Any]) -> None:
        x = input_of(arguments, by_name)
        if is_recomputing() or not isinstance(x, Tensor) or x.numel() == 0:
            return
        for what, value in read(module, x).items():
            heard.setdefault(f"{named.name or 'model'}/{what}", []).append(value.double().mean())

    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes seconds
        return note
    hook: Callable[..., None] = torch.compiler.disable(note)  # type: ignore[no-untyped-call, unused-ignore]
    return hook


def _gate(module: Norm, x: Tensor) -> dict[str, Tensor]:
    if module.gate is not None:
        return {"gate": torch.tensor(module.gate)}
    distance = standardized_distance(measure(x), _running(module), eps=module.eps)
    return {"gate": gate(distance, module.noise.squeeze() / x.shape[0], module.confidence)}


def _corrections(module: Norm, x: Tensor) -> dict[str, Tensor]:
    if not module.training:
        return {}
    running = _running(module)
    r_max, d_max = running.mean.new_tensor(_bounds(module))
    r, d = renorm_corrections(measure(x), running, eps=module.eps, r_max=r_max, d_max=d_max)
    clipped = (r <= 1 / r_max) | (r >= r_max) | (d.abs() >= d_max)
    return {"r": r, "d": d.square().mean().sqrt(), "clipped": clipped}


_READ: dict[str, Callable[[Norm, Tensor], Mapping[str, Tensor]]] = {
    "gated_batch_norm": _gate,
    "batch_renorm": _corrections,
}
"""Readings of a layer's input, by the name of its kind."""


def _own(module: Norm) -> dict[str, float]:
    """Read the state of a layer of ours beyond its running statistics."""
    kind = kind_of(module)[0]
    if not isinstance(module, BatchNormBase) or kind.is_frozen:
        return {}
    found: dict[str, float] = {}
    if module.running == "self_tuned":
        weights = module.get_buffer("_bank_weights")  # shape (K, 2): of means, of variances
        momenta = torch.exp2(-torch.arange(len(weights), device=weights.device)).to(weights.dtype)
        found |= dict(zip(("momentum_mean", "momentum_var"), (momenta @ weights).tolist(), strict=True))
    if kind.name == "gated_batch_norm":
        found["noise"] = float(module.get_buffer("noise"))
    if kind.name == "batch_renorm":
        found["r_max"], found["d_max"] = _bounds(module)
    return found


def _bounds(module: Norm) -> tuple[float, float]:
    bounds = renorm_bounds(
        int(module.num_batches_tracked),
        warmup_steps=module.warmup_steps,
        ramp_steps=module.ramp_steps,
        r_max=module.r_max,
        d_max=module.d_max,
    )
    return float(bounds[0]), float(bounds[1])


def _distance(named: NamedModule, stored: Mapping[str, Tensor] | None) -> dict[str, float]:
    prefix = f"{named.name}." if named.name else ""
    if stored is None or f"{prefix}{MEAN}" not in stored or f"{prefix}{VAR}" not in stored:
        return {}
    now = _running(named.module)
    mean, var = (stored[f"{prefix}{key}"].to(now.mean) for key in (MEAN, VAR))
    return {"distance": apart(Moments(mean=mean, var=var, count=1), now, eps=eps_of(named.module))}


def _running(module: Norm) -> Moments:
    return Moments(mean=module.running_mean, var=module.running_var, count=1)
