"""A study that a group shares: what each of it writes below a folder with the group's bit the others may go on with."""

import json
import os
import shutil
import stat
import tempfile
import traceback
from pathlib import Path

import pytest

from roadmap.sweep.__main__ import main
from roadmap.sweep.study_dir import StudyDir

GROUP, USERS = 54321, (54001, 54002)
STUBS = {
    "sbatch": 'echo "Submitted batch job $(date +%s)"',
    "squeue": 'echo "squeue: error: nobody knows" >/dev/null',
    **dict.fromkeys(("srun", "sinfo", "sacct", "scancel", "scontrol"), ""),
}
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becoming other users needs root")


@pytest.fixture
def shared(monkeypatch):
    """Return a runs folder of a group (setgid), and Slurm as a few scripts, where every user gets at them."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    runs, scripts = place / "runs", place / "bin"
    place.chmod(0o755)
    for folder in (runs, scripts):
        folder.mkdir()
    os.chown(runs, USERS[0], GROUP)
    runs.chmod(0o2775)
    for name, text in STUBS.items():
        (scripts / name).write_text(f"#!/bin/sh\n{text}\n")
        (scripts / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{scripts}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(place))
    yield runs
    shutil.rmtree(place)


def submit(runs, step):
    return main(["submit", "demo", "--runs", str(runs), "--", f"+step={step}", "recipe.micro_batch=8"])


def as_user(uid, umask, call):
    """Let another user do something, in a fork of this process, which has imported what it needs."""
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.umask(umask)
            os.setgroups([GROUP])
            os.setgid(uid)
            os.setuid(uid)
            code = call()
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def below(folder):
    return [path for path in (folder, *folder.rglob("*")) if not path.is_symlink()]


def test_two_people_of_a_group_submit_the_same_study(shared, tmp_path):
    assert submit(tmp_path, "gelu") == 0  # imports everything
    for uid, step in zip(USERS, ("gelu", "resnet"), strict=True):
        assert as_user(uid, 0o002, lambda step=step: submit(shared, step)) == 0
    study = StudyDir(shared, "demo")
    assert {cell["step"] for cell in study.cells()} == {"gelu", "resnet"}
    rows = [json.loads(line) for line in (study.notes / "jobs.jsonl").read_text().splitlines()]
    assert [row["uid"] for row in rows] == list(USERS)
    for path in below(study.path):
        about = path.stat()
        assert about.st_gid == GROUP and not about.st_mode & stat.S_IWOTH, path
        assert about.st_mode & stat.S_IWGRP, path
        assert path.is_file() or about.st_mode & stat.S_ISGID, path
    assert (study.notes / "slurm").stat().st_mode & 0o007 == 0  # submitit's files may be read by anyone


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_who_does_not_share_shares_nothing(shared, tmp_path, umask):
    assert submit(tmp_path, "gelu") == 0
    assert as_user(USERS[0], umask, lambda: submit(shared, "gelu")) == 0
    study = StudyDir(shared, "demo")
    assert not [path for path in below(study.path) if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)]
    assert (study.notes / "slurm").stat().st_mode & 0o077 == 0
    assert as_user(USERS[1], umask, lambda: submit(shared, "resnet")) == 74
