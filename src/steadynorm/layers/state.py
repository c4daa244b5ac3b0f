"""What a layer keeps beyond torch's five keys: how it begins, travels in state dicts and fits the statistics."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from steadynorm.layers.name import describe
from steadynorm.statistics import SelfTuned
from steadynorm.statistics.moments import statistics_dtype
from steadynorm.statistics.self_tuned import NUM_EXPERTS

__all__ = ["BANK", "GATE", "Running", "State", "batch_norm_state", "normal_tensors"]

Running = Literal["exponential", "self_tuned"]
BANK = tuple(field.name for field in fields(SelfTuned))
"""Names of what self-tuned statistics consist of; the buffers' names begin with ``_bank_``."""
GATE = ("noise", "confidence")
"""Names of the buffer and the parameter of a gated layer."""
_BANK_KEYS = tuple(f"_bank_{name}" for name in BANK)
_FOLLOWING_STATISTICS = frozenset(("_window", "_window_seen", *_BANK_KEYS, "noise"))


def normal_tensors() -> AbstractContextManager[None]:
    """Let tensors made within inference mode be normal ones, which can be trained and changed in place later."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return nullcontext()
    return _outside_inference_mode()


@contextmanager
def _outside_inference_mode() -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad():
        yield


def batch_norm_state(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Give a state dict with batch norm's five keys alone, for a model whose layers are plain batch norms.

    What a gated layer or self-tuned statistics have beyond them is left out wherever ``running_mean`` stands beside it;
    everything else is the same, the tensors themselves.

    Args:
        state_dict: of a model, or as read from a file.

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


class State(nn.modules.batchnorm._NormBase):
    """State of a layer: torch's, a window of batches and a bank of momenta.

    The bank, and what a gated layer adds, are keys of the state dict. The window is no buffer: it holds the batches
    since the running estimates last moved, is made when the first of them comes, and begins anew after loading.
    """

    if TYPE_CHECKING:  # TorchScript reads a class's annotations, and does not know such types
        running: Running
        _window: Tensor | None
        _window_seen: Tensor | None
        _window_at: int

    def _self_tunes(self) -> bool:
        return self.running == "self_tuned" and self.running_mean is not None

    def _new_bank(self, like: Tensor | None = None) -> dict[str, Tensor]:
        """Give the state of self-tuned statistics before the first batch, by name.

        Args:
            like: a running mean, whose size, device and dtype tell theirs; None is the layer's own.
        """
        like = self.running_mean if like is None else like
        assert like is not None
        bank = SelfTuned.begin(like.numel(), dtype=statistics_dtype(like.dtype), device=like.device)
        return {name: getattr(bank, name) for name in BANK}

    def _new_extra(self, like: Tensor) -> dict[str, dict[str, Tensor]]:
        """Give what the layer keeps beyond torch's keys as it begins: by what it is, then by key."""
        if not self._self_tunes():
            return {}
        return {"bank of momenta": {f"_bank_{name}": tensor for name, tensor in self._new_bank(like).items()}}

    def _begin_window(self) -> None:
        self._window_at = 0
        self._window = self._window_seen = None

    def _begin_bank(self) -> None:
        """Set the bank to its beginning, in the same tensors where they have the right size."""
        for name, tensor in self._new_bank().items():
            stored = self._buffers.get(f"_bank_{name}")
            if stored is not None and stored.shape == tensor.shape:
                stored.copy_(tensor)
            else:
                self.register_buffer(f"_bank_{name}", tensor)

    def _fit_state(self) -> None:
        """Let what is kept follow statistics that were replaced by hand, in size, device and dtype.

        What is of another size belongs to other channels and begins anew, with a warning.
        """
        mean = self.running_mean
        if mean is None or (mean.dtype in _WIDE and self._window is None and len(self._buffers) == 3):
            return
        if mean.dtype != statistics_dtype(mean.dtype):
            with normal_tensors():
                self._keep_statistics_wide({})
        channels, dtype = mean.numel(), statistics_dtype(mean.dtype)
        wrong: dict[str, str] = {}
        window = ("_window", self._window), ("_window_seen", self._window_seen)
        for name, kept in (*window, *self._buffers.items()):
            if kept is None or name not in _FOLLOWING_STATISTICS:
                continue
            if misfit := _misfit(name, kept, channels):
                wrong.setdefault("_window" if name == "_window" else "_bank_experts", misfit)
            elif kept.device != mean.device or (kept.is_floating_point() and kept.dtype != dtype):
                with normal_tensors():
                    setattr(self, name, kept.to(mean.device, dtype if kept.is_floating_point() else kept.dtype))
        if wrong:
            self._begin_anew(wrong, channels)

    def _begin_anew(self, wrong: dict[str, str], channels: int) -> None:
        # A compiler traces no search for the model's name of the layer.
        layer = f"{type(self).__name__}({self.num_features})" if torch.compiler.is_compiling() else describe(self)
        _warn_of_width(layer, " and ".join(_KEPT[name] for name in wrong), next(iter(wrong.values())), channels)
        if "_window" in wrong:
            self._begin_window()
        if "_bank_experts" in wrong:
            with normal_tensors():
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
        """Load as torch does; what a checkpoint of plain batch norm does not have begins anew, with a warning."""
        with normal_tensors():
            state_dict = self._completed(state_dict, prefix, local_metadata, error_msgs)
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )
            self._keep_statistics_wide({})
        self._begin_window()

    def _completed(
        self, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any], load: list[str]
    ) -> dict[str, Any]:
        """Add what only a layer of ours has where nothing of it is there, but the statistics are."""
        given = state_dict.get(f"{prefix}running_mean")
        if self.running_mean is None or not isinstance(given, Tensor):
            return state_dict
        like = given if metadata.get("assign_to_params_buffers", False) else self.running_mean
        added: dict[str, Tensor] = {}
        for what, fresh in self._new_extra(like).items():
            if any(prefix + name in state_dict for name in fresh):
                continue
            older = metadata.get("steadynorm", {})  # where version 0.1.0 kept them
            if fresh.keys() <= older.keys():
                fresh = {name: older[name] for name in fresh}
            else:
                _warn_once(load, what, f"{type(self).__name__}({self.num_features}) {prefix[:-1]!r}", fresh)
            added |= {prefix + name: tensor for name, tensor in fresh.items()}
        return {**state_dict, **added}

    @torch.no_grad()
    def reset_running_stats(self) -> None:
        """Set the statistics to mean 0 and variance 1, and begin anew what is kept beside them."""
        super().reset_running_stats()
        if "_window_at" not in vars(self):  # while torch's constructor runs
            return
        self._begin_window()
        if self._self_tunes():
            with normal_tensors():
                self._begin_bank()

    def reset_parameters(self) -> None:
        """Set the statistics to mean 0 and variance 1, weight to 1 and bias to 0."""
        self.reset_running_stats()
        if self.affine:
            nn.init.ones_(self.weight)
            if self.bias is not None:
                nn.init.zeros_(self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Convert as torch does, except that no conversion narrows the statistics below float32."""
        before = dict(self._buffers)
        with normal_tensors():
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            self._keep_statistics_wide(before)
        if self.running_mean is not None and self._window is not None and self._window.is_meta:
            self._begin_window()
        return self

    def _keep_statistics_wide(self, before: dict[str, Tensor | None]) -> None:
        """Store buffers in at least float32, with the numbers from before a conversion where they are given."""
        for name, now in list(self._buffers.items()):
            if now is None or not now.is_floating_point() or now.dtype == statistics_dtype(now.dtype):
                continue
            source = before.get(name)
            source = now if source is None or source.is_meta else source
            setattr(self, name, source.to(device=now.device, dtype=statistics_dtype(now.dtype)))


_WIDE = (torch.float32, torch.float64)
_KEPT = {"_window": "window of batches", "_bank_experts": "bank of momenta"}


def _misfit(name: str, kept: Tensor, channels: int) -> str:
    """Say of a part of what is kept how it does not go with so many channels; empty where it does."""
    own = {  # of the bank, see SelfTuned
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
        f"{layer}: its {what} must have as many channels as running_mean, got {found} for {channels}. It begins anew. "
        "Call reset_running_stats() after replacing the statistics, to begin anew without this warning.",
        stacklevel=2,
    )


# What torch.compiler.assume_constant_result does, which would import the compiler: called once, while a graph is made.
vars(_warn_of_width)["_dynamo_marked_constant"] = True

_warned: tuple[list[str], set[str]] = [], set()
"""Of which load users have been warned, by its list of errors, which all its layers share; and of what."""


def _warn_once(load: list[str], what: str, layer: str, names: Mapping[str, Tensor]) -> None:
    """Warn of the first layer of a load that has to begin something anew."""
    global _warned
    if _warned[0] is not load:
        _warned = load, set()
    if what in _warned[1]:
        return
    _warned[1].add(what)
    warnings.warn(
        f"load_state_dict: a checkpoint must have {', '.join(names)} of {layer} to continue its {what}, got batch "
        f"norm's keys alone. The {what} begins anew, here and in every other layer for which it is missing.",
        stacklevel=2,
    )
