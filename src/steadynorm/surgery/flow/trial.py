"""A run of a model on an example that leaves no trace, and the difference between the outputs of two runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from steadynorm.surgery.batches import Forward
from steadynorm.surgery.runnable import check_runnable

__all__ = ["TOLERANCES", "Difference", "check_agreement", "differences", "preserved_state", "run", "tensors_in"]

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest error, relative to a tensor's largest magnitude, that rounding can explain.

Measured over transformers' ResNet, RegNet, MobileNet V1 and V2, EfficientNet, LeViT, CvT, MobileViT and SwiftFormer
with random weights and statistics, folded: up to 1.5e-15 in float64, 1e-6 in float32, 1.3e-3 in float16, 7.7e-3 in
bfloat16. Few wrong folds are off by less than ten times that.
"""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of one output tensor from its former value.

    Args:
        path: its place in the output.
        dtype: dtype of both.
        error: largest absolute difference; 0 where both are NaN, infinite where one is.
        relative: the error divided by the largest finite magnitude before. For tensors that are not floating-point, the
            fraction of values that differ.
        on_gpu: whether float32 may have been rounded to TF32, which has the digits of float16.
    """

    path: str
    dtype: torch.dtype
    error: float
    relative: float
    on_gpu: bool = False

    def limit(self, dtypes: Iterable[torch.dtype]) -> float:
        """Return the default tolerance: that of the coarsest dtype that took part in the computation."""
        if not (self.dtype.is_floating_point or self.dtype.is_complex):
            return 0.0
        coarse = [self.dtype.to_real(), *dtypes, *([torch.float16] if self.on_gpu else [])]
        return max(TOLERANCES.get(each, 0.0) for each in coarse)


def run(
    model: nn.Module,
    example: Any,  # noqa: ANN401 (as the model has it)
    forward: Forward | None = None,
    *,
    within: AbstractContextManager[Any] | None = None,
) -> Any:  # noqa: ANN401 (as the model has it)
    """Run a model on an example without gradient; the example is copied, and the model's state is restored.

    Args:
        model: in the mode in which it is to run.
        example: a tensor is the model's only argument, a tuple or list its positional ones, a mapping its named ones.
        forward: (model, example) -> output, if the model is not simply called with the example.
        within: context around the model's forward alone.
    """
    check_runnable("surgery", model)
    torch.clear_autocast_cache()  # it keeps casts of weights, and misses writes to them
    with torch.no_grad(), preserved_state(model):
        batch = tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, example)
        with within or nullcontext():
            return (forward or _call)(model, batch)


def _call(model: nn.Module, batch: Any) -> Any:  # noqa: ANN401 (likewise)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)


@contextmanager
def preserved_state(model: nn.Module) -> Iterator[None]:
    """Restore buffers, mode flags and torch's random number generators, also after an exception."""
    modules = list(model.modules())
    modes = [module.training for module in modules]
    tables = [dict(module._buffers) for module in modules]
    buffers = {id(buffer): buffer for table in tables for buffer in table.values() if buffer is not None}
    saved = [(each, each.clone()) for each in buffers.values()]
    devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices)):
        try:
            yield
        finally:
            for module, mode, table in zip(modules, modes, tables, strict=True):
                module.training = mode
                for name, buffer in table.items():
                    if module._buffers[name] is not buffer:  # a script returns another object for each access
                        module._buffers[name] = buffer
            with torch.no_grad():
                for buffer, value in saved:
                    # Versions do not tell: torch's batch norm updates its statistics without counting one. A needless
                    # write would count one and break the graphs that have saved the buffer.
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)


def tensors_in(value: object, path: str = "the output") -> Iterator[tuple[str, Tensor]]:
    """Return every tensor within containers and objects, with its path; modules and functions are not searched."""
    return _tensors_in(value, path, set())


def differences(expected: object, actual: object) -> list[Difference]:
    """Compare two outputs tensor by tensor.

    Raises:
        RuntimeError: the tensors differ in number, place, shape or dtype.
    """
    before, after = dict(tensors_in(expected)), dict(tensors_in(actual))
    for name in before.keys() | after.keys():
        old, new = before.get(name), after.get(name)
        if old is None or new is None or (old.shape, old.dtype) != (new.shape, new.dtype):
            raise RuntimeError(
                f"the outputs must be of the same form before and after, but {name} is {_form(new)} and was "
                f"{_form(old)}."
            )
    return [_difference(name, old, after[name]) for name, old in before.items()]


def check_agreement(
    verb: str, expected: object, actual: object, *, tolerance: float | None, dtypes: Iterable[torch.dtype] = ()
) -> dict[str, float]:
    """Raise RuntimeError if the outputs of two runs differ by more than the tolerance.

    Args:
        verb: the operation that must not change them.
        expected: the model's output before.
        actual: its output now.
        tolerance: of ``relative`` of :class:`Difference`; None takes that of :data:`TOLERANCES` for the dtype.
        dtypes: of what was computed in between.

    Returns:
        the largest error and the largest relative error.

    Raises:
        ValueError: there is no tensor to compare.
    """
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"{verb}: tolerance must be at least 0, got {tolerance}.")
    found = differences(expected, actual)
    if not found:
        raise ValueError(
            f"{verb}: the example must give at least one tensor, to compare before and after, got {type(actual)}. "
            "Return the model's output from forward."
        )
    dtypes = list(dtypes)
    for each in found:
        limit = each.limit(dtypes) if tolerance is None else tolerance
        if not each.relative <= limit:
            raise RuntimeError(
                f"{verb}: outputs must stay as they were to a relative error of {limit:.1e}, but {each.path} "
                f"({each.dtype}) is off by {each.relative:.1e} of its largest magnitude, {each.error:.1e}. Everything "
                "has been put back. If rounding explains it (half precision, a mean of many standard deviations), "
                "run in float64 or give a larger tolerance."
            )
    return {
        "largest_error": max(each.error for each in found),
        "largest_relative_error": max(each.relative for each in found),
    }


def _tensors_in(value: object, path: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
        return
    if id(value) in seen or isinstance(value, str | bytes | nn.Module) or callable(value):
        return
    seen.add(id(value))
    items: Iterable[tuple[str, object]] = ()
    if isinstance(value, Mapping):
        items = [(f"{path}[{key!r}]", each) for key, each in value.items()]
    elif isinstance(value, list | tuple | set | frozenset):
        items = [(f"{path}[{index}]", each) for index, each in enumerate(value)]
    elif hasattr(value, "__dict__"):
        items = [(f"{path}.{key}", each) for key, each in vars(value).items()]
    for name, each in items:
        yield from _tensors_in(each, name, seen)


def _form(tensor: Tensor | None) -> str:
    return "not there" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def _difference(path: str, old: Tensor, new: Tensor) -> Difference:
    on_gpu = old.is_cuda and old.dtype == torch.float32
    floating = old.is_floating_point() or old.is_complex()
    a, b = (_wide(each) for each in (old, new))
    differs = (a != b) & ~(a.isnan() & b.isnan())
    error = (a - b).abs().nan_to_num(nan=math.inf, posinf=math.inf)[differs].max().item() if differs.any() else 0.0
    if not floating:
        return Difference(path=path, dtype=old.dtype, error=error, relative=differs.double().mean().item())
    magnitude = a[a.isfinite()].abs().max().item() if a.isfinite().any() else 0.0
    relative = 0.0 if error == 0 else error / magnitude if magnitude > 0 else math.inf
    return Difference(path=path, dtype=old.dtype, error=error, relative=relative, on_gpu=on_gpu)


def _wide(tensor: Tensor) -> Tensor:
    """Return the values in float64 on the CPU; for complex tensors both parts."""
    plain = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    plain = torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain
    return plain.cpu().double()
