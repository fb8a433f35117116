"""`mode=data_check`: open every image of a set before training depends on it.

    python run.py mode=data_check data=imagenet data.root=FOLDER

Classes and counts first, then every file is decoded in `data.workers` processes (one per core if that is 0). What was
opened is kept in `<runs>/.data`, so that an interrupted check goes on, and a set that was repaired has only its new
files opened. The images may lie on a disk that cannot be written. A file in `.data` is whole or it is ignored; nothing
in it can run code.
"""

import hashlib
import io
import os
import time
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from roadmap.catalog import SPLITS
from roadmap.config.images import DataConfig
from roadmap.config.schema import Config
from roadmap.data import datasets
from roadmap.data.folders import Files, image_problem
from roadmap.data.rgb import RULES
from roadmap.data.workers import load_batches
from roadmap.distributed.cores import num_cores
from roadmap.distributed.signals import StopSignal
from roadmap.errors import DataError, LoaderError, StoppedEarly
from roadmap.files import atomic_write, disk_errors, expand, read_json, read_regular, write_json
from roadmap.runs.progress import ImageProgress, SweepProgress
from roadmap.text import printable, utc

CHUNK = 16  # images that a process opens before it reports
SAVE_S = 30.0  # seconds of work that a kill can cost
SHOWN = 20  # broken images named on the screen; a file names them all


def data_check(config: Config, sweep: SweepProgress | None = None) -> str:
    """Check a set in full; return the line that says so. Raises DataError, StoppedEarly, LoaderError, DiskError."""
    config = config.replace(data=config.data.replace(holdout=0.0))  # all images, whichever part of them is trained on
    if config.data.known.in_memory:
        return check_in_memory(config)
    runs, sweep = config.paths.runs, sweep or SweepProgress()
    found = datasets.find(config.data, lenient=True)
    assert isinstance(found, Files)
    _, fingerprint = datasets.take_subset(config.data, found)
    with StopSignal() as stop:
        broken = open_all(config, found, stop, sweep)
    counts = {split: len(labels) for split, labels in found.labels.items()}
    verdict = {
        "state": "broken" if broken else "whole",
        "data": config.data.name,
        "root": str(found.folder),
        "classes": len(found.classes),
        **{f"{split}_images": count for split, count in counts.items()},
        "broken": len(broken),
        "rules": RULES,
        "time": utc(),
    }
    # A run with a holdout reads the training images alone, and knows no more than their fingerprint.
    for checked in (fingerprint, datasets.fingerprint_of(config.data.name, found, SPLITS[:1])):
        path = cache_dir(runs) / f"{checked}.json"
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {**verdict, "fingerprint": checked})
    if broken:
        report = report_broken(config, broken, sweep)
        how_many = f"{len(broken)} of {sum(counts.values())} images"
        raise DataError(f"{found.folder}: {how_many} cannot be read; {report} names all")
    return summary(config, counts, found.classes, "every file opened", fingerprint)


def check_in_memory(config: Config) -> str:
    """Load a set that is held in memory, and count."""
    data, images = config.data, datasets.load(config.data)
    counts = {"train": len(images.train), "val": len(images.val)}
    for split, expected in data.known.num_images.items():
        if getattr(data, f"{split}_images") is None and counts[split] != expected:
            raise DataError(f"data={data.name}: {counts[split]} {split} images, the set has {expected}")
    return summary(config, counts, images.classes, "all read", images.fingerprint)


def summary(config: Config, counts: dict[str, int], classes: tuple[str, ...], how: str, fingerprint: str) -> str:
    """Return the line of a set that is as it must be."""
    found = f"{counts['train']} + {counts['val']} images in {len(classes)} classes"
    return f"data={config.data.name}: {found}, {how}, fingerprint {fingerprint}"


def open_all(config: Config, found: Files, stop: StopSignal, sweep: SweepProgress) -> list[str]:
    """Open every image that was not found whole before; return what is wrong with the others, in the set's order.

    Raises StoppedEarly once asked to stop; what was opened is kept.
    """
    names = np.concatenate([found.names["train"], found.names["val"]])
    ids = image_ids(found)
    where = os.fsencode(os.path.realpath(found.folder))  # the same by whatever links it is reached
    path = cache_dir(config.paths.runs) / f"opened-{RULES}-{hashlib.sha256(where).hexdigest()[:16]}.npz"
    whole = np.zeros(len(ids), dtype=bool) if config.fresh else np.isin(ids, read_opened(path))
    before = int(whole.sum())
    progress = ImageProgress(f"data={config.data.name}", len(names), before, sweep, "opened")
    if before:
        progress.write(
            f"data={config.data.name}: {before} of {len(names)} images were opened before and have not changed "
            "(fresh=true opens all)"
        )
    broken: list[str] = []
    saved = time.monotonic()
    todo = torch.from_numpy(np.flatnonzero(~whole))
    chunks = todo.split(CHUNK)
    problem_of = partial(find_problem, found.folder, names)
    opening = load_batches(problem_of, list, chunks, config.data.workers or num_cores(), torch.device("cpu"))
    try:
        for chunk, problems in zip(chunks, stop.interruptible(opening), strict=True):
            whole[chunk.numpy()] = [problem is None for problem in problems]
            broken += [problem for problem in problems if problem is not None]
            progress.count(len(chunk), len(broken))
            if time.monotonic() - saved > SAVE_S:
                write_opened(path, ids[whole])
                saved = time.monotonic()
            stop.raise_if_set()
    except StoppedEarly as error:
        raise StoppedEarly(f"{error}: {progress.done} of {len(names)} images opened") from None
    except LoaderError as error:
        first = printable(os.fsdecode(names[todo[progress.done - before]]))
        raise LoaderError(f"{error}; it was at {first} or behind it") from None
    finally:
        progress.close()
        write_opened(path, ids[whole])
    return broken


def find_problem(folder: Path, names: np.ndarray, index: int) -> str | None:
    """Decode one image in full; return what is wrong with it, if anything is."""
    return image_problem(folder / os.fsdecode(names[index]))


def image_ids(found: Files) -> np.ndarray:
    """Return 64 bits for each image, of its name, size and time of change: a file that was replaced is another."""
    ids = bytearray()
    for split in SPLITS:
        for about in zip(found.names[split], found.sizes[split].tolist(), found.mtimes[split].tolist(), strict=True):
            ids += hashlib.blake2b(b"%s\0%d\0%d" % about, digest_size=8).digest()
    return np.frombuffer(bytes(ids), dtype=np.uint64)


def read_opened(path: Path) -> np.ndarray:
    """Return the ids of the images found whole; none of a file that is missing, damaged or another one."""
    none = np.zeros(0, dtype=np.uint64)
    try:
        content = read_regular(path)
        if hashlib.sha256(memoryview(content)[32:]).digest() != content[:32]:
            return none
        with np.load(io.BytesIO(content[32:]), allow_pickle=False) as file:
            ids: np.ndarray = file["ids"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return none
    return ids if ids.dtype == np.uint64 else none


def write_opened(path: Path, ids: np.ndarray) -> None:
    """Keep the ids of the images found whole, behind a hash of them. Raises DiskError."""
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, ids=ids)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, hashlib.sha256(out.getvalue()).digest() + out.getvalue())


def cache_dir(runs: Path | str) -> Path:
    """Return the folder of what is remembered; no study can have its name."""
    return expand(runs).absolute() / ".data"


def report_broken(config: Config, broken: list[str], sweep: SweepProgress) -> Path:
    """Name the first broken images on the screen and all of them in a file, which is returned. Raises DiskError."""
    lines = [printable(reason) for reason in broken]
    path = cache_dir(config.paths.runs) / f"broken-{config.data.name}.txt"
    with disk_errors(path):
        atomic_write(path, "".join(f"{line}\n" for line in lines).encode())
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    for line in [*lines[:SHOWN], *more]:
        sweep.write(line)
    return path


def verification_note(images: datasets.ImageSet, data: DataConfig, runs: str) -> str:
    """Return, for the log of a training, whether every image of exactly this set was opened by a data check."""
    if data.known.in_memory:
        return f"images {images.fingerprint[:12]}: held in memory, all read"
    for fingerprint, of in ((images.fingerprint, ""), (images.whole, "the whole set ")):
        if fingerprint and (when := checked_on(runs, fingerprint)):
            return f"images {images.fingerprint[:12]}: {of}fully checked on {when}"
    return f"images {images.fingerprint[:12]}: not fully checked; mode=data_check opens every one of them"


def checked_on(runs: Path | str, fingerprint: str) -> str | None:
    """Return when every image of exactly this set was opened and found whole by these rules, or None."""
    try:
        verdict: dict[str, Any] = read_json(cache_dir(runs) / f"{fingerprint}.json")
    except (OSError, ValueError):
        return None
    wanted = {"fingerprint": fingerprint, "state": "whole", "rules": RULES}
    return str(verdict.get("time")) if wanted.items() <= verdict.items() else None
