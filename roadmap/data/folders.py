"""Sets whose images are files in class folders, `train/<class>/*.jpg` and `val/<class>/*.jpg`: listed, and read.

Labels follow the names of the class folders, sorted as text (or by number: `data.class_order`). A missing or stray
folder would shift every label after it without an error, so both splits must have the same classes, and nothing that
may be an image is skipped silently.
"""

import errno
import hashlib
import logging
import os
import re
import stat
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from roadmap.catalog import SPLITS, DataSet
from roadmap.config.choices import ClassOrder
from roadmap.config.images import DataConfig
from roadmap.data import download
from roadmap.data.rgb import to_rgb
from roadmap.errors import DataError
from roadmap.files import is_system_name, nearby, open_regular
from roadmap.text import clean, first_few, printable, reason, unlike

log = logging.getLogger(__name__)

# Pillow's remarks on EXIF data (many of ImageNet's files) and on large images ask for nothing: all pixels are there.
warnings.filterwarnings("ignore", module=r"PIL\.")

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
# Images of kinds that are not read: refused by name, since leaving them out would silently change the set.
OTHER_IMAGE_SUFFIXES = frozenset(
    [".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".pbm", ".pgm", ".ppm", ".tif", ".tiff"]
)
LISTING_THREADS = 16  # a million file sizes are limited by the disk, not by the processor
WORDNET_ID = re.compile(r"n\d{8}")
# By content, since ImageNet holds a PNG called .JPEG. Never all of Pillow's formats: EPS starts another program.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
MAX_BYTES = 2**30  # a larger file is not an image, and would fill the memory


@dataclass
class Files:
    """Splits as lists of files under `folder`: names as bytes, sizes in bytes, modification times in ns, labels."""

    folder: Path
    names: dict[str, np.ndarray]
    sizes: dict[str, np.ndarray]
    mtimes: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    classes: tuple[str, ...]

    def select(self, source: str, ids: np.ndarray, target: str) -> None:
        """Make a split of some images of another, or of the same."""
        for arrays in (self.names, self.sizes, self.mtimes, self.labels):
            arrays[target] = arrays[source][ids]

    def update_hash(self, split: str, digest: Any) -> None:
        """Add a split's names and sizes to a hash; the folder in which they lie is not part of it."""
        for name, size in zip(self.names[split], self.sizes[split], strict=True):
            digest.update(b"%s\0%d\0" % (name, size))


def by_number(name: str) -> tuple[list[Any], str]:
    """Return a sort key that compares numbers in names by value: class2 before class10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))], name


CLASS_ORDERS: dict[ClassOrder, Callable[[str], Any]] = {ClassOrder.text: str, ClassOrder.numeric: by_number}


def label_note(classes: Sequence[str], order: ClassOrder) -> str | None:
    """Return which label each class has if another order would give other labels, else None."""
    if all(list(classes) == sorted(classes, key=order_key) for order_key in CLASS_ORDERS.values()):
        return None
    labels = first_few([f"{printable(name)}={label}" for label, name in enumerate(classes)], 20)
    others = " or ".join(f"data.class_order={other}" for other in CLASS_ORDERS if other != order)
    return f"labels of the class folders in {order} order: {labels}; {others} gives others"


def find(data: DataConfig, splits: Sequence[str] = SPLITS, *, lenient: bool = False) -> Files:
    """List the images of a set, in `data.root` or the row's subfolder of it; fetch them first if that was asked for.

    Raises DataError for anything missing or broken, and unless a published set has its classes and counts.
    """
    row, root = data.known, download.data_root(data)
    folders = [root]
    if row.subfolder and not (root / splits[0]).is_dir():
        folders = sorted(p for p in root.glob(row.subfolder) if p.is_dir())
    if len(folders) > 1:
        raise DataError(f"{root}: holds {', '.join(p.name for p in folders)}; set data.root to one of them")
    if not folders:
        folders = [download.fetch(data, root, f"no folder {splits[0]} or {row.subfolder}")]
    files = list_images(folders[0], splits, lenient=lenient, order=data.class_order)
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
    folder: Path, splits: Sequence[str] = SPLITS, *, lenient: bool = False, order: ClassOrder = ClassOrder.text
) -> Files:
    """List splits of a folder. Raises DataError for anything missing, empty or unlike in the two, with the first few of
    what is wrong in the class folders.

    `lenient` takes files that are empty or cannot be asked for their size as well, for a check that opens all files and
    names every broken one.
    """
    classes = {split: class_folders(folder / split, order) for split in splits}
    if len(classes) > 1:
        check_same_classes(folder, classes["train"], classes["val"])
    names = classes[splits[0]]
    files, others, problems = Files(folder, {}, {}, {}, {}, tuple(names)), list[str](), list[str]()
    for split in splits:
        folders = [folder / split / name for name in names]
        with ThreadPoolExecutor(LISTING_THREADS) as pool:
            listed = list(pool.map(partial(list_class, lenient=lenient), folders))
        found = [(f"{split}/{name}", *of_class) for name, of_class in zip(names, listed, strict=True)]
        others += [f"{place}/{name}" for place, _, more, _ in found for name in more]
        problems += [problem for *_, of_class in found for problem in of_class]
        names_of_split = [os.fsencode(f"{place}/{name}") for place, images, *_ in found for name, _, _ in images]
        files.names[split] = np.array(names_of_split)
        files.sizes[split] = np.array([size for images, *_ in listed for _, size, _ in images], dtype=np.int64)
        files.mtimes[split] = np.array([mtime for images, *_ in listed for _, _, mtime in images], dtype=np.int64)
        files.labels[split] = np.repeat(np.arange(len(names)), [len(images) for images, *_ in listed])
    if problems:
        raise DataError(first_few(problems, 5, "; "))
    if others:
        log.warning("%s: %s not taken for an image", folder, clean(first_few(others)))
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
    """Return the names, in order, of a split's class folders; hidden ones (`.ipynb_checkpoints`) do not count."""
    entries = scan(folder)
    found = (e.name for e in entries if e.is_dir() and not is_hidden(e.name))
    classes = sorted(found, key=CLASS_ORDERS[order])
    images = sorted(e.name for e in entries if not e.is_dir() and not is_hidden(e.name) and is_image(folder, e.name))
    if images:
        raise DataError(f"{folder}: holds {first_few(images)} outside of any class folder; each image belongs into one")
    if not classes:
        raise DataError(f"{folder}: has no class folders; expected {folder.name}/<class>/<image>.jpg")
    skipped = sorted(e.name for e in entries if e.is_dir() and is_hidden(e.name) and not is_system_name(e.name))
    if skipped:
        log.warning("%s: %s hidden, not taken for a class", printable(str(folder)), printable(first_few(skipped)))
    return classes


def list_class(folder: Path, *, lenient: bool = False) -> tuple[list[tuple[str, int, int]], list[str], list[str]]:
    """Return the images of a class folder by name, each with its size in bytes and time of change in ns; the other
    files; and what is wrong: a folder in it, an image of a kind that is not read, no image.

    Unless `lenient`, a file that is empty, gone, or of no image's size is wrong as well. Raises DataError for a folder
    that cannot be read.
    """
    images, others, problems = list[tuple[str, int, int]](), list[str](), list[str]()
    for entry in sorted(scan(folder), key=lambda entry: os.fsencode(entry.name)):
        if is_hidden(entry.name):
            continue
        if entry.is_dir():
            problems.append(f"{entry.path}: a folder inside a class folder; expected images only")
            continue
        try:
            if not is_image(folder, entry.name):
                others.append(entry.name)
                continue
        except DataError as error:  # an image of a kind that is not read
            problems.append(str(error))
            continue
        size = mtime = 0
        try:
            about = entry.stat()
            size, mtime, problem = about.st_size, about.st_mtime_ns, problem_of(about)
        except OSError as error:
            problem = f"cannot be read ({reason(error)})"
        if problem and not lenient:
            problems.append(f"{entry.path}: {problem}")
        images.append((entry.name, size, mtime))
    if not images and not problems:
        problems.append(f"{folder}: class folder without an image ({' '.join(sorted(IMAGE_SUFFIXES))})")
    return images, others, problems


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds. Raises DataError if it is missing or cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError as error:
        hint = f"expected train/<class>/ and val/<class>/{nearby(folder)}"
        raise DataError(f"{folder}: no such folder; {hint}") from error
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


def problem_of(about: os.stat_result) -> str:
    """Return why a file must not be read at all, if so: reading a pipe, for example, would never end."""
    if not stat.S_ISREG(about.st_mode):
        return "not a regular file"
    if about.st_size > MAX_BYTES:
        return f"is not an image (larger than {MAX_BYTES / 2**30:g} GiB)"
    return "" if about.st_size else "is empty (0 bytes)"


def open_image(path: Path) -> BufferedReader:
    """Open a file that may be an image. Raises OSError for one that must not be read."""
    file = open_regular(path)
    if problem := problem_of(os.fstat(file.fileno())):
        file.close()
        raise OSError(errno.EINVAL, problem, str(path))
    return file


def read_image(path: Path) -> Image.Image:
    """Decode an image as RGB.

    Raises DataError that names the file if it is truncated, no image, too large to be one, or lost in 8-bit RGB.
    """
    try:
        with open_image(path) as file, Image.open(file, formats=FORMATS) as image:
            return to_rgb(image)
    except MemoryError:
        raise  # no fault of the file
    except Exception as error:  # a dozen kinds, whatever Pillow's decoders trip over in a damaged file
        unknown = isinstance(error, UnidentifiedImageError)
        why = f"it does not begin like a {', '.join(FORMATS)}" if unknown else reason(error)
        raise DataError(printable(f"{path}: cannot be decoded as an image ({why})")) from error


def image_problem(path: Path) -> str | None:
    """Decode an image in full; return what is wrong with it, if anything is."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of what Pillow only warns about
            read_image(path)
    except DataError as error:
        return str(error)
    return None
