"""Follow a tensor's feature axis, and whether it comes out of dropout, through the layers that produce it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["CUT", "FeatureAxes"]

CUT = -1
"""Stands for the axis when a reshape has cut across the features, so that no axis holds them."""


def _named(*names: str) -> set[Callable[..., Any]]:
    owners = (torch, functional, Tensor)
    return {getattr(owner, name) for name in names for owner in owners if hasattr(owner, name)}


_OVER_FEATURES = _named("layer_norm", "rms_norm")
_LAST = _named("linear", "embedding") | _OVER_FEATURES
_FIRST = _named(
    *(f"{name}{size}d" for name in ("conv", "conv_transpose") for size in (1, 2, 3)),
    *("batch_norm", "instance_norm", "group_norm"),
)
_KEEPING = _named(
    *("relu", "relu_", "gelu", "silu", "sigmoid", "tanh", "leaky_relu", "elu", "selu", "celu", "mish", "softplus"),
    *("hardswish", "hardsigmoid", "hardtanh", "relu6", "dropout", "dropout1d", "dropout2d", "alpha_dropout"),
    *("contiguous", "clone", "to", "float", "half", "bfloat16", "double", "detach", "abs", "exp", "sqrt", "clamp"),
    *("add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_", "neg"),
    *("__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__imul__", "__truediv__"),
)
_OVER_MAPS = _named(
    *(f"{kind}_pool{size}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for size in (1, 2, 3)),
    *("interpolate", "upsample", "pixel_shuffle"),
)
"""Functions that change the axes after the second and leave features on axis 1."""
_TURNING = _named("transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis")
_SHAPING = _named("flatten", "reshape", "view", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as")
_JOINING = _named("cat", "concat", "concatenate")
_RECURRENT = {"gru", "lstm", "rnn_relu", "rnn_tanh"}
"""By name, since torch does not export them. Their first output has its features last."""
_DROPPING = _named("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
_CARRYING = (
    _TURNING
    | _named(*(f"{name}{size}d" for name in ("conv", "conv_transpose") for size in (1, 2, 3)), "linear")
    | _named(
        "relu", "relu_", "gelu", "silu", "sigmoid", "tanh", "leaky_relu", "elu", "selu", "celu", "mish", "softplus"
    )
    | _named("hardswish", "hardsigmoid", "hardtanh", "relu6", "contiguous", "flatten", "reshape", "view", "unflatten")
)
"""Functions through which dropout's effect on the variance persists: layers, activations, changes of shape."""


class FeatureAxes(TorchFunctionMode):
    """While active, tracks the feature axis of the outputs of linear layers, embeddings and convolutions.

    Linear layers, embeddings and layer norms over one dimension put them last, convolutions and batch norms on axis 1;
    elementwise functions leave them there; transpositions and changes of shape move them. For any other function the
    axis is unknown. Also tracks the outputs of dropout (inactive here, recognized by its call) up to the next norm or
    sum, and maps that are flattened, normalized and reshaped to maps again.

    Attributes:
        flattened: name of a norm whose input (N, C·places) was flattened from maps and whose output becomes maps -> C.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flattened: dict[str, int] = {}
        self._axes: Any = WeakTensorKeyDictionary()
        self._dropped: Any = WeakTensorKeyDictionary()
        self._channels: Any = WeakTensorKeyDictionary()
        self._normalized: Any = WeakTensorKeyDictionary()

    def dropout_of(self, x: Tensor) -> float:
        """Return the probability of the dropout that a tensor comes out of; 0 without dropout."""
        probability: float = self._dropped.get(x, 0.0)
        return probability

    def note(self, name: str, x: Tensor, y: Tensor) -> None:
        """Record a norm's input and output."""
        if x in self._channels:
            self._normalized[y] = (name, self._channels[x])

    def of(self, x: Tensor) -> int | None:
        """Return the axis of a tensor's features; CUT if they are on several, None if unknown."""
        axis: int | None = self._axes.get(x)
        return axis

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (what the function gives)
        """Run a function and record the feature axis of its result."""
        named = dict(kwargs or {})
        axes = self._known(func, args, named)
        output = func(*args, **named)
        dropped = self._probability(func, args, named)
        if dropped and isinstance(output, Tensor):
            output = output.view(output.shape)  # inactive dropout returns its input, which others may use too
            self._dropped[output] = dropped
        if isinstance(output, tuple) and getattr(func, "__name__", "") in _RECURRENT and isinstance(output[0], Tensor):
            self._axes[output[0]] = output[0].dim() - 1
        self._follow_flattened(func, args, output)
        axis = self._axis(func, axes, output, args, named)
        if axis is not None:
            self._axes[output] = axis
        elif isinstance(output, Tensor) and output in self._axes and func not in _KEEPING:
            del self._axes[output]  # changed in place by an unknown function
        return output

    def _follow_flattened(self, func: Callable[..., Any], args: tuple[Any, ...], output: object) -> None:
        x = args[0] if args else None
        if not isinstance(x, Tensor) or not isinstance(output, Tensor) or func not in _KEEPING | _SHAPING:
            return
        if func in _KEEPING:
            for known in (self._channels, self._normalized):
                if x in known:
                    known[output] = known[x]
        elif self._axes.get(x) == 1 and output.shape == (len(x), x.shape[1:].numel()) != x.shape[:2]:
            self._channels[output] = x.shape[1]
        elif x in self._normalized and output.dim() > 2:
            name, channels = self._normalized[x]
            if output.shape[:2] == (len(x), channels):
                self.flattened[name] = channels

    def _probability(self, func: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> float:
        """Return the probability of the dropout that a function is or propagates; 0 for none."""
        before = self.dropout_of(args[0]) if args and isinstance(args[0], Tensor) else 0.0
        if func in _DROPPING:
            return max(before, float(named.get("p", args[1] if len(args) > 1 else 0.5)))
        return before if func in _CARRYING else 0.0

    def _known(self, func: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> set[tuple[int, int]]:
        """Return axis and number of dimensions of the arguments whose axis is known."""
        if func not in _KEEPING | _TURNING | _LAST | _OVER_MAPS | _JOINING | _SHAPING:
            return set()
        found = (leaf for leaf in tree_leaves((args, named)) if isinstance(leaf, Tensor))
        return {(axis, leaf.dim()) for leaf in found if (axis := self._axes.get(leaf)) is not None}

    def _axis(
        self,
        func: Callable[..., Any],
        axes: set[tuple[int, int]],
        output: object,
        args: tuple[Any, ...],
        named: dict[str, Any],
    ) -> int | None:
        if not isinstance(output, Tensor) or output.dim() < 2:
            return None
        axis, dimensions = next(iter(axes)) if len(axes) == 1 else (None, 0)
        if func in _OVER_FEATURES:
            if axis is not None:
                return axis  # not over the features' axis: some normalize over time
            return self._normalized_over(output, args, named)
        if func in _LAST:
            return output.dim() - 1
        if func in _FIRST:
            return 1
        if axis == CUT:
            return axis if func in _KEEPING else None
        if axis is not None and func in _SHAPING and isinstance(args[0], Tensor):
            return _reshaped(args[0].shape, axis, output.shape)
        if axis is None or dimensions != output.dim():
            return None
        if func in _OVER_MAPS:
            return 1 if axis == 1 else None
        return axis if func in _KEEPING | _JOINING else _turned(func, axis, output, args, named)

    def _normalized_over(self, output: Tensor, args: tuple[Any, ...], named: dict[str, Any]) -> int | None:
        """Take the one normalized dimension for the features, also in the input."""
        x = args[0] if args else named["input"]
        shape = args[1] if len(args) > 1 else named["normalized_shape"]
        if len(shape) > 1:
            return None
        self._axes[x] = output.dim() - 1  # a sum around it has them there too
        return output.dim() - 1


def _turned(
    func: Callable[..., Any], axis: int, output: Tensor, args: tuple[Any, ...], named: dict[str, Any]
) -> int | None:
    """Return where an axis is after a transposition, from an example of size 1 along each other axis."""
    if not args or not isinstance(args[0], Tensor):
        return None
    example = torch.empty([2 if at == axis else 1 for at in range(output.dim())], device="meta")
    with torch._C.DisableTorchFunction():
        turned = func(example, *args[1:], **named)
    return next((at for at, size in enumerate(turned.shape) if size == 2), None)


def _reshaped(before: torch.Size, axis: int, after: torch.Size) -> int | None:
    """Return where an axis is after a change of shape; CUT if neither its start nor its end is still a boundary.

    None if it is split, joined with a neighbour, or of size 1.
    """
    start = before[:axis].numel()
    found = [at for at, size in enumerate(after) if size == before[axis] > 1 and after[:at].numel() == start]
    if {start, start * before[axis]} & {after[:at].numel() for at in range(len(after) + 1)}:
        return found[0] if len(found) == 1 else None
    return CUT
