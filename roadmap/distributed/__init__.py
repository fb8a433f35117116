"""The processes of a run: ranks, signals, devices."""
