"""Mixup and cutmix as in the official code, through timm's `Mixup`.

One of the two on every batch, chosen with probability `recipe.mix_switch`; an image's partner is that of the batch in
reverse; lambda is corrected for the part of the box that was cut off; label smoothing is inside the soft targets
(Table 5).
"""

import numpy as np
from torch import Tensor

from roadmap.config.schema import RecipeConfig
from roadmap.errors import ConfigError

# Apart from the purposes of roadmap.data.sampling.Draw, so that no two streams of random numbers are the same.
PURPOSE = 100


def mixes(recipe: RecipeConfig) -> bool:
    """Tell whether batches are mixed at all."""
    return recipe.mixup > 0 or recipe.cutmix > 0


def check_mixup(recipe: RecipeConfig) -> None:
    """Raise ConfigError for a batch that cannot be paired with its own reverse; call it before anything is written."""
    if mixes(recipe):
        check_even_batch(recipe.micro_batch or recipe.batch_size)


def check_even_batch(batch_size: int) -> None:
    """Raise ConfigError for an odd batch: the image in its middle would be mixed with itself."""
    if batch_size % 2:
        raise ConfigError(
            f"recipe.batch_size or recipe.micro_batch is {batch_size}: must be even with recipe.mixup or recipe.cutmix "
            "above 0, which mix pairs of images"
        )


def mix_seed(seed: int, global_step: int) -> int:
    """Return the 32-bit seed of NumPy's generator for one step's mixing."""
    return int(np.random.SeedSequence((PURPOSE, seed, global_step)).generate_state(1)[0])


def mixup_batch(
    images: Tensor, labels: Tensor, recipe: RecipeConfig, num_classes: int, seed: int, global_step: int
) -> tuple[Tensor, Tensor]:
    """Mix a batch, a function of (seed, global_step).

    `(B, 3, H, W)`, `(B,)` -> new images, soft targets `(B, num_classes)`. With both off, images and labels come back as
    they are, and smoothing is the loss's business. Raises ConfigError for an odd batch.
    """
    if not mixes(recipe):
        return images, labels
    check_even_batch(len(images))
    from timm.data.mixup import Mixup  # seconds of imports that a run without mixing need not pay for

    timm_mixup = Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=1.0,
        switch_prob=recipe.mix_switch,
        mode="batch",
        label_smoothing=recipe.label_smoothing,
        num_classes=num_classes,
    )
    before = np.random.get_state()
    np.random.seed(mix_seed(seed, global_step))  # timm draws from NumPy's global generator
    try:
        return timm_mixup(images.clone(), labels)  # timm mixes in place
    finally:
        np.random.set_state(before)
