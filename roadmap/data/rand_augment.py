"""RandAugment for a batch on the device, by the rules of timm, which the reference pipeline calls.

Which image gets which operation is drawn on the CPU, by counting (`counter_rng`): it depends on (seed, epoch, id) only.
So a batch can be processed operation by operation without waiting for the device.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from roadmap.config.choices import Interpolation
from roadmap.config.images import DataConfig
from roadmap.config.recipe import RecipeConfig
from roadmap.data import image_ops, transforms
from roadmap.data.counter_rng import uniforms
from roadmap.data.image_ops import Fill, to_device, to_device_together
from roadmap.data.sampling import Draw
from roadmap.errors import ConfigError
from roadmap.net.kernels.triton_support import ceil_div, interpreted, why_no_triton

STRONGEST = 10.0  # timm's magnitudes count from 0 to this, unless mmax says otherwise
FEW = 4  # images at a time on a CPU, so that intermediate results stay in its caches

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
    fill: Fill
    interpolation: Interpolation


@dataclass(frozen=True)
class Layer:
    """The same layer of RandAugment for a batch: each image's operation, "" for none, and its argument."""

    ops: np.ndarray  # str (B,): timm's names without "Increasing" and "Rel"
    args: np.ndarray  # float64 (B,)


def parse_policy(data: DataConfig, recipe: RecipeConfig) -> Policy | None:
    """Read `recipe.rand_augment`, as timm does.

    Raises ConfigError for what it cannot read, and for sets of other operations.
    """
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
        recipe.interpolation,
    )


def draw_layers(policy: Policy, seed: int, epoch: int, ids: np.ndarray) -> list[Layer]:
    """Draw the operations of a batch: ids `(B,)` -> a `Layer` for each operation that an image gets."""
    drawn = uniforms(Draw.augment, seed, epoch, ids, 4 * policy.num_layers)
    return [to_layer(policy, *drawn[:, 4 * i : 4 * i + 4].T) for i in range(policy.num_layers)]


def to_layer(policy: Policy, which: np.ndarray, apply: np.ndarray, strength: np.ndarray, sign: np.ndarray) -> Layer:
    """Turn four uniform numbers an image into its operation and argument."""
    magnitude = np.full(len(which), float(policy.magnitude))
    if math.isinf(policy.magnitude_std):
        magnitude *= strength
    elif policy.magnitude_std > 0:
        from scipy.special import ndtri  # a quarter of a second that a run without RandAugment need not wait

        magnitude += policy.magnitude_std * ndtri(strength.clip(2.0**-54))  # 0 would be infinite
    level, signs = magnitude.clip(0, policy.magnitude_max) / STRONGEST, np.where(sign > 0.5, -1.0, 1.0)
    chosen = (which * len(policy.names)).astype(np.int64)
    args = np.stack([LEVELS[name](level, signs) for name in policy.names], 1)[np.arange(len(which)), chosen]
    plain = np.array([name.removesuffix("Increasing").removesuffix("Rel") for name in policy.names])
    return Layer(np.where(apply < policy.prob, plain[chosen], ""), args)


def apply_rand_augment(images: Tensor, policy: Policy, layers: Sequence[Layer]) -> Tensor:
    """Apply each image's operations, layer by layer: values 0 to 255 `(B, H, W, C)` -> uint8 `(B, H, W, 3)`."""
    if images.is_floating_point():
        images = images.round().to(torch.uint8)
    images = images.expand(-1, -1, -1, 3).contiguous()
    if why_no_triton(images.device) is None:
        return apply_layers_by_triton(images, layers, policy.fill, policy.interpolation)
    step = len(images) if images.device.type == "cuda" else FEW
    for start in range(0, len(images), step):
        for layer in layers:
            part = slice(start, start + step)
            apply_layer(images[part], Layer(layer.ops[part], layer.args[part]), policy.fill, policy.interpolation)
    return images


def apply_layers_by_triton(images: Tensor, layers: Sequence[Layer], fill: Fill, interpolation: Interpolation) -> Tensor:
    """Return what each image's operations make of it, uint8 `(B, S, S, 3)`: two kernels a layer, in place of many."""
    from roadmap.data import triton_augment as made

    (num, size), (red, green, blue) = images.shape[:2], fill
    exact = {} if interpreted() else {"enable_fp_fusion": False}
    prepared = [array for layer in layers for array in for_triton(layer, size)]
    there = to_device_together(prepared, images.device) if prepared else []  # n0 has no layer
    for args, codes, fixed in zip(there[::3], there[1::3], there[2::3], strict=True):
        tables, changed = images.new_empty(num, 3, 256), torch.empty_like(images)
        made.tables_kernel[(num, 3)](images, tables, codes, args, PIXELS=size**2, **exact)
        made.pixels_kernel[(num, ceil_div(size**2, made.BLOCK.value))](
            images, changed, fixed, tables, codes, args, red + 256 * green + 65536 * blue,
            SIZE=size, CUBIC=interpolation == Interpolation.bicubic, **exact,
        )  # fmt: skip
        images = changed
    return images


def for_triton(layer: Layer, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a layer's arguments float64 `(B, 6)`, codes int32 `(B,)` and fixed tables uint8 `(B, 256)`."""
    from roadmap.data import triton_augment as made

    own = {"Color": made.COLOR, "Sharpness": made.SHARPNESS, "": made.UNCHANGED}
    own |= {"AutoContrast": made.AUTO_CONTRAST, "Equalize": made.EQUALIZE, "Contrast": made.CONTRAST}
    args, codes = np.zeros((len(layer.ops), 6)), np.zeros(len(layer.ops), dtype=np.int32)
    fixed = np.zeros((len(layer.ops), 256), dtype=np.uint8)
    args[:, 0] = layer.args
    for op in map(str, set(layer.ops)):
        rows = layer.ops == op
        code = made.MOVE if op in image_ops.MOVES else made.LOOK_UP if op in image_ops.FIXED_TABLES else own[op]
        codes[rows] = code.value
        if op in image_ops.MOVES:
            args[rows] = image_ops.move_matrices(op, layer.args[rows], size)
        elif op in image_ops.FIXED_TABLES:
            fixed[rows] = image_ops.fixed_tables(op, layer.args[rows])
    return args, codes, fixed


def apply_layer(images: Tensor, layer: Layer, fill: Fill, interpolation: Interpolation) -> None:
    """Apply its operation to each image of a batch, uint8 `(B, S, S, 3)`, in place."""
    for op in sorted(set(layer.ops) - {""}):
        rows = np.flatnonzero(layer.ops == op)
        at = to_device(torch.from_numpy(rows), images.device)
        changed = image_ops.apply_op(images.index_select(0, at), op, layer.args[rows], fill, interpolation)
        images.index_copy_(0, at, changed)
