"""How well methods predict shifted and ordered streams: ``python -m benchmarks.adaptation``."""
