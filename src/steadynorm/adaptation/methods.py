"""The known methods to choose a test batch's statistics, and the table of all methods."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Protocol, cast

from torch import Tensor, nn

from steadynorm.adaptation.calibration import Calibration
from steadynorm.adaptation.gate import Gate
from steadynorm.adaptation.normalizing import normalizing_by
from steadynorm.layers import GatedBatchNorm1d, GatedBatchNorm2d, GatedBatchNorm3d
from steadynorm.statistics import Moments, SelfTuned, measure, update_running_
from steadynorm.surgery import convert_
from steadynorm.surgery.batches import evaluating

__all__ = [
    "ADAPTATIONS",
    "Adaptation",
    "BatchStatistics",
    "Exponential",
    "GatedLayers",
    "Prior",
    "SelfTuning",
    "StoredStatistics",
]


class Adaptation(Protocol):
    """Interface of a method that predicts a stream of test batches in order.

    A method may remember the stream. Each prediction leaves the model unchanged, bit for bit.
    """

    name: str

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Return the model's output (N, classes) for the next batch (N, C, ...) of the stream."""
        ...

    def reset(self) -> None:
        """Forget the stream: the next batch is the first of a new one."""
        ...


class StoredStatistics:
    """Predict with the running statistics of training: no adaptation."""

    name = "stored"

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Evaluate the model as it is."""
        with evaluating(model):
            return cast(Tensor, model(x))

    def reset(self) -> None:
        """Do nothing: this method has no memory."""


class BatchStatistics:
    """Normalize each batch by its own statistics.

    Source: Nado et al. 2020 (arXiv 2006.10963), "prediction-time batch normalization".
    """

    name = "batch"

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Evaluate the model with this batch's statistics."""
        with normalizing_by(model, lambda name, input, stored: measure(input)):
            return cast(Tensor, model(x))

    def reset(self) -> None:
        """Do nothing: this method has no memory."""


class Prior:
    """Normalize by a mixture of the running statistics, counted as ``samples`` samples, and the batch's n samples.

        w = n / (samples + n)
        mean = (1 − w)·running + w·batch
        var  = (1 − w)·running + w·batch + w·(1 − w)·(difference of the means)²

    Args:
        samples: weight of the running statistics. 0 is :class:`BatchStatistics`, infinity :class:`StoredStatistics`.

    Source: Schneider et al. 2020 (arXiv 2006.16971), without the last term of the variance.
    """

    def __init__(self, samples: float) -> None:
        self.name, self.samples = f"prior_{samples:g}", samples

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Evaluate the model with the mixture."""

        def choose(name: str, input: Tensor, stored: Moments) -> Moments:
            return stored.blend(measure(input), weight=len(input) / (self.samples + len(input)))

        with normalizing_by(model, choose):
            return cast(Tensor, model(x))

    def reset(self) -> None:
        """Do nothing: this method has no memory."""


class Exponential:
    """Normalize by running statistics that follow the stream; each batch updates them before it is predicted.

        running = decay·running + (1 − decay)·batch        starting from the model's running statistics

    Args:
        decay: 1 − momentum, in [0, 1]; 1 is :class:`StoredStatistics`.
    """

    def __init__(self, decay: float) -> None:
        self.name, self.decay = f"ema_{decay:g}", decay
        self._running: dict[str, Moments] = {}

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Update the statistics by the batch, layer by layer, and evaluate the model with them."""
        with normalizing_by(model, self._choose):
            return cast(Tensor, model(x))

    def reset(self) -> None:
        """Restart from the model's running statistics."""
        self._running = {}

    def _choose(self, name: str, input: Tensor, stored: Moments) -> Moments:
        if name not in self._running:
            self._running[name] = Moments(mean=stored.mean.clone(), var=stored.var.clone(), count=0)
        running = self._running[name]
        update_running_(running.mean, running.var, measure(input), momentum=1 - self.decay)
        return running


class SelfTuning:
    """Normalize by running statistics that follow the stream with a self-tuned momentum.

    See :class:`steadynorm.statistics.SelfTuned`. The model's running statistics count as one batch before the stream's
    first, of the same size.
    """

    name = "self_tuned"

    def __init__(self) -> None:
        self._banks: dict[str, SelfTuned] = {}

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Update the statistics by the batch, layer by layer, and evaluate the model with them."""
        with normalizing_by(model, self._choose):
            return cast(Tensor, model(x))

    def reset(self) -> None:
        """Restart from the model's running statistics."""
        self._banks = {}

    def _choose(self, name: str, input: Tensor, stored: Moments) -> Moments:
        batch = measure(input)
        bank = self._banks.get(name)
        if bank is None:
            begin = SelfTuned.begin(len(stored.mean), dtype=stored.mean.dtype, device=stored.mean.device)
            unbiased = (batch.count - 1) / max(batch.count, 1) if isinstance(batch.count, int) else 1
            bank = begin.follow(Moments(mean=stored.mean, var=stored.var * unbiased, count=batch.count))
        self._banks[name] = bank = bank.follow(batch)
        mean, var = bank.estimate()
        return Moments(mean=mean, var=var, count=batch.count)


class GatedLayers:
    """Predict with a copy of the model whose batch norms are :class:`steadynorm.GatedBatchNorm2d` layers.

    Args:
        calibration: gives each layer its noise; the confidence of the gates is 0.
    """

    name = "gated"

    def __init__(self, calibration: Calibration) -> None:
        self._noise = calibration.noise
        self._copy: tuple[nn.Module, nn.Module] | None = None

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Evaluate the gated copy."""
        if self._copy is None or self._copy[0] is not model:
            self._copy = model, self._gated(model)
        with evaluating(self._copy[1]):
            return cast(Tensor, self._copy[1](x))

    def reset(self) -> None:
        """Do nothing: this method has no memory."""

    def _gated(self, model: nn.Module) -> nn.Module:
        gated = convert_(deepcopy(model), "gated_batch_norm").model
        for name, module in gated.named_modules():
            if isinstance(module, GatedBatchNorm1d | GatedBatchNorm2d | GatedBatchNorm3d) and name in self._noise:
                module.noise.fill_(self._noise[name])
        return gated


ADAPTATIONS: dict[str, Callable[[Calibration], Adaptation]] = {
    "stored": lambda calibration: StoredStatistics(),
    "batch": lambda calibration: BatchStatistics(),
    "prior_16": lambda calibration: Prior(16),
    "ema_0.9": lambda calibration: Exponential(0.9),
    "ema_0.99": lambda calibration: Exponential(0.99),
    "ema_0.5": lambda calibration: Exponential(0.5),
    "self_tuned": lambda calibration: SelfTuning(),
    "gated": GatedLayers,
    "gate": Gate,
}
"""Every method: name -> what makes a fresh one for a network, from its calibration."""
