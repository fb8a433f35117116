"""`mode=data_check`: open every image of a set before it costs.

    python run.py mode=data_check data=imagenet data.root=FOLDER

Classes and counts first, then every file is decoded in `data.workers` processes (as many as there are cores where that
is 0). What was opened is kept in `<runs>/.data`, so that an interrupted check goes on, and a set that was repaired has
only its new files opened.
"""

import hashlib
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, connection, get_context, parent_process
from pathlib import Path

import numpy as np

from roadmap import catalog
from roadmap.catalog import SPLITS
from roadmap.config.images import DataConfig
from roadmap.config.schema import Config
from roadmap.data import cache, datasets, image_folder
from roadmap.data.image_file import read_image
from roadmap.data.rgb import RULES
from roadmap.data.workers import LESS, STALL_S
from roadmap.distributed.device import num_cores
from roadmap.distributed.signals import STOP_SIGNALS, StopSignal, blocked
from roadmap.errors import DataError, LoaderError, StoppedEarly
from roadmap.files import atomic_write, disk_errors
from roadmap.runs.progress import Progress, SweepProgress
from roadmap.text import printable

CHUNK = 16  # images that a process opens before it reports
SAVE_S = 30.0  # seconds of work that a kill can cost
SHOWN = 20  # broken images named on the screen; a file names them all


def data_check(config: Config, sweep: SweepProgress | None = None) -> str:
    """Check a set in full; return the line that says so. Raises DataError, StoppedEarly, LoaderError, DiskError."""
    config = config.replace(data=config.data.replace(holdout=0.0))  # all images, whichever part of them is trained on
    if datasets.is_in_memory(config.data):
        return check_in_memory(config)
    runs, sweep = config.paths.runs, sweep or SweepProgress()
    found = datasets.find(config.data, runs, lenient=True)
    assert isinstance(found, image_folder.Files)
    _, fingerprint = datasets.take_subset(config.data, found)
    with StopSignal() as stop:
        broken = open_all(config, found, stop, sweep)
    verdict = {
        "state": "broken" if broken else "whole",
        "data": config.data.name,
        "root": str(found.folder),
        "classes": len(found.classes),
        **{f"{split}_images": len(labels) for split, labels in found.labels.items()},
        "broken": len(broken),
        "rules": RULES,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with disk_errors(cache.cache_dir(runs) / f"{fingerprint}.json"):
        # A run with a holdout reads the training images alone, and knows no more than their fingerprint.
        for checked in (fingerprint, datasets.fingerprint_of(config.data.name, found, SPLITS[:1])):
            cache.write_verdict(runs, checked, verdict)
    if broken:
        num_images = sum(map(len, found.labels.values()))
        report_broken(config, broken, sweep)
        raise DataError(
            f"{found.folder}: {len(broken)} of {num_images} images cannot be read; {report_path(config)} names all"
        )
    return summary(
        config,
        len(found.labels["train"]),
        len(found.labels["val"]),
        len(found.classes),
        "every file opened",
        fingerprint,
    )


def check_in_memory(config: Config) -> str:
    """Load a set that is held in memory, and count."""
    data, images = config.data, datasets.load(config.data)
    counts = {"train": len(images.train), "val": len(images.val)}
    for split, expected in catalog.find(data.name, data.kind).num_images.items():
        if getattr(data, f"{split}_images") is None and counts[split] != expected:
            raise DataError(f"data={data.name}: {counts[split]} {split} images, the set has {expected}")
    return summary(config, counts["train"], counts["val"], len(images.classes), "all read", images.fingerprint)


def summary(config: Config, num_train: int, num_val: int, num_classes: int, how: str, fingerprint: str) -> str:
    """Return the line of a set that is as it must be."""
    counts = f"{num_train} + {num_val} images in {num_classes} classes"
    return f"data={config.data.name}: {counts}, {how}, fingerprint {fingerprint}"


def open_all(config: Config, found: image_folder.Files, stop: StopSignal, sweep: SweepProgress) -> list[str]:
    """Open every image that was not found whole before; return what is wrong with the others, in the set's order.

    Raises StoppedEarly once asked to stop; what was opened is kept.
    """
    names = np.concatenate([found.names["train"], found.names["val"]])
    ids = image_ids(found)
    path = cache.cache_dir(config.paths.runs) / f"opened-{RULES}-{cache.folder_key(found.folder)}.npz"
    opened = None if config.fresh else cache.read_arrays(path, {"ids": "u"})
    whole = np.isin(ids, opened["ids"]) if opened is not None else np.zeros(len(ids), dtype=bool)
    before = int(whole.sum())
    progress = ImageProgress(f"data={config.data.name}", len(names), before, sweep)
    if before:
        progress.write(
            f"data={config.data.name}: {before} of {len(names)} images were opened before and have not changed "
            "(fresh=true opens all)"
        )
    broken: list[str] = []
    saved = time.monotonic()
    try:
        opening = open_in_processes(found.folder, names, np.flatnonzero(~whole), config.data.workers or num_cores())
        for chunk, reasons in stop.interruptible(opening):
            whole[chunk] = [reason is None for reason in reasons]
            broken += [reason for reason in reasons if reason is not None]
            progress.count(len(chunk), len(broken))
            if time.monotonic() - saved > SAVE_S:
                save_opened(path, ids[whole])
                saved = time.monotonic()
            stop.raise_if_set()
    except StoppedEarly as error:
        raise StoppedEarly(f"{error}: {progress.done} of {len(names)} images opened") from None
    finally:
        progress.close()
        save_opened(path, ids[whole])
    return broken


def save_opened(path: Path, ids: np.ndarray) -> None:
    """Keep the ids of the images found whole. Raises DiskError."""
    with disk_errors(path):
        cache.write_arrays(path, ids=ids)


def image_ids(found: image_folder.Files) -> np.ndarray:
    """Return 64 bits for each image, of its name, size and time of change: a file that was replaced is another."""
    ids = bytearray()
    for split in ("train", "val"):
        for name, size, mtime in zip(
            found.names[split], found.sizes[split].tolist(), found.mtimes[split].tolist(), strict=True
        ):
            ids += hashlib.blake2b(b"%s\0%d\0%d" % (name, size, mtime), digest_size=8).digest()
    return np.frombuffer(bytes(ids), dtype=np.uint64)


def open_in_processes(
    folder: Path, names: np.ndarray, todo: np.ndarray, processes: int
) -> Iterator[tuple[np.ndarray, list[str | None]]]:
    """Yield chunks of `todo` in order, each with None for an image that is whole and the reason for one that is not.

    Raises LoaderError where a process died, or a read does not end.
    """
    waiting: deque[tuple[np.ndarray, Future[list[str | None]]]] = deque()
    chunks = (todo[first : first + CHUNK] for first in range(0, len(todo), CHUNK))
    pool, before = ProcessPoolExecutor(processes, get_context("fork"), initializer=init_worker), active_children()
    try:
        while True:
            while len(waiting) < 4 * processes and (chunk := next(chunks, None)) is not None:
                with blocked():  # the first one starts the processes
                    waiting.append((chunk, pool.submit(open_images, str(folder), names[chunk].tolist())))
            if not waiting:
                return
            yield waiting[0][0], waiting[0][1].result(timeout=STALL_S)
            waiting.popleft()
    except (BrokenProcessPool, TimeoutError) as error:
        first, last = (printable(os.fsdecode(names[i])) for i in (waiting[0][0][0], waiting[-1][0][-1]))
        what = f"no image was read for {STALL_S:g} s, the folder does not answer;"
        if isinstance(error, BrokenProcessPool):
            what = f"a process that opened images was killed (out of memory?) between {first} and {last};"
        raise LoaderError(f"{folder}: {what} {LESS}") from None
    finally:
        for process in set(active_children()) - set(before):  # none of them writes, and a read may never end
            process.kill()
        pool.shutdown(cancel_futures=True)


def open_images(folder: str, names: list[bytes]) -> list[str | None]:
    """Decode images in full; return None for each that is whole, else what is wrong with it."""
    return [open_image(Path(folder) / os.fsdecode(name)) for name in names]


def open_image(path: Path) -> str | None:
    """Decode one image in full; return what is wrong with it, if anything is."""
    try:
        read_image(path)
    except DataError as error:
        return str(error)
    return None


def init_worker() -> None:
    """Leave signals to the parent, say nothing of what Pillow only warns about, and end when the parent is gone."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()


class ImageProgress(Progress):
    """Progress counted in images."""

    def __init__(self, name: str, total: int, done: int, sweep: SweepProgress, verb: str = "opened") -> None:
        super().__init__(name, total, done, sweep, every_s=10.0)
        self.verb = verb

    def count(self, num_images: int, num_broken: int = 0) -> None:
        """Count images; shows how many a second, the time left, and how many are broken."""
        self.done += num_images
        rate = (self.done - self._start) / max(time.monotonic() - self._began, 1e-9)
        note = f"{self.done}/{self.total} images {self.verb}, {rate:.0f} images/s, {self._left()}"
        note += f", {num_broken} broken" if num_broken else ""
        if not self.bar.disable:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(num_images)
        elif time.monotonic() - self._written > self.every_s:
            self.write(f"{self.name}: {note}")


def report_path(config: Config) -> Path:
    """Return the file that names the broken images of a set."""
    return cache.cache_dir(config.paths.runs) / f"broken-{config.data.name}.txt"


def report_broken(config: Config, broken: list[str], sweep: SweepProgress) -> None:
    """Name the first broken images on the screen and all of them in a file. Raises DiskError."""
    lines = [printable(reason) for reason in broken]
    with disk_errors(report_path(config)):
        atomic_write(report_path(config), "".join(f"{line}\n" for line in lines).encode())
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    for line in [*lines[:SHOWN], *more]:
        sweep.write(line)


def verification_note(images: datasets.ImageSet, data: DataConfig, runs: str) -> str:
    """Return, for the log of a training, whether every image of exactly this set was opened by a data check."""
    if datasets.is_in_memory(data):
        return f"images {images.fingerprint[:12]}: held in memory, all read"
    for fingerprint, of in ((images.fingerprint, ""), (images.whole, "the whole set ")):
        if fingerprint and (when := cache.checked_on(runs, fingerprint, RULES)):
            return f"images {images.fingerprint[:12]}: {of}fully checked on {when}"
    return f"images {images.fingerprint[:12]}: not fully checked; mode=data_check opens every one of them"
