"""The package within training frameworks and loggers: one module for each, which alone imports it.

``lightning`` and ``trainer`` (Hugging Face) hold callbacks of the same names; ``loggers`` writes readings of norms.
"""
