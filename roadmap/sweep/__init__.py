"""Studies on a cluster or on one machine: planned, submitted, watched, restarted, by `python -m roadmap.sweep`."""
