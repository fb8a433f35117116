"""Sets whose images are files in class folders: `train/<class>/*.jpg` and `val/<class>/*.jpg`.

Labels follow the sorted names of the class folders. A missing or stray folder would shift every label after it without
an error, so both splits must have the same classes, and nothing that may be an image is passed over in silence.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from roadmap.catalog import DataSet
from roadmap.config.schema import DataConfig
from roadmap.data import cache, download
from roadmap.errors import DataError
from roadmap.text import printable, reason

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
# Images of kinds that are not read: named and refused, since leaving them out would change the set in silence.
OTHER_IMAGE_SUFFIXES = frozenset(
    [".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".pbm", ".pgm", ".ppm", ".tif", ".tiff"]
)
# By content, since ImageNet holds a PNG called .JPEG. Never all of Pillow's formats: EPS starts another program.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
LISTING_THREADS = 16  # asking for a million sizes waits for the disk, not for the processor
WORDNET_ID = re.compile(r"n\d{8}")


@dataclass
class Files:
    """Both splits as lists of files under `folder`: names as bytes, sizes in bytes, times of change in ns, labels."""

    folder: Path
    names: dict[str, np.ndarray]
    sizes: dict[str, np.ndarray]
    mtimes: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    classes: tuple[str, ...]

    def select(self, split: str, ids: np.ndarray) -> None:
        """Keep only these images of a split."""
        for arrays in (self.names, self.sizes, self.mtimes, self.labels):
            arrays[split] = arrays[split][ids]

    def update_hash(self, split: str, digest: Any) -> None:
        """Add a split's names and sizes to a hash; the folder in which they lie is not part of it."""
        for name, size in zip(self.names[split], self.sizes[split], strict=True):
            digest.update(b"%s\0%d\0" % (name, size))


def find(data: DataConfig, row: DataSet, runs: str | None = None, *, lenient: bool = False) -> Files:
    """List the images of a set, in `data.root` or the row's subfolder of it; fetch them first if that was asked for.

    Raises DataError for anything missing or broken, and unless a published set has its classes and counts.
    """
    root = download.data_root(data)
    folders = [root]
    if row.subfolder and not (root / "train").is_dir():
        folders = sorted(p for p in root.glob(row.subfolder) if p.is_dir())
    if len(folders) > 1:
        raise DataError(f"{root}: holds {', '.join(p.name for p in folders)}; set data.root to one of them")
    if not folders:
        folders = [download.fetch(data, root, f"no folder train or {row.subfolder}")]
    files = list_images(folders[0], runs, lenient=lenient)
    if row.classes_sha256:
        check_published(files, row)
    return files


def check_published(files: Files, row: DataSet) -> None:
    """Raise DataError unless a listing has the classes and the counts of a published set."""
    folder = files.folder / "train"
    if len(files.classes) != row.num_classes:
        raise DataError(
            f"{folder}: {len(files.classes)} class folders, {row.title} has {row.num_classes} "
            "(data=imagefolder takes any number)"
        )
    if hashlib.sha256("\n".join(files.classes).encode(errors="surrogateescape")).hexdigest() != row.classes_sha256:
        strays = [name for name in files.classes if not WORDNET_ID.fullmatch(name)]
        what = f"{first_few(strays)} among them is no WordNet id" if strays else "other WordNet ids"
        raise DataError(
            f"{folder}: not the {row.num_classes} classes of {row.title} ({what}; data=imagefolder takes any)"
        )
    for split, num_images in row.num_images.items():
        found = len(files.labels[split])
        if found != num_images:
            raise DataError(
                f"{files.folder / split}: {found} images, {row.title} has {num_images} "
                "(data=imagefolder takes any number)"
            )


def list_images(folder: Path, runs: str | None = None, *, lenient: bool = False) -> Files:
    """List both splits of a folder. Raises DataError for anything missing, empty or unlike in the two.

    What is remembered in `runs` spares listing a folder that has not changed since. `lenient` takes files that are
    empty or cannot be asked for their size as well, for a check that opens all files and names every broken one.
    """
    train, val = (class_folders(folder / split) for split in ("train", "val"))
    if train != val:
        only = {"train": sorted(set(train) - set(val)), "val": sorted(set(val) - set(train))}
        differences = (f"only in {split}: {first_few(names)}" for split, names in only.items() if names)
        raise DataError(f"{folder}: train and val must have the same class folders ({'; '.join(differences)})")
    files = Files(folder, {}, {}, {}, {}, tuple(train))
    listing = (
        cache.Listing(cache.cache_dir(runs) / f"listing-{cache.folder_key(folder)}.npz") if runs is not None else None
    )
    for split in ("train", "val"):
        with ThreadPoolExecutor(LISTING_THREADS) as pool:
            listed = list(
                pool.map(
                    lambda path: list_class(path, listing, lenient=lenient), (folder / split / name for name in train)
                )
            )
        prefixes = (os.fsencode(f"{split}/{name}/") for name in train)
        files.names[split] = np.array(
            [prefix + name for prefix, images in zip(prefixes, listed, strict=True) for name in images.names]
        )
        files.sizes[split] = np.array([size for images in listed for size in images.sizes], dtype=np.int64)
        files.mtimes[split] = np.array([mtime for images in listed for mtime in images.mtimes], dtype=np.int64)
        files.labels[split] = np.repeat(np.arange(len(train)), [len(images.names) for images in listed])
    if listing is not None:
        listing.save()
    return files


def class_folders(folder: Path) -> list[str]:
    """Return the sorted names of a split's class folders; hidden ones (`.ipynb_checkpoints`) are no classes."""
    entries = scan(folder)
    classes = sorted(e.name for e in entries if e.is_dir() and not is_hidden(e.name))
    images = sorted(e.name for e in entries if not e.is_dir() and not is_hidden(e.name) and is_image(folder, e.name))
    if images:
        raise DataError(
            f"{folder}: holds {first_few(images)} outside of any class folder; every image belongs into one"
        )
    if not classes:
        raise DataError(f"{folder}: has no class folders; expected {folder.name}/<class>/<image>.jpg")
    skipped = sorted(e.name for e in entries if e.is_dir() and is_hidden(e.name))
    if skipped:
        log.warning("%s: %s hidden, not taken for a class", printable(str(folder)), first_few(skipped))
    return classes


@dataclass
class Images:
    """The images of one class folder, sorted by name: sizes in bytes, times of change in ns."""

    names: list[bytes]
    sizes: list[int]
    mtimes: list[int]


def list_class(folder: Path, listing: cache.Listing | None = None, *, lenient: bool = False) -> Images:
    """Return the images of a class folder. Raises DataError if there are none, or one is empty (unless `lenient`)."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({reason(error)})") from error
    try:
        key, stamp = os.fsencode(f"{folder.parent.name}/{folder.name}"), cache.stamp_of(os.fstat(handle))
        names = listing.names(key, stamp) if listing is not None else None
        if names is None:
            names, others = image_names(folder)
            # What is passed over aloud is passed over aloud each time.
            if listing is not None and not others and cache.stamp_of(os.fstat(handle)) == stamp:
                listing.add(key, stamp, names)
        return stat_images(folder, handle, names, lenient=lenient)
    finally:
        os.close(handle)


def stat_images(folder: Path, handle: int, names: list[bytes], *, lenient: bool) -> Images:
    """Ask each image of an open folder for its size and time.

    Raises DataError for one that is empty or gone, unless `lenient`.
    """
    images = Images(names, [], [])
    for name in names:
        try:
            about = os.stat(name, dir_fd=handle)
            size, mtime = about.st_size, about.st_mtime_ns
        except OSError as error:
            if not lenient:
                raise DataError(f"{folder / os.fsdecode(name)}: cannot be read ({reason(error)})") from error
            size = mtime = 0
        if size == 0 and not lenient:
            raise DataError(f"{folder / os.fsdecode(name)}: is empty (0 bytes)")
        images.sizes.append(size)
        images.mtimes.append(mtime)
    return images


def image_names(folder: Path) -> tuple[list[bytes], list[str]]:
    """Return the sorted names of a class folder's images, and of what is none.

    Raises DataError for a folder in it, or no image.
    """
    images, others = [], []
    for entry in scan(folder):
        if is_hidden(entry.name):
            continue
        if entry.is_dir():
            raise DataError(f"{folder / entry.name}: a folder inside a class folder; expected images only")
        if is_image(folder, entry.name):
            images.append(os.fsencode(entry.name))
        else:
            others.append(entry.name)
    if not images:
        raise DataError(f"{folder}: class folder without an image ({' '.join(sorted(IMAGE_SUFFIXES))})")
    if others:
        log.warning("%s: %s not taken for an image", printable(str(folder)), first_few(sorted(others)))
    return sorted(images), others


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds. Raises DataError if it is missing or cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: no such folder; expected train/<class>/ and val/<class>/ under {folder.parent}"
        ) from error
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({reason(error)})") from error


def is_hidden(name: str) -> bool:
    """Whether a name is one of a system's or an editor's own: `.DS_Store`, `._image.jpg`, `__MACOSX`."""
    return name.startswith(".") or name in ("__MACOSX", "__pycache__")


def is_image(folder: Path, name: str) -> bool:
    """Whether a file is an image by its extension. Raises DataError for an image of a kind that is not read."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in OTHER_IMAGE_SUFFIXES:
        raise DataError(f"{folder / name}: {suffix} images are not read, only {' '.join(sorted(IMAGE_SUFFIXES))}")
    return suffix in IMAGE_SUFFIXES


def first_few(names: Iterable[str], limit: int = 3) -> str:
    """Return the first few names, and how many more there are."""
    names = [printable(name) for name in names]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def read_image(path: Path) -> Image.Image:
    """Decode an image as RGB.

    Raises DataError that names the file if it is truncated, no image, or too large to be one.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.convert("RGB")
    except Exception as error:  # a dozen kinds, whatever Pillow's decoders trip over in a damaged file
        why = reason(error).replace(f"{str(path)!r}", "the file")
        raise DataError(printable(f"{path}: cannot be decoded as an image ({why})")) from error
