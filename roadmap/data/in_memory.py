"""The sets that fit in memory: digits, Fashion-MNIST, CIFAR and random bytes. Used by `sets.load`.

Files are read in place, compressed or not: nothing is unpacked, nothing is written beside them.
"""

import gzip
import hashlib
import pickle
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from roadmap.config.schema import DataConfig
from roadmap.data import download
from roadmap.data.sampling import Draw, derived_seed
from roadmap.errors import DataError

SPLIT_SEED = 0  # of the digits' train and val halves: the same for every run, whatever its seed
FASHION_SIZE, CIFAR_SIZE = 28, 32  # pixels
FASHION_PREFIX = {"train": "train", "val": "t10k"}
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass
class Arrays:
    """Both splits as they were read, before any resizing: pixels uint8 `(N, H, W)` or `(N, H, W, 3)`."""

    pixels: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    classes: tuple[str, ...]

    def keep(self, split: str, ids: np.ndarray) -> None:
        """Keep only these images of a split."""
        self.pixels[split], self.labels[split] = self.pixels[split][ids], self.labels[split][ids]

    def update_hash(self, split: str, digest: Any) -> None:
        """Add a split's shape, bytes and labels to a hash."""
        pixels = np.ascontiguousarray(self.pixels[split])
        digest.update(f"{split} {pixels.shape}".encode())
        digest.update(pixels.data)
        digest.update(np.ascontiguousarray(self.labels[split], dtype="<i8").data)


def at_size(pixels: np.ndarray, image_size: int) -> Tensor:
    """Return uint8 images `(N, 3, image_size, image_size)`; gray ones share one channel's memory.

    Pillow's bicubic, whose integer arithmetic gives the same bytes on every machine. Images of 28 pixels become 32 by two zeros on every
    side instead: their background is zero, so no stroke is blurred.
    """
    size = pixels.shape[1]
    if size == FASHION_SIZE and image_size == FASHION_SIZE + 4:
        pixels = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0))[: pixels.ndim])
    elif size != image_size:
        resized = (Image.fromarray(p).resize((image_size, image_size), Image.Resampling.BICUBIC) for p in pixels)
        pixels = np.stack([np.asarray(image) for image in resized])
    images = torch.from_numpy(np.ascontiguousarray(pixels))
    return images.unsqueeze(1).expand(-1, 3, -1, -1) if images.ndim == 3 else images.permute(0, 3, 1, 2)


def digits(data: DataConfig) -> Arrays:
    """Load scikit-learn's 1,797 handwritten digits of 8 x 8 pixels: 1,437 to train and 360 to validate, each class in proportion."""
    from sklearn.datasets import load_digits  # a second of imports that the other sets need not pay for
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # 17 levels, 0 to 16
    halves = train_test_split(np.arange(len(pixels)), test_size=0.2, stratify=bunch.target, random_state=SPLIT_SEED)
    ids = {split: np.sort(half) for split, half in zip(("train", "val"), halves, strict=True)}
    return Arrays(
        {split: pixels[i] for split, i in ids.items()},
        {split: bunch.target[i] for split, i in ids.items()},
        tuple(str(name) for name in bunch.target_names),
    )


def synthetic(data: DataConfig) -> Arrays:
    """Draw random images and labels, the same ones every time: 2,048 to train and 512 to validate, 1,000 classes, unless told otherwise."""
    num_classes = data.num_classes or 1000
    shape = (data.image_size, data.image_size, 3)
    arrays = Arrays({}, {}, tuple(str(c) for c in range(num_classes)))
    for split, num_images in (("train", data.train_images or 2048), ("val", data.val_images or 512)):
        draw = np.random.Generator(np.random.PCG64(derived_seed(Draw.synthetic, split == "val")))
        arrays.labels[split] = draw.integers(0, num_classes, num_images)
        arrays.pixels[split] = draw.integers(0, 256, (num_images, *shape), dtype=np.uint8)
    return arrays


def fashion_mnist(data: DataConfig) -> Arrays:
    """Load Fashion-MNIST: torchvision's layout (`root/FashionMNIST/raw`), or the four `.gz` files in `root` itself, as Debian has them."""
    root = download.data_root(data)
    places = [root / "FashionMNIST" / "raw", root, root / "fashion-mnist"]
    folder = next((p for p in places if idx_file(p, "train", "images") is not None), None)
    if folder is None:
        folder = download.fetch(data, root, f"no train-images-idx3-ubyte(.gz) in {places[0]} or {root}")
    arrays = Arrays({}, {}, FASHION_CLASSES)
    for split in FASHION_PREFIX:
        pixels, labels = (read_idx(folder, split, what) for what in ("images", "labels"))
        if len(pixels) != len(labels) or len(labels) == 0:
            raise DataError(f"{folder}: {len(pixels)} images but {len(labels)} labels of {FASHION_PREFIX[split]}")
        check_labels(folder, labels, len(FASHION_CLASSES))
        arrays.pixels[split], arrays.labels[split] = pixels, labels
    return arrays


def idx_file(folder: Path, split: str, what: str) -> Path | None:
    """Return the file of `images` or `labels`, unpacked or not, or None."""
    stem = f"{FASHION_PREFIX[split]}-{what}-idx{3 if what == 'images' else 1}-ubyte"
    return next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)


def read_idx(folder: Path, split: str, what: str) -> np.ndarray:
    """Read a file of the MNIST format: a magic number, the dimensions (big-endian), then the bytes."""
    path = idx_file(folder, split, what)
    if path is None:
        raise DataError(
            f"{folder}: {FASHION_PREFIX[split]}-{what}-idx{3 if what == 'images' else 1}-ubyte(.gz) is missing"
        )
    content = read_bytes(path, unpack=path.suffix == ".gz")
    num_dims, inner = (3, (FASHION_SIZE, FASHION_SIZE)) if what == "images" else (1, ())
    header = 4 + 4 * num_dims
    dims = tuple(int(d) for d in np.frombuffer(content[4:header], ">u4")) if len(content) >= header else ()
    if content[:4] != bytes((0, 0, 8, num_dims)) or dims[1:] != inner:
        raise DataError(
            f"{path}: not Fashion-MNIST's {what} (magic number 0 0 8 {num_dims}, images of {FASHION_SIZE} x {FASHION_SIZE})"
        )
    expected = header + int(np.prod(dims, dtype=object))
    if len(content) != expected:
        raise DataError(f"{path}: {len(content)} bytes, expected {expected}; the file is truncated or damaged")
    return np.frombuffer(content, np.uint8, offset=header).reshape(dims)


def read_bytes(path: Path, unpack: bool = False) -> bytes:
    """Read a file, gunzipped on the way if asked. Raises DataError with the reason."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if unpack else content
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise DataError(f"{path}: cannot be read, the file is truncated or damaged ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """Return what went wrong on one line, without the path that the message names already."""
    return (
        error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    ).splitlines()[0]


def check_labels(where: Path, labels: np.ndarray, num_classes: int) -> None:
    """Raise DataError for a label outside 0 to num_classes - 1."""
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        raise DataError(f"{where}: labels from {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1}")


def cifar10(data: DataConfig) -> Arrays:
    """Load CIFAR-10 in torchvision's layout: `root/cifar-10-batches-py`."""
    from torchvision.datasets import CIFAR10

    return cifar(data, CIFAR10, "labels")


def cifar100(data: DataConfig) -> Arrays:
    """Load CIFAR-100 in torchvision's layout: `root/cifar-100-python`."""
    from torchvision.datasets import CIFAR100

    return cifar(data, CIFAR100, "fine_labels")


def cifar(data: DataConfig, published: Any, label_key: str) -> Arrays:
    """Read the pickled batches of CIFAR; torchvision's class says which files there are and which MD5 sum each has."""
    root = download.data_root(data)
    folder = root / published.base_folder
    if not folder.is_dir():
        folder = download.fetch(data, root, f"no folder {folder}")
    meta = read_pickle(folder / published.meta["filename"], published.meta["md5"])
    arrays = Arrays({}, {}, tuple(meta[published.meta["key"]]))
    for split, files in (("train", published.train_list), ("val", published.test_list)):
        batches = [read_pickle(folder / name, md5) for name, md5 in files]
        pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, CIFAR_SIZE, CIFAR_SIZE)
        arrays.pixels[split] = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        arrays.labels[split] = np.concatenate([np.asarray(batch[label_key], dtype=np.int64) for batch in batches])
        check_labels(folder, arrays.labels[split], len(arrays.classes))
    return arrays


def read_pickle(path: Path, md5: str) -> Any:
    """Unpickle a published file. A pickle can run code, so the very bytes that are unpickled are compared with the published sum first."""
    content = read_bytes(path)
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise DataError(
            f"{path}: not the published file (its MD5 sum must be {md5}); it is truncated, damaged or another one"
        )
    return pickle.loads(content, encoding="latin1")
