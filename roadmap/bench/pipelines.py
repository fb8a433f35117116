"""The pipelines from JPEGs to batches that are measured against each other.

A pipeline is a function of a run's config (class folders, recipe, image size, workers) and a device; it returns what
starts an epoch, which yields images and labels, on the device, ready for the net. Those of other libraries are at the
settings that make them fastest: as many workers as ours, pinned memory, timm's prefetcher on a GPU. All shuffle and
drop the last incomplete batch.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import v2

from roadmap import data
from roadmap.config.choices import Decoder, Pipeline
from roadmap.config.schema import Config
from roadmap.data import datasets, sampling
from roadmap.data.transforms import with_safe_posterize

Epoch = Callable[[int], Iterator[tuple[Tensor, Tensor]]]  # epoch number -> batches
Start = Callable[[Config, torch.device], Epoch]
Entry = tuple[str, str | None, Start]  # name, library where it is not ours, what starts it


def ours(pipeline: Pipeline, decoder: Decoder, config: Config, device: torch.device) -> Epoch:
    """Return our own pipeline. Raises ConfigError where it cannot do what the recipe asks."""
    cfg, recipe = config.data.replace(pipeline=pipeline, decoder=decoder), config.recipe
    data.check_pipeline(cfg, recipe)
    train = datasets.load(cfg).train

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        ids = sampling.train_index_batches(len(train), recipe.batch_size, 0, number)
        return data.train_batches(train, cfg, recipe, ids, seed=0, epoch=number, device=device)

    return epoch


def timm_loader(config: Config, device: torch.device) -> Epoch:
    """Return timm's loader with the recipe's transforms; erasing runs on the device behind its prefetcher."""
    from timm.data import ImageDataset, create_loader
    from timm.data.auto_augment import RandAugment

    cfg, recipe, on_gpu = config.data, config.recipe, device.type == "cuda"
    images = ImageDataset(f"{cfg.root}/train")
    loader = create_loader(
        images, cfg.image_size, recipe.batch_size, is_training=True, re_prob=recipe.random_erasing, re_mode="pixel",
        auto_augment=recipe.rand_augment, interpolation=recipe.interpolation.value, mean=cfg.mean, std=cfg.std,
        num_workers=cfg.workers, pin_memory=on_gpu, persistent_workers=cfg.workers > 0, device=device,
        use_prefetcher=on_gpu,
    )  # fmt: skip
    for step in images.transform.transforms:
        if isinstance(step, RandAugment):
            with_safe_posterize(step)  # with Pillow 13 timm's own ends a run of a few hundred images
    return lambda number: on_device(loader, device)


def torchvision_loader(read: Callable[[str], Any], config: Config, device: torch.device) -> Epoch:
    """Return torchvision's v2 transforms; its RandAugment is a weaker policy than the recipe's."""
    cfg, recipe = config.data, config.recipe
    steps: list[Any] = [random_crop(config), v2.RandomHorizontalFlip()]
    steps += [v2.RandAugment()] if recipe.rand_augment else []
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(cfg.mean, cfg.std)]
    steps += [v2.RandomErasing(recipe.random_erasing)] if recipe.random_erasing else []
    return folder_epochs(config, device, read, v2.Compose(steps))


def decoded(config: Config, device: torch.device) -> Epoch:
    """Return reading and decoding alone: the batch has one pixel of each image."""
    return folder_epochs(config, device, read_tensor, first_pixel)


def first_pixel(image: Tensor) -> Tensor:
    """Return one pixel of an image: (C, H, W) -> (C, 1, 1)."""
    return image[:, :1, :1]


def cropped(config: Config, device: torch.device) -> Epoch:
    """Return decoding and the random resized crop, as bytes."""
    return folder_epochs(config, device, read_tensor, random_crop(config))


def random_crop(config: Config) -> Any:
    """Return torchvision's random resized crop to the recipe's size."""
    mode = v2.InterpolationMode(config.recipe.interpolation.value)
    return v2.RandomResizedCrop(config.data.image_size, interpolation=mode, antialias=True)


def folder_epochs(
    config: Config, device: torch.device, read: Callable[[str], Any], transform: Callable[[Any], Tensor]
) -> Epoch:
    """Return torch's DataLoader over torchvision's ImageFolder."""
    dataset = ImageFolder(f"{config.data.root}/train", transform, loader=read)
    workers = config.data.workers
    loader: DataLoader[Any] = DataLoader(
        dataset, config.recipe.batch_size, shuffle=True, drop_last=True, num_workers=workers,
        pin_memory=device.type == "cuda", persistent_workers=workers > 0,
    )  # fmt: skip
    return lambda number: on_device(loader, device)


def on_device(loader: Any, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a loader's batches on the device, channels-last."""
    for images, labels in loader:
        images = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        yield images, labels.to(device, non_blocking=True)


def read_pil(path: str) -> Any:
    """Read an image as Pillow does."""
    with Image.open(path) as image:
        return image.convert("RGB")


def read_tensor(path: str) -> Tensor:
    """Read an image into uint8 `(3, H, W)` with torchvision's decoder."""
    return decode_image(read_file(path), mode=ImageReadMode.RGB)


# The most informative first.
PIPELINES: tuple[Entry, ...] = (
    ("ours, fast", None, partial(ours, Pipeline.fast, Decoder.cpu)),
    ("timm, full recipe", "timm", timm_loader),
    ("torchvision v2, tensors", "torchvision", partial(torchvision_loader, read_tensor)),
    ("ours, reference", None, partial(ours, Pipeline.reference, Decoder.cpu)),
    ("torchvision v2, PIL", "torchvision", partial(torchvision_loader, read_pil)),
)
ON_A_GPU: tuple[Entry, ...] = (
    ("ours, fast, both decoders", None, partial(ours, Pipeline.fast, Decoder.both)),
    ("ours, fast, nvJPEG", None, partial(ours, Pipeline.fast, Decoder.nvjpeg)),
)
BOUNDS: dict[str, Start] = {"decode alone": decoded, "decode and crop": cropped}
