"""Test-time adaptation: predict shifted data without labels, gradients or retraining.

>>> import torch
>>> from steadynorm.adaptation import Adapted, Gate
>>> model = torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
>>> labels = torch.arange(160) % 4
>>> images = torch.randn(160, 4, 8, 8) + 2 * torch.eye(4)[labels][:, :, None, None]
>>> clean = list(zip(images.split(40), labels.split(40)))
>>> adapted = Adapted(model, Gate.calibrate(model, clean))
>>> adapted(images[:16]).shape
torch.Size([16, 4])
"""

from steadynorm.adaptation.adapted import Adapted
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
    "Adapted",
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
