"""Doctor, recalibration and adaptation at the command line, for models, weights and data from files."""

from steadynorm.checkup.command import run_doctor
from steadynorm.checkup.config import DoctorConfig
from steadynorm.checkup.data import Sample, load_sample

__all__ = ["DoctorConfig", "Sample", "load_sample", "run_doctor"]
