"""Which classes the nets of a row take for one another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from roadmap.report.read.image_classes import with_names
from roadmap.report.read.run import Run

MOST_WHOLE = 30  # classes up to which the whole matrix fits on a page
MOST_PAIRS = 30  # pairs that stand for a larger one


@dataclass(frozen=True)
class Pair:
    """One class taken for another: images, mean over the seeds, and which share of the class they are, in percent."""

    true: str
    taken_for: str
    images: float
    share: float


@dataclass(frozen=True, eq=False)
class Confusion:
    """What the nets of a row made of the images of each class, means over the seeds that say so."""

    seeds: int
    # (C, C) images: one row per class, one column per predicted class; up to 30 classes, with their names
    matrix: np.ndarray | None
    names: tuple[str, ...]
    pairs: tuple[Pair, ...]  # the most confused, the most images first


def confusion(runs: Sequence[Run]) -> Confusion | None:
    """Return the confusion of a row's runs; None where none says which classes came first."""
    known = [run.classes for run in runs if run.classes]
    if not known:
        return None
    name, num_classes = with_names(known).name, with_names(known).num_classes
    known = [classes for classes in known if classes.num_classes == num_classes]
    codes = np.concatenate([classes.labels * num_classes + classes.predicted for classes in known])
    taken, counts = np.unique(codes, return_counts=True)
    true, chosen = np.divmod(taken, num_classes)
    matrix = None
    if num_classes <= MOST_WHOLE:
        matrix = np.zeros((num_classes, num_classes))
        matrix[true, chosen] = counts / len(known)
    sizes = np.bincount(true, counts)
    wrong = np.flatnonzero(true != chosen)
    most = wrong[np.argsort(-counts[wrong], kind="stable")[:MOST_PAIRS]]
    pairs = tuple(
        Pair(name(int(true[i])), name(int(chosen[i])), counts[i] / len(known), 100.0 * counts[i] / sizes[true[i]])
        for i in most
    )
    names = () if matrix is None else tuple(map(name, range(num_classes)))
    return Confusion(len(known), matrix, names, pairs)
