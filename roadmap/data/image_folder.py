"""Sets whose images are files in class folders: `train/<class>/*.jpg` and `val/<class>/*.jpg`.

Labels follow the names of the class folders, sorted as text (or by number: `data.class_order`). A missing or stray
folder would shift every label after it without an error, so both splits must have the same classes, and nothing that
may be an image is passed over in silence.
"""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from roadmap.catalog import SPLITS, DataSet
from roadmap.config.choices import ClassOrder
from roadmap.config.images import DataConfig
from roadmap.data import cache, download
from roadmap.data.image_file import problem_of
from roadmap.errors import DataError
from roadmap.files import is_system_name, nearby
from roadmap.text import clean, printable, reason, unlike

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
# Images of kinds that are not read: named and refused, since leaving them out would change the set in silence.
OTHER_IMAGE_SUFFIXES = frozenset(
    [".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".pbm", ".pgm", ".ppm", ".tif", ".tiff"]
)
LISTING_THREADS = 16  # asking for a million sizes waits for the disk, not for the processor
WORDNET_ID = re.compile(r"n\d{8}")


@dataclass
class Files:
    """Splits as lists of files under `folder`: names as bytes, sizes in bytes, times of change in ns, labels."""

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

    def copy(self, source: str, target: str, ids: np.ndarray) -> None:
        """Make a split of some images of another."""
        for arrays in (self.names, self.sizes, self.mtimes, self.labels):
            arrays[target] = arrays[source][ids]

    def update_hash(self, split: str, digest: Any) -> None:
        """Add a split's names and sizes to a hash; the folder in which they lie is not part of it."""
        for name, size in zip(self.names[split], self.sizes[split], strict=True):
            digest.update(b"%s\0%d\0" % (name, size))


def by_number(name: str) -> tuple[list[Any], str]:
    """Return what sorts names by the numbers in them: class2 before class10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))], name


CLASS_ORDERS: dict[ClassOrder, Callable[[str], Any]] = {ClassOrder.text: str, ClassOrder.numeric: by_number}


def label_note(classes: Sequence[str], order: ClassOrder) -> str | None:
    """Return which label each class has, where its names would have others in another order; else None."""
    if all(list(classes) == sorted(classes, key=order_key) for order_key in CLASS_ORDERS.values()):
        return None
    labels = first_few([f"{printable(name)}={label}" for label, name in enumerate(classes)], 20)
    others = " or ".join(f"data.class_order={other}" for other in CLASS_ORDERS if other != order)
    return f"labels of the class folders in {order} order: {labels}; {others} gives others"


def find(
    data: DataConfig, row: DataSet, runs: str | None = None, splits: Sequence[str] = SPLITS, *, lenient: bool = False
) -> Files:
    """List the images of a set, in `data.root` or the row's subfolder of it; fetch them first if that was asked for.

    Raises DataError for anything missing or broken, and unless a published set has its classes and counts.
    """
    root = download.data_root(data)
    folders = [root]
    if row.subfolder and not (root / splits[0]).is_dir():
        folders = sorted(p for p in root.glob(row.subfolder) if p.is_dir())
    if len(folders) > 1:
        raise DataError(f"{root}: holds {', '.join(p.name for p in folders)}; set data.root to one of them")
    if not folders:
        folders = [download.fetch(data, root, f"no folder {splits[0]} or {row.subfolder}")]
    files = list_images(folders[0], runs, splits, lenient=lenient, order=data.class_order)
    if row.classes_sha256:
        check_published(files, row)
    return files


def check_published(files: Files, row: DataSet) -> None:
    """Raise DataError unless a listing has the classes and the counts of a published set."""
    folder = files.folder / next(iter(files.labels))
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
    for split, labels in files.labels.items():
        found, num_images = len(labels), row.num_images[split]
        if found != num_images:
            raise DataError(
                f"{files.folder / split}: {found} images, {row.title} has {num_images} "
                "(data=imagefolder takes any number)"
            )


def list_images(
    folder: Path,
    runs: str | None = None,
    splits: Sequence[str] = SPLITS,
    *,
    lenient: bool = False,
    order: ClassOrder = ClassOrder.text,
) -> Files:
    """List splits of a folder. Raises DataError for anything missing, empty or unlike in the two.

    What is remembered in `runs` spares listing a folder that has not changed since. `lenient` takes files that are
    empty or cannot be asked for their size as well, for a check that opens all files and names every broken one.
    """
    classes = {split: class_folders(folder / split, order) for split in splits}
    if len(classes) > 1:
        check_same_classes(folder, classes["train"], classes["val"])
    names = classes[splits[0]]
    files, others = Files(folder, {}, {}, {}, {}, tuple(names)), list[str]()
    listing = (
        cache.Listing(cache.cache_dir(runs) / f"listing-{cache.folder_key(folder)}.npz") if runs is not None else None
    )
    for split in splits:
        with ThreadPoolExecutor(LISTING_THREADS) as pool:
            listed = list(
                pool.map(
                    lambda path: list_class(path, listing, lenient=lenient), (folder / split / name for name in names)
                )
            )
        others += [f"{split}/{c}/{name}" for c, images in zip(names, listed, strict=True) for name in images.others]
        prefixes = (os.fsencode(f"{split}/{name}/") for name in names)
        files.names[split] = np.array(
            [prefix + name for prefix, images in zip(prefixes, listed, strict=True) for name in images.names]
        )
        files.sizes[split] = np.array([size for images in listed for size in images.sizes], dtype=np.int64)
        files.mtimes[split] = np.array([mtime for images in listed for mtime in images.mtimes], dtype=np.int64)
        files.labels[split] = np.repeat(np.arange(len(names)), [len(images.names) for images in listed])
    if others:
        log.warning("%s: %s not taken for an image", folder, clean(first_few(others)))
    if listing is not None and len(classes) == len(SPLITS):  # of one split, what is known of the other would be lost
        listing.save()
    return files


def check_same_classes(folder: Path, train: Sequence[str], val: Sequence[str]) -> None:
    """Raise DataError unless both splits have the same class folders."""
    only = {"train": sorted(set(train) - set(val)), "val": sorted(set(val) - set(train))}
    differences = [f"only in {split}: {first_few(names)}" for split, names in only.items() if names]
    alike = [how for a in only["train"] for b in only["val"] if (how := unlike(a, b))]
    if differences:
        why = "; ".join([*map(clean, differences), *alike[:1]])
        raise DataError(f"{folder}: train and val must have the same class folders ({why})")


def class_folders(folder: Path, order: ClassOrder) -> list[str]:
    """Return the names, in order, of a split's class folders; hidden ones (`.ipynb_checkpoints`) are no classes."""
    entries = scan(folder)
    found = (e.name for e in entries if e.is_dir() and not is_hidden(e.name))
    classes = sorted(found, key=CLASS_ORDERS[order])
    images = sorted(e.name for e in entries if not e.is_dir() and not is_hidden(e.name) and is_image(folder, e.name))
    if images:
        raise DataError(
            f"{folder}: holds {first_few(images)} outside of any class folder; every image belongs into one"
        )
    if not classes:
        raise DataError(f"{folder}: has no class folders; expected {folder.name}/<class>/<image>.jpg")
    skipped = sorted(e.name for e in entries if e.is_dir() and is_hidden(e.name) and not is_system_name(e.name))
    if skipped:
        log.warning("%s: %s hidden, not taken for a class", printable(str(folder)), first_few(skipped))
    return classes


@dataclass
class Images:
    """The images of one class folder, sorted by name: sizes in bytes, times of change in ns; and what is no image."""

    names: list[bytes]
    sizes: list[int]
    mtimes: list[int]
    others: list[str] = field(default_factory=list)


def list_class(folder: Path, listing: cache.Listing | None = None, *, lenient: bool = False) -> Images:
    """Return the images of a class folder. Raises DataError if there are none, or one is empty (unless `lenient`)."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({reason(error)})") from error
    try:
        key, stamp = os.fsencode(f"{folder.parent.name}/{folder.name}"), cache.stamp_of(os.fstat(handle))
        names, others = listing.names(key, stamp) if listing is not None else None, list[str]()
        if names is None:
            names, others = image_names(folder)
            # What is passed over aloud is passed over aloud each time.
            if listing is not None and not others and cache.stamp_of(os.fstat(handle)) == stamp:
                listing.add(key, stamp, names)
        images = stat_images(folder, handle, names, lenient=lenient)
        images.others = sorted(others)
        return images
    finally:
        os.close(handle)


def stat_images(folder: Path, handle: int, names: list[bytes], *, lenient: bool) -> Images:
    """Ask each image of an open folder for its size and time.

    Raises DataError for one that is empty, gone, or no file of an image's size, unless `lenient`.
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
        if not lenient and (problem := problem_of(about)):
            raise DataError(f"{folder / os.fsdecode(name)}: {problem}")
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
    return sorted(images), others


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds. Raises DataError if it is missing or cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: no such folder; expected train/<class>/ and val/<class>/{nearby(folder)}"
        ) from error
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({reason(error)})") from error


def is_hidden(name: str) -> bool:
    """Whether a name is one of a system's or an editor's own: `@eaDir`, `._image.jpg`, `.ipynb_checkpoints`."""
    return name.startswith(".") or name == "__pycache__" or is_system_name(name)


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
