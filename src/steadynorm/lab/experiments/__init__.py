"""The experiments, one file each: what is asked, what is expected, what it costs."""
