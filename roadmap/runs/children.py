"""What every process that one of our commands starts is given: an end with its parent, and the compiler's cache."""

import ctypes
import os
import signal
from collections.abc import Callable

from roadmap.runs.provenance import code_hash

PR_SET_PDEATHSIG = 1  # of Linux's prctl


def end_with_parent() -> Callable[[], None] | None:
    """Return what a child does before its program: let the kernel ask it to stop once this process is gone.

    None where the system knows no such thing.
    """
    parent, prctl = os.getpid(), getattr(ctypes.CDLL(None), "prctl", None)

    def call() -> None:
        assert prctl is not None
        # A handler of Python's would take the signal down, and be gone with the program that begins.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # gone already
            os.kill(os.getpid(), signal.SIGTERM)

    return call if prctl is not None else None


def compiler_cache() -> dict[str, str]:
    """Return the environment in which all that is compiled stays on disk.

    torch keeps graphs with custom autograd functions, such as our kernels', only if told that it may. Their code is
    not part of its key, so the hash of our code is added to that.
    """
    return {"TORCHINDUCTOR_AUTOGRAD_CACHE_ALLOW_CUSTOM_AUTOGRAD": "1", "TORCH_COMPILE_CACHE_KEY_TAG": code_hash()}
