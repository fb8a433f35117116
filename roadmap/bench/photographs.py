"""Photographs made up: JPEGs that cost as much to read and decode as ImageNet's, in class folders. Used by `bench input` and `train`.

The amplitudes of a photograph's frequencies fall with a power of the frequency (Field 1987, "Relations between the statistics of natural
images and the response properties of cortical cells"), the three colours go mostly together, and a sensor adds noise. A picture here is a
field of random phases with these statistics, without chroma subsampling and at JPEG quality 95, as most of ImageNet's files are; the
power is drawn from a range that gives their 110 KB on average.
"""

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from roadmap.errors import ConfigError

SIZE = (500, 375)  # pixels, width and height: the commonest size in ImageNet
QUALITY = 95
DISTINCT = 128  # photographs drawn; a larger set repeats them
CLASSES = 2
FALL = (1.0, 1.8)  # the power, drawn for each photograph
CONTRAST, COLOUR, NOISE = (
    52.0,
    8.0,
    1.2,
)  # standard deviations of a pixel: brightness, each colour's own part, the sensor's noise


def draw_photographs(root: Path, count: int) -> list[int]:
    """Write `count` training photographs and a few for validation under `root`, in class folders; return the training files' bytes."""
    draw = np.random.default_rng(0)
    drawn: list[Path] = []
    sizes = []
    for split, number in (("train", count), ("val", 2 * CLASSES)):
        for index in range(number):
            path = root / split / f"class{index % CLASSES}" / f"{index:06}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            if len(drawn) < DISTINCT:
                path.write_bytes(photograph(draw))
                drawn.append(path)
            else:
                os.link(drawn[index % DISTINCT], path)
            if split == "train":
                sizes.append(path.stat().st_size)
    return sizes


def borrow_photographs(source: Path, root: Path, count: int) -> list[int]:
    """Link `count` training images of `source`, drawn at random, into class folders under `root`; return their bytes.

    Each stands for validation, too, which no benchmark reads. Raises ConfigError where there are too few.
    """
    found = sorted(path for path in (source / "train").glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if len(found) < count:
        raise ConfigError(f"--images={count}: {source}/train/<class>/ holds {len(found)} JPEGs")
    drawn = [found[index] for index in np.random.default_rng(0).permutation(len(found))[:count]]
    for path in drawn:
        for split in ("train", "val"):
            link = root / split / path.parent.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.absolute())
    return [path.stat().st_size for path in drawn]


def photograph(draw: np.random.Generator) -> bytes:
    """Return a JPEG of a field with the statistics of a photograph."""
    width, height = SIZE
    fall = draw.uniform(*FALL)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf  # the mean is set below
    fields = np.fft.irfft2(np.fft.rfft2(draw.standard_normal((4, height, width))) * frequency**-fall, s=(height, width))
    fields /= fields.std(axis=(1, 2), keepdims=True)
    pixels = 118 + CONTRAST * fields[:1] + COLOUR * fields[1:] + NOISE * draw.standard_normal((3, height, width))
    out = BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(
        out, "JPEG", quality=QUALITY, subsampling=0
    )
    return out.getvalue()


def told_size(sizes: Sequence[int]) -> str:
    """Return how large the files are, in words."""
    return f"{np.mean(sizes) / 1e3:.0f} KB on average ({min(sizes) / 1e3:.0f} to {max(sizes) / 1e3:.0f})"
