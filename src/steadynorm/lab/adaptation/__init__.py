"""Ways to meet a stream of other data than a network was trained on: no gradients, no labels, no second training."""

from steadynorm.lab.adaptation.calibration import Calibration, calibrate
from steadynorm.lab.adaptation.methods import ADAPTATIONS, Adaptation, find_adaptation

__all__ = ["ADAPTATIONS", "Adaptation", "Calibration", "calibrate", "find_adaptation"]
