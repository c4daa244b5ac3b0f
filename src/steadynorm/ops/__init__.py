"""The four kernels that serve every normalization."""
