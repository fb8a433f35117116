"""The sets that fit in memory: a loader for each format, digits, IDX, CIFAR's pickles, .npz and random bytes.

Files are read where they lie, compressed or not: nothing is unpacked, nothing is written beside them.
"""

import gzip
import hashlib
import pickle
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from roadmap.catalog import SPLITS, DataKind, DataSet
from roadmap.config.images import MAX_CLASSES, DataConfig
from roadmap.data import download
from roadmap.data.npz_file import read_npz
from roadmap.data.sampling import Draw, derived_seed
from roadmap.errors import ConfigError, DataError
from roadmap.files import read_regular
from roadmap.text import first_few, reason

# The digits that validate, a bit each: those that train_test_split(test_size=0.2, stratify=labels, random_state=0)
# takes, the same for every run, whatever its seed.
DIGITS_VAL = (
    "000004883524104000064100934205001a00080100240028062c12001000940a009019120420f8a0028110a000080a882044152449"
    "4240a00a0000004004d80000818020004805c400104008a0100005404800301000020ec409000224840083a8013c20a6980a000000"
    "0b08400804a0184802024041c1008004404684376a810216004480004042a0a4180a5000840b8561c608108008004c80c02004068e"
    "00010882008100380803c008190000100e01008410a0210033282904c044c080680e0102830082008822a6402c24042108a8608090"
    "81a00c02820242120138a41500"
)
BORDER = 2  # pixels of zeros on every side
CIFAR_SIZE = 32  # pixels
MAX_UNPACKED = 2**28  # bytes of a .gz; the largest there is has 47 MB
IDX_PREFIX = {"train": "train", "val": "t10k"}


@dataclass
class Arrays:
    """Splits as they were read, before any resizing: pixels uint8 `(N, H, H)` or `(N, H, H, 3)`, labels `(N,)`."""

    pixels: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    classes: tuple[str, ...]
    black_border: bool = False  # a border of zeros, instead of resizing, brings the images to a size that fits

    def select(self, source: str, ids: np.ndarray, target: str) -> None:
        """Make a split of some images of another, or of the same."""
        for arrays in (self.pixels, self.labels):
            arrays[target] = arrays[source][ids]

    def update_hash(self, split: str, digest: Any) -> None:
        """Add a split's shape, bytes and labels to a hash."""
        pixels = np.ascontiguousarray(self.pixels[split])
        digest.update(f"{split} {pixels.shape}".encode())
        digest.update(pixels.data)
        digest.update(np.ascontiguousarray(self.labels[split], dtype="<i8").data)


def load(data: DataConfig, splits: Sequence[str] = SPLITS) -> Arrays:
    """Load splits of a set by the loader that its row names, or its kind.

    Raises DataError for files that are missing, broken or others.
    """
    row = data.known
    loader = LOADERS.get(row.loader) if row.kind == DataKind.memory else npz
    if loader is None:
        raise ConfigError(f"data.kind=memory: there is no loader {row.loader}, only {', '.join(LOADERS)}")
    return loader(data, splits)


def at_size(pixels: np.ndarray, image_size: int, *, black_border: bool = False) -> Tensor:
    """Return uint8 images `(N, 3, image_size, image_size)`; gray ones share one channel's memory.

    Pillow's bicubic, whose integer arithmetic gives the same bytes on every machine. With `black_border` images of 28
    pixels become 32 by two zeros on every side instead: their background is zero, so no stroke is blurred.
    """
    size = pixels.shape[1]
    if black_border and image_size == size + 2 * BORDER:
        pixels = np.pad(pixels, ((0, 0), (BORDER, BORDER), (BORDER, BORDER), (0, 0))[: pixels.ndim])
    elif size != image_size:
        resized = np.empty((len(pixels), image_size, image_size, *pixels.shape[3:]), np.uint8)  # a list would double it
        for i, image in enumerate(pixels):
            resized[i] = Image.fromarray(image).resize((image_size, image_size), Image.Resampling.BICUBIC)
        pixels = resized
    images = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))  # torch warns of an array that is read-only
    return images.unsqueeze(1).expand(-1, 3, -1, -1) if images.ndim == 3 else images.permute(0, 3, 1, 2)


def fit_image(image: Image.Image, image_size: int, row: DataSet) -> Image.Image:
    """Return an RGB image that is in no set, brought to a size as those of a set in memory are."""
    if image.width != image.height:
        return image.resize((image_size, image_size), Image.Resampling.BICUBIC)
    fitted = at_size(np.asarray(image)[None], image_size, black_border=row.loader == "idx")
    return Image.fromarray(fitted[0].permute(1, 2, 0).contiguous().numpy())


def digits(data: DataConfig, splits: Sequence[str] = SPLITS) -> Arrays:
    """Read scikit-learn's 1,797 digits of 8 x 8 pixels: 1,437 to train, 360 to validate, each class in proportion.

    Reads the file without importing the library, which takes more than a second.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError("data=digits: scikit-learn, which has the images, is not installed")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        table = np.loadtxt(read_bytes(path, unpack=True).decode().splitlines(), delimiter=",", dtype=np.int64)
    except ValueError as error:
        raise DataError(f"{path}: cannot be read as digits ({reason(error)})") from None
    validates = np.unpackbits(np.frombuffer(bytes.fromhex(DIGITS_VAL), np.uint8))[: len(table)].astype(bool)
    if table.shape != (len(validates), 65):
        raise DataError(f"{path}: holds {table.shape} numbers, the digits are (1797, 65)")
    pixels = np.rint(table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # 17 levels, 0 to 16
    halves = {"train": ~validates, "val": validates}
    return Arrays(
        {split: pixels[halves[split]] for split in splits},
        {split: table[halves[split], 64] for split in splits},
        class_numbers(10),
    )


def synthetic(data: DataConfig, splits: Sequence[str] = SPLITS) -> Arrays:
    """Draw random images and labels, always the same: as many, of as many classes, as asked for or as the row says."""
    row = data.known
    num_classes = data.num_classes or row.num_classes or 0
    shape = (data.image_size, data.image_size, 3)
    arrays = Arrays({}, {}, class_numbers(num_classes))
    for split in splits:
        num_images = getattr(data, f"{split}_images") or row.num_images[split]
        draw = np.random.Generator(np.random.PCG64(derived_seed(Draw.synthetic, split == "val")))
        arrays.labels[split] = draw.integers(0, num_classes, num_images)
        arrays.pixels[split] = draw.integers(0, 256, (num_images, *shape), dtype=np.uint8)
    return arrays


def class_numbers(num_classes: int) -> tuple[str, ...]:
    """Return names for classes that have none."""
    return tuple(str(c) for c in range(num_classes))


def npz(data: DataConfig, splits: Sequence[str] = SPLITS) -> Arrays:
    """Load `root/train.npz` and `root/val.npz`.

    Each holds `images`, uint8 `(N, H, H)` or `(N, H, H, 3)`, and `labels`, integers `(N,)` from 0 up.
    """
    root = download.data_root(data)
    arrays = Arrays({}, {}, ())
    for split in splits:
        arrays.pixels[split], arrays.labels[split] = read_npz(root / f"{split}.npz")
    num_classes = data.num_classes or 1 + max(int(labels.max()) for labels in arrays.labels.values())
    num_classes = min(num_classes, MAX_CLASSES)  # a class has a name, and the net's head a row: labels are no hashes
    for split, labels in arrays.labels.items():
        check_labels(root / f"{split}.npz", labels, num_classes)
    if "train" in splits:
        check_all_trained(root, arrays.labels, data.num_classes)
    arrays.classes = class_numbers(num_classes)
    return arrays


def check_all_trained(root: Path, labels: dict[str, np.ndarray], num_classes: int | None) -> None:
    """Raise DataError for a label that has no training image: one of a validation image, and one that only a gap in
    the numbers makes a class, unless the number of classes is given."""
    train = np.unique(labels["train"])
    if len(unknown := np.setdiff1d(labels.get("val", train), train)):
        shown = first_few([str(label) for label in unknown])
        raise DataError(f"{root / 'val.npz'}: label {shown} has no training image; train.npz must have every label")
    if num_classes is None and len(train) <= train[-1]:
        span = f"{root / 'train.npz'}: labels from {train[0]} to {train[-1]}"
        if train[0] == 1:
            raise DataError(f"{span}, none is 0: are they numbered from 1? They must be from 0")
        first = first_few([str(label) for label in np.setdiff1d(np.arange(train[-1]), train)])
        raise DataError(f"{span}, none is {first}; number them without gaps, or set data.num_classes")


def idx(data: DataConfig, splits: Sequence[str] = SPLITS) -> Arrays:
    """Load a set in MNIST's format: in `root/FashionMNIST/raw` as for torchvision, in `root`, or as Debian has it."""
    row, root = data.known, download.data_root(data)
    folders = [root / row.torchvision / "raw", root, root / data.name.replace("_", "-")]
    folder = next((p for p in folders if idx_file(p, splits[0], "images") is not None), None)
    if folder is None:
        folder = download.fetch(data, root, f"no {idx_name(splits[0], 'images')}(.gz) in {folders[0]} or {root}")
    arrays = Arrays({}, {}, row.classes or class_numbers(row.num_classes or 0), black_border=True)
    for split in splits:
        pixels, labels = (read_idx(folder, split, what, row) for what in ("images", "labels"))
        if len(pixels) != len(labels) or len(labels) == 0:
            raise DataError(f"{folder}: {len(pixels)} images but {len(labels)} labels of {IDX_PREFIX[split]}")
        check_labels(folder, labels, len(arrays.classes))
        arrays.pixels[split], arrays.labels[split] = pixels, labels
    return arrays


def idx_name(split: str, what: str) -> str:
    """Return the name of the file of `images` or `labels`, unpacked."""
    return f"{IDX_PREFIX[split]}-{what}-idx{3 if what == 'images' else 1}-ubyte"


def idx_file(folder: Path, split: str, what: str) -> Path | None:
    """Return the file of `images` or `labels`, unpacked or not, or None."""
    name = idx_name(split, what)
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def read_idx(folder: Path, split: str, what: str, row: DataSet) -> np.ndarray:
    """Read a file of MNIST's format: a magic number, the dimensions (big-endian), then the bytes."""
    path = idx_file(folder, split, what)
    if path is None:
        raise DataError(f"{folder}: {idx_name(split, what)}(.gz) is missing")
    content = read_bytes(path, unpack=path.suffix == ".gz")
    num_dims, inner = (3, (row.image_size, row.image_size)) if what == "images" else (1, ())
    header = 4 + 4 * num_dims
    dims = tuple(int(d) for d in np.frombuffer(content[4:header], ">u4")) if len(content) >= header else ()
    if content[:4] != bytes((0, 0, 8, num_dims)) or dims[1:] != inner:
        size = f"{row.image_size} x {row.image_size}"
        raise DataError(f"{path}: not {row.title}'s {what} (magic number 0 0 8 {num_dims}, images of {size})")
    expected = header + int(np.prod(dims, dtype=object))
    if len(content) != expected:
        raise DataError(f"{path}: {len(content)} bytes, expected {expected}; the file is truncated or damaged")
    return np.frombuffer(content, np.uint8, offset=header).reshape(dims)


def read_bytes(path: Path, unpack: bool = False) -> bytes:
    """Read a file, gunzipped on the way if asked, to at most `MAX_UNPACKED`. Raises DataError with the reason."""
    try:
        content = read_regular(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({reason(error)})") from error
    try:
        content = gzip.GzipFile(fileobj=BytesIO(content)).read(MAX_UNPACKED + 1) if unpack else content
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise DataError(f"{path}: cannot be read, the file is truncated or damaged ({reason(error)})") from error
    if unpack and len(content) > MAX_UNPACKED:
        raise DataError(f"{path}: unpacks to more than {MAX_UNPACKED >> 20} MiB, which no such file does")
    return content


def check_labels(path: Path, labels: np.ndarray, num_classes: int) -> None:
    """Raise DataError for a label outside 0 to num_classes - 1."""
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        raise DataError(f"{path}: labels from {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1}")


def cifar(data: DataConfig, splits: Sequence[str] = SPLITS) -> Arrays:
    """Read CIFAR's pickled batches, in torchvision's layout (`root/cifar-10-batches-py`).

    torchvision's class says which files there are and which MD5 sum each has.
    """
    from torchvision import datasets

    published = getattr(datasets, data.known.torchvision)
    root = download.data_root(data)
    folder = root / published.base_folder
    if not folder.is_dir():
        folder = download.fetch(data, root, f"no folder {folder}")
    meta = read_pickle(folder / published.meta["filename"], published.meta["md5"])
    arrays = Arrays({}, {}, tuple(meta[published.meta["key"]]))
    files = {"train": published.train_list, "val": published.test_list}
    for split in splits:
        batches = [read_pickle(folder / name, md5) for name, md5 in files[split]]
        pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, CIFAR_SIZE, CIFAR_SIZE)
        arrays.pixels[split] = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        labels = [batch["labels"] if "labels" in batch else batch["fine_labels"] for batch in batches]
        arrays.labels[split] = np.concatenate([np.asarray(part, dtype=np.int64) for part in labels])
        check_labels(folder, arrays.labels[split], len(arrays.classes))
    return arrays


def read_pickle(path: Path, md5: str) -> Any:
    """Unpickle a published file.

    A pickle can run code, so the very bytes that are unpickled are compared with the published sum first.
    """
    content = read_bytes(path)
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        why = "it is truncated, damaged or another one"
        raise DataError(f"{path}: not the published file (its MD5 sum must be {md5}); {why}")
    return pickle.loads(content, encoding="latin1")


# Of `DataSet.loader`; a set without a row in the catalog has the loader of its own name.
LOADERS: dict[str, Callable[[DataConfig, Sequence[str]], Arrays]] = {
    loader.__name__: loader for loader in (digits, idx, cifar, synthetic)
}
