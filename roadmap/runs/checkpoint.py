"""Checkpoints: plain tensors and containers, each with a manifest; one counts only if its bytes are those of the
manifest.

A checkpoint is `step-<global step>-<epochs evaluated>.pt` with a `.json` of that name beside it, which is there first.
"""

import errno
import hashlib
import json
import os
import socket
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from roadmap.errors import DataError, DiskError
from roadmap.files import finite_or_null, fsync_dir, open_regular, write_json
from roadmap.runs.schema import MANIFEST_SCHEMA, Manifest, read_record
from roadmap.text import clean

MAX_BYTES = 2**40  # of a checkpoint


@dataclass
class Found:
    """A checkpoint that was verified, and why newer ones were passed over."""

    path: Path
    manifest: dict[str, Any]
    skipped: list[str]


class Saver:
    """Writes one checkpoint at a time beside training, which waits for the copy to the host's memory alone."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[dict[str, int]] | None = None

    def start(
        self, state: dict[str, Any], manifest: dict[str, Any], best_step: int | None, where: dict[str, int]
    ) -> None:
        """Begin to write a checkpoint; `finished` or `wait` gives `where` back once it is whole."""
        assert self._writing is None
        self._writing = self._writer.submit(self._save, on_host(state), manifest, best_step, where)

    def _save(
        self, state: dict[str, Any], manifest: dict[str, Any], best_step: int | None, where: dict[str, int]
    ) -> dict[str, int]:
        save(self.folder, state, manifest, keep=self.keep, best_step=best_step)
        return where

    def finished(self) -> dict[str, int] | None:
        """Return, once, where the last checkpoint stands if it is whole by now. Raises DiskError."""
        return self.wait() if self._writing is not None and self._writing.done() else None

    def wait(self) -> dict[str, int] | None:
        """Wait for the checkpoint that is being written, if any. Raises DiskError."""
        if self._writing is None:
            return None
        writing, self._writing = self._writing, None
        return writing.result()

    def close(self) -> None:
        """End the writer, after what it is writing."""
        self._writer.shutdown()


def on_host(state: Any) -> Any:
    """Return a copy of plain containers and tensors in the host's memory, which training cannot change any more."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: on_host(value) for key, value in state.items()}
    return [on_host(value) for value in state] if isinstance(state, list) else state


def save(folder: Path, state: dict[str, Any], manifest: dict[str, Any], *, keep: int, best_step: int | None) -> None:
    """Write a checkpoint, then drop all but the newest `keep` and those of the best step.

    One of the same step and evaluation is the same to the bit, and left alone. Raises DiskError; then every earlier
    checkpoint is still there.
    """
    path = folder / f"step-{state['global_step']:010d}-{state['epochs_evaluated']:05d}.pt"
    if _is_whole(path):
        return
    temporary = folder / f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp"
    try:
        folder.mkdir(exist_ok=True)
        with open(temporary, "wb") as out:
            torch.save(state, out)
            out.flush()
            os.fsync(out.fileno())
        if (damaged := zipfile.ZipFile(temporary).testzip()) is not None:  # torch itself compares no checksum
            raise OSError(errno.EIO, f"{damaged} differs from what was written")
        size, digest = temporary.stat().st_size, _sha256(temporary)
        manifest = {"schema": MANIFEST_SCHEMA, "bytes": size, "sha256": digest, **finite_or_null(manifest)}
        manifest["checksum"] = _checksum(manifest)
        path.unlink(missing_ok=True)  # only one that is not whole
        write_json(path.with_suffix(".json"), manifest)
        os.replace(temporary, path)
        fsync_dir(folder)
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:
        temporary.unlink(missing_ok=True)
        raise DiskError(f"{path}: cannot be written ({_reason(error)}); earlier checkpoints are untouched") from None
    _rotate(folder, keep, best_step)


def tidy(folder: Path) -> None:
    """Remove what a killed writer left: unfinished files, and manifests without their checkpoint."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
    for path in folder.glob("step-*.json"):
        if not path.with_suffix(".pt").exists():
            path.unlink(missing_ok=True)


def find_newest(folder: Path) -> Found | None:
    """Return the newest checkpoint that is whole and holds nothing but tensors and plain containers; None where there
    was never one.

    Raises DataError if there are checkpoints and none can be used: training never starts over in silence.
    """
    skipped: list[str] = []
    paths = sorted(folder.glob("step-*.pt"), reverse=True)
    for path in paths:
        try:
            manifest = read_record(Manifest, path.with_suffix(".json"))
            _verify(path, manifest)
            load(path)
            return Found(path, manifest, skipped)
        except (OSError, ValueError, RuntimeError, EOFError) as error:
            skipped.append(f"{path.name}: {_reason(error)}")
        except Exception as error:  # weights_only refuses foreign objects with pickle's own errors
            skipped.append(f"{path.name}: refused ({type(error).__name__})")
    if paths:
        raise DataError(
            f"{folder}: no checkpoint can be used ({'; '.join(skipped)}); fresh=true starts over and keeps this aside"
        )
    return None


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint that `find_newest` found, its tensors on the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)


def _is_whole(path: Path) -> bool:
    try:
        _verify(path, read_record(Manifest, path.with_suffix(".json")))
    except (OSError, ValueError):
        return False
    return True


def _verify(path: Path, manifest: dict[str, Any]) -> None:
    if manifest["schema"] not in range(1, MANIFEST_SCHEMA + 1):
        raise ValueError(f"written in schema {manifest['schema']}, this is {MANIFEST_SCHEMA}")
    if manifest["schema"] > 1 and manifest.get("checksum") != _checksum(manifest):
        raise ValueError("its manifest has changed")
    if path.stat().st_size != manifest.get("bytes"):
        raise ValueError(f"{path.stat().st_size} bytes instead of {manifest.get('bytes')}")
    if _sha256(path) != manifest.get("sha256"):
        raise ValueError("its bytes have changed")


def _checksum(manifest: dict[str, Any]) -> str:
    """Return a hash of all of a manifest but its checksum."""
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _rotate(folder: Path, keep: int, best_step: int | None) -> None:
    whole = sorted((p for p in folder.glob("step-*.pt") if p.with_suffix(".json").exists()), reverse=True)
    best = f"step-{best_step:010d}-" if best_step is not None else "none"
    for path in whole[keep:]:
        if not path.name.startswith(best):
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with open_regular(path, MAX_BYTES) as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _reason(error: BaseException) -> str:
    """Return the system's reason where there is one: torch hides it in the context of a RuntimeError."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen.strerror or str(seen)
        seen = seen.__cause__ or seen.__context__
    return clean(error)
