"""Checkpoints: plain tensors and containers, each with a manifest; one counts only if its bytes are those of the manifest.

A checkpoint is `step-<global step>.pt` with `step-<global step>.json` beside it. Used by `roadmap.train`.
"""

import hashlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from roadmap.errors import DataError, DiskError
from roadmap.runtime.ledger import read_json, sync_folder, write_json

SCHEMA = 1


@dataclass
class Found:
    """A checkpoint that was read and verified, and why newer ones were passed over."""

    state: dict[str, Any]
    manifest: dict[str, Any]
    skipped: list[str]


def save(folder: Path, state: dict[str, Any], manifest: dict[str, Any], *, keep: int, best_step: int | None) -> None:
    """Write a checkpoint of `state["global_step"]`, then drop all but the newest `keep` and the best.

    Raises DiskError; then every earlier checkpoint is still there.
    """
    path = folder / f"step-{state['global_step']:010d}.pt"
    temporary = folder / f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp"
    try:
        folder.mkdir(exist_ok=True)
        with open(temporary, "wb") as out:
            torch.save(state, out)
            out.flush()
            os.fsync(out.fileno())
        manifest = {"schema": SCHEMA, "bytes": temporary.stat().st_size, "sha256": _sha256(temporary), **manifest}
        os.replace(temporary, path)
        sync_folder(folder)
        write_json(path.with_suffix(".json"), manifest)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise DiskError(f"{path}: cannot be written ({_reason(error)}); earlier checkpoints are untouched") from None
    _rotate(folder, keep, best_step)


def load_newest(folder: Path, device: torch.device) -> Found | None:
    """Return the newest checkpoint that is whole; None where there was never one.

    Raises DataError if there are checkpoints and none can be used: training never starts over in silence.
    """
    skipped: list[str] = []
    paths = sorted(folder.glob("step-*.pt"), reverse=True)
    for path in paths:
        try:
            manifest = read_json(path.with_suffix(".json"))
            _verify(path, manifest)
            return Found(torch.load(path, map_location=device, weights_only=True), manifest, skipped)
        except (OSError, ValueError, RuntimeError, EOFError) as error:
            skipped.append(f"{path.name}: {_reason(error)}")
        except Exception as error:  # weights_only refuses foreign objects with pickle's own errors
            skipped.append(f"{path.name}: refused ({type(error).__name__})")
    if paths:
        raise DataError(f"{folder}: no checkpoint can be used ({'; '.join(skipped)}); fresh=true starts over and keeps this aside")
    return None


def _verify(path: Path, manifest: dict[str, Any]) -> None:
    if manifest.get("schema") != SCHEMA:
        raise ValueError(f"written in schema {manifest.get('schema')}, this is {SCHEMA}")
    if path.stat().st_size != manifest.get("bytes"):
        raise ValueError(f"{path.stat().st_size} bytes instead of {manifest.get('bytes')}")
    if _sha256(path) != manifest.get("sha256"):
        raise ValueError("its bytes have changed")


def _rotate(folder: Path, keep: int, best_step: int | None) -> None:
    whole = sorted((p for p in folder.glob("step-*.pt") if p.with_suffix(".json").exists()), reverse=True)
    best = f"step-{best_step:010d}.pt" if best_step is not None else ""
    for path in whole[keep:]:
        if path.name != best:
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _reason(error: BaseException) -> str:
    """Return the system's reason where there is one: torch hides it in the context of a RuntimeError."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen.strerror or str(seen)
        seen = seen.__cause__ or seen.__context__
    return " ".join(str(error).split())[:200]
