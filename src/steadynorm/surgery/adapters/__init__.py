"""Norms of other packages, described in terms of torch's and ours."""
