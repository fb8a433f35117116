"""What is drawn for each training image: its crop's box, the operations of RandAugment with their arguments, the erased box.

The rules are those of timm, which the reference pipeline calls; here they are vectorised over a batch and draw by counting
(`draws`), so that an image's numbers depend on (seed, epoch, id) only. Used by `decode` and `fast`. Everything is on the CPU.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from roadmap.config.schema import DataConfig, RecipeConfig
from roadmap.data import transforms
from roadmap.data.draws import uniforms
from roadmap.data.sampling import Draw
from roadmap.errors import ConfigError

SCALE, RATIO, ATTEMPTS = (
    (0.08, 1.0),
    (3 / 4, 4 / 3),
    10,
)  # of the random resized crop, as torchvision and timm have them
ERASED_AREA, ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)  # of the image's; height to width
STRONGEST = 10.0  # timm's magnitudes count from 0 to this, unless mmax says otherwise

Level = Callable[[np.ndarray, np.ndarray], np.ndarray]
# From magnitude / 10 and a sign (+1 or -1) to the operation's argument, as in timm's `LEVEL_TO_ARG`.
LEVELS: dict[str, Level] = {
    "AutoContrast": lambda level, sign: 0 * level,
    "Equalize": lambda level, sign: 0 * level,
    "Invert": lambda level, sign: 0 * level,
    "Rotate": lambda level, sign: level * 30.0 * sign,  # degrees, counter-clockwise
    "Posterize": lambda level, sign: np.trunc(level * 4),  # bits that are kept
    "PosterizeIncreasing": lambda level, sign: 4 - np.trunc(level * 4),
    "Solarize": lambda level, sign: np.minimum(256, np.trunc(level * 256)),  # threshold
    "SolarizeIncreasing": lambda level, sign: 256 - np.minimum(256, np.trunc(level * 256)),
    "SolarizeAdd": lambda level, sign: np.minimum(128, np.trunc(level * 110)),  # what is added to values under 128
    **{op: lambda level, sign: level * 1.8 + 0.1 for op in ("Color", "Contrast", "Brightness", "Sharpness")},  # factor
    **{
        f"{op}Increasing": lambda level, sign: np.maximum(0.1, 1.0 + level * 0.9 * sign)
        for op in ("Color", "Contrast", "Brightness", "Sharpness")
    },
    "ShearX": lambda level, sign: level * 0.3 * sign,  # pixels a pixel
    "ShearY": lambda level, sign: level * 0.3 * sign,
    "TranslateXRel": lambda level, sign: level * 0.45 * sign,  # share of the width
    "TranslateYRel": lambda level, sign: level * 0.45 * sign,
}


@dataclass(frozen=True)
class Policy:
    """RandAugment as timm has read it from `recipe.rand_augment`."""

    names: tuple[str, ...]  # the operations to choose from
    num_layers: int  # operations an image, one after the other, chosen with replacement
    prob: float  # with which a chosen operation is applied
    magnitude: float
    magnitude_std: float  # 0: always `magnitude`; infinite: uniform from 0 to it
    magnitude_max: float
    fill: tuple[int, int, int]  # what comes into view from beyond the edges


@dataclass(frozen=True)
class Layer:
    """The same layer of RandAugment for a batch: each image's operation, "" for none, and its argument."""

    ops: np.ndarray  # str (B,): timm's names without "Increasing" and "Rel"
    args: np.ndarray  # float64 (B,)


def policy_of(data: DataConfig, recipe: RecipeConfig) -> Policy | None:
    """Read `recipe.rand_augment`, as timm does. Raises ConfigError for what it cannot read, and for sets of other operations."""
    if recipe.rand_augment is None:
        return None
    theirs = transforms.rand_augment(data, recipe)
    if theirs.choice_weights is not None or not {op.name for op in theirs.ops} <= set(LEVELS):
        raise ConfigError(
            f"recipe.rand_augment={recipe.rand_augment}: data.pipeline=fast has timm's 15 operations, equally likely; "
            "a set of others (-t...) needs data.pipeline=reference"
        )
    op = theirs.ops[0]
    return Policy(
        tuple(op.name for op in theirs.ops),
        theirs.num_layers,
        op.prob,
        op.magnitude,
        op.magnitude_std,
        op.magnitude_max or STRONGEST,
        op.kwargs["fillcolor"],
    )


def draw_layers(policy: Policy, seed: int, epoch: int, ids: np.ndarray) -> list[Layer]:
    """Draw the operations of a batch: ids `(B,)` -> a `Layer` for each operation that is applied in turn."""
    drawn = uniforms(Draw.augment, seed, epoch, ids, 4 * policy.num_layers)
    return [layer_of(policy, *drawn[:, 4 * i : 4 * i + 4].T) for i in range(policy.num_layers)]


def layer_of(policy: Policy, which: np.ndarray, apply: np.ndarray, strength: np.ndarray, sign: np.ndarray) -> Layer:
    """Turn four uniform numbers an image into its operation and argument."""
    magnitude = np.full(len(which), float(policy.magnitude))
    if math.isinf(policy.magnitude_std):
        magnitude *= strength
    elif policy.magnitude_std > 0:
        magnitude += policy.magnitude_std * ndtri(strength.clip(2.0**-54))  # 0 would be infinite
    level, signs = magnitude.clip(0, policy.magnitude_max) / STRONGEST, np.where(sign > 0.5, -1.0, 1.0)
    chosen = (which * len(policy.names)).astype(np.int64)
    args = np.stack([LEVELS[name](level, signs) for name in policy.names], 1)[np.arange(len(which)), chosen]
    plain = np.array([name.removesuffix("Increasing").removesuffix("Rel") for name in policy.names])
    return Layer(np.where(apply < policy.prob, plain[chosen], ""), args)


def draw_box(seed: int, epoch: int, index: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Draw top, left, height and width of an image's crop, as timm's RandomResizedCropAndInterpolation does.

    Area 8 to 100 %, aspect log-uniform from 3/4 to 4/3, the first of ten attempts that fits; else the largest box at the
    centre whose aspect is in that range. Of an image of a pixel or two it can be a box without pixels.
    """
    drawn = uniforms(Draw.box, seed, epoch, np.array([index]), 2 * ATTEMPTS + 2)[0]
    area = between(SCALE, drawn[:ATTEMPTS]) * (height * width)
    aspect = np.exp(between(np.log(RATIO), drawn[ATTEMPTS:-2]))
    widths, heights = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (widths <= width) & (heights <= height)
    if fits.any():
        first = int(fits.argmax())
        h, w = int(heights[first]), int(widths[first])
        return int(drawn[-2] * (height - h + 1)), int(drawn[-1] * (width - w + 1)), h, w
    h, w = height, width
    if width / height < RATIO[0]:
        h = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(height * RATIO[1])
    return (height - h) // 2, (width - w) // 2, h, w


def draw_erased(prob: float, size: int, seed: int, epoch: int, ids: np.ndarray) -> np.ndarray:
    """Draw the box that is erased of each image, as timm's RandomErasing does: int64 `(B, 4)`, top, left, height, width; height 0 for none.

    Area 2 to 33 %, aspect log-uniform from 0.3 to 1 / 0.3, the first of ten attempts that is smaller than the image.
    """
    drawn = uniforms(Draw.erase, seed, epoch, ids, 2 * ATTEMPTS + 3)
    area = between(ERASED_AREA, drawn[:, :ATTEMPTS]) * size**2
    aspect = np.exp(between(np.log(ERASED_RATIO), drawn[:, ATTEMPTS:-3]))
    heights, widths = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (heights < size) & (widths < size)
    first, rows = fits.argmax(1), np.arange(len(ids))
    h, w = heights[rows, first], widths[rows, first]
    box = np.stack((np.floor(drawn[:, -3] * (size - h + 1)), np.floor(drawn[:, -2] * (size - w + 1)), h, w), 1).astype(
        np.int64
    )
    box[~(fits.any(1) & (drawn[:, -1] < prob))] = 0
    return box


def between(limits: tuple[float, float] | np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Turn numbers from [0, 1) into numbers from a range."""
    return limits[0] + (limits[1] - limits[0]) * uniform
