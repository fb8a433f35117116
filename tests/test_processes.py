"""What a run is told from outside, and the processes that help it: signals, workers that are lost, reads that stall."""

import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import roadmap
from roadmap import text
from roadmap.bench import input as bench_input
from roadmap.data import workers
from roadmap.data.folders import list_images, read_image
from roadmap.data.workers import load_batches
from roadmap.distributed import signals
from roadmap.distributed.device import is_out_of_memory
from roadmap.distributed.signals import StopSignal
from roadmap.errors import ConfigError, DataError, LoaderError, StoppedEarly
from roadmap.files import read_json, read_regular
from roadmap.runs.metrics import append_metrics, read_metrics
from roadmap.runs.process import is_alive
from roadmap.sweep.launchers import local
from roadmap.sweep.study_dir import StudyDir

from . import drive
from .conftest import ROOT

compose = sys.modules["roadmap.steps.compose"]  # `roadmap.steps.compose` is the function

CPU = torch.device("cpu")
BATCHES = torch.arange(12).split(4)
pytestmark = pytest.mark.timeout(240)


def image(index: int) -> torch.Tensor:
    return torch.full((3, 64, 64), float(index))


def batches_of(prepare, collate=torch.stack, num_workers=2):
    return list(load_batches(prepare, collate, BATCHES, num_workers, CPU))


# Batches and lost workers


def pair(items):
    images = torch.stack(items).contiguous(memory_format=torch.channels_last)
    return images, torch.arange(len(items)), torch.empty(0)


def test_a_workers_batch_is_the_same_and_takes_nothing_of_dev_shm():
    for collate in (torch.stack, pair):
        here, there = (batches_of(image, collate, num_workers) for num_workers in (0, 2))
        for mine, theirs in zip(here, there, strict=True):
            tensors = [(mine, theirs)] if isinstance(mine, torch.Tensor) else zip(mine, theirs, strict=True)
            for one, other in tensors:
                assert torch.equal(one, other)
                assert (one.dtype, one.stride()) == (other.dtype, other.stride())
        maps = Path("/proc/self/maps").read_text()
        assert "memfd:batch" in maps
        # Semaphores of multiprocessing's queues, a few bytes each, live there too until they are collected.
        assert [line for line in maps.splitlines() if "/dev/shm" in line and "/dev/shm/sem." not in line] == []


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")  # torch says so without a GPU
def test_the_process_that_feeds_a_gpu_goes_before_its_workers():
    here = os.nice(0)
    for device, behind in (("cpu", 0), ("cuda", 5)):
        (found,) = load_batches(
            lambda index: torch.tensor(os.nice(0)), torch.stack, [torch.tensor([0])], 1, torch.device(device)
        )
        assert found.item() == min(19, here + behind)
    assert os.nice(0) == here


class StartedLoader(torch.utils.data.DataLoader):
    """A loader whose workers have ended before its user has seen them."""

    def __iter__(self):
        batches = super().__iter__()
        for process in batches._workers:
            process.join()
        return batches


def test_a_worker_that_is_killed_while_it_starts_is_told(monkeypatch):
    monkeypatch.setattr(workers, "DataLoader", StartedLoader)
    monkeypatch.setattr(workers, "start_worker", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    handler = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(LoaderError, match=r"a process that prepares images was killed \(SIGKILL; out of memory\?\)"):
        batches_of(image)
    assert signal.getsignal(signal.SIGCHLD) == handler


def dies(number):
    def prepare(index: int) -> torch.Tensor:
        if index == 6:
            os.kill(os.getpid(), number)
        return image(index)

    return prepare


def fails(error):
    def prepare(index: int) -> torch.Tensor:
        if index == 6:
            raise error
        return image(index)

    return prepare


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (dies(signal.SIGKILL), r"data.workers=2: .* was killed \(SIGKILL; out of memory\?\); fewer data.workers"),
        (dies(signal.SIGBUS), r"no shared memory \(SIGBUS\); `docker run --shm-size=8g`"),
        (dies(signal.SIGSEGV), r"was killed \(SIGSEGV\)"),
        (fails(MemoryError()), r"memory ran out .* data.workers=0"),
        (fails(OSError(errno.ENOMEM, "Cannot allocate memory")), r"memory ran out .*Cannot allocate memory"),
        (fails(OSError(errno.EMFILE, "Too many open files")), r"Too many open files; `ulimit -n`"),
    ],
)
def test_a_batch_that_a_worker_cannot_deliver_ends_with_its_cause(prepare, expected):
    began = time.monotonic()
    with pytest.raises(LoaderError, match=expected) as caught:
        batches_of(prepare)
    assert time.monotonic() - began < 30
    assert caught.value.code == 75
    assert not torch.multiprocessing.active_children()


def test_a_path_of_temporary_files_that_is_too_long_for_a_socket_is_no_error(tmp_path, monkeypatch):
    """As on clusters that give each job a folder of its own: every batch is handed over at a socket below TMPDIR."""
    long = tmp_path / ("a" * 60) / ("b" * 60)
    long.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)
    assert len(batches_of(image)) == len(BATCHES)
    assert tempfile.gettempdir() == str(long)


def test_a_batch_that_cannot_be_sent_is_not_waited_for(monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(workers.SharedBatch, "__reduce__", Mock(side_effect=full))
    with pytest.raises(LoaderError, match=r"cannot pass them on \(No space left on device\)"):
        batches_of(image)


def test_workers_that_cannot_be_started_are_told(monkeypatch):
    monkeypatch.setattr(os, "fork", Mock(side_effect=OSError(errno.EAGAIN, "Resource temporarily unavailable")))
    with pytest.raises(LoaderError, match=r"data.workers=2: cannot be started \(Resource temporarily unavailable\)"):
        batches_of(image)


def test_a_mistake_of_ours_in_a_worker_keeps_its_traceback():
    with pytest.raises(TypeError, match="nobody thought of this"):
        batches_of(fails(TypeError("nobody thought of this")))


@pytest.fixture
def stalled():
    """Return what prepares images but for one, whose read never ends, and a pipe that tells when it has begun."""
    reading, nothing = os.pipe(), os.pipe()

    def prepare(index: int) -> torch.Tensor:
        if index == 6:
            os.write(reading[1], b".")
            os.read(nothing[0], 1)
        return image(index)

    yield prepare, reading[0]
    for handle in (*reading, *nothing):
        os.close(handle)


def test_images_that_do_not_come_end_the_run(stalled, monkeypatch):
    monkeypatch.setattr(workers, "STALL_S", 3.0)
    with pytest.raises(LoaderError, match="no images for 3 s, because their folder does not respond"):
        batches_of(stalled[0])
    assert not torch.multiprocessing.active_children()


SUSPENDED = """
import os, sys
import torch
from roadmap.data import workers
workers.POLL_S, workers.STALL_S = 1, 2.0
def prepare(index):
    os.write(1, b".")
    os.read(0, 1)
    return torch.zeros(1)
print(len(list(workers.load_batches(prepare, torch.stack, torch.arange(2).split(1), 1, torch.device("cpu")))))
"""


def test_a_run_that_was_suspended_has_waited_for_nothing():
    process = subprocess.Popen(
        [sys.executable, "-c", SUSPENDED], cwd=ROOT, start_new_session=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.read(1) == b"."  # a worker reads an image
    os.killpg(process.pid, signal.SIGSTOP)  # as `scontrol suspend`, and a terminal's Ctrl-Z
    time.sleep(2.5)
    os.killpg(process.pid, signal.SIGCONT)
    assert process.communicate(b"..")[0].endswith(b"2\n")


def test_a_stop_does_not_wait_for_a_read_that_stalls(stalled, monkeypatch):
    monkeypatch.setattr(signals, "STALL_S", 0.5)
    prepare, reading = stalled

    def ask() -> None:
        os.read(reading, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    with (
        StopSignal() as stop,
        pytest.raises(StoppedEarly, match="stopped by SIGTERM, while it waited for images") as caught,
    ):
        list(stop.interruptible(load_batches(prepare, torch.stack, BATCHES, 2, CPU)))
    asking.join()
    assert not caught.value.on_all_ranks  # the others are told
    assert not torch.multiprocessing.active_children()


class Loses:
    """Takes what a signal's handler raises into its destructor, where Python drops it."""

    def __del__(self):
        for _ in range(100):
            work()


def work():
    """Compute for a while, and wait for a while: there are clocks of both."""
    sum(range(1_000_000))
    time.sleep(0.01)


def lose_one_and_go_on():
    Loses()
    for _ in range(100):
        work()


def stopped_wait():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        list(stop.interruptible(lose_one_and_go_on() for _ in range(1)))


def long_composition():
    with compose.bounded_time():
        lose_one_and_go_on()


def long_measurement():
    with bench_input.time_limit(0.2):
        lose_one_and_go_on()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("call", "error"),
    [(stopped_wait, StoppedEarly), (long_composition, ConfigError), (long_measurement, TimeoutError)],
)
def test_a_time_limit_holds_although_an_error_is_lost(monkeypatch, call, error):
    monkeypatch.setattr(signals, "STALL_S", 0.2)
    monkeypatch.setattr(compose, "COMPOSE_S", 0.2)
    with pytest.raises(error):
        call()
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL):
        assert signal.getitimer(timer)[1] == 0  # pytest has one of its own, which does not repeat


def test_workers_are_no_more_than_this_process_has_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    batches = load_batches(image, torch.stack, BATCHES, 8, CPU)
    next(batches)
    assert len(torch.multiprocessing.active_children()) == 1
    batches.close()


QUOTA = """
import os, runpy, sys
from contextlib import suppress
from pathlib import Path
Path(sys.argv[1]).write_text(str(os.getpid()))
sys.argv[1:] = ["--help", "step"]
with suppress(SystemExit), open(os.devnull, "w") as sys.stdout:
    runpy.run_path("run.py", run_name="__main__")
sys.stdout = sys.__stdout__
import torch
from roadmap.distributed.cores import usable_cores
print(torch.get_num_threads(), len(usable_cores()))
"""


def test_threads_and_cells_are_no_more_than_a_control_group_grants():
    root = Path("/sys/fs/cgroup")
    v2 = (root / "cgroup.controllers").exists()
    group = root / ("" if v2 else "cpu") / f"roadmap-test-{os.getpid()}"
    limits = {"cpu.max": "100000 100000"} if v2 else {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "100000"}
    try:
        group.mkdir()
        for name, text in limits.items():
            (group / name).write_text(text)
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    try:
        done = drive.python("-c", QUOTA, group / "cgroup.procs", env=env)
    finally:
        group.rmdir()
    assert done.stdout.split() == ["1", "1"], done.stderr


# Whole runs

WORDS = (
    "+step=gelu", "data.pipeline=reference", "data.train_images=48", "data.val_images=40", "data.workers=1",
    "recipe.batch_size=16", "recipe.micro_batch=8", "recipe.epochs=2", "recipe.warmup_epochs=0", "wandb.mode=disabled",
    "checkpoint.every_min=0",
)  # fmt: skip


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_whose_worker_is_killed_ends_with_75_and_goes_on(forks, tmp_path, devices):
    words = (*WORDS, f"devices={devices}", f"paths.runs={tmp_path}")
    done = forks.run(words, drive.accident("before", 2, rank=devices - 1, to="worker"))
    assert done.returncode == 75, done.stderr
    assert re.search(r"^error: data.workers=1: a process that prepares images was killed", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
    (status,) = tmp_path.glob("single/*/*/seed0/status.json")
    assert (read_json(status)["exit_code"], read_json(status)["reason"][:11]) == (75, "LoaderError")
    assert forks.run(words).returncode == 0


@pytest.mark.parametrize("name", ["HUP", "QUIT", "USR1", "XCPU"])
def test_every_signal_that_ends_jobs_is_polite(forks, tmp_path, name):
    words = (*WORDS, "data.workers=0", f"paths.runs={tmp_path}")
    stopped = forks.run(words, drive.accident("step", 2, what=name))
    assert stopped.returncode == 75, stopped.stderr
    assert stopped.stderr.splitlines()[-1] == f"stopped by SIG{name}; run the same command again to continue"
    (status,) = tmp_path.glob("single/*/*/seed0/status.json")
    assert (read_json(status)["state"], read_json(status)["step"]) == ("stopped", 2)


def test_a_service_of_wandb_that_is_killed_is_one_line(forks, tmp_path):
    words = (*WORDS, "data.workers=0", "wandb.mode=offline", f"paths.runs={tmp_path}")
    done = forks.run(words, drive.accident("before", 2, to="service"))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("W&B failed, and the run continues without it") == 1


IMPORTS = """
import builtins, os, runpy, signal, sys
real = builtins.__import__
def stop_at_torch(name, *args):
    if name == "torch":
        os.kill(os.getpid(), signal.SIGTERM)
    return real(name, *args)
builtins.__import__ = stop_at_torch
sys.argv = ["run.py", "+step=gelu", "paths.runs=" + sys.argv[1]]
runpy.run_path("run.py", run_name="__main__")
"""


def test_a_stop_while_modules_are_imported_is_one_line_and_leaves_nothing(tmp_path):
    done = drive.python("-c", IMPORTS, tmp_path / "runs", env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1] == "stopped by SIGTERM; run the same command again to continue"
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


# Of each command a module that it imports before it begins, or once it has begun.
INTERRUPTED = {
    "report": "pandas", "report.compare": "pandas", "sweep": "hydra", "steps": "torch", "bench": "torch",
    "runs": "zlib", "runs.pack": "zipfile",
}  # fmt: skip
PRESS = """
import builtins, os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
real = builtins.__import__
def press(name, *args, **kwargs):
    if name == os.environ["PRESSED_AT"]:
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *args, **kwargs)
builtins.__import__ = press
"""


@pytest.mark.parametrize("module", INTERRUPTED)
def test_ctrl_c_while_a_command_is_imported_is_one_line(tmp_path, module):
    (tmp_path / "sitecustomize.py").write_text(PRESS)
    words = {"report": [tmp_path, "--out", tmp_path / "out"], "report.compare": "ab", "sweep": ["plan", "demo"]}
    words |= {"bench": ["net", "--help"], "runs": [tmp_path], "runs.pack": [tmp_path]}
    env = {**os.environ, "PRESSED_AT": INTERRUPTED[module], "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = drive.python("-m", f"roadmap.{module}", *words.get(module, []), env=env)
    assert (done.returncode, done.stderr) == (75, "interrupted\n")


def test_ctrl_c_of_which_a_library_makes_an_error_is_still_a_stop(capsys):
    @text.command_line
    def command() -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("cannot load module more than once per process") from None
        return 0

    earlier = signal.signal(signal.SIGINT, roadmap.interrupted)
    try:
        assert command() == 75
        assert signal.getsignal(signal.SIGINT) is roadmap.interrupted
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert capsys.readouterr().err == "interrupted\n"


# Signals


def test_what_was_ignored_at_the_start_stays_ignored():
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.raise_if_set()
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, earlier)


def test_only_a_second_press_of_a_key_interrupts_and_only_once(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: clock[0])
    with StopSignal() as stop:
        for _ in range(2):  # `timeout -s INT` sends it to the process and to its group
            os.kill(os.getpid(), signal.SIGINT)
        clock[0] = 1.0
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # while the record is closed
        with pytest.raises(StoppedEarly, match="SIGINT"):
            stop.raise_if_set()


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (None, "stopped (1 not started); run the same command again to continue"),
        ('{"state": "stopped"}', "stopped (1 saved); run the same command again to continue"),
        ('{"state": "running"}', f"stopped (1 {signals.CUT_OFF}); run the same command again to continue"),
        (
            f'{{"state": "stopped", "reason": "KeyboardInterrupt: {signals.CUT_OFF}"}}',
            f"stopped (1 {signals.CUT_OFF}); run the same command again to continue",
        ),
    ],
)
def test_a_study_says_of_its_cells_what_is_so(tmp_path, cell, expected):
    directory = StudyDir(tmp_path, "mine")
    directory.make()
    key = "nano-digits/gelu/seed0"
    if cell:
        (directory.path / key).mkdir(parents=True)
        (directory.path / key / "status.json").write_text(cell)
    directory.append_jobs([{"cell": key, "kind": "ended"}])
    task = local.LocalTask(directory, key, ["sh", "-c", "kill -HUP $PPID; exec sleep 60"])
    with pytest.raises(StoppedEarly, match=f"^{re.escape(expected)}$"):
        local.Scheduler([local.Slot()], lambda _: None).run([task])


STARTER = """
import os, signal, subprocess, sys, time
from roadmap.runs.children import end_with_parent
signal.signal(signal.SIGTERM, lambda *_: None)  # as the scheduler's
ask = end_with_parent()
def before_its_program():
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(1)
    ask()
subprocess.Popen(["sleep", "600"], preexec_fn=before_its_program, start_new_session=True)
"""


def test_a_child_ends_with_a_parent_that_is_killed_while_it_starts():
    with subprocess.Popen([sys.executable, "-c", STARTER], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 60
    while is_alive(child, None):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_study_whose_folder_is_removed_meanwhile_ends_in_a_line(tmp_path):
    directory, told = StudyDir(tmp_path, "mine"), []
    directory.make()
    # Once the start of the cell is recorded, nothing is written while the folder is removed.
    command = 'until [ -e "$1/.study/jobs.jsonl" ]; do sleep 0.02; done; rm -r "$1"; exit 1'
    task = local.LocalTask(directory, "nano-digits/gelu/seed0", ["sh", "-c", command, "sh", str(directory.path)])
    assert local.Scheduler([local.Slot()], told.append).run([task]) == 74
    assert told == ["mine: nano-digits/gelu/seed0 started", f"[1/1] its folder was removed (exit code 74; {task.log})"]
    assert not directory.path.exists()


# Regular files


def test_a_pipe_among_the_images_is_named_and_not_read(tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "0.png")
    pipe = tmp_path / "train" / "a" / "1.png"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match=r"train/a/1.png: not a regular file"):
        list_images(tmp_path)
    with pytest.raises(DataError, match="not a regular file"):
        read_image(pipe)
    pipe.unlink()
    with pipe.open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(DataError, match=r"train/a/1.png: is not an image \(larger than 1 GiB\)"):
        list_images(tmp_path)


@pytest.mark.parametrize("use", [read_regular, read_json, read_metrics, lambda path: append_metrics(path, [{}])])
def test_a_pipe_in_place_of_a_record_is_no_file(tmp_path, use):
    os.mkfifo(tmp_path / "record")
    with pytest.raises(OSError, match="not a regular file"):
        use(tmp_path / "record")


def behind(text, first):
    """Return an error that came while another one was on its way."""
    error = RuntimeError(text)
    error.__context__ = first
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a memory object"), True),
        (RuntimeError("could not create a primitive descriptor for a convolution forward propagation"), False),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (behind("CUDA error: operation failed due to a previous error during capture", MemoryError()), True),
        (behind("CUDA error: an illegal memory access was encountered", ValueError()), False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"), False),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_memory_that_ran_out_is_known_by_whoever_says_so(error, expected):
    assert is_out_of_memory(error) == expected
