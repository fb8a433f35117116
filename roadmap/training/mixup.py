"""Mixup and CutMix as in the official code, which used timm 0.3.2: bit-identical draws, boxes and targets.

One of the two on every batch, chosen with probability `recipe.mix_switch`; an image's partner is that of the batch in
reverse; lambda is corrected for the part of the box that was cut off; label smoothing is inside the soft targets
(Table 5). Written out here because later timms draw another box.
"""

import numpy as np
import torch
from torch import Tensor

from roadmap.config.recipe import RecipeConfig
from roadmap.errors import ConfigError

# Apart from the purposes of roadmap.data.sampling.Draw, so that no two streams of random numbers are the same.
PURPOSE = 100

Box = tuple[int, int, int, int]  # first row, last row + 1, first column, last column + 1


def mixes(recipe: RecipeConfig) -> bool:
    """Tell whether batches are mixed at all."""
    return recipe.mixup > 0 or recipe.cutmix > 0


def check_mixup(recipe: RecipeConfig) -> None:
    """Raise ConfigError for a batch that cannot be paired with its own reverse; call it before anything is written."""
    if mixes(recipe) and recipe.images_per_pass % 2:  # the image in its middle would be mixed with itself
        raise ConfigError(
            f"recipe.batch_size or recipe.micro_batch is {recipe.images_per_pass}: must be even with recipe.mixup or "
            "recipe.cutmix above 0, which mix pairs of images"
        )


def mix_seed(seed: int, number: int) -> int:
    """Return the 32-bit seed of NumPy's generator for the mixing of one forward pass, by its number in the run."""
    return int(np.random.SeedSequence((PURPOSE, seed, number)).generate_state(1)[0])


def mixup_batch(
    images: Tensor, labels: Tensor, recipe: RecipeConfig, num_classes: int, seed: int, number: int
) -> tuple[Tensor, Tensor]:
    """Mix the batch of one forward pass, a function of the seed and of the pass's number in the run.

    `(B, 3, H, W)`, `(B,)` -> new images, soft targets `(B, num_classes)`. With both off, images and labels are returned
    unchanged, and the loss does the smoothing.
    """
    if not mixes(recipe):
        return images, labels
    height, width = images.shape[-2:]
    lam, box = draw_mix(recipe, height, width, np.random.RandomState(mix_seed(seed, number)))
    if box is not None:
        mixed = images.clone()
        mixed[:, :, box[0] : box[1], box[2] : box[3]] = images.flip(0)[:, :, box[0] : box[1], box[2] : box[3]]
    else:
        mixed = images.mul(lam).add_(images.flip(0).mul_(1 - lam))
    return mixed, soft_targets(labels, lam, recipe.label_smoothing, num_classes)


def draw_mix(recipe: RecipeConfig, height: int, width: int, draw: np.random.RandomState) -> tuple[float, Box | None]:
    """Draw one batch's lambda, and its box if CutMix is chosen, in the order of timm's draws from NumPy's generator."""
    draw.rand()  # whether to mix at all: always
    cut = draw.rand() < recipe.mix_switch if recipe.mixup > 0 and recipe.cutmix > 0 else recipe.cutmix > 0
    alpha = recipe.cutmix if cut else recipe.mixup
    lam = float(draw.beta(alpha, alpha))
    if not cut:
        return lam, None
    box = draw_box(lam, height, width, draw)
    return float(1 - (box[1] - box[0]) * (box[3] - box[2]) / (height * width)), box


def draw_box(lam: float, height: int, width: int, draw: np.random.RandomState) -> Box:
    """Draw cutmix's box around a point of the image, cut off at its border.

    As in timm 0.3.2: a box whose size is odd is one pixel smaller than drawn. timm 1.0 keeps that pixel.
    """
    ratio = np.sqrt(1 - lam)
    half_y, half_x = int(height * ratio) // 2, int(width * ratio) // 2
    y, x = draw.randint(0, height), draw.randint(0, width)
    return max(y - half_y, 0), min(y + half_y, height), max(x - half_x, 0), min(x + half_x, width)


def soft_targets(labels: Tensor, lam: float, smoothing: float, num_classes: int) -> Tensor:
    """Return lambda of each image's smoothed label and the rest of its partner's, `(B, num_classes)`."""
    off = smoothing / num_classes
    targets = torch.full((len(labels), num_classes), off, device=labels.device)
    targets.scatter_(1, labels[:, None], 1.0 - smoothing + off)
    return targets * lam + targets.flip(0) * (1.0 - lam)
