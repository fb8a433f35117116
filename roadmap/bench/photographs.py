"""Synthetic photographs: JPEGs that cost as much to read and decode as ImageNet's, in class folders.

The amplitudes of a photograph's frequencies fall with a power of the frequency (Field 1987, "Relations between the
statistics of natural images and the response properties of cortical cells"), the three colours go mostly together, and
a sensor adds noise. An image here is a field of random phases with these statistics, without chroma subsampling and at
JPEG quality 95, as most of ImageNet's files are; the power is drawn from a range that gives their 110 KB on average.
"""

import os
from collections.abc import Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image

from roadmap.errors import ConfigError

SIZE = (500, 375)  # pixels, width and height: the commonest size in ImageNet
QUALITY = 95
DISTINCT = 64  # different photographs; a larger set repeats them
CLASSES = 2
POWER = (1.0, 1.8)  # of the fall, drawn for each photograph
BRIGHTNESS, COLOUR, NOISE = 52.0, 8.0, 1.2  # standard deviations of a pixel: common to all colours, each one's own


def write_photographs(root: Path, count: int) -> list[int]:
    """Write `count` training images, and a few for validation, as class folders; return the training files' bytes."""
    rng, sizes = np.random.default_rng(0), []
    for split, number in (("train", count), ("val", 2 * CLASSES)):
        folders = [root / split / f"class{index}" for index in range(CLASSES)]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        paths = [folders[index % CLASSES] / f"{index:06}.jpg" for index in range(number)]
        for path, original in zip(paths, cycle(paths[:DISTINCT]), strict=False):
            if path == original:
                sizes.append(path.write_bytes(synthetic_jpeg(rng)))
            else:
                os.link(original, path)
    return [sizes[index % DISTINCT] for index in range(count)]


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
