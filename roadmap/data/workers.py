"""Worker processes that prepare images: in the order asked for, errors returned as values, a job's signals ignored."""

import errno
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import connection, util
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils import signal_handling

from roadmap.data.shared_batch import AVAILABLE, SharedBatch
from roadmap.distributed.cores import num_cores
from roadmap.distributed.device import is_out_of_memory
from roadmap.distributed.signals import STOP_SIGNALS, blocked
from roadmap.errors import DataError, LoaderError, RoadmapError
from roadmap.text import reason

POLL_S = 2  # how often the workers are checked while waiting for a batch
STALL_S = 600.0  # a batch that takes longer is given up
MAX_TMPDIR = 70  # bytes: below it lie sockets, whose paths may have 107
BEHIND = 5  # niceness of a worker
EXIT_S = 2.0  # within which a killed worker is seen to have ended
LESS = "fewer data.workers, or data.workers=0, need less memory; run the same command again to continue"


class PrepareOrError(Dataset[Any]):
    """What `prepare` makes of an id, or the DataError of an image that cannot be read, or LoaderError without memory.

    An error is returned, not raised: a DataLoader would raise it again with the worker's traceback in its message.
    """

    def __init__(self, prepare: Callable[[int], Any]) -> None:
        self.prepare = prepare

    def __getitem__(self, index: int) -> Any:
        try:
            return self.prepare(index)
        except DataError as error:
            return error
        except (MemoryError, RuntimeError, OSError) as error:
            return no_memory(error)


def collate_or_error(collate: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    """Collate a batch, in a worker into shared memory, or return its first error."""
    if errors := [item for item in items if isinstance(item, RoadmapError)]:
        return errors[0]
    try:
        batch = collate(items)
        is_shared = AVAILABLE and get_worker_info() is not None and isinstance(batch, Tensor | tuple)
        return SharedBatch(batch) if is_shared else batch
    except (MemoryError, RuntimeError, OSError) as error:
        return no_memory(error)


def no_memory(error: Exception) -> LoaderError:
    """Return what to do about memory or file handles that ran out while images were prepared; else raise the error."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return LoaderError(f"images: {reason(error)}; `ulimit -n` gives more, or fewer data.workers need less")
    if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        return LoaderError(f"images: memory ran out while they were prepared ({reason(error)}); {LESS}")
    raise error


def load_batches(
    prepare: Callable[[int], Any],
    collate: Callable[[list[Any]], Any],
    index_batches: Sequence[Tensor],
    workers: int,
    device: torch.device,
) -> Iterator[Any]:
    """Yield what `collate` makes of each batch, in the order asked for, pinned for a GPU; workers=0 works here.

    Raises DataError that names the first image that cannot be read, LoaderError where a batch cannot be delivered.
    """
    workers = min(workers, num_cores())  # more would wait for each other, and torch warns of them
    loader = DataLoader(
        PrepareOrError(prepare),
        batch_sampler=[ids.tolist() for ids in index_batches],
        num_workers=workers,
        collate_fn=partial(collate_or_error, collate),
        pin_memory=device.type == "cuda",
        # The process that feeds a GPU goes first: it has little to do, but a batch waits for each bit of it.
        worker_init_fn=partial(start_worker, os.getpid(), BEHIND if device.type == "cuda" else 0),
        timeout=POLL_S if workers else 0,
        # A fork has everything imported; a rank's default is to spawn, which costs each worker 7 s of CPU.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        generator=torch.Generator(),  # it draws a number at each start: not from the run's own state
    )
    batches, processes = start(loader)
    try:
        for number in range(len(index_batches)):
            batch = next_batch(batches, processes, workers)
            if isinstance(batch, RoadmapError):
                raise batch
            if number == len(index_batches) - 1:
                next(batches, None)  # nobody asks for more: now the workers end
            yield batch
    except GeneratorExit:  # an epoch that is left early: torch asks its workers to end
        del batches
        raise
    finally:  # else each one that does not answer would take 10 s
        for process in processes:
            process.kill()
            process.join(EXIT_S)


def start(loader: DataLoader[Any]) -> tuple[Iterator[Any], list[BaseProcess]]:
    """Start the worker processes of a loader; return its iterator and them. Raises LoaderError where none can be."""
    # torch's handler of SIGCHLD would raise in the middle of whatever is done just then: it takes its own to be set.
    signal_handling._SIGCHLD_handler_set = True
    try:
        make_short_tmpdir()
        with blocked():
            batches = iter(loader)
    except (OSError, MemoryError, RuntimeError) as error:  # no memory for a process, or no more of them allowed
        raise LoaderError(f"data.workers={loader.num_workers}: cannot be started ({reason(error)}); {LESS}") from None
    # By no public name: `active_children` leaves out one that was killed while it started.
    return batches, list(getattr(batches, "_workers", ()))


def make_short_tmpdir() -> None:
    """Create the folder for passing batches at a path short enough for a socket, which that of a job may not be.

    Python does so itself from 3.14 on. Raises OSError.
    """
    chosen = tempfile.gettempdir()
    if len(os.fsencode(chosen)) > MAX_TMPDIR:
        tempfile.tempdir = "/tmp"
        try:
            util.get_temp_dir()  # made once a process, and known to those that it forks
        finally:
            tempfile.tempdir = chosen


def next_batch(batches: Iterator[Any], processes: list[BaseProcess], workers: int) -> Any:
    """Return the next batch. Raises LoaderError where it does not come."""
    for _ in range(max(1, round(STALL_S / POLL_S))):  # no clock: while a job is suspended nobody waits for images
        try:
            batch = next(batches)
            if isinstance(batch, OSError | EOFError):  # it could not be opened here
                raise batch
            return batch
        except (RuntimeError, OSError, EOFError) as error:
            is_late = "DataLoader timed out" in str(error)
            if not is_late:  # a connection can break before its process is seen to be gone
                connection.wait([process.sentinel for process in processes], EXIT_S)
            ended = [process.exitcode for process in processes if process.exitcode]
            if ended:
                raise LoaderError(f"data.workers={workers}: {how_it_ended(ended[0])}; {LESS}") from None
            if not is_late:
                raise no_memory(error) from None
    raise LoaderError(
        f"data.workers={workers}: no images for {STALL_S:g} s, because their folder does not respond; "
        "run the same command again to continue"
    )


def how_it_ended(code: int) -> str:
    """Return what an exit code says of a worker process: a signal, or the number of the system's error."""
    if code == -signal.SIGBUS:
        return "a process that prepares images found no shared memory (SIGBUS); `docker run --shm-size=8g` gives more"
    if code < 0:
        why = "; out of memory?" if code == -signal.SIGKILL else ""
        return f"a process that prepares images was killed ({signal.Signals(-code).name}{why})"
    return f"a process that prepares images cannot pass them on ({os.strerror(code)})"


def start_worker(parent: int, behind: int, worker_id: int) -> None:
    """Set a worker's signals and niceness, and end it if a batch cannot be sent, for which the parent would wait."""
    os.nice(behind)
    leave_signals_to_parent(parent)

    def end(error: Exception, _: Any) -> None:
        os._exit(error.errno if isinstance(error, OSError) and error.errno else errno.ENOMEM)

    Queue._on_queue_feeder_error = staticmethod(end)  # type: ignore[attr-defined]


def leave_signals_to_parent(parent: int) -> None:
    """Ignore, in a worker, the signals by which a run is asked to stop: it still needs its batches until it has saved.

    Slurm and terminals send them to every process of a job. A worker ends when its parent says so: SIGTERM counts from
    the parent only. They are blocked when a worker starts. It also ends when its parent was killed, which torch does
    not notice of a parent that was killed while the worker started.
    """
    others = set(STOP_SIGNALS) - {signal.SIGTERM}
    for number in others:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.pthread_sigmask(signal.SIG_UNBLOCK, others)

    def end_with_parent() -> None:
        while os.getppid() == parent:
            received = signal.sigtimedwait({signal.SIGTERM}, POLL_S)
            if received is not None and received.si_pid == parent:
                break
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
