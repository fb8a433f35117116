"""A disk that is full, fails or is not safe ends a run with 74 or 78 and spares what was saved."""

import errno
import fcntl
import os
import shutil
import socket
import stat
import subprocess
import sys
from contextlib import suppress
from unittest.mock import Mock

import pytest

from roadmap.errors import Busy, DiskError, Refused
from roadmap.files import atomic_write, file_lock
from roadmap.runs import checkpoint
from roadmap.runs.permissions import refuse_unsafe
from roadmap.runs.run_dir import RunDir, run_path
from roadmap.sweep.study import read_study
from roadmap.sweep.study_dir import StudyDir
from roadmap.training.evaluation import evaluate_weights
from roadmap.training.train import train

from .conftest import ROOT
from .records import assert_equal_runs, newest, status, stopped_at

TINY = (
    "data.train_images=96", "data.val_images=40", "recipe.batch_size=16", "recipe.epochs=2", "recipe.warmup_epochs=0",
    "checkpoint.every_min=0", "wandb.mode=disabled",
)  # fmt: skip


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
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
    with pytest.raises(DiskError, match="Input/output error"):
        train(small("gelu", "seed=1"))


@pytest.mark.parametrize("verb", ["train", "submit", "reconcile", "cancel"])
def test_a_file_system_without_locks_is_a_plain_line(small, tmp_path, monkeypatch, sweep, verb):
    runs = tmp_path / "runs"
    if verb != "train":
        with (directory := StudyDir(runs, "demo")).lock():
            directory.write_cells(read_study("demo", ["+step=gelu"], runs))

    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))))
    if verb == "train":
        with pytest.raises(DiskError, match="no locks"):
            train(small("gelu"))
        return
    code, told = sweep(verb, "demo", "--runs", runs, "--cluster", "local", "--", "+step=gelu")
    assert code == 74 and told.startswith("error: ") and len(told.splitlines()) == 1
    assert "this file system has no locks" in told


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
    assert "resuming at step" in done.stderr
    assert_equal_runs(config, whole)


def test_a_lock_on_a_full_disk_is_one_that_does_not_say_whose(little_disk):
    """There `make prune`, which makes room, must not end with an error."""
    lock = little_disk / ".lock"
    with file_lock(lock, "busy", 0.0):
        pass
    os.truncate(lock, 0)
    with suppress(OSError), open(little_disk / "full", "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    with file_lock(lock, "busy", 0.0), pytest.raises(Busy, match=r"^busy \(\)$"), file_lock(lock, "busy", 0.0):
        pass


@pytest.mark.parametrize("nth", [pytest.param(n, marks=pytest.mark.slow if n != 9 else []) for n in range(1, 31)])
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
    assert status(config)["exit_code"] == 74
    assert not list(run_path(config).rglob("step-*"))


LOADED = ("config.yaml", "status.json", "metrics.jsonl", "checkpoints/step-1.pt", "checkpoints/step-1.json")


@pytest.fixture
def run_dir(tmp_path):
    """A run's directory with what a run loads, below a folder of one's own."""
    path = tmp_path / "home" / "runs" / "study" / "nano-digits" / "gelu" / "seed0"
    (path / "checkpoints").mkdir(parents=True)
    for name in LOADED:
        (path / name).write_text("")
    return path


@pytest.mark.parametrize("depth", range(6))
def test_a_place_that_everybody_can_write_is_refused(run_dir, depth):
    folder = (run_dir, *run_dir.parents)[depth]
    folder.chmod(0o777)
    with pytest.raises(Refused, match=rf"{folder.name} is writable by everyone \(mode 777\)"):
        refuse_unsafe(run_dir)
    folder.chmod(0o1777)  # as /tmp: nobody can replace what is another's
    refuse_unsafe(run_dir)
    folder.chmod(0o775)  # a group's own: two people may run one study
    refuse_unsafe(run_dir)


@pytest.mark.parametrize("name", [*LOADED, "checkpoints"])
def test_what_a_run_loads_is_refused_where_everybody_can_write_it_or_another_user_did(run_dir, name):
    refuse_unsafe(run_dir)
    (run_dir / name).chmod(0o777)
    with pytest.raises(Refused, match=rf"{name} is writable by everyone \(mode 777\)"):
        refuse_unsafe(run_dir)
    (run_dir / name).chmod(0o755)
    if os.geteuid() == 0:
        os.chown(run_dir / name, 12345, -1)
        with pytest.raises(Refused, match=rf"{name} belongs to another user \(uid 12345\)"):
            refuse_unsafe(run_dir)
        os.chown(run_dir, 0, os.getegid())
        for folder in (run_dir, run_dir / "checkpoints"):  # a group's own: two people may run one study
            folder.chmod(0o2775)
        refuse_unsafe(run_dir)


def test_where_a_link_leads_is_what_counts_and_the_folders_above_it(run_dir, tmp_path):
    (tmp_path / "open" / "inner").mkdir(parents=True)
    target = tmp_path / "open" / "inner" / "x.pt"
    target.write_text("")
    (run_dir / "checkpoints" / "step-1.pt").unlink()
    (run_dir / "checkpoints" / "step-1.pt").symlink_to(tmp_path / "between")
    (tmp_path / "between").symlink_to(target)
    refuse_unsafe(run_dir)
    for unsafe in (target, target.parent, target.parent.parent):
        unsafe.chmod(0o777)
        with pytest.raises(Refused, match=f"{unsafe.name} is writable by everyone"):
            refuse_unsafe(run_dir)
        unsafe.chmod(0o755)
    (tmp_path / "runs").symlink_to(run_dir.parents[3])
    (tmp_path / "home").chmod(0o777)
    with pytest.raises(Refused, match="home is writable by everyone"):
        refuse_unsafe(tmp_path / "runs" / run_dir.relative_to(run_dir.parents[3]))
    (tmp_path / "home").chmod(0o1777)
    refuse_unsafe(tmp_path / "runs" / run_dir.relative_to(run_dir.parents[3]))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_whoever_owns_the_folder_of_runs_is_trusted_and_nobody_who_owns_a_folder_in_it(run_dir):
    os.chown(run_dir.parents[3], 12345, -1)
    for path in (run_dir, *run_dir.parents[:3]):
        os.chown(path, 12345, -1)
    refuse_unsafe(run_dir)
    os.chown(run_dir, 23456, -1)
    with pytest.raises(Refused, match=r"seed0 belongs to another user \(uid 23456\)"):
        refuse_unsafe(run_dir)
    refuse_unsafe(run_dir, run_dir, "weights")  # named by the user


def test_a_run_under_an_open_umask_makes_nothing_that_everybody_can_write_and_goes_on(small, tmp_path):
    config, before = small("gelu", *TINY, f"paths.runs={tmp_path / 'a' / 'runs'}"), os.umask(0)
    try:
        with stopped_at(2):
            train(config)
        os.umask(0)
        train(config)
    finally:
        os.umask(before)
    made = [path for path in (tmp_path / "a").rglob("*") if not path.is_symlink()]
    assert len(made) > 10
    assert not [path for path in made if path.stat().st_mode & 0o002]


def test_weights_of_a_run_that_everybody_can_write_are_refused(small, trained):
    run = run_path(trained())
    (run / "checkpoints").chmod(0o777)
    with pytest.raises(Refused, match=r"weights: .*checkpoints is writable by everyone"):
        evaluate_weights(small("separate_downsampling", "mode=evaluate", f"weights='{run}'"))


def test_a_study_is_not_submitted_or_restarted_where_everybody_can_write_its_notes(tmp_path):
    study = StudyDir(tmp_path / "runs", "mine")
    study.make()
    study.append_jobs([{"cell": "x"}])
    with study.lock():
        pass
    for path in (study.notes / "jobs.jsonl", study.notes):
        path.chmod(0o777)
        with pytest.raises(Refused, match=rf"RUNS: .*{path.name} is writable by everyone"), study.lock():
            pass
        path.chmod(0o755)


def test_an_unsafe_place_is_told_and_nothing_is_written(forks, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o777)
    done = forks.run(("+step=gelu", *TINY, f"paths.runs={tmp_path / 'runs'}"))
    assert done.returncode == 78
    assert "runs is writable by everyone (mode 777)" in done.stderr
    assert not list((tmp_path / "runs").iterdir())


def test_a_record_that_cannot_be_read_is_a_disk_error(tmp_path):
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    (run.path / "config.yaml").mkdir()
    with pytest.raises(DiskError, match="cannot be read"):
        run.load_status({}, {}, allow_drift=False)


KILLED = """
import os, sys
from pathlib import Path
from roadmap.files import atomic_file
with atomic_file(Path(sys.argv[1])) as out:
    out.write(b"half")
    out.flush()
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_writer_left_goes_when_the_file_is_written_again(tmp_path):
    file, alive = tmp_path / "a [1].zip", os.getppid()
    subprocess.run([sys.executable, "-c", KILLED, str(file)], cwd=ROOT, check=False)
    others = [f".a [1].zip.{socket.gethostname()}.{alive}.tmp", ".a [1].zip.elsewhere.1.tmp", ".a [1].zip.notes.tmp"]
    for name in others:
        (tmp_path / name).touch()
    assert len(list(tmp_path.iterdir())) == 4
    atomic_write(file, b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, file.name])
