"""The files that `mode=predict` writes, an image at a time: the likeliest classes as CSV, features as .npz."""

import csv
import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, BinaryIO

import numpy as np

from roadmap.files import atomic_file
from roadmap.report.write.escape import FORMULA, for_csv
from roadmap.training.output_file import write_errors

DEFAULT = "predictions.csv"
CHUNK = 2**20  # bytes


class PredictionsCsv:
    """The likeliest classes of each image: `image`, then `class_1`, `probability_1` and so on, the likeliest first."""

    def __init__(self, file: BinaryIO, classes: Sequence[str], num_best: int) -> None:
        self.classes = [for_csv(name) for name in classes]
        # Names of files are bytes: those that are no text are written as they are.
        self._text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="", write_through=True)
        self._rows = csv.writer(self._text)
        numbers = range(1, num_best + 1)
        self._rows.writerow(["image", *(f"{what}_{n}" for n in numbers for what in ("class", "probability"))])

    def write(self, name: str, best: Sequence[tuple[int, float]]) -> None:
        """Write the line of an image: numbers of classes, and their probabilities."""
        name = f"./{name}" if name.startswith(tuple(FORMULA)) else name  # the same file, and nothing to be computed
        self._rows.writerow([name, *(item for c, p in best for item in (self.classes[c], f"{p:.6f}"))])

    def close(self) -> None:
        """Leave the file to whoever has opened it."""
        self._text.flush()
        self._text.detach()


class FeaturesNpz:
    """Features by image: arrays `names (N,)` and `features (N, C)`, float32, of which any number fits."""

    def __init__(self, file: BinaryIO, features: IO[bytes], names: IO[bytes]) -> None:
        """Write into a file in the end, and meanwhile into two that are thrown away."""
        self._file, self._features, self._names = file, features, names
        self.shape = (0, 0)
        self._longest = 1

    def write(self, names: Sequence[str], features: np.ndarray) -> None:
        """Add images: features `(B, C)`."""
        self._features.write(np.ascontiguousarray(features, dtype="<f4").tobytes())
        for name in names:
            self._names.write(name.encode("utf-8", "surrogateescape") + b"\0")
            self._longest = max(self._longest, len(name))
        self.shape = (self.shape[0] + len(names), features.shape[1])

    def close(self) -> None:
        """Write the archive, a piece at a time."""
        with zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            write_member(archive, "names", f"<U{self._longest}", self.shape[:1], self._name_pieces())
            write_member(archive, "features", "<f4", self.shape, pieces(self._features))

    def _name_pieces(self) -> Iterator[bytes]:
        rest = b""
        for piece in pieces(self._names):
            *whole, rest = (rest + piece).split(b"\0")
            names = [name.decode("utf-8", "replace") for name in whole]  # what is no text is shown as such
            yield np.array(names, dtype=f"<U{self._longest}").tobytes()


def pieces(file: IO[bytes]) -> Iterator[bytes]:
    """Yield what was written into a file, from its start."""
    file.seek(0)
    while piece := file.read(CHUNK):
        yield piece


def write_member(
    archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int, ...], data: Iterator[bytes]
) -> None:
    """Write an array into an .npz, its header and then its bytes."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        header: dict[str, Any] = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        for piece in data:
            member.write(piece)


@contextmanager
def new_predictions(
    path: Path, features: Path | None, classes: Sequence[str], num_best: int
) -> Iterator[tuple[PredictionsCsv, FeaturesNpz | None]]:
    """Open both files, which are there once all of it is whole. Raises Refused, DiskError."""
    with ExitStack() as stack:
        stack.enter_context(write_errors(path))
        table = PredictionsCsv(stack.enter_context(atomic_file(path, new=True)), classes, num_best)
        archive = None
        if features is not None:
            new = stack.enter_context(atomic_file(features, new=True))
            unnamed = (stack.enter_context(TemporaryFile(dir=features.parent)) for _ in range(2))
            archive = FeaturesNpz(new, *unnamed)
        yield table, archive
        table.close()
        if archive is not None:
            archive.close()
