"""What a step changes image by image and class by class, beside its parent: which images it fixed and which it broke;
and which classes a row's nets take for one another.

Nets are paired by seed and image here: to count what changed, not to test a mean. A class has the report's two
questions. Would another training do the same to it? Welch's test of the class's accuracy over seeds. Do these trained
nets differ in it? A sign-flip test over its images, all seeds together, which with one seed is McNemar's exact test.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from roadmap.report.analyse.statistics import ALPHA, false_discovery, welch_of_columns
from roadmap.report.read.image_classes import ImageClasses, with_names
from roadmap.report.read.run import Run

EXACT_REACH = 2_000  # images that differ, times seeds: up to here the null distribution is summed and not approximated
MOST_WHOLE = 30  # classes up to which the whole matrix fits on a page
MOST_PAIRS = 30  # pairs that stand for a larger one


@dataclass(frozen=True, eq=False)
class ClassChanges:
    """Each class of the validation images that has some, `(C,)` an array; p is NaN where there is no answer."""

    numbers: np.ndarray  # of the classes
    names: tuple[str, ...]
    images: np.ndarray
    top1: np.ndarray  # percent, mean over the seeds
    parent_top1: np.ndarray
    fixed: np.ndarray  # images, mean over the seeds
    broke: np.ndarray
    p_seeds: np.ndarray  # Welch's test
    p_images: np.ndarray  # the nets held fixed
    p_seeds_adjusted: np.ndarray  # by Benjamini and Hochberg, over all classes of all steps of the study
    p_images_adjusted: np.ndarray

    @property
    def change(self) -> np.ndarray:
        """Return what each class gained, in percentage points."""
        return self.top1 - self.parent_top1

    @property
    def significant(self) -> np.ndarray:
        """Return which changes the adjusted test over seeds tells from zero."""
        return self.p_seeds_adjusted < ALPHA

    def most(self, sign: int, count: int) -> list[int]:
        """Return the positions of the classes helped (sign 1) or hurt (-1) most, at most `count`."""
        order = np.argsort(-sign * self.change, kind="stable")[:count]
        return [int(i) for i in order if sign * self.change[i] > 0]


@dataclass(frozen=True, eq=False)
class ImageChanges:
    """Images that only this row, or only its parent, has right: means over the seeds that both have."""

    seeds: int
    fixed: float
    broke: float
    by_seed: float | None  # what one seed fixes beside another of the same row, mean of both rows; None for one seed
    classes: ClassChanges | None  # where every run says which class each image has


def image_changes(ours: np.ndarray, theirs: np.ndarray, classes: ImageClasses | None = None) -> ImageChanges:
    """Compare nets paired by seed: `ours` and `theirs` `(S, N)` of bool say which images each has right.

    `classes` are those of the images; without them there is no comparison of classes.
    """
    spreads = [spread for bits in (ours, theirs) if (spread := changed_by_seed(bits)) is not None]
    return ImageChanges(
        seeds=len(ours),
        fixed=float((ours & ~theirs).sum(axis=1).mean()),
        broke=float((theirs & ~ours).sum(axis=1).mean()),
        by_seed=float(np.mean(spreads)) if spreads else None,
        classes=class_changes(ours, theirs, classes) if classes else None,
    )


def changed_by_seed(bits: np.ndarray) -> float | None:
    """Return how many images one net has right and another has not, mean over all pairs of nets, `bits (S, N)`."""
    n = len(bits)
    right = bits.sum(axis=0, dtype=np.int64)
    return float((right * (n - right)).sum() / (n * (n - 1))) if n > 1 else None


def class_changes(ours: np.ndarray, theirs: np.ndarray, classes: ImageClasses) -> ClassChanges:
    """Compare nets class by class; p values are not adjusted yet. As `image_changes`."""
    numbers, places, images = np.unique(classes.labels, return_inverse=True, return_counts=True)

    def sums(values: np.ndarray) -> np.ndarray:
        """Sum `(S, N)` within each class: `(S, C)`."""
        return np.stack([np.bincount(places, row, minlength=len(numbers)) for row in values])

    right, parent_right = sums(ours), sums(theirs)
    unknown = np.full(len(numbers), np.nan)
    return ClassChanges(
        numbers=numbers,
        names=tuple(map(classes.name, numbers.tolist())),
        images=images,
        top1=100.0 * right.mean(axis=0) / images,
        parent_top1=100.0 * parent_right.mean(axis=0) / images,
        fixed=sums(ours & ~theirs).mean(axis=0),
        broke=sums(theirs & ~ours).mean(axis=0),
        p_seeds=welch_of_columns(right / images, parent_right / images),
        p_images=_over_images(ours.sum(axis=0, dtype=int) - theirs.sum(axis=0, dtype=int), places, len(numbers)),
        p_seeds_adjusted=unknown,
        p_images_adjusted=unknown,
    )


def _over_images(differences: np.ndarray, places: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the sign-flip test of each class.

    `differences (N,)`: the seeds that have an image right, less those of the parent; `places (N,)`: its class.
    """
    sizes = np.abs(differences)
    totals = np.bincount(places, differences, minlength=num_classes)
    counts = [np.bincount(places[sizes == j], minlength=num_classes) for j in range(1, int(sizes.max(initial=0)) + 1)]
    rows = zip(totals, *counts, strict=True)
    return np.array([sign_flip(int(total), tuple(map(int, of_sizes))) for total, *of_sizes in rows])


def sign_flip(total: int, counts: tuple[int, ...]) -> float:
    """Return the two-sided p of a sum of differences, each as likely with either sign; NaN where nothing differs.

    `counts[j - 1]` of them are of size j. Exact up to a sum of `EXACT_REACH`, beyond by the normal distribution, both
    as McNemar's test, which is the case of size 1 alone (Fisher's randomisation test, 1935; one vote an image, so that
    seeds that agree on an image are not taken for as many images).
    """
    reach = sum(j * count for j, count in enumerate(counts, 1))
    if reach == 0:
        return float("nan")
    if reach > EXACT_REACH:
        return float(2 * stats.norm.sf(abs(total) / sum(j**2 * count for j, count in enumerate(counts, 1)) ** 0.5))
    return _tail(abs(total), counts)


@functools.lru_cache(2**16)
def _tail(total: int, counts: tuple[int, ...]) -> float:
    chances = np.ones(1)
    for j, count in enumerate(counts, 1):
        if count:
            chances = np.convolve(chances, _signs(j, count))
    sums = np.arange(len(chances)) - len(chances) // 2
    return min(1.0, float(chances[np.abs(sums) >= total].sum()))


@functools.lru_cache(256)
def _signs(size: int, count: int) -> np.ndarray:
    """Return the chances of the sums, from -size x count up, of `count` differences of one size with random signs."""
    chances = np.zeros(2 * size * count + 1)
    chances[:: 2 * size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
    return chances


def adjusted(changes: Sequence[ImageChanges | None]) -> list[ImageChanges | None]:
    """Return the changes of all steps of a study with the p values of their classes adjusted for one another."""
    known = [change.classes for change in changes if change and change.classes]
    if not known:
        return list(changes)
    ends = np.cumsum([len(classes.images) for classes in known])[:-1]
    seeds, images = (
        iter(np.split(false_discovery(np.concatenate([getattr(classes, name) for classes in known])), ends))
        for name in ("p_seeds", "p_images")
    )
    return [
        replace(change, classes=replace(change.classes, p_seeds_adjusted=next(seeds), p_images_adjusted=next(images)))
        if change and change.classes
        else change
        for change in changes
    ]


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
