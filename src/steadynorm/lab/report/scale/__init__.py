"""The report of ``steadynorm scale``."""
