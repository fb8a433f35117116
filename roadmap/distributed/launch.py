"""Start the ranks of a run on this machine, one process a device, and watch over them until the last one has ended.

Signals are passed on; a rank that dies takes the others with it, and ranks whose parent dies stop by themselves. Used by `train`.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch

from roadmap.distributed.rank_env import Launcher, RankEnv
from roadmap.distributed.rendezvous import listening_store
from roadmap.distributed.signals import STOP_SIGNALS, StopSignal
from roadmap.errors import PeerLost, RoadmapError, StoppedEarly, error_of

GRACE_S = 30.0  # how long the other ranks may take to notice that one has died, and to finish writing
LOOK_S = 0.2  # between two looks at the ranks

# Does one rank's work, given its place and the port of the store; returns the share of runs that it has worked.
Work = Callable[[RankEnv, int], float]


@dataclass
class Child:
    """A rank and the pipe in which it says how it ended."""

    process: SpawnProcess
    words: Connection
    said: tuple[str, str] | float | None = None

    def listen(self) -> None:
        """Take what the rank has said, if anything."""
        try:
            if self.said is None and self.words.poll():
                self.said = self.words.recv()
        except EOFError:
            pass


def launch(work: Work, num_ranks: int) -> float:
    """Run the ranks of a run to their end; return the share of runs worked.

    Raises what ended them: the error that one of them met, StoppedEarly after a signal, PeerLost where one was killed.
    """
    store = listening_store()
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # it would be started with the first rank, and unblock what is blocked for the ranks
    with StopSignal() as stop:
        children: list[Child] = []
        try:
            signal.pthread_sigmask(
                signal.SIG_BLOCK, STOP_SIGNALS
            )  # inherited: a rank takes signals once it can handle them
            for rank in range(num_ranks):
                ours, theirs = context.Pipe(duplex=False)
                env = RankEnv(rank, num_ranks, rank, Launcher.launch)
                process = context.Process(target=_rank, args=(work, env, store.port, theirs), name=f"rank {rank}")
                process.start()
                theirs.close()
                children.append(Child(process, ours))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            silent = _watch(children, stop)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            for child in children:
                child.process.kill()
                child.process.join()
    return _outcome(children, silent, stop)


def _watch(children: list[Child], stop: StopSignal) -> list[str]:
    """Wait for all ranks, and pass a signal on once. Return those that are still there some time after one has failed."""
    passed_on, deadline = False, None
    while any(child.process.is_alive() for child in children):
        wait([child.process.sentinel for child in children if child.process.is_alive()], timeout=LOOK_S)
        for child in children:
            child.listen()
        if stop.signal is not None and not passed_on:
            passed_on = True
            for child in children:
                if child.process.is_alive():
                    os.kill(child.process.pid or 0, signal.SIGTERM)
        failed = any(not child.process.is_alive() and child.process.exitcode for child in children)
        if failed and deadline is None:
            deadline = time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            break
    return [child.process.name for child in children if child.process.is_alive()]


def _outcome(children: list[Child], silent: list[str], stop: StopSignal) -> float:
    """Return the share of runs worked, or raise the error at the root of what the ranks said."""
    for child in children:
        child.listen()
    told = [child.said for child in children if isinstance(child.said, tuple)]
    causes = [said for said in told if said[0] not in {PeerLost.__name__, StoppedEarly.__name__}]
    if causes:
        raise error_of(*causes[0])
    if stopped := [said for said in told if said[0] == StoppedEarly.__name__]:
        raise StoppedEarly(f"stopped by {stop.signal.name}" if stop.signal else stopped[0][1])
    codes = {child.process.name: child.process.exitcode or 0 for child in children}
    lost = [
        f"{name} was killed ({signal.Signals(-code).name})"
        for name, code in codes.items()
        if code < 0 and name not in silent
    ]
    if lost := lost or [f"{name} did not answer" for name in silent]:
        raise PeerLost(f"{', '.join(lost)}; the same command goes on")
    if told:
        raise error_of(*told[0])
    if broken := [name for name, code in codes.items() if code]:
        raise RoadmapError(f"{broken[0]} failed; its traceback stands above")
    assert isinstance(children[0].said, float)
    return children[0].said


def _rank(work: Work, env: RankEnv, port: int, words: Connection) -> None:
    """Be one rank: do the work, say how it ended, and leave without waiting for connections to ranks that are gone."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // env.world_size))
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    code = 0
    try:
        words.send(work(env, port))
    except RoadmapError as error:
        code = error.code
        words.send((type(error).__name__, str(error)))
    except BaseException:
        code = 1
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _stop_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)  # as if asked politely: the run is saved
