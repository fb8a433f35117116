"""Images outside of any data set: found in a file or a folder, and prepared like the validation images of a set."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from roadmap.config.choices import Pipeline
from roadmap.config.images import DataConfig
from roadmap.config.recipe import RecipeConfig
from roadmap.data import in_memory, transforms
from roadmap.data.folders import IMAGE_SUFFIXES, image_problem, is_hidden, is_image, read_image
from roadmap.data.gpu_transforms import normalisation, normalise
from roadmap.data.workers import load_batches
from roadmap.errors import DataError
from roadmap.files import nearby
from roadmap.text import printable, reason


@dataclass(frozen=True)
class LooseImages:
    """Files that may be images: their names below a folder, in order, and a line for each other file."""

    folder: Path
    names: list[str]
    problems: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.folder / self.names[index]


def find_loose_images(path: Path) -> LooseImages:
    """Find an image, or all images in a folder at any depth. Raises DataError if there is none."""
    if not path.exists():
        raise DataError(f"images={path}: there is no such file or folder{nearby(path)}")
    if not path.is_dir():
        return LooseImages(path.parent, [path.name], [])
    names: list[str] = []
    problems: list[str] = []
    endings = ", ".join(sorted(IMAGE_SUFFIXES))
    for name in files_below(path, problems):
        try:
            if is_image(path, name):
                names.append(name)
            else:
                problems.append(f"{path / name}: not an image file (its name must end in {endings})")
        except DataError as error:  # an image of a kind that is not read
            problems.append(str(error))
    if not names:
        raise DataError(f"images={path}: holds no image ({' '.join(sorted(IMAGE_SUFFIXES))})")
    return LooseImages(path, names, problems)


def files_below(top: Path, problems: list[str]) -> Iterator[str]:
    """Yield the names of all files below a folder, relative to it, in the order of their parts; links are followed.

    Hidden and system files are skipped; a folder that cannot be read is added to the problems.
    """

    def note(error: OSError) -> None:
        problems.append(f"{error.filename}: cannot be read ({reason(error)})")

    seen: set[str] = set()
    for root, folders, files in os.walk(top, onerror=note, followlinks=True):
        if (real := os.path.realpath(root)) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        here = os.path.relpath(root, top)
        yield from (os.path.normpath(os.path.join(here, name)) for name in sorted(files) if not is_hidden(name))


class LooseReader:
    """Prepares an image like a set's validation images, before normalisation. Called with its number in a worker."""

    def __init__(self, images: LooseImages, data: DataConfig, recipe: RecipeConfig) -> None:
        self.images, self.size, self.row = images, data.image_size, data.known
        self.crop = transforms.eval_crop(data, recipe)

    def __call__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return uint8 `(size, size, 3)` and whether it could be read: black if not."""
        try:
            image = self.read(self.images.path(index))
        except DataError:
            return torch.zeros(self.size, self.size, 3, dtype=torch.uint8), torch.tensor(False)
        return torch.from_numpy(np.array(image)), torch.tensor(True)

    def read(self, path: Path) -> Image.Image:
        """Return an image at the net's size. Raises DataError."""
        image = read_image(path)
        return self.crop(in_memory.fit_image(image, self.size, self.row) if self.row.in_memory else image)


def loose_batches(
    images: LooseImages,
    data: DataConfig,
    recipe: RecipeConfig,
    index_batches: Sequence[Tensor],
    *,
    device: torch.device,
) -> Iterator[tuple[Tensor, list[int], list[int]]]:
    """Yield batches on the device, float32 `(B, 3, H, W)`, channels-last; their numbers; those of unreadable images."""
    scale, bias = normalisation(data, device)
    mean, std = (torch.tensor(value, device=device)[:, None, None] for value in (data.mean, data.std))
    batches = load_batches(LooseReader(images, data, recipe), stack, index_batches, data.workers, device)
    for ids, (pixels, whole) in zip(index_batches, batches, strict=True):
        pixels = pixels[whole].to(device, non_blocking=True)
        if data.pipeline == Pipeline.fast:
            batch = normalise(pixels, scale, bias)
        else:  # torchvision's ToTensor and Normalize
            batch = (pixels.permute(0, 3, 1, 2).float().div(255) - mean) / std
            batch = batch.contiguous(memory_format=torch.channels_last)
        yield batch, ids[whole].tolist(), ids[~whole].tolist()


def stack(items: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Stack a batch."""
    pixels, whole = zip(*items, strict=True)
    return torch.stack(pixels), torch.stack(whole)


def why_not_read(path: Path) -> str:
    """Return a line about what is wrong with an image that could not be read."""
    return image_problem(path) or printable(f"{path}: could not be read a moment ago")
