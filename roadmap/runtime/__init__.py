"""What a run needs from the machine: signals, checkpoints, the ledger, W&B."""
