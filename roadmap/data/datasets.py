"""The image sets: `load` finds the one that a config names, checks it and returns its two splits.

Small sets are held in memory as bytes, folders of images are read image by image. Only the choice of a subset
is random.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from roadmap.catalog import SPLITS
from roadmap.config.images import DataConfig
from roadmap.config.recipe import RecipeConfig
from roadmap.data import folders, in_memory
from roadmap.data.folders import Files, read_image
from roadmap.data.holdout import holdout_mask
from roadmap.data.in_memory import Arrays
from roadmap.data.sampling import Draw, generator
from roadmap.errors import ConfigError, DataError
from roadmap.text import printable, reason


@dataclass
class Split:
    """One half of a set: labels int64 `(N,)`, and the images uint8 `(N, 3, H, W)` or the files that hold them."""

    labels: Tensor
    images: Tensor | None = None  # gray sets: one channel in memory, expanded to three
    folder: Path | None = None
    files: np.ndarray | None = None  # names under `folder`, as bytes: one array, which forked workers share
    on_device: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)  # the fast pipeline's copies

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"on_device": {}}

    def read(self, index: int) -> Image.Image:
        """Return one image as RGB. Raises DataError that names the file if it cannot be decoded."""
        if self.images is not None:
            return Image.fromarray(self.images[index].permute(1, 2, 0).contiguous().numpy())
        return read_image(self.path(index))

    def path(self, index: int) -> Path:
        """Return the file of an image in a class folder."""
        assert self.folder is not None
        assert self.files is not None
        return self.folder / os.fsdecode(self.files[index])


@dataclass(frozen=True)
class BatchSpec:
    """Which images of a split are wanted, how they are prepared, and where."""

    split: Split
    data: DataConfig
    recipe: RecipeConfig
    index_batches: Sequence[Tensor]  # ids, int64 `(B,)` each
    device: torch.device
    seed: int = 0  # of what is random about a training image, with the epoch and its id
    epoch: int = 0


@dataclass
class ImageSet:
    """A set as it was found: two splits, the classes' names in the order of the labels, and a hash of all of it."""

    train: Split
    val: Split  # with a holdout the training images that were held out
    classes: tuple[str, ...]
    fingerprint: str  # changes with any image (in memory), any file's name or size (folders), or the classes
    whole: str = ""  # the fingerprint of the set that a subset was taken from


def load(data: DataConfig) -> ImageSet:
    """Find, check and load the image set of a config; `train_images` and `val_images` keep a fixed subset.

    With `holdout` the validation images are not read: a share of the training images (or of their subset) is in their
    stead, and the rest is left to train on.

    Raises DataError for what is missing, broken or miscounted on disk, ConfigError for a number that the set cannot
    meet.
    """
    found = find(data, splits_read(data))
    whole, fingerprint = take_subset(data, found)
    train, val = (to_split(found, split, data.image_size) for split in SPLITS)
    return ImageSet(train, val, found.classes, fingerprint, whole)


def load_val(data: DataConfig) -> tuple[Split, tuple[str, ...]]:
    """Load the images that are evaluated, as `load` does, and the names of the classes; of `train` nothing is needed
    unless they are held out of it."""
    found = find(data, splits_read(data)[-1:])
    take_subset(data, found)
    return to_split(found, "val", data.image_size), found.classes


def splits_read(data: DataConfig) -> tuple[str, ...]:
    """Return the splits that a config reads: with a holdout the training images alone."""
    return ("train",) if data.holdout else SPLITS


def find(data: DataConfig, splits: Sequence[str] = SPLITS, *, lenient: bool = False) -> Arrays | Files:
    """Read a set into memory, or list its files; `lenient` lists broken ones too. Raises DataError, ConfigError."""

    def read() -> Arrays | Files:
        if data.known.in_memory:
            return in_memory.load(data, splits)
        return folders.find(data, splits, lenient=lenient)

    try:
        # In a thread of its own: no signal ends a read that a dead mount holds, but one ends the wait for a thread.
        return ThreadPoolExecutor(1).submit(read).result()
    except DataError as error:
        raise DataError(printable(str(error))) from error  # names of files may hold line breaks
    except OSError as error:  # a folder on the way that may not be entered, a name that is too long
        raise DataError(f"{error.filename or data.root}: cannot be read ({reason(error)})") from error


def take_subset(data: DataConfig, found: Arrays | Files) -> tuple[str, str]:
    """Keep the subset that a config asks for, and hold out its share; return the fingerprints of the whole, as far as
    it was read, and of what is kept."""
    check_num_classes(data, found)
    is_subset = data.train_images is not None or data.val_images is not None or data.holdout > 0
    whole = fingerprint_of(data.name, found) if is_subset and isinstance(found, Files) else ""
    for split in found.labels:
        num_images = getattr(data, f"{split}_images")
        if num_images is not None:
            ids = subset(f"data.{split}_images", num_images, len(found.labels[split]), split)
            found.select(split, ids, split)
    if data.holdout:
        mask = holdout_mask(found.labels["train"], data.holdout, found.classes)
        found.select("train", np.flatnonzero(mask), "val")
        found.select("train", np.flatnonzero(~mask), "train")
    fingerprint = fingerprint_of(data.name, found)
    return whole or fingerprint, fingerprint


def fingerprint_of(name: str, found: Arrays | Files, splits: Sequence[str] = ()) -> str:
    """Return a hash of a set's name, its classes and the named splits, by default all of them."""
    digest = hashlib.sha256("\0".join((name, *found.classes)).encode(errors="surrogateescape"))
    for split in splits or found.labels:
        found.update_hash(split, digest)
    return digest.hexdigest()


def to_split(found: Arrays | Files, split: str, image_size: int) -> Split:
    """Turn what was found into a Split, images in memory at `(image_size, image_size)`."""
    labels = torch.from_numpy(found.labels[split].astype(np.int64))
    if isinstance(found, Arrays):
        images = in_memory.at_size(found.pixels[split], image_size, black_border=found.black_border)
        return Split(labels, images=images)
    return Split(labels, folder=found.folder, files=found.names[split])


def subset(key: str, num_wanted: int, num_images: int, split: str) -> np.ndarray:
    """Return the ids of the first `num_wanted` images of a fixed shuffle, in the set's order."""
    if num_wanted > num_images:
        raise ConfigError(f"{key}={num_wanted}: the set has {num_images} images")
    shuffled = torch.randperm(num_images, generator=generator(Draw.subset, split == "val"))
    return shuffled[:num_wanted].sort().values.numpy()


def check_num_classes(data: DataConfig, found: Arrays | Files) -> None:
    """Compare the number of classes with the config.

    Folders that differ are a DataError, and so is a single class; a wrong number for a fixed set is a ConfigError.
    """
    num_found = len(found.classes)
    if num_found < 2:
        where = found.folder / "train" if isinstance(found, Files) else f"data={data.name}"
        what = f"a single class, {printable(found.classes[0])}, for which accuracy means nothing"
        raise DataError(f"{where}: {what}; must be two or more")
    if data.num_classes in (None, num_found):
        return
    if isinstance(found, Files):
        folder = found.folder / next(iter(found.labels))
        raise DataError(f"{folder}: has {num_found} class folders, data.num_classes={data.num_classes}")
    raise ConfigError(f"data.num_classes={data.num_classes}: data={data.name} has {num_found} classes")
