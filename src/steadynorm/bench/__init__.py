"""Speed and memory of the layers beside torch's own, in one process, as ratios; ``docs/bench.md`` says how."""
