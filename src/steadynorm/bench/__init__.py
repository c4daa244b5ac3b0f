"""Speed and memory of the layers and of torch's own, in one process, as ratios; ``docs/bench.md`` says how."""
