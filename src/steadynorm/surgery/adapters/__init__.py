"""Norms of other packages: what they compute, said in terms of torch's and ours."""
