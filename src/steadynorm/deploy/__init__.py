"""Trained models on their way to where they serve: checked, folded, exported, quantised, verified and timed."""

from steadynorm.deploy.formats import FORMATS, Format
from steadynorm.deploy.graphs import check_graph, norms_in
from steadynorm.deploy.readiness import check_ready
from steadynorm.deploy.source import Source, load_source

__all__ = ["FORMATS", "Format", "Source", "check_graph", "check_ready", "load_source", "norms_in"]
