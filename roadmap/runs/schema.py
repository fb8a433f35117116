"""What a run directory holds: the names of its files."""

METRICS, SUMMARY, STATUS, CONFIG, CORRECT, LOG = (
    "metrics.jsonl",
    "summary.json",
    "status.json",
    "config.yaml",
    "correct.npy",
    "run.log",
)


CHECKPOINTS = "checkpoints"
