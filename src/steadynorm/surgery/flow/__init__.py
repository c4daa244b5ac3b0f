"""The data flow between a model's modules, recorded in one run, and comparisons of a model's outputs."""
