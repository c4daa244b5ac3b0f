"""The report of ``steadynorm stream``."""
