"""Find normalization faults in a model, measure what they cost, and repair them."""

from steadynorm.doctor.checks import CHECKS
from steadynorm.doctor.diagnose import diagnose, judge
from steadynorm.doctor.diagnosis import Diagnosis, LayerSummary
from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Cost, Finding, Remedy, Severity
from steadynorm.doctor.observe import observe
from steadynorm.doctor.score import accuracy
from steadynorm.doctor.treat import Treatment, treat_
from steadynorm.doctor.watch import Watch

__all__ = [
    "CHECKS",
    "Cost",
    "Diagnosis",
    "Evidence",
    "Finding",
    "LayerSummary",
    "Remedy",
    "Severity",
    "Treatment",
    "Watch",
    "accuracy",
    "diagnose",
    "judge",
    "observe",
    "treat_",
]
