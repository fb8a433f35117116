"""Losses and gradient norms of the last steps, left on the device until they are read together; and the ranks that only watch them.

Reading them is the one moment in which the host waits for the device.
"""

from typing import Any, TypeVar

import torch

from roadmap.errors import NonFiniteError

FLUSH_STEPS = 50  # optimizer steps between two reads of what the device has kept
Row = dict[str, Any]
T = TypeVar("T")


class DeferredMetrics:
    """Rows of the ledger that wait for their numbers."""

    def __init__(self, *, may_overflow: bool = False) -> None:
        """`may_overflow`: a gradient that is not finite is a step that the loss scaling of fp16 skips, and no error."""
        self.may_overflow = may_overflow
        self._rows: list[tuple[Row, torch.Tensor, torch.Tensor]] = []

    def add(self, row: Row, loss: torch.Tensor, grad_norm: torch.Tensor) -> bool:
        """Keep a step's row; tell whether it is time to read."""
        self._rows.append((row, loss, grad_norm))
        return len(self._rows) >= FLUSH_STEPS

    def read(self) -> tuple[list[Row], NonFiniteError | None]:
        """Return the rows with their numbers, and what is wrong with the last one; those after a bad step are left out."""
        if not self._rows:
            return [], None
        losses = torch.stack([loss for _, loss, _ in self._rows]).tolist()
        norms = torch.stack([norm for _, _, norm in self._rows]).tolist()
        rows: list[Row] = []
        for (row, _, _), loss, norm in zip(self._rows, losses, norms, strict=True):
            rows.append({**row, "train/loss": loss, "train/grad_norm": norm})
            if not _finite(loss) or not (_finite(norm) or self.may_overflow):
                what = "gradient" if _finite(loss) else "loss"
                error = NonFiniteError(
                    f"step {row['global_step']}: the {what} is not finite; the weights did not take that step"
                )
                break
        else:
            error = None
        self._rows = []
        return rows, error


def _finite(value: float) -> bool:
    return value - value == 0.0
