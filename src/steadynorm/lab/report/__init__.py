"""Reports: from a run directory alone to pages, figures and a notebook."""

from steadynorm.lab.report.build import build_report

__all__ = ["build_report"]
