"""State of a layer beyond torch's five keys: initialization, state dicts and a fit to the running statistics."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from steadynorm.layers.name import describe
from steadynorm.statistics import SelfTuned
from steadynorm.statistics.moments import statistics_dtype
from steadynorm.statistics.self_tuned import NUM_EXPERTS

__all__ = ["BANK", "GATE", "BatchMemory", "NormState", "Running", "batch_norm_state", "normal_tensors", "on_copies"]

Running = Literal["exponential", "self_tuned"]
"""How the running statistics follow the batches; see :class:`steadynorm.BatchNorm2d`."""
BANK = tuple(field.name for field in fields(SelfTuned))
"""Names of the tensors of self-tuned statistics; as buffers, with the prefix ``_bank_``."""
GATE = ("noise", "confidence")
"""Names of the buffer and the parameter of a gated layer."""
_BANK_KEYS = tuple(f"_bank_{name}" for name in BANK)
_WINDOW = ("_window", "_window_seen")
_FOLLOWING_STATISTICS = frozenset((*_WINDOW, *_BANK_KEYS, "noise"))
_WIDE = (torch.float32, torch.float64)


def normal_tensors() -> AbstractContextManager[None]:
    """Leave inference mode, so that new tensors can be trained and changed in place later."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return nullcontext()
    return _outside_inference_mode()


@contextmanager
def _outside_inference_mode() -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad():
        yield


def batch_norm_state(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict with only batch norm's five keys, for a model whose layers are plain batch norms.

    Drops the keys that a gated layer or self-tuned statistics add beside a ``running_mean``. All other keys keep their
    tensors.

    Args:
        state_dict: state dict of a model, or one read from a file.

    Returns:
        a new dict.

    >>> import steadynorm
    >>> gated = steadynorm.GatedBatchNorm2d(8)
    >>> torch.nn.BatchNorm2d(8).load_state_dict(batch_norm_state(gated.state_dict()))
    <All keys matched successfully>
    """
    extra = {*GATE, *_BANK_KEYS}
    plain = {}
    for key, value in state_dict.items():
        prefix, dot, name = key.rpartition(".")
        if name not in extra or f"{prefix}{dot}running_mean" not in state_dict:
            plain[key] = value
    return plain


@contextmanager
def on_copies(module: nn.Module) -> Iterator[None]:
    """Let forwards of a batch norm, torch's or ours, change copies of its state, and restore the state afterwards.

    Args:
        module: the layer; its buffers, mode and attributes are restored as the same objects.
    """
    attributes, buffers = dict(vars(module)), dict(module._buffers)
    module._buffers.update({name: None if each is None else each.clone() for name, each in buffers.items()})
    for name in _WINDOW:
        if attributes.get(name) is not None:
            vars(module)[name] = attributes[name].clone()
    if "_before" in attributes:  # it belongs to an earlier batch; a second forward must read what the first one read
        vars(module)["_before"] = None
    try:
        yield
    finally:
        module._buffers.update(buffers)
        for name in vars(module).keys() - attributes.keys():
            del vars(module)[name]
        vars(module).update(attributes)


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchMemory:
    """Copies of a layer's window and bank of momenta.

    Args:
        window: moments of the batches since the last update, shape (k, 3, C), and the number of batches seen, shape ();
            empty without a window.
        position: row of the window for the next batch.
        bank: state of self-tuned statistics, by buffer name; empty without them.
    """

    window: tuple[Tensor, ...]
    position: int
    bank: dict[str, Tensor]

    def is_finite(self) -> bool:
        """Return whether all values are finite, so that the running statistics stay finite."""
        return all(bool(each.isfinite().all()) for each in (*self.window, *self.bank.values()))


class NormState(nn.modules.batchnorm._NormBase):
    """State of a layer: torch's, a window of batches and a bank of momenta.

    The bank, and the additions of a gated layer, are keys of the state dict. The window is not a buffer: it holds the
    batches since the last update of the running statistics, is created by the first, and restarts after loading.
    """

    if TYPE_CHECKING:  # TorchScript reads a class's annotations, and does not support these types
        running: Running
        _window: Tensor | None
        _window_seen: Tensor | None
        _window_at: int

    @torch.no_grad()
    def forget_batches_(self) -> None:
        """Restart the window and the bank of momenta, for running statistics that were set by hand.

        The next batch is then the first in its window, and replaces the estimates of self-tuned statistics. Running
        statistics, counter and a gate's noise stay.
        """
        self._begin_window()
        if self._self_tunes():
            self._begin_bank()

    @torch.no_grad()
    def batch_memory(self) -> BatchMemory:
        """Copy window and bank, for :meth:`restore_batch_memory_`."""
        window = (self._window, self._window_seen)
        return BatchMemory(
            window=tuple(each.clone() for each in window if each is not None),
            position=self._window_at,
            bank={name: each.clone() for name in _BANK_KEYS if (each := self._buffers.get(name)) is not None},
        )

    @torch.no_grad()
    def restore_batch_memory_(self, memory: BatchMemory) -> None:
        """Restore a window and a bank from :meth:`batch_memory`; the bank is written in place."""
        with normal_tensors():
            self._window, self._window_seen = [each.clone() for each in memory.window] or (None, None)
            self._window_at = memory.position
            for name, value in memory.bank.items():
                self.get_buffer(name).copy_(value)

    @torch.no_grad()
    def shift_batch_memory_(self, shift: Tensor) -> None:
        """Shift window and bank as if the input had been higher by a constant in each channel.

        Args:
            shift: shape (C,), added to every mean; in float64 the result is rounded only once.
        """
        for kept in (self._window, self._buffers.get("_bank_experts")):
            if kept is not None:  # means first: shape (batches, 3, C) or (momenta, 2, C)
                kept[:, 0].copy_(kept[:, 0].to(shift) + shift)

    @torch.no_grad()
    def reset_running_stats(self) -> None:
        """Reset the running statistics to mean 0 and variance 1, and forget windows and banks."""
        super().reset_running_stats()
        if "_window_at" in vars(self):  # not while torch's constructor runs
            self.forget_batches_()

    def reset_parameters(self) -> None:
        """Reset the running statistics, and set weight to 1 and bias to 0."""
        self.reset_running_stats()
        if self.affine:
            nn.init.ones_(self.weight)
            if self.bias is not None:
                nn.init.zeros_(self.bias)

    def widen_statistics_(self, before: Mapping[str, Tensor | None] | None = None) -> None:
        """Store buffers in at least float32, as every layer of the family keeps its statistics.

        Args:
            before: buffers before a conversion narrowed them; their values are used where given.
        """
        for name, now in list(self._buffers.items()):
            if now is None or not now.is_floating_point() or now.dtype == statistics_dtype(now.dtype):
                continue
            source = None if before is None else before.get(name)
            source = now if source is None or source.is_meta else source
            setattr(self, name, source.to(device=now.device, dtype=statistics_dtype(now.dtype)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Convert as torch does, except that no conversion narrows the statistics below float32."""
        before = dict(self._buffers)
        with normal_tensors():
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            self.widen_statistics_(before)
        if self.running_mean is not None and self._window is not None and self._window.is_meta:
            self._begin_window()
        return self

    def _self_tunes(self) -> bool:
        return self.running == "self_tuned" and self.running_mean is not None

    def _new_bank(self, like: Tensor | None = None) -> dict[str, Tensor]:
        """Return initial self-tuned statistics by buffer name, for a running mean like ``like`` or the layer's own."""
        like = self.running_mean if like is None else like
        assert like is not None
        bank = SelfTuned.begin(like.numel(), dtype=statistics_dtype(like.dtype), device=like.device)
        return {f"_bank_{name}": getattr(bank, name) for name in BANK}

    def _begin_window(self) -> None:
        self._window_at = 0
        self._window = self._window_seen = None

    def _begin_bank(self) -> None:
        """Reset the bank to its initial state, in the same tensors where they have the right size."""
        with normal_tensors():
            for name, fresh in self._new_bank().items():
                stored = self._buffers.get(name)
                if stored is not None and stored.shape == fresh.shape:
                    stored.copy_(fresh)
                else:
                    self.register_buffer(name, fresh)

    def _new_extra(self, like: Tensor) -> dict[str, dict[str, Tensor]]:
        """Return the initial state beyond torch's keys: description -> key -> tensor."""
        return {"bank of momenta": self._new_bank(like)} if self._self_tunes() else {}

    def _fit_state(self) -> None:
        """Fit window and bank to running statistics that were replaced by hand: size, device and dtype.

        State of another size belongs to other channels and restarts, with a warning.
        """
        mean = self._buffers.get("running_mean")  # read directly: every training forward calls this
        if mean is None or (mean.dtype in _WIDE and self._window is None and len(self._buffers) == 3):
            return
        if mean.dtype != statistics_dtype(mean.dtype):
            with normal_tensors():
                self.widen_statistics_()
        channels, dtype = mean.numel(), statistics_dtype(mean.dtype)
        wrong: dict[str, str] = {}
        window = ("_window", self._window), ("_window_seen", self._window_seen)
        for name, kept in (*window, *self._buffers.items()):
            if kept is None or name not in _FOLLOWING_STATISTICS:
                continue
            if misfit := _misfit(name, kept, channels):
                wrong.setdefault("window of batches" if name == "_window" else "bank of momenta", misfit)
            elif kept.device != mean.device or (kept.is_floating_point() and kept.dtype != dtype):
                with normal_tensors():
                    setattr(self, name, kept.to(mean.device, dtype if kept.is_floating_point() else kept.dtype))
        if wrong:
            # A compiler cannot trace the search for the layer's name in the model.
            compiling = torch.compiler.is_compiling()
            layer = f"{type(self).__name__}({self.num_features})" if compiling else describe(self)
            _warn_of_width(layer, " and ".join(wrong), next(iter(wrong.values())), channels)
            if "window of batches" in wrong:
                self._begin_window()
            if "bank of momenta" in wrong:
                self._begin_bank()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load as torch does; state that a plain batch norm checkpoint lacks restarts, with a warning."""
        with normal_tensors():
            state_dict = self._completed(state_dict, prefix, local_metadata, error_msgs)
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )
            self.widen_statistics_()
        self._begin_window()

    def _completed(
        self, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any], load: list[str]
    ) -> dict[str, Any]:
        """Add our own keys to a state dict that has running statistics but none of these keys."""
        given = state_dict.get(f"{prefix}running_mean")
        if self.running_mean is None or not isinstance(given, Tensor):
            return state_dict
        like = given if metadata.get("assign_to_params_buffers", False) else self.running_mean
        added: dict[str, Tensor] = {}
        for what, fresh in self._new_extra(like).items():
            if any(prefix + name in state_dict for name in fresh):
                continue
            older = metadata.get("steadynorm", {})  # version 0.1.0 stored them here
            if fresh.keys() <= older.keys():
                fresh = {name: older[name] for name in fresh}
            else:
                _warn_once(load, what, f"{type(self).__name__}({self.num_features}) {prefix[:-1]!r}", fresh)
            added |= {prefix + name: tensor for name, tensor in fresh.items()}
        return {**state_dict, **added}


def _misfit(name: str, kept: Tensor, channels: int) -> str:
    """Describe how a tensor of window or bank does not fit the number of channels; empty if it fits."""
    own = {  # shapes of the bank, see SelfTuned
        "_bank_experts": (NUM_EXPERTS, 2, channels),
        "_bank_mass": (NUM_EXPERTS, 2, 1 if kept.shape[-1:] == (1,) else channels),
        "_bank_noise": (2, channels),
        "_bank_weights": (NUM_EXPERTS, 2),
        "_bank_step": (),
    }.get(name)
    if name in ("_window", "_bank_experts") and kept.dim() and kept.shape[-1] != channels:
        return f"{kept.shape[-1]}"
    return "" if own is None or kept.shape == own else f"{name} of shape {tuple(kept.shape)}"


def _warn_of_width(layer: str, what: str, found: str, channels: int) -> None:
    warnings.warn(
        f"{layer}: its {what} must have as many channels as running_mean, got {found} for {channels}. It begins again. "
        "Call reset_running_stats() after replacing the statistics, to begin again without this warning.",
        stacklevel=2,
    )


# Same effect as torch.compiler.assume_constant_result, without importing the compiler: called once per graph.
vars(_warn_of_width)["_dynamo_marked_constant"] = True

_warned: tuple[list[str], set[str]] = [], set()
"""The load that last warned, identified by the list of errors that its layers share, and what it warned of."""


def _warn_once(load: list[str], what: str, layer: str, names: Mapping[str, Tensor]) -> None:
    """Warn once per load and kind of state, at the first layer that has to restart it."""
    global _warned
    if _warned[0] is not load:
        _warned = load, set()
    if what in _warned[1]:
        return
    _warned[1].add(what)
    warnings.warn(
        f"load_state_dict: a checkpoint must have {', '.join(names)} of {layer} to continue its {what}, got batch "
        f"norm's keys alone. The {what} begins again, here and in every other layer for which it is missing.",
        stacklevel=2,
    )
