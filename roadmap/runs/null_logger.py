"""What stands in for a run's logger on all ranks but the first: it writes nothing."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self, TypeVar

import torch

from roadmap.runs.deferred_metrics import DeferredMetrics

T = TypeVar("T")


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

    def paused(self, *, restart: bool = False) -> AbstractContextManager[None]:
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
