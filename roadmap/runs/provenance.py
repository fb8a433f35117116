"""Where a result comes from: code, versions, hardware. Goes into `status.json` and `summary.json`."""

import hashlib
import os
import platform
import socket
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from roadmap.files import read_json

if TYPE_CHECKING:
    import torch

SNAPSHOT = "snapshot.json"  # beside the package in a copy of the code: what the checkout was that it was taken from
PACKAGE = Path(__file__).resolve().parent.parent
ROOMS = ("config", "data", "distributed", "net", "runs", "training")  # what a result depends on
NO_INFLUENCE = ("data/download.py", "data/imagenet.py", "data/verify.py", "runs/progress.py", "runs/wandb_logger.py")


@cache
def code_hash() -> str:
    """Return a hash of the Python files that a result depends on. Composing is not: the config is recorded whole."""
    digest = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (PACKAGE / room).rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name not in NO_INFLUENCE:
            digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@cache
def git_state(*paths: str) -> dict[str, str | bool | None]:
    """Return the commit of the checkout, and whether it (or some paths of it) was changed since; None outside of one.

    In a snapshot they are those of the checkout that it was taken from.
    """
    if (taken := PACKAGE.parent / SNAPSHOT).exists():
        about = read_json(taken)
        return {"git_commit": about.get("git_commit"), "git_dirty": about.get("git_dirty")}
    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", *paths)
    return {"git_commit": commit and commit.strip(), "git_dirty": None if changes is None else bool(changes)}


def git(*words: str) -> str | None:
    """Return what git prints in the checkout, None where it fails or there is none."""
    command = ["git", "-C", str(PACKAGE.parent), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on, as far as they are known."""
    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "timm", "numpy", "pillow", "hydra-core", "omegaconf", "wandb"):
        with suppress(PackageNotFoundError):  # a copy of a package without its metadata, or no W&B, where it is off
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
