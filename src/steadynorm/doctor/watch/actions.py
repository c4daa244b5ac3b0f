"""Actions of a watch on faulty layers, undone when the fault ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from steadynorm.doctor.watch.levels import log_ratio, standardised
from steadynorm.doctor.watch.recorder import Layout, Momenta, Rows
from steadynorm.functional import batch_renorm
from steadynorm.statistics import update_running_
from steadynorm.surgery.contexts import StandIn, input_of, name_of_input, outside_graphs, replaced_forwards
from steadynorm.surgery.kinds import Norm, eps_of

__all__ = ["QUICKER", "Bound", "Hold", "prediction_errors", "without"]

R_MAX, D_MAX = 3.0, 5.0
"""Bounds of batch renorm, from its paper."""
QUICKER = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
"""Candidate momenta for layers whose running statistics lag behind."""


class Hold(StandIn):
    """Hold a layer's running statistics constant during training.

    Training is unchanged, bit for bit; evaluation uses the statistics stored before. Separate estimates follow the
    batches, and the watch uses them to judge whether the fault is over. If the momentum is None, the statistics are
    being recalibrated, and the layer behaves as usual.

    Args:
        layout: layout of the layer; while the layer is held, it reads the separate estimates.
        module: the layer.
        beside: initial separate estimates; None copies the layer's running statistics.
    """

    name = "held"

    def __init__(self, layout: Layout, module: Norm, beside: tuple[Tensor, Tensor] | None = None) -> None:
        own = layout.own(module)
        layout.standing_in[module] = beside or (own[0].clone(), own[1].clone())
        self._layout, self._module = layout, module
        self._stack = ExitStack()
        self._stack.enter_context(replaced_forwards({module: self}))

    @property
    def beside(self) -> tuple[Tensor, Tensor]:
        """The separate estimates of mean and variance."""
        return self._layout.standing_in[self._module]

    def release(self) -> None:
        """Restore the layer's own behaviour."""
        self._stack.close()
        self._layout.standing_in.pop(self._module, None)

    def __call__(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 (as the layer takes and gives them)
        """Run the layer."""
        is_held = self._module in self._layout.standing_in  # a context around the release puts this back
        keeps_apart = is_held and self._module.training and self._module.momentum is not None
        return outside_graphs(self._train if keeps_apart else self._call, *arguments, **named)

    def _call(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 (likewise)
        return type(self._module).forward(self._module, *arguments, **named)

    def _train(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 (likewise)
        buffers, own = self._module._buffers, self._layout.own(self._module)
        buffers["running_mean"], buffers["running_var"] = self.beside
        try:
            return self._call(*arguments, **named)
        finally:
            buffers["running_mean"], buffers["running_var"] = own


class Bound(Hold):
    """Make a layer in training normalize by its running statistics, within batch renorm's bounds.

        y = ((x − μ_B)/σ_B · r + d) · weight + bias        r, d: map the batch's moments to the running ones

    Within the bounds this is the layer's output in evaluation; the gradient flows through the batch statistics, so
    learning rates at which batch norm trains are safe.

    Source: Ioffe 2017 (arXiv 1702.03275).
    """

    name = "bound to its stored statistics"

    def _train(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 (as the layer takes and gives them)
        x = self._renormalised(input_of(arguments, named))
        if arguments:
            arguments = (x, *arguments[1:])
        else:
            named = {**named, name_of_input(named): x}
        self._module.training = False
        try:
            return self._call(*arguments, **named)
        finally:
            self._module.training = True

    def _renormalised(self, x: Tensor) -> Tensor:
        """Transform the input so that evaluating the layer gives its renorm, and update the separate estimates."""
        (mean, var), eps = self._layout.own(self._module), eps_of(self._module)
        y, batch = batch_renorm(x, mean, var, eps=eps, r_max=mean.new_tensor(R_MAX), d_max=mean.new_tensor(D_MAX))
        with torch.no_grad():
            update_running_(*self.beside, batch, momentum=self._module.momentum)
        shape = (1, -1, *(1,) * (x.dim() - 2))
        scale, shift = (each.view(shape) for each in ((var + eps).sqrt(), mean))
        return (y * scale.to(y.dtype) + shift.to(y.dtype)).to(x.dtype)


def without(rows: Rows, momenta: Sequence[Momenta], bad: Tensor) -> Tensor:
    """Return the running statistics after a stretch without the effect of some of its batches, (2, channels).

        e = contribution of those batches:  e + (after − before) at one of them, (1 − weight)·e at any other

    A forward whose running statistics were not finite has been undone, and changes nothing.

    Args:
        rows: the stretch.
        momenta: of the layers at each of its forwards.
        bad: which batches, (T,), on the CPU.
    """
    layout, values = rows.layout, rows.values
    kept = 1 - rows.weights(momenta).nan_to_num(0)
    added = torch.zeros_like(values[0, 0])
    for at, is_bad in enumerate(bad.tolist()):
        before, after = values[at]
        with_it = torch.where(after.isfinite().all(), added + (after - before), added)
        added = with_it if is_bad else added * kept[at]
    now = torch.empty_like(added)
    layout.read(now)
    now -= added
    now[1].clamp_(min=0)
    return now


def prediction_errors(batches: Tensor, begin: Tensor, eps: float, momenta: Iterable[float]) -> Tensor:
    """Return one layer's prediction error of the next batch for each momentum: mean of d + q²/2.

    Args:
        batches: moments, (T, 2, channels).
        begin: running statistics before the first, (2, channels).
        eps: of the layer.
        momenta: to compare.
    """
    batches = batches[batches.isfinite().flatten(1).all(1)]
    errors = []
    for momentum in momenta:
        running, error = begin.clone(), begin.new_zeros(())
        for batch in batches:
            means = standardised(batch[0] - running[0], running[1], torch.as_tensor(eps)).log1p().mean().expm1()
            error = error + means + log_ratio(batch[1], running[1], torch.as_tensor(eps)).square().mean() / 2
            running = running + momentum * (batch - running)
        errors.append(error / max(len(batches), 1))
    return torch.stack(errors)
