"""What a layer keeps beyond torch's five keys, how it travels, and in which dtype statistics are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

from steadynorm.statistics import SelfTuned
from steadynorm.statistics.moments import statistics_dtype

__all__ = ["BANK", "CONSTANT", "Running", "State", "extra_state"]

Running = Literal["exponential", "self_tuned"]
BANK = tuple(field.name for field in fields(SelfTuned))
"""Names of what self-tuned statistics consist of."""
CONSTANT = ("momenta", "exchange")
"""Those of them that no batch changes."""


def extra_state(model: nn.Module) -> dict[str, Tensor]:
    """Give what the layers of a model have beyond batch norm's five keys, by the names that a state dict would use.

    For formats that hold tensors alone; ``torch.save`` keeps it with the state dict, in its metadata.

    Returns:
        the tensors themselves, so that ``copy_`` into them restores.
    """
    return {
        f"{prefix}.{name}" if prefix else name: value
        for prefix, module in model.named_modules()
        if isinstance(module, State)
        for name in module._extra_names()
        if (value := getattr(module, name)) is not None
    }


class State(nn.modules.batchnorm._NormBase):
    """State of a layer: torch's, a window of batches and a bank of momenta."""

    _extra: ClassVar[tuple[str, ...]] = ()
    """Names of parameters and buffers beyond torch's."""
    running: Running
    _window: Tensor | None
    _window_at: int
    _window_seen: Tensor | None
    _bank_step: Tensor

    def _self_tunes(self) -> bool:
        return self.running == "self_tuned" and self.running_mean is not None

    def _new_bank(self) -> dict[str, Tensor]:
        """Give the state of self-tuned statistics before the first batch, by name."""
        assert self.running_mean is not None
        dtype = statistics_dtype(self.running_mean.dtype)
        bank = SelfTuned.begin(self.num_features, dtype=dtype, device=self.running_mean.device)
        return {name: getattr(bank, name) for name in BANK}

    def _extra_names(self) -> list[str]:
        bank = [f"_bank_{name}" for name in BANK if name not in CONSTANT]
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
            own |= {f"_bank_{name}": tensor for name, tensor in self._new_bank().items() if name not in CONSTANT}
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
