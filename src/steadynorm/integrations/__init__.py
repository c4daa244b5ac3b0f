"""Integrations with training frameworks and loggers; only the module of a framework imports it.

``lightning`` and ``trainer`` (Hugging Face) hold callbacks of the same names; ``loggers`` writes readings of norms.
"""
