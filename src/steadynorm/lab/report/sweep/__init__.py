"""The report of ``steadynorm sweep``."""
