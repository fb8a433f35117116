"""The reference pipeline: the official recipe, image by image, in worker processes.

Order and parameters are those of the authors' code (timm's ImageNet transforms): random resized crop, flip,
RandAugment, normalise, random erasing. What is random about an image is a function of (seed, epoch, id), whatever the
number of workers.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from roadmap.config.choices import Crop
from roadmap.config.images import DataConfig
from roadmap.config.recipe import RecipeConfig
from roadmap.data.datasets import BatchSpec, Split
from roadmap.data.sampling import sample_seed
from roadmap.data.workers import load_batches
from roadmap.errors import ConfigError

MAX_ASPECT = 32  # of an image that is resized as a whole
Transform = Callable[[Image.Image], Tensor]


def train_batches(spec: BatchSpec) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield augmented images float32 `(B, 3, H, W)`, channels-last, and labels int64 `(B,)`, on the device."""
    prepared = Prepared(spec.split, train_transform(spec.data, spec.recipe), (spec.seed, spec.epoch))
    yield from device_batches(prepared, spec.index_batches, spec.data.workers, spec.device)


def eval_batches(spec: BatchSpec) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images cropped at the centre, float32 `(B, 3, H, W)`, channels-last, labels int64 `(B,)`, on the device."""
    prepared = Prepared(spec.split, eval_transform(spec.data, spec.recipe))
    yield from device_batches(prepared, spec.index_batches, spec.data.workers, spec.device)


def train_transform(data: DataConfig, recipe: RecipeConfig) -> Transform:
    """Return what happens to a training image; equal to timm's `create_transform` where both support it.

    Raises ConfigError for a `recipe.rand_augment` that timm cannot draw.
    """
    from torchvision import transforms as T  # seconds of imports that the fast pipeline need not pay for

    size, mode = data.image_size, T.InterpolationMode(recipe.interpolation.value)
    steps: list[Any] = []
    if data.crop == Crop.resized:
        from timm.data.transforms import RandomResizedCropAndInterpolation

        steps.append(RandomResizedCropAndInterpolation(size, interpolation=recipe.interpolation.value))
    else:
        steps.append(T.Resize((size, size), mode))
    if data.crop == Crop.pad:
        steps.append(T.RandomCrop(size, padding=data.padding))
    if data.flip:
        steps.append(T.RandomHorizontalFlip())
    if data.rotate or data.zoom or data.shift:
        shift, scale = (data.shift, data.shift), (1 - data.zoom, 1 + data.zoom)
        steps.append(T.RandomAffine(data.rotate, shift, scale, interpolation=T.InterpolationMode.BILINEAR))
    if recipe.rand_augment is not None:
        steps.append(rand_augment(data, recipe))
    steps += [T.ToTensor(), T.Normalize(data.mean, data.std)]
    if recipe.random_erasing:
        from timm.data.random_erasing import RandomErasing

        steps.append(RandomErasing(recipe.random_erasing, mode="pixel", max_count=1, device="cpu"))
    return T.Compose(steps)


def eval_transform(data: DataConfig, recipe: RecipeConfig) -> Transform:
    """Return what happens to an image in evaluation: short side to `resize_size`, centre crop, or all resized."""
    from torchvision import transforms as T

    return T.Compose([eval_crop(data, recipe), T.ToTensor(), T.Normalize(data.mean, data.std)])


def eval_crop(data: DataConfig, recipe: RecipeConfig) -> Callable[[Image.Image], Image.Image]:
    """Return the part of `eval_transform` that works on the image's bytes, which the fast pipeline shares."""
    from torchvision import transforms as T

    size, mode = data.image_size, T.InterpolationMode(recipe.interpolation.value)
    resize = (
        [T.Resize((size, size), mode)]
        if data.resize_size is None
        else [middle, T.Resize(data.resize_size, mode), T.CenterCrop(size)]
    )
    return T.Compose(resize)


def middle(image: Image.Image) -> Image.Image:
    """Cut a line of pixels down to its middle, where the centre crop is: resized as a whole, it may fill the memory."""
    length = MAX_ASPECT * min(image.size)
    if max(image.size) <= length:
        return image
    x, y = (max(0, side - length) // 2 for side in image.size)
    return image.crop((x, y, image.width - x, image.height - y))


def rand_augment(data: DataConfig, recipe: RecipeConfig) -> Any:
    """Return timm's RandAugment with the official parameters, its posterize made safe.

    Raises ConfigError for more operations than its set has, where none is drawn twice.
    """
    from PIL.Image import Resampling
    from timm.data import auto_augment

    assert recipe.rand_augment is not None
    fixed = {
        "translate_const": int(data.image_size * 0.45),
        "img_mean": tuple(min(255, round(255 * m)) for m in data.mean),
        "interpolation": Resampling[recipe.interpolation.name.upper()],
    }
    policy = auto_augment.rand_augment_transform(recipe.rand_augment, fixed)
    if policy.choice_weights is not None and policy.num_layers > len(policy.ops):  # each is drawn once
        raise ConfigError(f"recipe.rand_augment={recipe.rand_augment}: n must be at most {len(policy.ops)} with its -t")
    return with_safe_posterize(policy)


def with_safe_posterize(policy: Any) -> Any:
    """Give timm's RandAugment our `posterize`, in place; return it."""
    from timm.data import auto_augment

    for op in policy.ops:
        if op.aug_fn is auto_augment.posterize:
            op.aug_fn = posterize
    return policy


def posterize(image: Image.Image, bits_to_keep: int, **kwargs: Any) -> Image.Image:
    """Keep the highest bits of each channel; 0 bits give a black image.

    At full strength timm's `PosterizeIncreasing` asks for 0 bits. Up to Pillow 12 that masked every bit and gave black;
    since Pillow 13 `ImageOps.posterize` raises an error. It happens to about 3 images in 2,000 under
    rand-m9-mstd0.5-inc1.
    """
    from timm.data import auto_augment

    if bits_to_keep <= 0:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits_to_keep, **kwargs)


@contextmanager
def random_state(seed: int) -> Iterator[None]:
    """Seed the generators that transforms use (Python's, NumPy's, torch's on the CPU), and restore them afterwards."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(seed)
    np.random.seed(seed & 0xFFFF_FFFF)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would initialise the GPU in every worker
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


class Prepared:
    """What an id of a split becomes: the image through the transform, `(3, H, W)`, and the label. Raises DataError."""

    def __init__(self, split: Split, transform: Transform, seed_epoch: tuple[int, int] | None = None) -> None:
        self.split, self.transform, self.seed_epoch = split, transform, seed_epoch

    def __call__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.split.read(index)
        if self.seed_epoch is None:
            return self.transform(image), self.split.labels[index]
        with random_state(sample_seed(*self.seed_epoch, index)):
            return self.transform(image), self.split.labels[index]


def collate(items: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Stack a batch, channels-last."""
    images, labels = zip(*items, strict=True)
    return torch.stack(images).contiguous(memory_format=torch.channels_last), torch.stack(labels)


def device_batches(
    prepared: Prepared, index_batches: Sequence[Tensor], workers: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches in the order asked for, on the device.

    Raises DataError that names the first image that cannot be read.
    """
    for images, labels in load_batches(prepared, collate, index_batches, workers, device):
        images = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        yield images, labels.to(device, non_blocking=True)
