"""Losses and gradient norms of the last steps, left on the device until they are read together; and the ranks that only watch them.

Reading them is the one moment in which the host waits for the device.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Self, TypeVar

import torch

from roadmap.errors import NonFiniteError

FLUSH_STEPS = 50  # optimizer steps between two reads of what the device has kept
Row = dict[str, Any]
T = TypeVar("T")


class Pending:
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
                error = NonFiniteError(f"step {row['global_step']}: the {what} is not finite; the weights did not take that step")
                break
        else:
            error = None
        self._rows = []
        return rows, error


class Bystander:
    """The record of a rank that writes nothing: it reads the same numbers, and stops with the others where they are not finite."""

    def __init__(self, *, may_overflow: bool = False) -> None:
        self._pending = Pending(may_overflow=may_overflow)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def start(self, global_step: int, epochs_evaluated: int, time_s: float) -> None:
        """Do nothing."""

    def say(self, line: str) -> None:
        """Do nothing."""

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batches."""
        return iter(batches)

    def step(self, epoch: int, global_step: int, lr: float, loss: torch.Tensor, grad_norm: torch.Tensor, images: int) -> None:
        """Note one optimizer step. Raises NonFiniteError, in the step in which rank 0 does."""
        if self._pending.add({"global_step": global_step}, loss, grad_norm):
            self.flush()

    def flush(self) -> None:
        """Look at what the device has kept. Raises NonFiniteError."""
        if error := self._pending.read()[1]:
            raise error

    def evaluated(self, epoch: int, global_step: int, values: dict[str, float], correct: bytes) -> None:
        """Do nothing."""

    def checkpoint_due(self) -> bool:
        """Leave it to rank 0."""
        return False

    def checkpoint(self, state: dict[str, Any], manifest: dict[str, Any], best_step: int | None) -> None:
        """Leave it to rank 0; the same look at the numbers as there."""
        self.flush()

    def settle(self) -> None:
        """Do nothing."""

    def done(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return what is known here."""
        return result


def _finite(value: float) -> bool:
    return value - value == 0.0
