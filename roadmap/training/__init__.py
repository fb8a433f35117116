"""Train one net as its config says, and evaluate it."""
