"""What the family's layers share: torch's state and conventions, and when the running estimates move."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from steadynorm.functional import Activation, batch_norm, check_activation
from steadynorm.ops.dispatch import compiled_self_tuned
from steadynorm.statistics import Moments, SelfTuned, as_row, follow_, pool, weight_of
from steadynorm.statistics.moments import statistics_dtype
from steadynorm.statistics.self_tuned import learning_rate

__all__ = ["Nonfinite", "Running", "Shell", "extra_state", "is_recomputing", "may_be_recomputed"]

Nonfinite = Literal["propagate", "skip", "raise"]
Running = Literal["exponential", "self_tuned"]
_TORCH_HAS_BIAS = "bias" in inspect.signature(nn.BatchNorm2d.__init__).parameters  # since 2.13
_BANK = tuple(field.name for field in fields(SelfTuned))
_CONSTANT = ("momenta", "exchange")
_JUDGED = ("experts", "mass", "noise", "weights", "momenta")


def is_recomputing() -> bool:
    """Whether this forward runs within a backward, as both modes of torch.utils.checkpoint let it."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def may_be_recomputed() -> bool:
    """Whether this forward may be the first of two: nothing of it is kept for a backward, or not by torch itself."""
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return not torch.is_grad_enabled() or hooks is None or hooks(False) is not None


def _is_finite(batch: Moments) -> Tensor:
    return batch.mean.isfinite().all() & batch.var.isfinite().all()


def extra_state(model: nn.Module) -> dict[str, Tensor]:
    """Give what the layers of a model have beyond batch norm's five keys, by the names that a state dict would use.

    For formats that hold tensors alone; ``torch.save`` keeps it with the state dict, in its metadata.

    Returns:
        the tensors themselves, so that ``copy_`` into them restores.
    """
    return {
        f"{prefix}.{name}" if prefix else name: value
        for prefix, module in model.named_modules()
        if isinstance(module, Shell)
        for name in module._extra_names()
        if (value := getattr(module, name)) is not None
    }


class Shell(nn.modules.batchnorm._NormBase):
    """State, conversions and bookkeeping of a layer; a subclass says how it trains.

    For the arguments see :class:`steadynorm.BatchNorm2d`.
    """

    _extra: ClassVar[tuple[str, ...]] = ()
    """Names of parameters and buffers beyond torch's."""
    __constants__ = [*nn.BatchNorm2d.__constants__, "activation"]  # noqa: RUF012 (torch reads a plain list)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: Activation | None = None,
        nonfinite: Nonfinite = "propagate",
        update_every: int = 1,
        running: Running = "exponential",
    ) -> None:
        check_activation(activation)
        self._check_following(type(self).__name__, nonfinite, update_every, running)
        with_bias: dict[str, Any] = {"bias": bias} if _TORCH_HAS_BIAS else {}
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype, **with_bias
        )
        if not bias:
            self.register_parameter("bias", None)
        self.activation = activation
        self.nonfinite = nonfinite
        self.update_every = update_every
        self.running = running
        window = None
        if self.running_mean is not None and (update_every, nonfinite, running) != (1, "propagate", "exponential"):
            window = torch.zeros(update_every, 3, num_features, device=device, dtype=dtype)
        self.register_buffer("_window", window, persistent=False)
        self._window: Tensor | None
        self._window_at = 0
        seen = None if window is None else torch.zeros((), dtype=torch.int64, device=device)
        self.register_buffer("_window_seen", seen, persistent=False)  # where compiled, which changes no attribute
        self._window_seen: Tensor | None
        if self._self_tunes():
            for name, tensor in self._new_bank().items():
                self.register_buffer(f"_bank_{name}", tensor, persistent=name not in _CONSTANT)
            self._bank_step: Tensor
        self._keep_statistics_wide({})

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize, add, activate.

        Args:
            input: shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W), as the class says.
            residual: shape of input, added before the activation; None adds nothing.

        Returns:
            shape, dtype and memory format of input.
        """
        if isinstance(input, Tensor):  # not so while torch.fx traces: a proxy has no rank
            self._check_input_dim(input)  # type: ignore[no-untyped-call]
        if self.training or (self.running_mean is None and self.running_var is None):
            return self._train(input, residual)
        return self._evaluate(input, residual)

    def _train(self, input: Tensor, residual: Tensor | None) -> Tensor:
        """Normalize by the batch and let the running estimates follow."""
        raise NotImplementedError

    def _evaluate(self, input: Tensor, residual: Tensor | None) -> Tensor:
        """Normalize by the running estimates, as every batch norm does."""
        return batch_norm(
            input,
            self.running_mean,
            self.running_var,
            *self._parameters_for(self.running_mean),
            eps=self.eps,
            residual=residual,
            activation=self.activation,
        )

    def _tracks(self) -> bool:
        """Whether this forward moves the running estimates, or would if it were not the second for its batch."""
        return self.training and self.track_running_stats

    @torch.no_grad()
    def _follow(self, batch: Moments) -> None:
        """Count a batch and let the running estimates follow, where it is due."""
        if not self._tracks() or is_recomputing():
            return
        counter, window = self.num_batches_tracked, self._window
        if counter is not None:
            counter.add_(1)
        if self.running_mean is None or self.running_var is None:
            return
        if window is None:
            follow_(self.running_mean, self.running_var, batch, momentum=self._weight_of(1))
            return
        if self.nonfinite == "raise":
            self._check_finite(batch)
        if self._needs_no_window(batch):
            self._follow_one(batch)
            return
        assert self._window_seen is not None
        self._window_seen.add_(1)
        if torch.compiler.is_compiling():
            at = (self._window_seen - 1) % self.update_every
            window.index_copy_(0, at.view(1), as_row(batch)[None])
            self._follow_window(window, at == self.update_every - 1)
            return
        window[self._window_at].copy_(as_row(batch))
        self._window_at = (self._window_at + 1) % self.update_every
        if self._window_at == 0:
            self._follow_window(window)

    def _follow_at_once(self) -> float | None:
        """Count a batch, and give its weight in the running estimates if that is all that decides how they follow.

        None where :meth:`_follow` is to be called, with the moments.
        """
        if torch.compiler.is_compiling() or self._window is not None or not self._tracks() or is_recomputing():
            return None
        if self.num_batches_tracked is None or self.running_mean is None:
            return None
        self.num_batches_tracked.add_(1)
        return float(self._weight_of(1))

    def _needs_no_window(self, batch: Moments) -> bool:
        """Whether one batch moves the estimates, and to look at its values waits for no other device."""
        alone = self.update_every == 1 and isinstance(batch.count, int) and not torch.compiler.is_compiling()
        return alone and (self.nonfinite != "skip" or batch.mean.is_cpu)

    def _follow_one(self, batch: Moments) -> None:
        """Do for a single batch what :meth:`_follow_window` does for several, in fewer operations."""
        assert self.running_mean is not None and self.running_var is not None
        if self.nonfinite == "skip" and not _is_finite(batch):
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.sub_(1)
        elif self._self_tunes():
            self._tune(batch)
        else:
            follow_(self.running_mean, self.running_var, batch, momentum=self._weight_of(1))

    def _tune(self, batch: Moments) -> None:
        """Let the bank of momenta follow a single batch, and the estimates the bank."""
        assert self.running_mean is not None and self.running_var is not None
        assert isinstance(batch.count, int)
        bank = [getattr(self, f"_bank_{name}") for name in _JUDGED]
        stored, numbers = (self.running_mean, self.running_var), (batch.mean, batch.var)
        compiled = compiled_self_tuned()
        if compiled is not None and batch.count > 1 and compiled.takes(bank, *stored, *numbers):
            step = int(self._bank_step.add_(1))
            compiled.follow_(bank, step, learning_rate(self.num_features), *numbers, batch.count, *stored)
            return
        for running, new in zip(stored, self._follow_by_bank(batch), strict=True):
            running.copy_(new)

    def _follow_window(self, window: Tensor, due: Tensor | None = None) -> None:
        """Move the running estimates by all batches of the window at once; where ``due`` is false, by none."""
        assert self.running_mean is not None and self.running_var is not None
        if self.nonfinite == "skip":
            fine = window.isfinite().all(2).all(1)
            window = torch.where(fine.view(-1, 1, 1), window, 0)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.sub_((~fine).sum() * (1 if due is None else due))
        batch, filled = pool(window)
        if self._self_tunes():
            assert isinstance(batch.count, Tensor)
            mean, var = self._follow_by_bank(Moments(mean=batch.mean, var=batch.var, count=batch.count[0]), due)
        else:
            mean, var = self.running_mean.clone(), self.running_var.clone()
            follow_(mean, var, batch, momentum=self._weight_of(filled.sum()))
        for stored, new in ((self.running_mean, mean), (self.running_var, var)):
            stored.copy_(new if due is None else torch.where(due, new, stored))

    def _self_tunes(self) -> bool:
        return self.running == "self_tuned" and self.running_mean is not None

    def _new_bank(self) -> dict[str, Tensor]:
        """Give the state of self-tuned statistics before the first batch, by name."""
        assert self.running_mean is not None
        dtype = statistics_dtype(self.running_mean.dtype)
        bank = SelfTuned.begin(self.num_features, dtype=dtype, device=self.running_mean.device)
        return {name: getattr(bank, name) for name in _BANK}

    def _follow_by_bank(self, batch: Moments, due: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Move the bank of momenta by a batch, where that is due, and give what it estimates."""
        stored = {name: getattr(self, f"_bank_{name}") for name in _BANK}
        moved = SelfTuned(**stored).follow(batch)
        for name, tensor in stored.items():
            if name not in _CONSTANT:
                new = getattr(moved, name)
                tensor.copy_(new if due is None else torch.where(due, new, tensor))
        return moved.estimate()

    def _weight_of(self, batches: int | Tensor) -> float | Tensor:
        """Give the weight that some batches have together in the running estimates."""
        assert self.running_mean is not None
        tracked = self.num_batches_tracked
        if self.momentum is None and tracked is None:
            return 0.0  # as torch has it
        return weight_of(batches, momentum=self.momentum, tracked=tracked, dtype=self.running_mean.dtype)

    def _check_finite(self, batch: Moments) -> None:
        finite = _is_finite(batch)
        message = (
            f"{type(self).__name__}: with nonfinite='raise' a training batch must be finite, but its mean or variance "
            f"is NaN or infinite in a layer of {self.num_features} channels. The running estimates have not moved."
        )
        if torch.compiler.is_compiling():
            torch._assert_async(finite, message)
        elif not finite:
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.sub_(1)
            raise RuntimeError(message)

    @staticmethod
    def _check_following(name: str, nonfinite: Nonfinite, update_every: int, running: Running) -> None:
        if nonfinite not in get_args(Nonfinite):
            raise ValueError(f"{name}: nonfinite must be one of {get_args(Nonfinite)}, got {nonfinite!r}.")
        if running not in get_args(Running):
            raise ValueError(f"{name}: running must be one of {get_args(Running)}, got {running!r}.")
        if update_every < 1:
            raise ValueError(f"{name}: update_every counts forwards, at least 1, got {update_every}.")

    def _extra_names(self) -> list[str]:
        bank = [f"_bank_{name}" for name in _BANK if name not in _CONSTANT]
        return [*self._extra, *(bank if self._self_tunes() else ())]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:  # noqa: ANN401 (torch's)
        """Save torch's five keys; what a layer has beyond them goes into the metadata, which no other layer minds."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        extra = {name: destination.pop(prefix + name) for name in self._extra_names() if prefix + name in destination}
        if extra and hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]]["steadynorm"] = {
                name: value.detach().clone() for name, value in extra.items()
            }

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *arguments: Any,  # noqa: ANN401 (as above)
    ) -> None:
        """Load torch's five keys, and what the metadata has beyond them.

        What is not there stays as it is, but for a bank of momenta, which belongs to the statistics and begins anew.
        """
        own = {name: getattr(self, name) for name in self._extra_names()}
        if self._self_tunes():
            own |= {f"_bank_{name}": tensor for name, tensor in self._new_bank().items() if name not in _CONSTANT}
        own |= local_metadata.get("steadynorm", {})
        state_dict |= {prefix + name: own[name] for name in self._extra_names() if own[name] is not None}
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *arguments)
        self._begin_window()

    def _begin_window(self) -> None:
        self._window_at = 0
        seen = self._buffers.get("_window_seen")
        if seen is not None:
            seen.zero_()

    def reset_running_stats(self) -> None:
        """Set the statistics to mean 0 and variance 1, and begin a new window."""
        super().reset_running_stats()
        self._begin_window()
        if "_bank_step" in self._buffers:
            for name, tensor in self._new_bank().items():
                getattr(self, f"_bank_{name}").copy_(tensor)

    def reset_parameters(self) -> None:
        """Set the statistics to mean 0 and variance 1, weight to 1 and bias to 0."""
        self.reset_running_stats()
        if self.affine:
            nn.init.ones_(self.weight)
            if self.bias is not None:
                nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """List torch's arguments, then ours."""
        return f"{super().extra_repr()}, activation={self.activation!r}"  # type: ignore[no-untyped-call]

    def _parameters_for(self, statistics: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Give weight and bias in a dtype that torch's evaluation accepts beside float32 statistics."""
        weight, bias = self.weight, self.bias
        stored = self._parameters.get("weight", weight)  # torch.fx hands out proxies for self.weight, without dtype
        if statistics is None or stored is None or stored.dtype == statistics.dtype:
            return weight, bias
        return weight.to(statistics.dtype), None if bias is None else bias.to(statistics.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Convert as torch does, except that no conversion narrows the statistics below float32."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._keep_statistics_wide(before)
        return self

    def _keep_statistics_wide(self, before: dict[str, Tensor | None]) -> None:
        for name, now in list(self._buffers.items()):
            if now is None or not now.is_floating_point() or now.dtype == statistics_dtype(now.dtype):
                continue
            source = before.get(name)
            source = now if source is None or source.is_meta else source
            setattr(self, name, source.to(device=now.device, dtype=statistics_dtype(now.dtype)))
