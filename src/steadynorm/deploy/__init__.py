"""Prepare trained models for serving: check, fold, export, quantise, verify and time them."""

from steadynorm.deploy.formats import FORMATS, Format
from steadynorm.deploy.graphs import check_graph, norms_in
from steadynorm.deploy.pipeline import export
from steadynorm.deploy.readiness import check_ready
from steadynorm.deploy.results import Artifact, Latency, Outcome, read_outcome
from steadynorm.deploy.source import Source, load_source

__all__ = [
    "FORMATS",
    "Artifact",
    "Format",
    "Latency",
    "Outcome",
    "Source",
    "check_graph",
    "check_ready",
    "export",
    "load_source",
    "norms_in",
    "read_outcome",
]
