"""Losses and gradient norms of the last steps, left on the device until they are read together; and what stands in for
a run's logger on all ranks but the first.

Reading them is the one moment in which the host waits for the device. The first step is read at once, so that a run's
record begins with its training.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self, TypeVar

import torch

from roadmap.config.choices import Precision
from roadmap.errors import NonFiniteError

FLUSH_STEPS = 50  # optimizer steps between two reads
Row = dict[str, Any]
T = TypeVar("T")


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


class NullLogger:
    """Of the other ranks: writes nothing, reads the same numbers, so that all stop where one is not finite."""

    def __init__(self, run_info: dict[str, Any]) -> None:
        self._deferred = DeferredMetrics(run_info["precision"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def _leave_to_rank0(self, *_: Any) -> None:
        """Do nothing."""

    start = info = log_evaluation = write_evaluation = wait_for_checkpoint = _leave_to_rank0

    def paused(self) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batches."""
        return iter(batches)

    def flush_due(self) -> bool:
        """Tell whether the next `log_step` flushes."""
        return self._deferred.is_due()

    def log_step(
        self, epoch: int, global_step: int, lr: float, loss: torch.Tensor, grad_norm: torch.Tensor, images: int
    ) -> None:
        """Note one optimizer step. Raises NonFiniteError, in the step in which rank 0 does."""
        if self._deferred.add({"global_step": global_step}, loss, grad_norm):
            self.flush()

    def flush(self) -> None:
        """Read what the device has kept. Raises NonFiniteError."""
        if error := self._deferred.read()[1]:
            raise error

    def checkpoint_due(self) -> bool:
        """Leave it to rank 0."""
        return False

    def save_checkpoint(self, *_: Any) -> None:
        """Leave it to rank 0, but read the numbers where it does."""
        self.flush()

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return what is known here."""
        return result
