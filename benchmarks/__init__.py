"""Benchmarks that are too long for the tests."""
