"""What a run directory holds: the names of its files, and the numbers that its summary records."""

from dataclasses import dataclass
from typing import Literal

METRICS, SUMMARY, STATUS, CONFIG, CORRECT, LOG = (
    "metrics.jsonl",
    "summary.json",
    "status.json",
    "config.yaml",
    "correct.npy",
    "run.log",
)


CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Quantity:
    """A number in `summary.json`, and how it is shown wherever it is shown."""

    key: str
    title: str
    unit: str
    digits: int  # decimals; a number below 1 has as many as three digits need
    better: Literal["higher", "lower"]
    about: str = ""  # one line under a table

    @property
    def heading(self) -> str:
        """Return e.g. `top-1 (%)`."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, value: float | None) -> str:
        """Return a value in its digits, without the unit; nothing for nothing."""
        if value is None:
            return ""
        return f"{value:.{self.digits}f}" if value >= 1 or value == 0 else f"{value:#.3g}"


QUANTITIES = {
    quantity.key: quantity
    for quantity in (
        Quantity("top1", "top-1", "%", 2, "higher", "accuracy after the last epoch, mean over n seeds"),
        Quantity("top5", "top-5", "%", 2, "higher", "accuracy after the last epoch, mean over n seeds"),
        Quantity("gmacs", "MACs", "G", 2, "lower", "multiply-accumulates of one image"),
        Quantity("params_m", "parameters", "M", 2, "lower", "of the net"),
        Quantity("train_images_per_s", "training speed", "images/s", 0, "higher", "mean over seeds"),
        Quantity("gpu_hours", "GPU-hours", "h", 2, "lower", "of one run, all its GPUs together, mean over seeds"),
        Quantity("peak_memory_gb", "peak memory", "GiB", 2, "lower", "of one process, mean over seeds"),
    )
}
