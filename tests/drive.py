"""`python run.py` with an accident arranged in advance: at a given place of a given rank a signal is sent, or something breaks.

`accident`, `run` and `Nursery` are for tests; run as a script (or started again as a rank) the module arranges it before the run begins.
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


def run(
    words: tuple[str, ...], env: dict[str, str] | None = None, timeout: float = 150
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    command = [sys.executable, str(Path(__file__)), *words]
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        timeout=timeout,
        check=False,
    )


class Nursery:
    """A process that has imported everything and trained nothing: each run is a fork of it, and need not import it again."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__)), "--nursery"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, words: tuple[str, ...], env: dict[str, str] | None, place: Path) -> subprocess.CompletedProcess[str]:
        """Run the command line to its end in a process of its own; its output passes through files in `place`."""
        place.mkdir(exist_ok=True)
        out, err = place / "out", place / "err"
        self.process.stdin.write(
            json.dumps({"words": words, "env": env or {}, "out": str(out), "err": str(err)}) + "\n"
        )
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())

    def close(self) -> None:
        """End it."""
        self.process.stdin.close()
        self.process.wait()


def nursery() -> None:
    """Fork a run for each line of stdin, and answer with its exit code."""
    import sklearn.datasets
    import timm.data.mixup
    import torch._dynamo

    import roadmap.training.train
    import run as run_module

    assert sklearn.datasets and timm.data.mixup and torch._dynamo and roadmap.training.train
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os.environ.update(order["env"])
            for number, name in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
                os.dup2(
                    os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number
                )
            sys.argv[1:] = order["words"]
            if VARIABLE in os.environ:
                arrange(json.loads(os.environ[VARIABLE]))
            code = run_module.main()
            sys.stdout.flush()
            os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


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
        from roadmap.distributed.signals import StopSignal

        deadline = time.monotonic() + 20
        while StopSignal.latest.signal is None and time.monotonic() < deadline:  # type: ignore[attr-defined]
            time.sleep(0.01)


def arrange(plan: dict[str, object]) -> None:
    """Patch what the run will come to."""
    from roadmap.distributed import launch
    from roadmap.distributed.signals import StopSignal
    from roadmap.runs import checkpoint
    from roadmap.training import step as updating
    from roadmap.training import train as training

    counts: dict[str, int] = {}
    places: list[int] = []
    real_rank, real_init = training.train_rank, StopSignal.__init__

    def train_rank(config, sweep, here, port=None):
        places.append(here.rank)
        return real_rank(config, sweep, here, port)

    def init(self, ranks=None):
        real_init(self, ranks)
        StopSignal.latest = self

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
    training.train_rank, StopSignal.__init__ = train_rank, init
    around(training, "train_step", "before", after=False)
    around(training, "train_step", "step", after=True)
    around(updating, "cross_entropy", "loss", after=True)
    around(training, "evaluate", "evaluate", after=False)
    around(checkpoint, "_sha256", "saving", after=True, counts_for=lambda path: path.suffix == ".tmp")


if VARIABLE in os.environ:
    sys.path.insert(0, str(ROOT))
    arrange(json.loads(os.environ[VARIABLE]))

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:] == ["--nursery"]:
        sys.exit(nursery())
    import run as run_module

    sys.exit(run_module.main())
