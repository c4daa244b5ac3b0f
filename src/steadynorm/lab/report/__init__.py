"""Reports of records: from a run directory alone to a page, figures and a notebook."""

from steadynorm.lab.report.build import build_report, write_record_report

__all__ = ["build_report", "write_record_report"]
