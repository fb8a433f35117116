"""How the ranks of a run find each other: a store that all of them reach, made by whatever started them."""

import os
import socket
import time
from datetime import timedelta
from functools import cache
from pathlib import Path

import torch.distributed as dist

from roadmap.distributed.rank_env import Launcher, RankEnv
from roadmap.distributed.signals import in_thread
from roadmap.errors import PeerLost
from roadmap.files import read_json, write_json
from roadmap.text import one_line

LOOPBACK = "127.0.0.1"
ADDRESSES = ".ranks"  # under the runs directory: where rank 0 of a Slurm step leaves its address


def listening_store() -> dist.TCPStore:
    """Return a store on a free port of this machine, reached from this machine alone."""
    listener = socket.create_server((LOOPBACK, 0))
    store = dist.TCPStore(
        LOOPBACK, listener.getsockname()[1], is_master=True, wait_for_workers=False, master_listen_fd=listener.fileno()
    )
    listener.detach()  # the store closes it
    return store


@cache  # one store a process: the runs of a sweep take turns in it
def rendezvous(env: RankEnv, port: int | None, runs: Path, timeout_s: float) -> dist.Store:
    """Return the store of all ranks. Raises PeerLost where it cannot be reached in time."""
    timeout = timedelta(seconds=timeout_s)
    try:
        if env.launcher == Launcher.torchrun:
            found = dist.rendezvous("env://", env.rank, env.world_size, timeout=timeout)
            return in_thread(lambda: next(iter(found))[0])
        if env.launcher == Launcher.slurm:
            return _slurm_store(env, runs / ADDRESSES / _step_name(), timeout)
        return dist.TCPStore(LOOPBACK, port or 0, is_master=False, timeout=timeout)
    except (RuntimeError, ValueError, OSError) as error:  # a name that does not resolve, a port that nobody answers
        why = f"within {timeout_s:g} s ({one_line(str(error).partition(chr(10))[0])})"
        raise PeerLost(f"rank {env.rank} of {env.world_size} cannot reach the others {why}") from None


def _step_name() -> str:
    """Return a name for this start of this job step, which no other has."""
    return ".".join(os.environ.get(key, "0") for key in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"))


def _slurm_store(env: RankEnv, address: Path, timeout: timedelta) -> dist.Store:
    """Let rank 0 take a free port and leave it in the runs directory, which all nodes see: no two jobs can clash."""
    if env.is_main:
        one_node = os.environ.get("SLURM_STEP_NUM_NODES", "1") == "1"
        host = LOOPBACK if one_node else socket.gethostname()
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        address.parent.mkdir(parents=True, exist_ok=True)
        write_json(address, {"host": host, "port": store.port})
        return store
    deadline = time.monotonic() + timeout.total_seconds()
    while not address.exists():
        if time.monotonic() > deadline:
            raise TimeoutError("rank 0 did not come")
        time.sleep(0.1)
    found = read_json(address)
    return dist.TCPStore(str(found["host"]), int(found["port"]), is_master=False, timeout=timeout)


def remove_address(env: RankEnv, runs: Path) -> None:
    """Remove the address once all ranks have joined."""
    if env.launcher == Launcher.slurm and env.is_main:
        (runs / ADDRESSES / _step_name()).unlink(missing_ok=True)
