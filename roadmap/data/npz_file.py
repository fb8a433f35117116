"""Images and labels of a .npz: what its headers say is checked before anything is unpacked."""

import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from roadmap.errors import DataError
from roadmap.files import open_regular
from roadmap.text import reason


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels of a file. No Python object is ever unpickled. Raises DataError, before anything is
    unpacked for what the headers say, and MemoryError."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            images, labels = (NpyHeader.read(archive, name) for name in ("images", "labels"))
            check_headers(path, images, labels)
            return images.array(archive), labels.array(archive)
    except (DataError, MemoryError):
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({reason(error)})") from error
    except Exception as error:  # whatever a damaged archive or header leads to
        raise DataError(
            f"{path}: must hold arrays `images` and `labels`, as numpy.savez writes them ({reason(error)})"
        ) from error


@dataclass(frozen=True)
class NpyHeader:
    """What an array in a .npz says of itself, and how many bytes it has."""

    member: str
    shape: tuple[int, ...]
    dtype: np.dtype
    num_bytes: int

    @classmethod
    def read(cls, archive: zipfile.ZipFile, name: str) -> Self:
        """Read the header of `name`. Raises whatever a damaged one leads to."""
        with archive.open(f"{name}.npy") as file:
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = read[np.lib.format.read_magic(file)](file)
            return cls(f"{name}.npy", shape, dtype, archive.getinfo(f"{name}.npy").file_size - file.tell())

    def array(self, archive: zipfile.ZipFile) -> np.ndarray:
        """Unpack the array. Raises ValueError where it is not as long as its header says."""
        if math.prod(self.shape) * self.dtype.itemsize != self.num_bytes:
            raise ValueError(f"{self.member} holds {self.num_bytes} bytes, its header says {self}")
        with archive.open(self.member) as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def check_headers(path: Path, images: NpyHeader, labels: NpyHeader) -> None:
    """Raise DataError for arrays that are no images and their labels, or more than this machine's memory."""
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) not in (3, 4) or shape[3:] not in ((), (3,)):
        raise DataError(f"{path}: images are {images}, must be uint8 (N, H, H) or (N, H, H, 3)")
    if shape[1] != shape[2] or not all(shape):
        raise DataError(f"{path}: images are {images}, must be square and at least one")
    if labels.dtype.kind not in "iu" or labels.shape != shape[:1]:
        raise DataError(f"{path}: labels are {labels}, must be integers ({shape[0]},)")
    unpacked, memory = math.prod(shape), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # bytes
    if unpacked > memory:
        sizes = f"{unpacked >> 30} GiB, and this machine's memory is {memory >> 30} GiB"
        raise DataError(f"{path}: images are {images}, {sizes}")
