"""Update of the running statistics: when, and by which batches."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from steadynorm.layers import recomputation
from steadynorm.layers.state import BANK, NormState, Running, normal_tensors
from steadynorm.ops.dispatch import compiled_self_tuned
from steadynorm.ops.observers import is_recomputing, is_recorded, is_transformed
from steadynorm.ops.registration import unless_recomputing
from steadynorm.statistics import Moments, SelfTuned, as_row, pool, update_running_, weight_of
from steadynorm.statistics.self_tuned import learning_rate

__all__ = ["Nonfinite", "RunningStatistics", "check_count", "may_be_recomputed"]

Nonfinite = Literal["propagate", "skip", "raise"]
"""What a batch with NaN or infinity does to the running statistics; see :class:`steadynorm.BatchNorm2d`."""
_JUDGED = ("experts", "mass", "noise", "weights", "momenta")


def may_be_recomputed() -> bool:
    """Whether this forward may run again: nothing is saved for a backward, or hooks save it instead of torch.

    False inside a transform, whose tensors must not outlive it, and in an export, which has no backward.
    """
    if is_transformed():
        return False
    if not torch.compiler.is_compiling():
        return not torch.is_grad_enabled() or not recomputation.TELLS_HOOKS or recomputation.saves_by_hooks()
    if not recomputation.TELLS_HOOKS or torch.compiler.is_exporting():
        return False
    return recomputation.is_possible or not torch.is_grad_enabled()


def check_count(what: str, number: int) -> None:
    """Raise ValueError unless a number is whole and at least 1.

    Args:
        what: layer, argument and what the argument counts.
        number: the value to check.
    """
    if not isinstance(number, Integral) or isinstance(number, bool) or number < 1:
        raise ValueError(f"{what}, a whole number of at least 1, got {number!r}.")


def _is_finite(batch: Moments) -> Tensor:
    return batch.mean.isfinite().all() & batch.var.isfinite().all()


class RunningStatistics(NormState):
    """Update of a layer's running statistics by its batches."""

    if TYPE_CHECKING:  # as in NormState
        nonfinite: Nonfinite
        update_every: int
        _before: tuple[Tensor, ...] | None

    def _train_compiled(self, train: Callable[..., Tensor], *arguments: Tensor | None) -> Tensor:
        """Train in a graph that may run a second time for its batch; the second run leaves the state unchanged.

        Eager code detects the second run itself (``is_recomputing``). A graph updates the state and then restores it.
        """
        if not (self._tracks() and recomputation.is_possible):
            return train(*arguments)
        stored = [each for each in (*self._buffers.values(), self._window, self._window_seen) if each is not None]
        before = [each.clone() for each in stored]
        y = train(*arguments)
        with torch.no_grad():
            for each, right in zip(stored, unless_recomputing(stored, before), strict=True):
                each.copy_(right)
        return y

    def _as_first_seen(self, *stored: Tensor) -> tuple[Tensor, ...]:
        """Return the statistics that this forward reads; in a recomputation, those that the first forward read."""
        before = self._before
        if is_recomputing() and before is not None:
            return before
        if not may_be_recomputed():
            if before is not None:  # a compiler guards on attributes, and writes an assigned one each time
                self._before = None
        elif torch.compiler.is_compiling():
            self._before = stored = tuple(unless_recomputing([*stored], [*(before or stored)]))
        else:
            self._before = tuple(each.clone() for each in stored)
        return stored

    def _tracks(self) -> bool:
        """Whether this forward updates the running statistics, or would if it were not a recomputation."""
        return self.training and self.track_running_stats

    def _needs_moments(self) -> bool:
        """Whether the update needs the batch's moments because it depends on more than the momentum."""
        plain = self.update_every == 1 and self.nonfinite == "propagate" and self.running == "exponential"
        return not plain and self.running_mean is not None

    def _count_batch(self) -> float | None:
        """Count a batch and return its weight in the running statistics, if the update depends on that alone.

        Otherwise return None; the caller then calls :meth:`_update_running` with the moments.
        """
        if torch.compiler.is_compiling() or is_recorded():  # a number would be a constant of the graph
            return None
        if self._needs_moments() or not self._tracks() or is_recomputing():
            return None
        if self.num_batches_tracked is None or self.running_mean is None:
            return None
        self.num_batches_tracked.add_(1)
        return float(self._weight_of(1))

    def _update_running(self, batch: Moments) -> None:
        """Count a batch, and update the running statistics if an update is due."""
        if not self._tracks() or is_recomputing():
            return
        self._check_channels(batch)
        # Outside no_grad: if an exported module raised inside it, gradients would stay disabled for the caller.
        if self.nonfinite == "raise" and self.running_mean is not None:
            self._check_finite(batch)
        self._move(batch)

    @torch.no_grad()
    def _move(self, batch: Moments) -> None:
        counter, mean, var = self.num_batches_tracked, self.running_mean, self.running_var
        if counter is not None:
            counter.add_(1)
        if mean is None or var is None:
            return
        if self.update_every > 1:
            self._add_to_window(batch)
        elif self._needs_moments() and (torch.compiler.is_compiling() or not _is_readable(self, batch)):
            self._move_by_window(as_row(batch)[None])
        elif self.nonfinite == "skip" and not _is_finite(batch):
            if counter is not None:
                counter.sub_(1)
        elif self._self_tunes():
            self._tune(batch)
        else:
            update_running_(mean, var, batch, momentum=self._weight_of(1))

    def _add_to_window(self, batch: Moments) -> None:
        """Put a batch into the window, and update the running statistics once it is full."""
        if self._window is None or self._window_seen is None:
            with normal_tensors():
                self._window = batch.mean.new_zeros(self.update_every, 3, batch.mean.numel())
                self._window_seen = torch.zeros((), dtype=torch.int64, device=batch.mean.device)
        window, seen = self._window, self._window_seen
        seen.add_(1)
        if torch.compiler.is_compiling():  # change no attribute, so that one graph serves all batches
            at = (seen - 1) % self.update_every
            window.index_copy_(0, at.view(1), as_row(batch)[None])
            self._move_by_window(window, at == self.update_every - 1)
            return
        window[self._window_at].copy_(as_row(batch))
        self._window_at = (self._window_at + 1) % self.update_every
        if self._window_at == 0:
            self._move_by_window(window)

    def _move_by_window(self, window: Tensor, due: Tensor | None = None) -> None:
        """Update the running statistics by all batches of the window at once, or by none if ``due`` is false.

        For a single batch, shape (1, 3, C), this does what :meth:`_move` does, without reading a value on the host.
        """
        assert self.running_mean is not None and self.running_var is not None
        if self.nonfinite == "skip":
            fine = window.isfinite().all(2).all(1)
            window = torch.where(fine.view(-1, 1, 1), window, 0)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.sub_((~fine).sum() * (1 if due is None else due))
        batch, filled = pool(window)
        if self._self_tunes():
            assert isinstance(batch.count, Tensor)
            mean, var = self._move_bank(Moments(mean=batch.mean, var=batch.var, count=batch.count[0]), due)
        else:
            mean, var = self.running_mean.clone(), self.running_var.clone()
            update_running_(mean, var, batch, momentum=self._weight_of(filled.sum()))
        for stored, new in ((self.running_mean, mean), (self.running_var, var)):
            stored.copy_(new if due is None else torch.where(due, new, stored))

    def _tune(self, batch: Moments) -> None:
        """Update the bank of momenta with a batch, and the running statistics from the bank."""
        assert self.running_mean is not None and self.running_var is not None and isinstance(batch.count, int)
        state = self._bank()
        bank = [getattr(state, name) for name in _JUDGED]
        stored, numbers = (self.running_mean, self.running_var), (batch.mean, batch.var)
        compiled = compiled_self_tuned()
        if compiled is not None and batch.count > 1 and compiled.takes(bank, *stored, *numbers):
            step = int(state.step.add_(1))
            compiled.update_running_(bank, step, learning_rate(batch.mean.numel()), *numbers, batch.count, *stored)
            return
        for running, new in zip(stored, self._move_bank(batch), strict=True):
            running.copy_(new)

    def _bank(self) -> SelfTuned:
        return SelfTuned(**{name: getattr(self, f"_bank_{name}") for name in BANK})

    def _move_bank(self, batch: Moments, due: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Update the bank of momenta by a batch if that is due, and return the new estimates."""
        stored = self._bank()
        moved = stored.follow(batch)
        for name in BANK:
            tensor, new = getattr(stored, name), getattr(moved, name)
            tensor.copy_(new if due is None else torch.where(due, new, tensor))
        return moved.estimate()

    def _weight_of(self, batches: int | Tensor) -> float | Tensor:
        """Return the total weight of some batches in the running statistics."""
        assert self.running_mean is not None
        tracked = self.num_batches_tracked
        if self.momentum is None and tracked is None:
            return 0.0  # as in torch
        return weight_of(batches, momentum=self.momentum, tracked=tracked, dtype=self.running_mean.dtype)

    def _check_channels(self, batch: Moments) -> None:
        for name in ("running_mean", "running_var"):
            running = self._buffers.get(name)
            if running is not None and running.shape != batch.mean.shape:
                raise ValueError(
                    f"{type(self).__name__}: {name} must have one number for each channel of the input, got shape "
                    f"{tuple(running.shape)} for {batch.mean.numel()} channels. Replace running_mean and running_var "
                    "together with weight and bias."
                )

    def _check_finite(self, batch: Moments) -> None:
        finite = _is_finite(batch)
        message = (
            f"{type(self).__name__}: with nonfinite='raise' a training batch must be finite, but its mean or variance "
            f"is NaN or infinite in a layer of {self.num_features} channels. The running statistics have not moved."
        )
        if torch.compiler.is_compiling():
            torch._assert_async(finite, message)
        elif not finite:
            raise RuntimeError(message)

    def _check_options(self, nonfinite: Nonfinite, update_every: int, running: Running) -> None:
        name = type(self).__name__
        for what, given, known in (
            ("nonfinite", nonfinite, get_args(Nonfinite)),
            ("running", running, get_args(Running)),
        ):
            if given not in known:
                raise ValueError(f"{name}: {what} must be one of {known}, got {given!r}.")
        check_count(f"{name}: update_every counts forwards", update_every)


def _is_readable(layer: RunningStatistics, batch: Moments) -> bool:
    """Whether the layer can read the values that it needs without waiting for another device."""
    return isinstance(batch.count, int) and (layer.nonfinite != "skip" or batch.mean.is_cpu)
