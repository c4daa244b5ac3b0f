"""Methods that meet a stream of data unlike a network's training data: no gradients, no labels, no second training.

>>> import torch
>>> from steadynorm.adaptation import Gate, calibrate
>>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten(1))
>>> labelled = [(torch.randn(16, 3, 8, 8), torch.arange(16) % 4) for _ in range(8)]
>>> gate = Gate(calibrate(model, labelled))
>>> gate.predict(model, torch.randn(16, 3, 8, 8)).shape
torch.Size([16, 288])
"""

from steadynorm.adaptation.calibration import Calibration, calibrate
from steadynorm.adaptation.gate import Gate
from steadynorm.adaptation.methods import (
    ADAPTATIONS,
    Adaptation,
    BatchStatistics,
    Exponential,
    GatedLayers,
    Prior,
    SelfTuning,
    StoredStatistics,
)

__all__ = [
    "ADAPTATIONS",
    "Adaptation",
    "BatchStatistics",
    "Calibration",
    "Exponential",
    "Gate",
    "GatedLayers",
    "Prior",
    "SelfTuning",
    "StoredStatistics",
    "calibrate",
]
