"""Start the ranks of a run on this machine, one process per device, and watch them until the last one has ended.

Signals are passed on; a rank that dies takes the others with it, and ranks whose parent dies stop by themselves.
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

from roadmap.distributed.cores import num_cores
from roadmap.distributed.rank_env import Launcher, RankEnv
from roadmap.distributed.rendezvous import listening_store
from roadmap.distributed.signals import STOP_SIGNALS, StopSignal, blocked, leave_at_once
from roadmap.errors import PeerLost, RoadmapError, StoppedEarly, error_of
from roadmap.text import redact_output

GRACE_S = 15.0  # how long the other ranks may take to notice that one has died, and to finish writing
POLL_S = 0.2

# Does one rank's work, given which it is and the port of the store; returns how many runs of the sweep are done by now.
Target = Callable[[RankEnv, int], float]


@dataclass
class Child:
    """A rank, and the pipe through which its result comes: what `Target` returns, or an error's name and text."""

    process: SpawnProcess
    pipe: Connection
    result: tuple[str, str] | float | None = None

    @property
    def stopped(self) -> bool:
        """Tell whether it ended because it was asked to: the first rank may still be saving, and gets the time."""
        return isinstance(self.result, tuple) and self.result[0] == StoppedEarly.__name__

    def receive(self) -> None:
        """Take the result if it has come."""
        try:
            if self.result is None and self.pipe.poll():
                self.result = self.pipe.recv()
        except EOFError:
            pass


def launch(target: Target, num_ranks: int) -> float:
    """Run the ranks of a run to their end; return the result of rank 0.

    Raises what ended them: the error that one of them met, StoppedEarly after a signal, PeerLost where one was killed.
    """
    store = listening_store()
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # the first rank would start it, and so unblock what is blocked for the ranks
    with StopSignal(interrupts=False) as stop:
        children: list[Child] = []
        try:
            with blocked():  # a rank takes signals once it can handle them
                for rank in range(num_ranks):
                    receiver, sender = context.Pipe(duplex=False)
                    args = (target, RankEnv(rank, num_ranks, rank, Launcher.launch), store.port, sender)
                    process = context.Process(target=_run_rank, args=args, name=f"rank {rank}")
                    process.start()
                    sender.close()
                    children.append(Child(process, receiver))
            silent = _wait_for_all(children, stop)
        finally:
            for child in children:
                child.process.kill()
                child.process.join()
    return _result(children, silent, stop)


def _wait_for_all(children: list[Child], stop: StopSignal) -> list[str]:
    """Wait for all ranks, and pass signals on. Return those that are still there a while after one has failed."""
    passed_on, deadline = 0, None
    while any(child.process.is_alive() for child in children):
        wait([child.process.sentinel for child in children if child.process.is_alive()], timeout=POLL_S)
        for child in children:
            child.receive()
        wanted = [signal.SIGTERM] * (stop.signal is not None) + [signal.SIGINT] * stop.again
        for number in wanted[passed_on:]:
            for child in children:
                if child.process.is_alive():
                    os.kill(child.process.pid or 0, number)
        passed_on = len(wanted)
        codes = {child.process.exitcode for child in children if not child.process.is_alive() and not child.stopped}
        if codes - {0} and deadline is None:
            deadline = time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            break
    return [child.process.name for child in children if child.process.is_alive()]


def _result(children: list[Child], silent: list[str], stop: StopSignal) -> float:
    """Return the result of rank 0, or raise the error at the root of those that the ranks have sent."""
    for child in children:
        child.receive()
    errors = [child.result for child in children if isinstance(child.result, tuple)]
    for kind, text in errors:
        if kind not in {PeerLost.__name__, StoppedEarly.__name__}:
            raise error_of(kind, text)
    for kind, text in errors:
        if kind == StoppedEarly.__name__:
            raise StoppedEarly(f"stopped by {stop.signal.name}" if stop.signal else text)
    codes = {child.process.name: child.process.exitcode or 0 for child in children}
    if StoppedEarly.code in codes.values() and not errors:  # before it had begun, or at once
        raise StoppedEarly(f"stopped by {stop.signal.name}" if stop.signal else "a rank was asked to stop")
    killed = {name: signal.Signals(-code).name for name, code in codes.items() if code < 0 and name not in silent}
    lost = [f"{name} was killed ({by})" for name, by in killed.items()]
    if lost := lost or [f"{name} did not answer" for name in silent]:
        raise PeerLost(f"{', '.join(lost)}; run the same command again to continue")
    if errors:
        raise error_of(*errors[0])
    if broken := [name for name, code in codes.items() if code]:
        raise RoadmapError(f"{broken[0]} failed; its traceback is above")
    assert isinstance(children[0].result, float)
    return children[0].result


def _run_rank(target: Target, env: RankEnv, port: int, pipe: Connection) -> None:
    """Run as one rank: do the work, send the result, and exit without waiting for ranks that are gone."""
    leave_at_once(silent=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    redact_output()
    torch.set_num_threads(max(1, num_cores() // env.world_size))
    if sys.platform == "linux":  # whatever this machine's name resolves to, and whatever other programs shall use
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    code = 0
    try:
        pipe.send(target(env, port))
    except RoadmapError as error:
        code = error.code
        pipe.send((type(error).__name__, str(error)))
    except KeyboardInterrupt:
        code = StoppedEarly.code
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
