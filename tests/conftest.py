"""What tests share: the command line as a user types it, small runs in this process, and runs trained once for all."""

import copy
import functools
import gc
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from roadmap.config.schema import Config
from roadmap.steps.compose import compose

from . import drive

ROOT = Path(__file__).resolve().parent.parent
SMALL = (
    "data.train_images=96", "data.val_images=40", "recipe.batch_size=32", "recipe.epochs=2", "recipe.warmup_epochs=0",
)  # fmt: skip

# A shell's background job ignores the keyboard, under nohup a closed terminal too, and so would every run of a test.
HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGQUIT: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
for number, default in HANDLERS.items():
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, default)


# Torch and its like are a million objects, which Python's collector goes over a thousand times: a tenth of all tests.
gc.set_threshold(50_000, 20, 20)

# Each time the same cases, of which none is late: how long one takes says how busy the machine is.
with suppress(ImportError):  # the tests of a GPU need none
    import hypothesis

    hypothesis.settings.register_profile(
        "tests", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("tests")


def pytest_addoption(parser):
    parser.addoption("--results", type=Path, help="a file that gets a line of JSON with each test that has ended")


def pytest_configure(config):
    path = config.getoption("--results")
    if path and not hasattr(config, "workerinput"):  # a worker of pytest-xdist passes its results on
        config.pluginmanager.register(ResultLines(path))


class ResultLines:
    """Writes how each test ended when it is known: a run of the tests that is cut off has told what it has found."""

    def __init__(self, path: Path) -> None:
        self.out = path.open("w")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        line = {"test": report.nodeid, "outcome": report.outcome, "time_s": round(report.duration, 2)}
        print(
            json.dumps(line | ({"error": report.longreprtext[-6000:]} if report.failed else {})),
            file=self.out,
            flush=True,
        )


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path_factory):
    """No test finds a login, a data folder, a runs folder or the `make` of whoever runs it."""
    for name in (
        "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_DIR", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY", "ROADMAP_DATA",
        "ROADMAP_RUNS", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    # The client's process, of a run in this process: a command has its own, and this one may end before the next test.
    os.environ.pop("WANDB_SERVICE", None)
    monkeypatch.setenv("NETRC", os.devnull)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path_factory.getbasetemp() / "nobody"))
    monkeypatch.setenv("ROADMAP_KERNELS", "")


@pytest.fixture(scope="session")
def forks():
    """Start the process that command lines are forks of: it has imported everything, so that they need not."""
    server = drive.Forks()
    yield server
    server.close()


@pytest.fixture
def command(forks, tmp_path):
    """Return a function that runs `python run.py WORDS` with its runs under `tmp_path/runs`."""

    def call(*words: str, runs: Path | None = tmp_path / "runs", **env: str) -> subprocess.CompletedProcess[str]:
        return forks.run((*words, *([f"paths.runs={runs}"] if runs else [])), env)

    return call


@pytest.fixture
def report_command(forks):
    """Return a function that reports runs, of a W&B too, in a process of its own: W&B's client keeps its settings for
    the life of one."""

    def call(server, source: str, out: Path, **environment: str | None) -> subprocess.CompletedProcess[str]:
        from .wandb_server import KEY

        told = {
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": KEY,
            "WANDB_CACHE_DIR": str(out.parent / "cache"),
            "WANDB_CONFIG_DIR": str(out.parent / "config"),
            "HOME": str(out.parent / "home"),
            "NETRC": str(out.parent / "netrc"),
            "NO_PROXY": "127.0.0.1",
        }
        env = {key: value for key, value in (told | environment).items() if value is not None}
        return forks.run((*source.split(), "--out", str(out), "--tables-only"), env, "report")

    return call


@pytest.fixture
def sweep(capsys):
    """Return a function that types `python -m roadmap.sweep WORDS` here; it returns the exit code and what was said."""

    def call(*words: object) -> tuple[int, str]:
        from roadmap.sweep.__main__ import main

        code = main([*map(str, words)])
        return code, "".join(capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def gpu_kernels(tmp_path_factory):
    """Compile the kernels of small runs on a GPU side by side, seconds each, once for all workers of pytest-xdist."""
    import torch

    from roadmap.bench.kernels import compile_ahead, compilers, taken_by_auto
    from roadmap.bench.operations import shapes_of
    from roadmap.files import file_lock

    shared, device = tmp_path_factory.getbasetemp(), torch.device("cuda")
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROADMAP_KERNELS", "")  # as in every test
        forms = taken_by_auto(shapes_of([composed("separate_downsampling", ())], 32), device)
    with file_lock(shared / "kernels.lock", "the kernels are being compiled", 200):
        if not (shared / "kernels").exists():
            end = time.monotonic() + 90
            with compilers(device) as pool, ThreadPoolExecutor() as beside:
                kinds = (torch.bfloat16, torch.float32, torch.float16)
                for job in [beside.submit(compile_ahead, pool, forms, kind, end) for kind in kinds]:
                    job.result()
            (shared / "kernels").touch()


class Trap:
    """What a pickle can do: call something when it is read."""

    def __init__(self, call: Callable[..., object], *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@functools.cache
def composed(step: str, words: tuple[str, ...]) -> Config:
    """Compose a run of regime nano, once."""
    return compose(step, "nano", words)


def small_run(runs: Path, step: str, *overrides: str) -> Config:
    """Return a run of a second or two on the digits, below `runs`."""
    given = {o.split("=")[0] for o in overrides}
    defaults = [w for w in (*SMALL, "wandb.mode=disabled") if w.split("=")[0] not in given]
    config = copy.deepcopy(composed(step, (*defaults, *overrides)))
    if "paths.runs" not in given:
        config.paths.runs = str(runs)
    return config


@pytest.fixture
def small(tmp_path):
    """Return a function that composes a small run, under `tmp_path/runs`."""
    return lambda step="separate_downsampling", *overrides: small_run(tmp_path / "runs", step, *overrides)


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """Return a function: a small run that was trained, once for all tests of this process, or stopped at a check.

    Tests only read what it left.
    """
    return References(tmp_path_factory)


class References:
    """Small runs, by what they were trained with."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self.folders, self.trained = folders, {}

    def __call__(self, step: str = "separate_downsampling", *overrides: str, stopped_at: int | None = None) -> Config:
        from roadmap.training.train import train

        from . import records

        key = (step, *overrides, stopped_at)
        if key not in self.trained:
            config = small_run(self.folders.mktemp("reference"), step, *overrides)
            if stopped_at is None:
                train(config)
            else:
                with records.stopped_at(stopped_at):
                    train(config)
            self.trained[key] = config
        return copy.deepcopy(self.trained[key])

    def copy_to(self, runs: Path, step: str = "separate_downsampling", *overrides: str, stopped_at: int | None = None):
        """Return a run below `runs` that has already left what the reference left."""
        from roadmap.runs.run_dir import run_path

        config = small_run(runs, step, *overrides)
        shutil.copytree(run_path(self(step, *overrides, stopped_at=stopped_at)), run_path(config))
        return config


@pytest.fixture
def trained(reference, tmp_path):
    """Return a function: a small run under `tmp_path/runs` that is trained already, or was stopped at a check."""
    return functools.partial(reference.copy_to, tmp_path / "runs")
