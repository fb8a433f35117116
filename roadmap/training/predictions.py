"""The files that `mode=predict` writes, an image at a time: the likeliest classes as CSV, features as .npz."""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from glob import escape
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, BinaryIO

import numpy as np

from roadmap.files import atomic_file, fsync
from roadmap.report.write.escape import FORMULA, for_csv
from roadmap.training.output_file import write_errors

DEFAULT = "predictions.csv"


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
        """Leave the file, which is on disk, to whoever has opened it: features without their table would be in the
        way of another try."""
        self._text.flush()
        fsync(self._text.fileno())
        self._text.detach()


class FeaturesNpz:
    """Features by image: arrays `names (N,)` and `features (N, C)`, float32, of which any number fits."""

    def __init__(self, file: BinaryIO, features: IO[bytes]) -> None:
        """Write into a file in the end, and features meanwhile into one that is thrown away."""
        self._file, self._features = file, features
        self._names: list[str] = []

    def write(self, names: Sequence[str], features: np.ndarray) -> None:
        """Add images: features `(B, C)`."""
        self._features.write(np.ascontiguousarray(features, dtype="<f4").tobytes())
        # What is no text is shown as such.
        self._names += (name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in names)

    def close(self) -> None:
        """Write the archive; NumPy writes what lies in a file piece by piece."""
        self._features.flush()
        features = np.memmap(self._features, "<f4", "r").reshape(len(self._names), -1)
        np.savez(self._file, names=np.array(self._names), features=features)


def was_killed(path: Path) -> bool:
    """Tell whether an earlier try to write this table was killed: its features may have their name already, and are
    written again. Others than those are refused in the end."""
    return any(path.parent.glob(f".{escape(path.name)}.*.tmp"))


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
            archive = FeaturesNpz(new, stack.enter_context(TemporaryFile(dir=features.parent)))
        yield table, archive
        table.close()
        if archive is not None:
            archive.close()
