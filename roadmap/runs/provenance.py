"""Where a result comes from: code, versions, hardware. Goes into `status.json` and `summary.json`."""

import hashlib
import os
import platform
import re
import socket
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from roadmap.files import read_json_or_empty
from roadmap.text import clean, reason

if TYPE_CHECKING:
    import torch

SNAPSHOT = "snapshot.json"  # beside the package in a copy of the code: what the checkout was that it was taken from
PACKAGE = Path(__file__).resolve().parent.parent
ROOMS = ("config", "data", "distributed", "net", "runs", "training")  # what a result depends on
NO_INFLUENCE = (
    "data/download.py",
    "data/verify.py",
    "runs/progress.py",
    "runs/wandb_logger.py",
    "runs/wandb_media.py",
    "runs/wandb_client.py",
)


@cache
def code_hash() -> str:
    """Return a hash of the Python files that a result depends on. Composing is not: the config is recorded whole."""
    digest = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (PACKAGE / room).rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name not in NO_INFLUENCE:
            digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


# By which git finds a repository before it looks around: another's, where a hook of git's runs a command of ours.
OF_A_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")


@cache
def git_state(*paths: str) -> dict[str, str | bool | None]:
    """Return the commit of the checkout, and whether it (or some paths of it) was changed since; None outside of one.

    In a snapshot they are those of the checkout that it was taken from.
    """
    if (PACKAGE.parent / SNAPSHOT).exists():
        return git_state_of(PACKAGE.parent)
    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", *paths)
    return {"git_commit": commit and commit.strip(), "git_dirty": None if changes is None else bool(changes)}


def git_state_of(snapshot: Path) -> dict[str, str | bool | None]:
    """Return commit and dirtiness of a snapshot's code, as they were when it was taken."""
    values = read_json_or_empty(snapshot / SNAPSHOT)
    return {"git_commit": values.get("git_commit"), "git_dirty": values.get("git_dirty")}


def git(*words: str) -> str | None:
    """Return what git prints in the checkout, None where it fails or there is none.

    A copy of the code that lies in a repository of something else is no checkout, unless it is part of it.
    """
    known, _ = _git("ls-files", "--error-unmatch", "--", f"{PACKAGE.name}/__init__.py")
    return None if known is None else _git(*words)[0]


@cache
def git_problem() -> str | None:
    """Return a line that says why no commit of a checkout is recorded; None where one is, and outside of a checkout."""
    if not (PACKAGE.parent / ".git").exists() or (PACKAGE.parent / SNAPSHOT).exists():
        return None
    commit, error = _git("rev-parse", "HEAD")
    if commit is not None:
        return None
    way_out = re.search(r"git config --global --add safe\.directory \S+", error)  # another user owns the checkout
    first = error.strip().partition("\n")[0].removeprefix("fatal: ")
    return clean(f"no commit is recorded: {first}" + (f"; {way_out[0]} lets git read it" if way_out else ""), 400)


def _git(*words: str) -> tuple[str | None, str]:
    """Return what git prints in the checkout, or None, and what it complains of."""
    command = ["git", "-C", str(PACKAGE.parent), *words]
    env = {name: value for name, value in os.environ.items() if name not in OF_A_REPOSITORY}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=60, check=False, env=env
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"git cannot be run ({reason(error)})"
    return (done.stdout if done.returncode == 0 else None), done.stderr


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    names = ("torch", "torchvision", "timm", "numpy", "pillow", "hydra-core", "omegaconf", "wandb")
    found = {"python": platform.python_version()}
    for name in names:
        with suppress(PackageNotFoundError):  # installed by other means, or not wanted: a run without W&B needs none
            found[name] = version(name)
    return found


def hardware(device: "torch.device") -> dict[str, str | int | None]:
    """Return host, processor and accelerator of this process, with the job's id under a scheduler."""
    import torch  # here alone: `make roadmap` asks for the rest and need not wait for it

    return {
        "host": socket.gethostname(),
        "job_id": os.environ.get("SLURM_JOB_ID"),
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})",
        "threads": torch.get_num_threads(),
    }
