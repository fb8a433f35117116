"""Losses and gradient norms of the last steps, left on the device until they are read together.

Reading them is the one moment in which the host waits for the device. The first step is read at once, so that a run's
record begins with its training.
"""

import math
from typing import Any

import torch

from roadmap.config.choices import Precision
from roadmap.errors import NonFiniteError

FLUSH_STEPS = 50  # optimizer steps between two reads
Row = dict[str, Any]


class DeferredMetrics:
    """Rows of `metrics.jsonl` that wait for their numbers."""

    def __init__(self, precision: Precision, clip_grad: float | None = None) -> None:
        """In fp16 a gradient that is not finite is a step that the loss scaling skips, and no error."""
        self.may_overflow = precision == Precision.fp16
        self.clip_grad = clip_grad
        self._rows: list[tuple[Row, torch.Tensor, torch.Tensor]] = []
        self._flush_steps = 1

    def is_due(self) -> bool:
        """Tell whether it is time to read once another step's row is there."""
        return len(self._rows) + 1 >= self._flush_steps

    def add(self, row: Row, loss: torch.Tensor, grad_norm: torch.Tensor) -> bool:
        """Keep a step's row; tell whether it is time to read."""
        self._rows.append((row, loss, grad_norm))
        return len(self._rows) >= self._flush_steps

    def read(self) -> tuple[list[Row], NonFiniteError | None]:
        """Return the rows with their numbers, none after a bad step; and what is wrong with the last one."""
        pending, self._rows, self._flush_steps = self._rows, [], FLUSH_STEPS
        if not pending:
            return [], None
        losses = torch.stack([loss for _, loss, _ in pending]).tolist()
        norms = torch.stack([norm for _, _, norm in pending]).tolist()
        rows: list[Row] = []
        for (row, _, _), loss, norm in zip(pending, losses, norms, strict=True):
            rows.append({**row, "train/loss": loss, "train/grad_norm": norm})
            if self.clip_grad is not None:  # what torch's clipping leaves of it
                rows[-1]["train/clipped_grad_norm"] = norm * min(1.0, self.clip_grad / (norm + 1e-6))
            if not math.isfinite(loss) or not (math.isfinite(norm) or self.may_overflow):
                what = "gradient" if math.isfinite(loss) else "loss"
                where = f"step {row['global_step']}"
                return rows, NonFiniteError(f"{where}: the {what} is not finite; the weights did not take that step")
        return rows, None
