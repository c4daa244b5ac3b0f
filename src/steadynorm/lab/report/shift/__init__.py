"""The report of ``steadynorm shift``."""
