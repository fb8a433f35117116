"""`python run.py` with an accident arranged in advance: at a given place of a given rank a signal is sent, or something breaks.

`accident` and `run` are for tests; run as a script (or started again as a rank) the module arranges it before the run begins.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VARIABLE = "ROADMAP_TEST_ACCIDENT"


def accident(where: str, number: int = 1, *, rank: int = 0, what: str = "KILL", to: str = "self") -> dict[str, str]:
    """Return the environment for an accident: at the `number`th time that `rank` comes to `where`.

    `where`: step (after it), before (a step), loss, evaluate, saving (the file is written, not yet renamed). `what`: a signal, or nan,
    error, bug, memory. `to`: self, or parent (whoever started the ranks, and then all).
    """
    return {VARIABLE: json.dumps({"where": where, "number": number, "rank": rank, "what": what, "to": to})}


def run(words: tuple[str, ...], env: dict[str, str] | None = None, timeout: float = 150) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    command = [sys.executable, str(Path(__file__)), *words]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **(env or {})}, timeout=timeout, check=False
    )


def happen(plan: dict[str, object]) -> None:
    """Let it happen."""
    import torch

    what = str(plan["what"])
    if what == "error":
        from roadmap.errors import DataError

        raise DataError("7.jpg: cannot be decoded")
    if what == "bug":
        raise TypeError("nobody thought of this")
    if what == "memory":
        torch.empty(10**15)
    target = os.getppid() if plan["to"] == "parent" else os.getpid()
    os.kill(target, getattr(signal, f"SIG{what}"))
    if plan["to"] == "parent":  # until it has come back to this rank, the step it is in is not over
        from roadmap.runtime.stop import Stop

        deadline = time.monotonic() + 20
        while Stop.latest.signal is None and time.monotonic() < deadline:  # type: ignore[attr-defined]
            time.sleep(0.01)


def arrange(plan: dict[str, object]) -> None:
    """Patch what the run will come to."""
    from roadmap import train as training
    from roadmap.runtime import checkpoint, launch
    from roadmap.runtime.stop import Stop

    counts: dict[str, int] = {}
    places: list[int] = []
    real_rank, real_init = training.train_rank, Stop.__init__

    def train_rank(config, sweep, here, port=None):
        places.append(here.rank)
        return real_rank(config, sweep, here, port)

    def init(self, ranks=None):
        real_init(self, ranks)
        Stop.latest = self

    def due(where: str) -> bool:
        counts[where] = counts.get(where, 0) + 1
        return where == plan["where"] and counts[where] == plan["number"] and places[-1] == plan["rank"]

    def around(module, name: str, where: str, after: bool, counts_for=lambda *_: True) -> None:
        real = getattr(module, name)

        def call(*args, **kwargs):
            if not counts_for(*args):
                return real(*args, **kwargs)
            if not after and due(where):
                happen(plan)
            result = real(*args, **kwargs)
            if after and due(where):
                if plan["what"] == "nan":
                    return result * float("nan")
                happen(plan)
            return result

        setattr(module, name, call)

    launch.GRACE_S = 3.0
    training.train_rank, Stop.__init__ = train_rank, init
    around(training, "optimizer_step", "before", after=False)
    around(training, "optimizer_step", "step", after=True)
    around(training, "cross_entropy", "loss", after=True)
    around(training, "evaluate", "evaluate", after=False)
    around(checkpoint, "_sha256", "saving", after=True, counts_for=lambda path: path.suffix == ".tmp")


if VARIABLE in os.environ:
    sys.path.insert(0, str(ROOT))
    arrange(json.loads(os.environ[VARIABLE]))

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    import run as run_module

    sys.exit(run_module.main())
