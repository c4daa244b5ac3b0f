"""What feeds what in a model, seen in a run, and whether a run gives what it gave."""
