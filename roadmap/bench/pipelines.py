"""The pipelines from JPEGs to batches that are measured against each other. Used by `bench input`.

A pipeline is a function that starts an epoch: it yields images and labels, on the device, ready for the net. Those of other libraries
are at the settings that make them fastest: as many workers as ours, pinned memory, timm's prefetcher on a GPU. All shuffle and drop the
last incomplete batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from roadmap import data
from roadmap.config.choices import Pipeline
from roadmap.config.schema import Config
from roadmap.data import datasets, sampling
from roadmap.data.transforms import with_safe_posterize

Epoch = Callable[[int], Iterator[tuple[Tensor, Tensor]]]  # epoch number -> batches


@dataclass(frozen=True)
class Source:
    """Where the images come from, and how they are to be prepared."""

    config: Config  # of a run on these class folders: recipe, image size, workers
    device: torch.device

    @property
    def folder(self) -> Path:
        """Return the class folders of the training images."""
        return Path(str(self.config.data.root)) / "train"

    @property
    def batch(self) -> int:
        """Return the images of a batch."""
        return self.config.recipe.batch_size

    @property
    def size(self) -> int:
        """Return the pixels of an image's side, as the net sees it."""
        return self.config.data.image_size


def ours(pipeline: Pipeline, source: Source) -> Epoch:
    """Return our own pipeline. Raises ConfigError where it cannot do what the recipe asks."""
    config = source.config.data.replace(pipeline=pipeline)
    data.check(config, source.config.recipe)
    images = datasets.load(config)

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        ids = sampling.train_index_batches(len(images.train), source.batch, 0, number)
        return data.train_batches(
            images.train, config, source.config.recipe, ids, seed=0, epoch=number, device=source.device
        )

    return epoch


def timm(source: Source) -> Epoch:
    """Return timm's loader with the recipe's transforms; erasing runs on the device behind its prefetcher."""
    from timm.data import ImageDataset, create_loader
    from timm.data.auto_augment import RandAugment

    config, recipe = source.config.data, source.config.recipe
    on_gpu = source.device.type == "cuda"
    images = ImageDataset(str(source.folder))
    loader = create_loader(
        images, source.size, source.batch, is_training=True, re_prob=recipe.random_erasing, re_mode="pixel",
        auto_augment=recipe.rand_augment, interpolation=recipe.interpolation.value, mean=config.mean, std=config.std,
        num_workers=config.workers, pin_memory=on_gpu, persistent_workers=config.workers > 0, device=source.device, use_prefetcher=on_gpu,
    )  # fmt: skip
    for step in images.transform.transforms:
        if isinstance(step, RandAugment):
            with_safe_posterize(step)  # with Pillow 13 timm's own ends a run of a few hundred images
    return lambda number: on_device(loader, source.device)


def torchvision(form: str, source: Source) -> Epoch:
    """Return torchvision's v2 transforms on `pil` images or on `tensors`; its RandAugment is a weaker policy than the recipe's."""
    from torchvision.transforms import v2

    config, recipe = source.config.data, source.config.recipe
    mode = v2.InterpolationMode(recipe.interpolation.value)
    steps: list[Any] = [
        v2.RandomResizedCrop(source.size, interpolation=mode, antialias=True),
        v2.RandomHorizontalFlip(),
    ]
    steps += [v2.RandAugment()] if recipe.rand_augment else []
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(config.mean, config.std)]
    steps += [v2.RandomErasing(recipe.random_erasing)] if recipe.random_erasing else []
    return folder_epochs(source, read_pil if form == "pil" else read_tensor, v2.Compose(steps))


def decoded(source: Source) -> Epoch:
    """Return no more than reading and decoding: the batch holds one pixel of each image."""
    return folder_epochs(source, read_tensor, lambda image: image[:, :1, :1])


def cropped(source: Source) -> Epoch:
    """Return decoding and the random resized crop, as bytes."""
    from torchvision.transforms import v2

    mode = v2.InterpolationMode(source.config.recipe.interpolation.value)
    return folder_epochs(source, read_tensor, v2.RandomResizedCrop(source.size, interpolation=mode, antialias=True))


def folder_epochs(source: Source, read: Callable[[str], Any], transform: Callable[[Any], Tensor]) -> Epoch:
    """Return torch's DataLoader over torchvision's ImageFolder."""
    from torchvision.datasets import ImageFolder

    dataset: Dataset[Any] = ImageFolder(str(source.folder), transform, loader=read)
    workers = source.config.data.workers
    loader: DataLoader[Any] = DataLoader(
        dataset, source.batch, shuffle=True, drop_last=True, num_workers=workers, pin_memory=source.device.type == "cuda",
        persistent_workers=workers > 0,
    )  # fmt: skip
    return lambda number: on_device(loader, source.device)


def on_device(loader: Any, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a loader's batches on the device, channels-last."""
    for images, labels in loader:
        yield (
            images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last),
            labels.to(device, non_blocking=True),
        )


def read_pil(path: str) -> Any:
    """Read an image as Pillow does."""
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def read_tensor(path: str) -> Tensor:
    """Read an image into uint8 `(3, H, W)` with torchvision's decoder."""
    from torchvision.io import ImageReadMode, decode_image, read_file

    return decode_image(read_file(path), mode=ImageReadMode.RGB)


DECODING = "decode alone"
# Name, library where it is not ours, and what starts it.
PIPELINES: tuple[tuple[str, str | None, Callable[[Source], Epoch]], ...] = (
    ("ours, reference", None, partial(ours, Pipeline.reference)),
    ("ours, fast", None, partial(ours, Pipeline.fast)),
    ("timm, full recipe", "timm", timm),
    ("torchvision v2, PIL", "torchvision", partial(torchvision, "pil")),
    ("torchvision v2, tensors", "torchvision", partial(torchvision, "tensors")),
)
BOUNDS: tuple[tuple[str, Callable[[Source], Epoch]], ...] = ((DECODING, decoded), ("decode and crop", cropped))
