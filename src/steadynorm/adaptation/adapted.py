"""A model that predicts a stream of batches, remembers it, and is as it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from torch import Tensor, nn

from steadynorm.adaptation.gate import Gate
from steadynorm.adaptation.methods import Adaptation
from steadynorm.adaptation.normalizing import stored_moments
from steadynorm.adaptation.outputs import check_logits
from steadynorm.adaptation.saved import read_gate, write_gate

__all__ = ["Adapted"]


class Adapted(nn.Module):
    """Predicts the batches of a stream, one after the other, and remembers what they tell.

        output = method(model, batch, memory)        no gradient, no label

    It is always in evaluation. The model keeps its weights, its running estimates and its modes bit for bit, also
    where a forward raises; so it can be used beside. After ``.to(device)`` call :meth:`reset`.

    Args:
        model: gives logits (N, classes), or (N, classes, ...) for dense predictions; every batch norm in it has running
            estimates. For other outputs wrap it in a module that gives these.
        method: such as ``Gate.calibrate(model, clean_batches)``.

    Raises:
        ValueError: the model has no batch norm, or one without running estimates.
    """

    def __init__(self, model: nn.Module, method: Adaptation) -> None:
        super().__init__()
        if not stored_moments(model):
            raise ValueError(
                "Adapted: the model must have a batch norm, got none. Without one there are no statistics to adapt; "
                "call the model itself."
            )
        self.model, self.method = model, method
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        """Predict the next batch (N, C, ...) of the stream, and remember.

        Raises:
            TypeError: the model gives something else than a tensor of logits.
        """
        hook = self.model.register_forward_hook(lambda module, arguments, output: check_logits(output, "Adapted"))
        try:
            return self.method.predict(self.model, x)
        finally:
            hook.remove()

    def reset(self) -> None:
        """Forget the stream, so that the next batch is the first of another."""
        self.method.reset()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation.

        Raises:
            RuntimeError: training is asked for.
        """
        if mode:
            raise RuntimeError(
                "Adapted: predicts, and cannot be trained, got train(). Train adapted.model, and make a new Adapted."
            )
        return self

    def get_extra_state(self) -> dict[str, Tensor]:
        """Give what is remembered of the stream; part of the state dict."""
        return self.method.state() if isinstance(self.method, Gate) else {}

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on where the state dict was taken."""
        if isinstance(self.method, Gate):
            self.method.load(state)

    def save(self, path: Path | str) -> None:
        """Write the gate's calibration and all that it remembers, but not the model, as safetensors.

        Raises:
            TypeError: the method is no :class:`Gate`.
        """
        if not isinstance(self.method, Gate):
            raise TypeError(f"Adapted.save: the method must be a Gate, got {self.method.name}. It has nothing to save.")
        write_gate(self.method, self.model, Path(path))

    @classmethod
    def load(cls, model: nn.Module, path: Path | str) -> Self:
        """Go on where :meth:`save` was called, with the model of that time.

        Raises:
            ValueError: the file is of another model, or none that ``save`` wrote.
        """
        return cls(model, read_gate(model, Path(path)))

    def extra_repr(self) -> str:
        """Name the method."""
        return f"method={self.method.name}"
