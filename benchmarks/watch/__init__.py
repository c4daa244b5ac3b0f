"""A benchmark of the watch: false alarms in healthy trainings, and what it does for faulty ones."""
