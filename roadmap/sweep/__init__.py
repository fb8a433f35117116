"""Studies on a cluster or on one machine: planned, submitted, watched, restarted. The verbs are those of `python -m roadmap.sweep`."""
