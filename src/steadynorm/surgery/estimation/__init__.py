"""Estimate the statistics of a model's layers on given data, in several passes, over ranks."""
