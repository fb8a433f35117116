"""`python run.py`, with or without an accident: at a given place of a given rank a signal is sent, or something breaks.

`run` starts a process of its own, and `Forks` a fork of one that has imported everything. As a script (a rank that is
started runs it again) the module arranges the accident before the run begins.
"""

import atexit
import gc
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VARIABLE = "ROADMAP_TEST_ACCIDENT"
signal_came = threading.Event()
TIMEOUT_S = 240  # in which every run has ended by itself
Done = subprocess.CompletedProcess[str]


def accident(where: str, number: int = 1, *, rank: int = 0, what: str = "KILL", to: str = "self", mb: int = 0):
    """Return the environment for an accident: at the `number`th time that `rank` comes to `where`.

    `where`: images (before they are loaded), step (after it), before (a step), loss, evaluate, saving (the file is
    written, not yet renamed), or watch (in the process that has just started the ranks). `what`: a signal, or nan,
    error, bug, memory, limit (`mb` more megabytes are all there is). `to`: self, worker (the rank's only one), service
    (W&B's), parent (whoever started the ranks, and then all), or group (all processes at once, as a terminal does it).
    """
    return {VARIABLE: json.dumps({"where": where, "number": number, "rank": rank, "what": what, "to": to, "mb": mb})}


def python(*words: object, **how: Any) -> Done:
    """Run this Python to its end, in the checkout; `how` is as for `subprocess.run`."""
    how = {"cwd": ROOT, "capture_output": True, "text": True, "check": False} | how
    return subprocess.run([sys.executable, *map(str, words)], **how)


def run(words: tuple[str, ...], env: dict[str, str] | None = None) -> Done:
    """Run the command line to its end, in a process and a group of processes of its own."""
    script = ROOT / "tests" / "drive.py" if env and VARIABLE in env else ROOT / "run.py"
    return python(script, *words, env={**os.environ, **(env or {})}, timeout=TIMEOUT_S, start_new_session=True)


class Forks:
    """A process that has imported everything and computed nothing. Runs are forks of it, ranks forks of a run."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__)), "--forks"]
        env = {**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"}  # as run.py has it, read when torch is imported
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=pipe, stdout=pipe, text=True)
        self.folder, self.started = TemporaryDirectory(), 0

    def start(self, words: tuple[str, ...], env: dict[str, str] | None = None, command: str = "run.py") -> "Fork":
        """Start a command line: of `run.py`, or of `report`."""
        self.started += 1
        out, err = (Path(self.folder.name, f"{self.started}.{name}") for name in ("out", "err"))
        order = {"words": words, "env": {**os.environ, **(env or {})}, "out": str(out), "err": str(err)}
        return Fork(self, self.ask({**order, "command": command}), words, out, err)

    def run(self, words: tuple[str, ...], env: dict[str, str] | None = None, command: str = "run.py") -> Done:
        """Run a command line to its end."""
        return self.start(words, env, command).wait()

    def ask(self, order: dict[str, object]) -> int:
        """Pass an order on; return the number that answers it."""
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self.process.communicate()
        self.folder.cleanup()


@dataclass
class Fork:
    """A command line that is at work."""

    forks: Forks
    pid: int
    words: tuple[str, ...]
    out: Path
    err: Path

    def wait(self) -> Done:
        """Wait for its end. Its output passes through files: a rank may outlive it."""
        code = self.forks.ask({"wait": self.pid})
        return subprocess.CompletedProcess(self.words, code, self.out.read_text(), self.err.read_text())


def serve() -> None:
    """For each line of stdin, fork a run and answer with its pid, or wait for one and answer with its exit code."""
    before = dict(os.environ)
    import run as run_module
    from roadmap.distributed.signals import leave_at_once

    own = {name: value for name, value in os.environ.items() if name not in before}  # read by torch
    import sklearn.datasets
    import timm.data.mixup
    import torch._dynamo
    import wandb
    from hydra.core.plugins import Plugins

    import roadmap.training.evaluation
    import roadmap.training.train
    from roadmap.report.__main__ import main as report
    from roadmap.report.read.wandb import RETRIES

    RETRIES.update(max=1, wait_min_seconds=0.05, wait_max_seconds=0.2)
    commands = {"run.py": run_module.main, "report": report}
    assert sklearn.datasets and timm.data.mixup and torch._dynamo and wandb
    assert roadmap.training.train and roadmap.training.evaluation
    Plugins.instance()
    gc.freeze()  # a collection in a fork would touch, and so copy, all that the imports made
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        elif child := os.fork():
            print(child, flush=True)
        else:
            become(order, own)
            leave_at_once()
            code = commands[order["command"]]()
            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            os._exit(code)  # without taking apart every module that is imported


def become(order: dict, own: dict[str, str]) -> None:
    """Make this fork what a process started with these words would be."""
    media = tempfile.TemporaryDirectory("wandb-media")
    os.setsid()
    signal.alarm(TIMEOUT_S)
    os.environ.clear()
    os.environ.update({**own, **order["env"]})
    for module in list(sys.modules.values()):  # W&B's folder for media: whichever fork ends first would remove it
        if isinstance(vars(module).get("MEDIA_TMP"), tempfile.TemporaryDirectory):
            module.MEDIA_TMP = media
    for number, (path, mode) in enumerate(((os.devnull, "r"), (order["out"], "w"), (order["err"], "w"))):
        with open(path, mode) as file:
            os.dup2(file.fileno(), number)
    sys.argv[1:] = order["words"]
    fork_ranks()
    if VARIABLE in os.environ:
        arrange(json.loads(os.environ[VARIABLE]))


def fork_ranks() -> None:
    """Let ranks be forks of this process, which need not import anything, where each would be started anew."""
    from roadmap.distributed import launch

    class Forking:
        def __getattr__(self, name):
            return getattr(multiprocessing, name)

        def get_context(self, _):
            return multiprocessing.get_context("fork")

    launch.multiprocessing = Forking()


def happen(plan: dict[str, object]) -> None:
    """Let it happen."""
    import torch

    what = str(plan["what"])
    if what == "error":
        from roadmap.errors import DataError

        raise DataError("7.jpg: cannot be decoded")
    if what == "bug":
        raise TypeError("nobody thought of this")
    if what == "key":
        raise TypeError(f"the server refuses {os.environ['OUR_API_KEY']}")
    if what == "memory":
        torch.empty(10**15)
    if what == "limit":
        used = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (used + int(str(plan["mb"])) * 10**6,) * 2)
        return
    number = getattr(signal, f"SIG{what}")
    if plan["to"] == "worker":
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, number)
        worker.join()
    elif plan["to"] == "service":
        # Of every thread: a child is its starter's until the kernel has taken that one apart.
        for child in " ".join(path.read_text() for path in Path("/proc/self/task").glob("*/children")).split():
            if "wandb-core" in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(int(child), number)
                os.waitid(os.P_PID, int(child), os.WEXITED | os.WNOWAIT)
    elif plan["to"] == "group":
        os.killpg(0, number)
    else:
        os.kill(os.getppid() if plan["to"] == "parent" else os.getpid(), number)
    if plan["to"] == "parent":  # until it has come back to this rank, the step it is in is not over
        signal_came.wait(20)


def arrange(plan: dict[str, object]) -> None:
    """Patch what the run will come to."""
    from roadmap.distributed import launch
    from roadmap.distributed.signals import StopSignal
    from roadmap.runs import checkpoint
    from roadmap.training import step as updating
    from roadmap.training import train as training

    counts: dict[str, int] = {}
    places: list[int] = []
    real_rank, real_note = training.train_rank, StopSignal._note

    def train_rank(config, sweep, here, port=None):
        places.append(here.rank)
        return real_rank(config, sweep, here, port)

    def note(self, number, frame):
        real_note(self, number, frame)
        signal_came.set()

    def due(where: str) -> bool:
        counts[where] = counts.get(where, 0) + 1
        here = multiprocessing.parent_process() is None if where == "watch" else places[-1] == plan["rank"]
        return where == plan["where"] and counts[where] == plan["number"] and here

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
    around(launch, "wait", "watch", after=False)
    training.train_rank, StopSignal._note = train_rank, note
    around(training, "load_images", "images", after=False)
    around(training, "train_step", "before", after=False)
    around(training, "train_step", "step", after=True)
    around(updating, "cross_entropy", "loss", after=True)
    around(training, "score_batches", "evaluate", after=False)
    around(checkpoint, "sha256_of", "saving", after=True, counts_for=lambda path: path.suffix == ".tmp")


if VARIABLE in os.environ:
    sys.path.insert(0, str(ROOT))
    atexit.register(gc.unfreeze)  # of what run.py freezes, here with Triton, whose version 3.9 lists it as leaks
    arrange(json.loads(os.environ[VARIABLE]))

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:] == ["--forks"]:
        sys.exit(serve())
    import run as run_module
    from roadmap.distributed.signals import leave_at_once

    leave_at_once()
    sys.exit(run_module.main())
