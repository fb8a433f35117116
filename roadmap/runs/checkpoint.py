"""Checkpoints: plain tensors and containers, each with a manifest; one counts only if its bytes are those of the
manifest.

A checkpoint is `step-<global step>-<epochs evaluated>.pt` with a `.json` of that name beside it, which is there first.
Every number in it is finite.
"""

import errno
import math
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import get_total_norm

from roadmap.distributed.device import is_out_of_memory
from roadmap.errors import DataError, DiskError, NonFiniteError, Refused
from roadmap.files import atomic_file, disk_errors, finite_or_null, remove, remove_temporaries, sha256_of, write_json
from roadmap.net.weights_file import refuse_compressed
from roadmap.runs.checkpoint_files import checkpoint_name, list_checkpoints, parse_checkpoint
from roadmap.runs.schema import MANIFEST_SCHEMA, Manifest, checksum, read_record
from roadmap.text import clean

UNUSABLE = ".unusable"  # behind the name of a checkpoint that was set aside


@dataclass
class Found:
    """A checkpoint that was verified, why others were skipped, and which of them are newer."""

    path: Path
    manifest: dict[str, Any]
    skipped: list[str]
    newer: list[Path]


class Saver:
    """Writes one checkpoint at a time in the background; training waits only for the copy to the host's memory."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: tuple[dict[str, Any], Future[list[str]]] | None = None

    def start(self, state: dict[str, Any], manifest: dict[str, Any]) -> None:
        """Begin to write a checkpoint.

        Raises NonFiniteError where a number in it is not finite: then none is written.
        """
        assert self._writing is None
        if name := first_non_finite(state):
            error = NonFiniteError(f"step {state['global_step']}: {name} is not finite; no checkpoint is written")
            error.on_all_ranks = False  # running statistics are each rank's own
            raise error
        self._writing = manifest, self._writer.submit(save, self.folder, on_host(state), manifest, keep=self.keep)

    def finished(self) -> tuple[dict[str, Any], list[str]] | None:
        """Return what `wait` does, once, if the last checkpoint is whole by now. Raises DiskError."""
        return self.wait() if self._writing is not None and self._writing[1].done() else None

    def wait(self) -> tuple[dict[str, Any], list[str]] | None:
        """Wait for the checkpoint that is being written, if any; return its manifest as it was given, and a line for
        each file that could not be removed for it. Raises DiskError."""
        if self._writing is None:
            return None
        (manifest, writing), self._writing = self._writing, None
        return manifest, writing.result()

    def close(self) -> None:
        """Stop the writer once its current write has ended."""
        self._writer.shutdown()


def on_host(state: Any) -> Any:
    """Return a copy of plain containers and tensors in the host's memory, which training cannot change any more."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: on_host(value) for key, value in state.items()}
    return [on_host(value) for value in state] if isinstance(state, list) else state


def first_non_finite(state: Any) -> str:
    """Return the dotted name of the first tensor with a number that is not finite; nothing where all are.

    The host waits for the device once, as it does for the copy that follows.
    """
    tensors = {name: tensor for name, tensor in _named_tensors(state) if tensor.is_floating_point() and tensor.numel()}
    if math.isfinite(get_total_norm(tensors.values(), math.inf)):
        return ""
    return next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), "")


def _named_tensors(state: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(state, torch.Tensor):
        yield name, state.detach()
    elif isinstance(state, dict | list):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from _named_tensors(value, f"{name}.{key}" if name else str(key))


def save(folder: Path, state: dict[str, Any], manifest: dict[str, Any], *, keep: int) -> list[str]:
    """Write a checkpoint, then drop all but the newest `keep` and those of the best step.

    One that is there is the one that training continues from, the same to the bit: what was not whole was set aside.
    Returns a line for each file that could not be dropped. Raises DiskError; then every earlier checkpoint is still
    there.
    """
    path = folder / checkpoint_name(state["global_step"], state["epochs_evaluated"])
    if path.exists():
        return []
    try:
        folder.mkdir(exist_ok=True)
        with atomic_file(path) as out:
            torch.save(state, out)
            out.flush()
            temporary = Path(out.name)
            if (damaged := zipfile.ZipFile(temporary).testzip()) is not None:  # torch itself compares no checksum
                raise OSError(errno.EIO, f"{damaged} differs from what was written")
            size, digest = temporary.stat().st_size, sha256_of(temporary)
            manifest = {"schema": MANIFEST_SCHEMA, "bytes": size, "sha256": digest, **finite_or_null(manifest)}
            manifest["checksum"] = checksum(manifest)
            write_json(path.with_suffix(".json"), manifest)
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:
        raise DiskError(f"{path}: cannot be written ({_reason(error)}); earlier checkpoints are untouched") from None
    return _rotate(folder, keep, manifest["best_step"])


def tidy(folder: Path) -> list[str]:
    """Remove what a killed writer left, unfinished files and manifests without their checkpoint.

    Returns a line for each file that cannot be removed.
    """
    notes = remove_temporaries(folder, "step-*")
    orphans = [path for path in folder.glob("step-*.json") if not path.with_suffix(".pt").exists()]
    return notes + [note for path in orphans if parse_checkpoint(path.name) and (note := remove(path))]


def set_aside(paths: Iterable[Path]) -> None:
    """Rename checkpoints that are newer than the one training continues from, also those that could not be read just
    now: they would count as progress, and their manifests are of lines of metrics that are written anew.

    Raises DiskError.
    """
    for file in (file for path in paths for file in (path, path.with_suffix(".json")) if file.exists()):
        with disk_errors(file):
            file.replace(f"{file}{UNUSABLE}")


def find_newest(folder: Path) -> Found | None:
    """Return the newest checkpoint that is whole and holds nothing but tensors and plain containers; None where there
    was never one.

    Raises DataError if there are checkpoints and none can be used: training never starts over in silence; Refused for
    one of a later version, which is not damaged; MemoryError.
    """
    names = sorted(path.name for path in folder.glob("[!.]*") if path.suffix != UNUSABLE)  # hidden: the system's
    skipped = [f"{clean(name)}: not the name of a checkpoint" for name in names if not parse_checkpoint(name)]
    newer: list[Path] = []
    for path in list_checkpoints(folder):
        try:
            if not path.with_suffix(".json").exists():
                raise ValueError("its manifest is missing")
            manifest = read_record(Manifest, path.with_suffix(".json"))
            _verify(path, manifest)
            state = load(path)
            _verify_name(path, state)
            if name := next((name for name, tensor in _named_tensors(state) if tensor.nbytes > manifest["bytes"]), ""):
                raise ValueError(f"{name} is larger than the file")
            if name := first_non_finite(state):
                raise ValueError(f"{name} is not finite")
            return Found(path, manifest, skipped, newer)
        except Refused:
            raise
        except (OSError, MemoryError, RuntimeError, ValueError, EOFError, DataError) as error:
            if is_out_of_memory(error):  # says nothing of the checkpoint, which would be set aside
                raise MemoryError(str(error)) from None
            skipped.append(f"{path.name}: {_reason(error)}")
        except Exception as error:  # weights_only refuses foreign objects with pickle's own errors
            skipped.append(f"{path.name}: refused ({type(error).__name__})")
        newer.append(path)
    if any(folder.glob("*.pt")):
        why = "; ".join(skipped)
        raise DataError(f"{folder}: no checkpoint can be used ({why})")
    return None


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint that `find_newest` found, its tensors on the CPU. Raises DataError for a compressed one."""
    refuse_compressed(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _verify(path: Path, manifest: dict[str, Any]) -> None:
    if manifest["checksum"] != checksum(manifest):
        raise ValueError("its manifest has changed")
    schema = manifest["schema"]
    if schema > MANIFEST_SCHEMA:
        known = f"schema {schema}, this one knows up to {MANIFEST_SCHEMA}"
        raise Refused(f"{path}: written by a later version of this code ({known}); use that version")
    if schema < MANIFEST_SCHEMA:
        raise ValueError(f"written in schema {schema}, this is {MANIFEST_SCHEMA}")
    _verify_name(path, manifest)
    if path.stat().st_size != manifest["bytes"]:
        raise ValueError(f"{path.stat().st_size} bytes instead of {manifest['bytes']}")
    if sha256_of(path) != manifest["sha256"]:
        raise ValueError("its bytes have changed")


def _verify_name(path: Path, values: dict[str, Any]) -> None:
    step, epochs = values["global_step"], values["epochs_evaluated"]
    if parse_checkpoint(path.name) != (step, epochs):
        raise ValueError(f"is of step {step} after {epochs} epochs, and not what it is named")


def _rotate(folder: Path, keep: int, best_step: int | None) -> list[str]:
    older = list_checkpoints(folder)[keep:]
    old = [path for path in older if (parse_checkpoint(path.name) or (None,))[0] != best_step]
    # The manifest last: what it stands beside still counts.
    return [note for path in old if (note := remove(path) or remove(path.with_suffix(".json")))]


def _reason(error: BaseException) -> str:
    """Return the system's reason where there is one: torch hides it in the context of a RuntimeError."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen.strerror or str(seen)
        seen = seen.__cause__ or seen.__context__
    return clean(error)
