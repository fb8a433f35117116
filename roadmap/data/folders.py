"""Sets whose images are files in class folders: `train/<class>/*.jpg` and `val/<class>/*.jpg`. Used by `sets`.

Labels follow the sorted names of the class folders. A missing or stray folder would shift every label after it without
an error, so both splits must have the same classes, and nothing that may be an image is passed over in silence.
"""

import logging
import os
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from roadmap.config import DataConfig
from roadmap.data import download
from roadmap.errors import DataError

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
# Images of kinds that are not read: named and refused, since leaving them out would change the set in silence.
OTHER_IMAGE_SUFFIXES = frozenset([".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".pbm", ".pgm", ".ppm", ".tif", ".tiff"])
# By content, since ImageNet holds a PNG called .JPEG. Never all of Pillow's formats: EPS, for one, starts another program.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
LISTING_THREADS = 16  # asking for a million sizes waits for the disk, not for the processor


@dataclass
class Files:
    """Both splits as lists of files under `folder`: names as bytes, sizes in bytes, labels."""

    folder: Path
    names: dict[str, np.ndarray]
    sizes: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    classes: tuple[str, ...]

    def keep(self, split: str, ids: np.ndarray) -> None:
        """Keep only these images of a split."""
        for arrays in (self.names, self.sizes, self.labels):
            arrays[split] = arrays[split][ids]

    def update_hash(self, split: str, digest: Any) -> None:
        """Add a split's names and sizes to a hash; the folder in which they lie is not part of it."""
        for name, size in zip(self.names[split], self.sizes[split], strict=True):
            digest.update(b"%s\0%d\0" % (name, size))


def imagefolder(data: DataConfig) -> Files:
    """List the images of `root/train` and `root/val`, with as many classes as there are folders."""
    return list_set(download.data_root(data))


def imagenet(data: DataConfig) -> Files:
    """List ImageNet-1K, in `root` or `root/imagenet`. Raises DataError unless there are 1,000 classes."""
    root = download.data_root(data)
    files = list_set(next((p for p in (root, root / "imagenet") if (p / "train").is_dir()), root))
    if len(files.classes) != 1000:
        raise DataError(
            f"{files.folder / 'train'}: {len(files.classes)} class folders, ImageNet-1K has 1000 (data=imagefolder takes any number)"
        )
    return files


def imagenette(data: DataConfig) -> Files:
    """List Imagenette: ten classes of ImageNet, in `root` or `root/imagenette2*`."""
    root = download.data_root(data)
    places = [root] if (root / "train").is_dir() else sorted(p for p in root.glob("imagenette2*") if p.is_dir())
    if len(places) > 1:
        raise DataError(f"{root}: holds {', '.join(p.name for p in places)}; set data.root to one of them")
    files = list_set(places[0] if places else download.fetch(data, root, "no folder train or imagenette2*"))
    if len(files.classes) != 10:
        raise DataError(f"{files.folder / 'train'}: {len(files.classes)} class folders, Imagenette has 10")
    return files


def list_set(folder: Path) -> Files:
    """List both splits of a folder. Raises DataError for anything missing, empty or unlike in the two."""
    train, val = (class_folders(folder / split) for split in ("train", "val"))
    if train != val:
        only = {"train": sorted(set(train) - set(val)), "val": sorted(set(val) - set(train))}
        differences = (f"only in {split}: {some(names)}" for split, names in only.items() if names)
        raise DataError(f"{folder}: train and val must have the same class folders ({'; '.join(differences)})")
    files = Files(folder, {}, {}, {}, tuple(train))
    for split in ("train", "val"):
        with ThreadPoolExecutor(LISTING_THREADS) as pool:
            listed = list(pool.map(list_class, (folder / split / name for name in train)))
        prefixes = (os.fsencode(f"{split}/{name}/") for name in train)
        files.names[split] = np.array([prefix + name for prefix, images in zip(prefixes, listed, strict=True) for name, _ in images])
        files.sizes[split] = np.array([size for images in listed for _, size in images], dtype=np.int64)
        files.labels[split] = np.repeat(np.arange(len(train)), [len(images) for images in listed])
    return files


def class_folders(folder: Path) -> list[str]:
    """Return the sorted names of a split's class folders; hidden ones such as `.ipynb_checkpoints` are never classes."""
    entries = scan(folder)
    classes = sorted(e.name for e in entries if e.is_dir() and not hidden(e.name))
    images = sorted(e.name for e in entries if not e.is_dir() and not hidden(e.name) and is_image(folder / e.name))
    if images:
        raise DataError(f"{folder}: holds {some(images)} outside of any class folder; every image belongs into one")
    if not classes:
        raise DataError(f"{folder}: has no class folders; expected {folder.name}/<class>/<image>.jpg")
    skipped = sorted(e.name for e in entries if e.is_dir() and hidden(e.name))
    if skipped:
        log.warning("%s: %s hidden, not taken for a class", folder, some(skipped))
    return classes


def list_class(folder: Path) -> list[tuple[bytes, int]]:
    """Return the sorted names and sizes (bytes) of a class folder's images. Raises DataError if there are none, or one is empty."""
    images, others = [], []
    for entry in scan(folder):
        path = folder / entry.name
        if hidden(entry.name):
            continue
        if entry.is_dir():
            raise DataError(f"{path}: a folder inside a class folder; expected images only")
        if not is_image(path):
            others.append(entry.name)
            continue
        try:
            size = entry.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        if size == 0:
            raise DataError(f"{path}: is empty (0 bytes)")
        images.append((os.fsencode(entry.name), size))
    if not images:
        raise DataError(f"{folder}: class folder without an image ({' '.join(sorted(IMAGE_SUFFIXES))})")
    if others:
        log.warning("%s: %s not taken for an image", folder, some(sorted(others)))
    return sorted(images)


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds. Raises DataError if it is missing or cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError as error:
        raise DataError(f"{folder}: no such folder; expected train/<class>/ and val/<class>/ under {folder.parent}") from error
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error


def hidden(name: str) -> bool:
    """Whether a name is one of a system's or an editor's own: `.DS_Store`, `._image.jpg`, `__MACOSX`."""
    return name.startswith(".") or name in ("__MACOSX", "__pycache__")


def is_image(path: Path) -> bool:
    """Whether a file is an image by its extension. Raises DataError for an image of a kind that is not read."""
    suffix = path.suffix.lower()
    if suffix in OTHER_IMAGE_SUFFIXES:
        raise DataError(f"{path}: {suffix} images are not read, only {' '.join(sorted(IMAGE_SUFFIXES))}")
    return suffix in IMAGE_SUFFIXES


def some(names: Iterable[str], limit: int = 3) -> str:
    """Return the first few names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def read_image(path: Path) -> Image.Image:
    """Decode an image as RGB. Raises DataError that names the file if it is truncated, no image, or too large to be one."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.convert("RGB")
    # What Pillow's decoders raise for damaged files; UnidentifiedImageError is an OSError.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0] if str(error) else "damaged"
        raise DataError(f"{path}: cannot be decoded as an image ({why.replace(f'{str(path)!r}', 'the file')})") from error
