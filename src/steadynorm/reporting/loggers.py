"""Write readings of norms to a logger: TensorBoard, Weights & Biases and others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

__all__ = ["PREFIX", "log"]

PREFIX = "norm/"


def log(readings: Mapping[str, float], step: int, *, to: Any, prefix: str = PREFIX) -> None:  # noqa: ANN401 (any of four)
    """Write readings of a training step to a logger.

    Args:
        readings: numbers by name, from :func:`steadynorm.surgery.readings_of`.
        step: the training step.
        to: a TensorBoard ``SummaryWriter``; a run of ``wandb.init(...)``; a Lightning logger; a dict, which gets a dict
            for the step; or a function of (dict, step).
        prefix: put before each name.

    Raises:
        TypeError: ``to`` is none of these.

    >>> history = {}
    >>> log({"bn1/gate": 0.25}, 100, to=history)
    >>> history
    {100: {'norm/bn1/gate': 0.25}}
    """
    if readings:
        _writer_of(to)({f"{prefix}{name}": value for name, value in readings.items()}, step)


def _writer_of(to: Any) -> Callable[[dict[str, float], int], object]:  # noqa: ANN401 (as above)
    """Return a function of readings and step that writes there."""
    if isinstance(to, MutableMapping):
        return lambda readings, step: to.setdefault(step, {}).update(readings)
    if hasattr(to, "add_scalar"):
        return lambda readings, step: _add_scalars(to, readings, step)
    if hasattr(to, "log_metrics"):
        return lambda readings, step: to.log_metrics(readings, step=step)
    if hasattr(to, "log"):
        return lambda readings, step: to.log(readings, step=step)
    if callable(to):
        return to  # type: ignore[no-any-return]
    raise TypeError(
        "log: to must be a SummaryWriter, a run of wandb, a logger of Lightning's, a dictionary or a function, got "
        f"{type(to).__name__}."
    )


def _add_scalars(to: Any, readings: Mapping[str, float], step: int) -> None:  # noqa: ANN401 (a SummaryWriter)
    for name, value in readings.items():
        to.add_scalar(name, value, step)
