"""Speed and memory of our layers and of torch's, in one process, as ratios; see ``docs/bench.md``."""
