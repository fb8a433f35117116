"""The pipelines from JPEGs to batches that are measured against each other, and the photographs that they read.

A pipeline is a function of a run's config (class folders, recipe, image size, workers) and a device; it returns what
starts an epoch, which yields images and labels, on the device, ready for the net. Those of other libraries are at the
settings that make them fastest: as many workers as ours, pinned memory, timm's prefetcher on a GPU. All shuffle and
drop the last incomplete batch.

Synthetic photographs cost as much to read and decode as ImageNet's. The amplitudes of a photograph's frequencies fall
with a power of the frequency (Field 1987, "Relations between the statistics of natural images and the response
properties of cortical cells"), the three colours go mostly together, and a sensor adds noise. An image here is a field
of random phases with these statistics, without chroma subsampling and at JPEG quality 95, as most of ImageNet's files
are; the power is drawn from a range that gives their 110 KB on average.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import v2

from roadmap import data
from roadmap.config.choices import Pipeline
from roadmap.config.schema import Config
from roadmap.data import datasets, sampling
from roadmap.data.transforms import with_safe_posterize
from roadmap.errors import ConfigError

Epoch = Callable[[int], Iterator[tuple[Tensor, Tensor]]]  # epoch number -> batches
Start = Callable[[Config, torch.device], Epoch]
SIZE = (500, 375)  # pixels, width and height: the commonest size in ImageNet
QUALITY = 95
DISTINCT = 128  # different photographs; a larger set repeats them
CLASSES = 2
POWER = (1.0, 1.8)  # of the fall, drawn for each photograph
BRIGHTNESS, COLOUR, NOISE = 52.0, 8.0, 1.2  # standard deviations of a pixel: common to all colours, each one's own


def write_photographs(root: Path, count: int) -> list[int]:
    """Write `count` training images, and a few for validation, as class folders; return the training files' bytes."""
    rng = np.random.default_rng(0)
    written: list[Path] = []
    for split, number in (("train", count), ("val", 2 * CLASSES)):
        for index in range(number):
            path = root / split / f"class{index % CLASSES}" / f"{index:06}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            if index < DISTINCT:
                path.write_bytes(synthetic_jpeg(rng))
            else:
                os.link(written[index % DISTINCT], path)
            written.append(path)
    return [path.stat().st_size for path in written[:count]]


def link_photographs(source: Path, root: Path, count: int) -> list[int]:
    """Link `count` training images of `source`, drawn at random, into class folders under `root`; return their bytes.

    Each is linked for validation, too, which no benchmark reads. Raises ConfigError where there are too few.
    """
    found = sorted(path for path in (source / "train").glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if len(found) < count:
        raise ConfigError(f"--images={count}: {source}/train/<class>/ has {len(found)} JPEGs")
    chosen = [found[index] for index in np.random.default_rng(0).permutation(len(found))[:count]]
    for path in chosen:
        for split in ("train", "val"):
            link = root / split / path.parent.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.absolute())
    return [path.stat().st_size for path in chosen]


def synthetic_jpeg(rng: np.random.Generator) -> bytes:
    """Return a JPEG of a field with the statistics of a photograph."""
    width, height = SIZE
    power = rng.uniform(*POWER)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf  # the mean is set below
    spectrum = np.fft.rfft2(rng.standard_normal((4, height, width))) * frequency**-power
    fields = np.fft.irfft2(spectrum, s=(height, width))
    fields /= fields.std(axis=(1, 2), keepdims=True)
    pixels = 118 + BRIGHTNESS * fields[:1] + COLOUR * fields[1:] + NOISE * rng.standard_normal((3, height, width))
    image, out = Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)), BytesIO()
    image.save(out, "JPEG", quality=QUALITY, subsampling=0)
    return out.getvalue()


def describe_sizes(sizes: Sequence[int]) -> str:
    """Return how large the files are."""
    return f"{np.mean(sizes) / 1e3:.0f} KB on average ({min(sizes) / 1e3:.0f} to {max(sizes) / 1e3:.0f})"


def ours(pipeline: Pipeline, config: Config, device: torch.device) -> Epoch:
    """Return our own pipeline. Raises ConfigError where it cannot do what the recipe asks."""
    cfg, recipe = config.data.replace(pipeline=pipeline), config.recipe
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


# Name, library where it is not ours, what starts it; the most informative first.
PIPELINES: tuple[tuple[str, str | None, Start], ...] = (
    ("ours, fast", None, partial(ours, Pipeline.fast)),
    ("timm, full recipe", "timm", timm_loader),
    ("torchvision v2, tensors", "torchvision", partial(torchvision_loader, read_tensor)),
    ("ours, reference", None, partial(ours, Pipeline.reference)),
    ("torchvision v2, PIL", "torchvision", partial(torchvision_loader, read_pil)),
)
BOUNDS: dict[str, Start] = {"decode alone": decoded, "decode and crop": cropped}
