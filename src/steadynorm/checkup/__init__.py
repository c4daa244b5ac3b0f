"""Doctor and adaptation at the command line: a model, its weights and its data from files; what was found and done."""

from steadynorm.checkup.command import run_doctor
from steadynorm.checkup.config import DoctorConfig
from steadynorm.checkup.data import Sample, load_sample

__all__ = ["DoctorConfig", "Sample", "load_sample", "run_doctor"]
