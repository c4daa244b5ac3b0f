"""A wrapper that predicts a stream of batches with an adaptation method and leaves the model unchanged."""

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
    """Wrap a model with an adaptation method, which predicts a stream batch by batch.

        output = method.predict(model, batch)        no gradient, no label

    An ``Adapted`` is always in evaluation mode. It leaves the model's weights, running statistics and modes unchanged,
    bit for bit and also when a forward raises, so the model itself can still be used. Call :meth:`reset` after
    ``.to(device)``.

    Args:
        model: gives logits (N, classes), or (N, classes, ...) for dense predictions; each of its batch norms has
            running statistics. Wrap a model with other outputs in a module that gives logits.
        method: for example ``Gate.calibrate(model, clean_batches)``.

    Raises:
        ValueError: the model has no batch norm, or one without running statistics.
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
        """Predict the next batch of the stream and update the method's memory.

        Args:
            x: shape (N, C, ...).

        Returns:
            logits, shape (N, classes) or (N, classes, ...).

        Raises:
            TypeError: the model does not return a tensor of logits.
        """
        hook = self.model.register_forward_hook(lambda module, arguments, output: check_logits(output, "Adapted"))
        try:
            return self.method.predict(self.model, x)
        finally:
            hook.remove()

    def reset(self) -> None:
        """Forget the stream: the next batch is the first of a new one."""
        self.method.reset()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode; ``train(False)`` and ``eval()`` do nothing.

        Raises:
            RuntimeError: training mode is requested.
        """
        if mode:
            raise RuntimeError(
                "Adapted: predicts, and cannot be trained, got train(). Train adapted.model, and make a new Adapted."
            )
        return self

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the method's memory of the stream, for the state dict; empty unless the method is a :class:`Gate`."""
        return self.method.state() if isinstance(self.method, Gate) else {}

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the memory of the stream from a state dict."""
        if isinstance(self.method, Gate):
            self.method.load(state)

    def save(self, path: Path | str) -> None:
        """Write the gate's calibration and its memory of the stream to a safetensors file; the model is not saved.

        Raises:
            TypeError: the method is not a :class:`Gate`.
        """
        if not isinstance(self.method, Gate):
            raise TypeError(f"Adapted.save: the method must be a Gate, got {self.method.name}. It has nothing to save.")
        write_gate(self.method, self.model, Path(path))

    @classmethod
    def load(cls, model: nn.Module, path: Path | str) -> Self:
        """Restore what :meth:`save` wrote.

        Args:
            model: with the weights it had when ``save`` was called.
            path: the file that ``save`` wrote.

        Raises:
            ValueError: the file belongs to another model, or ``save`` did not write it.
        """
        return cls(model, read_gate(model, Path(path)))

    def extra_repr(self) -> str:
        """Show the method's name."""
        return f"method={self.method.name}"
