"""Worker processes that prepare images: in the order asked for, with errors as values, deaf to a job's signals."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from roadmap.distributed.device import num_cores
from roadmap.errors import DataError


class PrepareOrError(Dataset[Any]):
    """What `prepare` makes of an id, or the DataError of an image that cannot be read.

    An error is returned, not raised: a DataLoader would raise it again with the worker's traceback in its message.
    """

    def __init__(self, prepare: Callable[[int], Any]) -> None:
        self.prepare = prepare

    def __getitem__(self, index: int) -> Any:
        try:
            return self.prepare(index)
        except DataError as error:
            return error


class CollateOrError:
    """Put a batch together, or return the first error in it."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[Any]) -> Any:
        for item in items:
            if isinstance(item, DataError):
                return item
        return self.collate(items)


def load_batches(
    prepare: Callable[[int], Any],
    collate: Callable[[list[Any]], Any],
    index_batches: Sequence[Tensor],
    workers: int,
    device: torch.device,
) -> Iterator[Any]:
    """Yield what `collate` makes of each batch, in the order asked for, pinned for a GPU; workers=0 works here.

    Raises DataError that names the first image that cannot be read.
    """
    loader = DataLoader(
        PrepareOrError(prepare),
        batch_sampler=[ids.tolist() for ids in index_batches],
        num_workers=min(workers, num_cores()),  # more would wait for each other, and torch warns of them
        collate_fn=CollateOrError(collate),
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),  # it draws a number at each start: not from the run's own state
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def leave_signals_to_parent(worker_id: int) -> None:
    """Ignore, in a worker, the signals by which a run is asked to stop: it still needs its batches until it has saved.

    Slurm and terminals send them to every process of a job. A worker ends when its parent says so: SIGTERM counts from
    the parent only.
    """
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def end_with_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
