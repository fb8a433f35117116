"""The class that a run's net chose for each image, and the image's own: do they fit each other and the record?"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from roadmap.report.read.wandb import WandbRun
from roadmap.runs.recorded_run import RecordedRun, Suspect
from roadmap.runs.schema import CORRECT, LABELS, PREDICTIONS, SUMMARY
from roadmap.text import clean

MOST_CLASSES = 1_000_000  # as the schema has it; tables of classes have a length
UINT32 = np.dtype("<u4")


@dataclass(frozen=True)
class ImageClasses:
    """Two class numbers an image, in the set's order, and the names of the classes; in bytes, so that runs compare."""

    num_classes: int
    names: tuple[str, ...] = field(repr=False)  # none where the record has none
    predicted_bytes: bytes = field(repr=False)  # uint32
    label_bytes: bytes = field(repr=False)

    def name(self, number: int) -> str:
        """Return the name of a class: its number where it has none."""
        return self.names[number] if self.names else str(number)

    @property
    def predicted(self) -> np.ndarray:
        """Return the class that came first for each image, `(N,)` of int64."""
        return np.frombuffer(self.predicted_bytes, UINT32).astype(np.int64)

    @property
    def labels(self) -> np.ndarray:
        """Return the class of each image, `(N,)` of int64."""
        return np.frombuffer(self.label_bytes, UINT32).astype(np.int64)


def with_names(classes: Sequence[ImageClasses]) -> ImageClasses:
    """Return the first that knows the names of its classes, or the first."""
    return next((one for one in classes if one.names), classes[0])


def read_classes(source: RecordedRun | WandbRun, num_classes: int | None, names: Sequence[str]) -> ImageClasses | None:
    """Read and check the classes of a run's images; None where it has none, as runs of older versions.

    Raises Suspect: one file without the other, or a class that the set has not.
    """
    found = {name: source.classes(name) for name in (PREDICTIONS, LABELS)}
    arrays = {name: array for name, array in found.items() if array is not None}
    if not arrays:
        return None
    if missing := found.keys() - arrays.keys():
        raise Suspect(f"{missing.pop()} is missing beside {next(iter(arrays))}")
    if num_classes is None or not 2 <= num_classes <= MOST_CLASSES:
        raise Suspect(f"{SUMMARY}: num_classes={num_classes} is no number of classes")
    for name, array in arrays.items():
        if (largest := int(array.max(initial=0))) >= num_classes:
            raise Suspect(f"{name}: class {largest}, the set has {num_classes}, from 0 up")
    shown = [clean(name, 60) or str(number) for number, name in enumerate(names)] if len(names) == num_classes else ()
    predicted, labels = (array.astype(UINT32).tobytes() for array in arrays.values())
    return ImageClasses(num_classes, tuple(shown), predicted, labels)


def check_classes(found: ImageClasses | None, correct: np.ndarray | None, num_images: int | None) -> None:
    """Raise Suspect where the classes are not those of all images, or not of those that are right, `correct (N,)`."""
    if found is None:
        return
    for name, array in ((PREDICTIONS, found.predicted), (LABELS, found.labels)):
        if len(array) != num_images:
            raise Suspect(f"{name}: holds the classes of {len(array)} images, not of {num_images}")
    if correct is None:
        raise Suspect(f"{CORRECT} is missing beside {PREDICTIONS}")
    if other := int(((found.predicted == found.labels) != correct).sum()):
        says = f"say of {other} of {num_images} images otherwise than {CORRECT} whether they are right"
        raise Suspect(f"{PREDICTIONS}, {LABELS}: {says}")
