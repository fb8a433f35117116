"""A disk that is full, fails or is not safe ends a run with 74 or 78 and spares what was saved."""

import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys

import pytest

from roadmap.errors import DiskError, Refused
from roadmap.runs import checkpoint
from roadmap.runs.run_dir import RunDir, refuse_unsafe, run_path
from roadmap.sweep.__main__ import main as sweep
from roadmap.sweep.study import read_study
from roadmap.sweep.study_dir import StudyDir
from roadmap.training.train import train

from .conftest import ROOT
from .records import assert_equal_runs, newest

TINY = (
    "data.train_images=96",
    "data.val_images=40",
    "recipe.batch_size=16",
    "recipe.epochs=2",
    "recipe.warmup_epochs=0",
    "checkpoint.every_min=0",
    "wandb.mode=disabled",
)


@pytest.fixture
def little_disk(tmp_path):
    """A file system of 7 MB: two checkpoints of the tiny net are 11."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    place = tmp_path / "little"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_file_system_that_cannot_sync_folders_is_no_error(small, monkeypatch):
    real, asked = os.fsync, []

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            asked.append(handle)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    assert train(small("gelu"))["state"] == "done"
    assert asked
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(DiskError, match="Input/output error"):
        train(small("gelu", "seed=1"))


@pytest.mark.parametrize("verb", ["train", "submit", "reconcile", "cancel"])
def test_a_file_system_without_locks_is_a_plain_line(small, tmp_path, monkeypatch, capsys, verb):
    runs = tmp_path / "runs"
    if verb != "train":
        with (directory := StudyDir(runs, "demo")).lock():
            directory.write_cells(read_study("demo", runs=runs))

    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    if verb == "train":
        with pytest.raises(DiskError, match="no locks"):
            train(small("gelu"))
        return
    assert sweep([verb, "demo", "--runs", str(runs), "--cluster", "local"]) == 74
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "this file system has no locks" in line


def test_a_full_disk_ends_the_run_and_with_room_it_goes_on_to_the_same_bits(small, reference, forks, little_disk):
    words = ("+step=gelu", *TINY, f"paths.runs={little_disk}")
    whole, config = reference("gelu", *TINY), small("gelu", *TINY, words[-1])
    done = forks.run(words)
    assert done.returncode == 74, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    saved = newest(config)
    assert saved["global_step"] >= 1
    subprocess.run(["mount", "-o", "remount,size=200m", str(little_disk)], check=True)
    done = forks.run(words)
    assert done.returncode == 0, done.stderr
    assert "goes on at step" in done.stderr
    assert_equal_runs(config, whole)


@pytest.mark.parametrize(
    "nth", [pytest.param(n, marks=pytest.mark.slow if n not in (9, 14) else []) for n in range(1, 31)]
)
def test_a_disk_that_fails_to_make_anything_durable_is_told(small, reference, forks, tmp_path, nth):
    """The kernel's own answer, for the nth fsync of the process."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    words = ("+step=gelu", *TINY, f"paths.runs={tmp_path / 'runs'}")
    config = small("gelu", *TINY, words[-1])
    fault = f"trace=fsync -e inject=fsync:error=EIO:when={nth}"
    strace = f"strace -f --seccomp-bpf -qq -o {os.devnull} -e {fault}".split()
    command = [*strace, sys.executable, str(ROOT / "run.py"), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 74, done.stderr
    assert "Input/output error" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((run_path(config) / "checkpoints").glob("*.tmp"))
    again = forks.run(words)
    assert again.returncode == 0, again.stderr
    assert_equal_runs(config, reference("gelu", *TINY))


def test_what_was_written_is_read_back_before_it_counts(small, monkeypatch):
    config = small("gelu", *TINY)
    real = checkpoint.torch.save

    def damaging(state, out):
        real(state, out)
        out.seek(out.tell() // 2)
        out.write(b"\0" * 64)

    monkeypatch.setattr(checkpoint.torch, "save", damaging)
    with pytest.raises(DiskError, match="differs from what was written"):
        train(config)
    assert json.loads((run_path(config) / "status.json").read_text())["exit_code"] == 74
    assert not list(run_path(config).rglob("step-*"))


@pytest.mark.parametrize("depth", range(5))
def test_a_place_that_everybody_can_write_is_refused(tmp_path, depth):
    path = tmp_path / "runs" / "study" / "nano-digits" / "gelu" / "seed0"
    path.mkdir(parents=True)
    folder = (path, *path.parents)[depth]
    folder.chmod(0o777)
    with pytest.raises(Refused, match=rf"{folder.name} is writable for everyone \(mode 777\)"):
        refuse_unsafe(path)
    folder.chmod(0o1777)  # as /tmp: nobody can replace what is another's
    refuse_unsafe(path)
    folder.chmod(0o775)  # a group's own: two people may run one study
    refuse_unsafe(path)


def test_an_unsafe_place_is_told_and_nothing_is_written(forks, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o777)
    done = forks.run(("+step=gelu", *TINY, f"paths.runs={tmp_path / 'runs'}"))
    assert done.returncode == 78
    assert "runs is writable for everyone (mode 777)" in done.stderr
    assert not list((tmp_path / "runs").iterdir())


def test_a_record_that_cannot_be_read_is_a_disk_error(small, tmp_path):
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    (run.path / "config.yaml").mkdir()
    with pytest.raises(DiskError, match="cannot be read"):
        run.load_status({}, {}, allow_drift=False)
