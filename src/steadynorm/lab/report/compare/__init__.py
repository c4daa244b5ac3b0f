"""The report of a comparison of normalizations."""
