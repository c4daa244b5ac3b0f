"""The base class of the layers: torch's constructor and forward."""

from __future__ import annotations

import inspect
from functools import update_wrapper
from types import FunctionType
from typing import Any, Never, Self, TypedDict

import torch
from torch import Tensor, nn

from steadynorm.functional import Activation, batch_norm, check_activation
from steadynorm.layers.rebuilds import CheckedAffine
from steadynorm.layers.running import Nonfinite, RunningStatistics
from steadynorm.layers.state import Running, normal_tensors
from steadynorm.layers.tracers import (
    check_is_tensor,
    check_scriptable,
    check_statistics_take_part,
    evaluate_scripted,
)
from steadynorm.ops.observers import is_recorded, is_transformed

__all__ = ["BatchNormBase", "Options"]

_TORCH_HAS_BIAS = "bias" in inspect.signature(nn.BatchNorm2d.__init__).parameters  # since 2.13


class Options(TypedDict, total=False):
    """Keyword arguments of every layer beyond torch's positional ones; see :class:`steadynorm.BatchNorm2d`."""

    bias: bool
    activation: Activation | None
    nonfinite: Nonfinite
    update_every: int
    running: Running


class BatchNormBase(RunningStatistics):
    """Base class of the layers; a subclass defines how it trains, and may add options.

    For the arguments see :class:`steadynorm.BatchNorm2d`.
    """

    affine = CheckedAffine()
    _can_be_scripted = True
    _is_frozen = False  # whether training computes the same as evaluation
    _own_options = tuple[str, ...]()  # names of attributes that ``repr`` shows
    _statistics_are = ""  # why a layer needs running statistics, for the error message; empty if it does not
    __constants__ = [*nn.BatchNorm2d.__constants__, "activation", "_is_frozen"]  # noqa: RUF012 (torch reads a plain list)

    def __init_subclass__(cls, **arguments: object) -> None:
        """Give the package's constructors a full signature and the name of their class in Python's errors."""
        super().__init_subclass__(**arguments)
        if cls.__module__.startswith("steadynorm."):  # elsewhere a copy would hide those of other bases
            _name_constructor(cls)

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
        **unknown: Never,
    ) -> None:
        name = type(self).__name__
        for key in unknown:
            raise TypeError(f"{name}.__init__() got an unexpected keyword argument {key!r}")
        check_activation(name, activation)
        self._check_options(nonfinite, update_every, running)
        if self._statistics_are and not track_running_stats:
            raise ValueError(f"{name}: there must be {self._statistics_are}, got track_running_stats=False.")
        with_bias: dict[str, Any] = {"bias": bias} if _TORCH_HAS_BIAS else {}
        with normal_tensors():
            super().__init__(
                num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype, **with_bias
            )
            if not bias:
                self.register_parameter("bias", None)
            self.activation = activation
            self.nonfinite = nonfinite
            self.update_every = update_every
            self.running = running
            self.widen_statistics_()
            self.forget_batches_()

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize, add the residual and apply the activation.

        Args:
            input: shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W), depending on the class.
            residual: shape of input, added before the activation; None adds nothing.

        Returns:
            shape, dtype and memory format of input.
        """
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self._evaluate_scripted(input, residual)
        dense = False
        if isinstance(input, Tensor):  # torch.fx traces with a proxy, which has no rank
            self._check_input_dim(input)  # type: ignore[no-untyped-call]
            dense = input.layout == torch.strided and not input.is_nested
        if self.training or (self.running_mean is None and self.running_var is None):
            if not dense:
                check_is_tensor(self, input)
            self._fit_state()
            if is_transformed() or is_recorded():
                self._check_transform(input)
            if torch.compiler.is_compiling():
                return self._train_compiled(self._train, input, residual)
            return self._train(input, residual)
        return self._evaluate(input, residual)

    def _check_transform(self, input: Tensor) -> None:
        """Raise if a transform or a recording does not allow this batch to update the running statistics."""
        if self._tracks():
            check_statistics_take_part(self, input)

    def _train(self, input: Tensor, residual: Tensor | None) -> Tensor:
        """Normalize by the batch, and update the running statistics."""
        raise NotImplementedError

    def _evaluate(self, input: Tensor, residual: Tensor | None) -> Tensor:
        """Normalize by the running statistics."""
        return batch_norm(
            input,
            self.running_mean,
            self.running_var,
            *self._parameters_for(self.running_mean),
            eps=self.eps,
            residual=residual,
            activation=self.activation,
            _caller=type(self).__name__,
        )

    def __prepare_scriptable__(self) -> Self:
        """Refuse layers that cannot be scripted; torch.jit.script calls this on every module of a model."""
        check_scriptable(self, is_batch_norm=self._can_be_scripted)
        return self

    def _evaluate_scripted(self, input: Tensor, residual: Tensor | None) -> Tensor:
        if self.training and not self._is_frozen:
            raise RuntimeError("A scripted layer of steadynorm must be in evaluation, got training. Call .eval().")
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        assert self.running_mean is not None and self.running_var is not None
        return evaluate_scripted(
            input,
            residual,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.eps,
            self.activation,
        )

    def extra_repr(self) -> str:
        """List torch's arguments, then ours; omit defaults of the running statistics' options."""
        defaults = {"nonfinite": "propagate", "update_every": 1, "running": "exponential"}
        following = {name: getattr(self, name) for name, default in defaults.items() if getattr(self, name) != default}
        bias = {} if _TORCH_HAS_BIAS else {"bias": self.bias is not None}
        own = {name: getattr(self, name) for name in self._own_options}
        ours = {**bias, "activation": self.activation, **following, **own}
        torchs = super().extra_repr()  # type: ignore[no-untyped-call]
        return ", ".join([torchs, *(f"{name}={value!r}" for name, value in ours.items())])

    def _parameters_for(self, statistics: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return weight and bias in a dtype that torch's evaluation accepts with float32 statistics."""
        weight, bias = self.weight, self.bias
        stored = self._parameters.get("weight", weight)  # torch.fx hands out proxies for self.weight, without dtype
        if statistics is None or stored is None or stored.dtype == statistics.dtype:
            return weight, bias
        return weight.to(statistics.dtype), None if bias is None else bias.to(statistics.dtype)


def _name_constructor(cls: type[BatchNormBase]) -> None:
    """Give a class a constructor under its own name, with the shared options among its arguments."""
    init: Any = cls.__init__
    if "__init__" not in vars(cls):
        own: Any = FunctionType(init.__code__, init.__globals__, None, init.__defaults__, init.__closure__)
        own.__kwdefaults__ = init.__kwdefaults__
        init = update_wrapper(own, init)
        init.__qualname__ = f"{cls.__qualname__}.__init__"
        cls.__init__ = init  # type: ignore[method-assign]
    shown = {name: each for name, each in inspect.signature(init).parameters.items() if each.kind is not _REST}
    shared = {name: each for name, each in _SIGNATURE.parameters.items() if name in Options.__annotations__}
    init.__signature__ = _SIGNATURE.replace(parameters=list((shown | shared).values()))


_REST = inspect.Parameter.VAR_KEYWORD
_SIGNATURE = inspect.signature(BatchNormBase.__init__)
