"""Which training images are held out: evaluated in place of the validation images, and never trained on.

A function of the labels and the share alone, so that every row and every seed has the same ones; a larger share
includes the images of a smaller one.
"""

from collections.abc import Sequence

import numpy as np
import torch

from roadmap.data.sampling import Draw, generator
from roadmap.errors import ConfigError
from roadmap.text import printable


def holdout_mask(labels: np.ndarray, share: float, classes: Sequence[str]) -> np.ndarray:
    """Return which of the training images are held out, `(N,)` of bool: of each class its share, rounded.

    Raises ConfigError where a class would be left without an image on either side.
    """
    counts = np.bincount(labels, minlength=len(classes))
    wanted = np.floor(counts * share + 0.5).astype(np.int64)
    check_classes(counts, wanted, share, classes)
    shuffled = torch.randperm(len(labels), generator=generator(Draw.holdout)).numpy()
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]  # class after class, each in the shuffle's order
    place_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    mask = np.zeros(len(labels), dtype=bool)
    mask[by_class[place_in_class < np.repeat(wanted, counts)]] = True
    return mask


def check_classes(counts: np.ndarray, wanted: np.ndarray, share: float, classes: Sequence[str]) -> None:
    """Raise ConfigError for a class that has images, but none held out, or none left to train on."""
    for empty, where in ((wanted == 0, "held out"), (wanted == counts, "left to train on")):
        found = np.flatnonzero(empty & (counts > 0))
        if len(found):
            name, size = printable(classes[found[0]]), int(counts[found[0]])
            more = f" and of {len(found) - 1} more classes" if len(found) > 1 else ""
            raise ConfigError(
                f"data.holdout={share:g}: no image of class {name} ({size} training images){more} would be {where}"
            )
