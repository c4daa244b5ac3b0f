"""Ways to meet a stream of other data than a network was trained on: no gradients, no labels, no second training."""

from steadynorm.lab.adaptation.calibration import Calibration, calibrate
from steadynorm.lab.adaptation.judging import judge_methods
from steadynorm.lab.adaptation.methods import ADAPTATIONS, Adaptation, check_methods

__all__ = ["ADAPTATIONS", "Adaptation", "Calibration", "calibrate", "check_methods", "judge_methods"]
