"""The box of the random resized crop, as torchvision and timm draw it: of one image, or of all of a square set."""

import math

import numpy as np
import torch
from torch import Tensor

from roadmap.data.counter_rng import between, uniforms
from roadmap.data.sampling import Draw

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of the image's area; width to height
ATTEMPTS = 10


def draw_box(seed: int, epoch: int, index: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Draw top, left, height and width of an image's crop, as timm's RandomResizedCropAndInterpolation does.

    Area 8 to 100 %, aspect log-uniform from 3/4 to 4/3, the first of ten attempts that fits; else the largest box at
    the centre whose aspect is in that range. For an image of a pixel or two the box may have no pixels.
    """
    drawn = uniforms(Draw.box, seed, epoch, np.array([index]), 2 * ATTEMPTS + 2)[0]
    area = between(SCALE, drawn[:ATTEMPTS]) * (height * width)
    aspect = np.exp(between(np.log(RATIO), drawn[ATTEMPTS:-2]))
    widths, heights = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (widths <= width) & (heights <= height)
    if fits.any():
        first = int(fits.argmax())
        h, w = int(heights[first]), int(widths[first])
        return int(drawn[-2] * (height - h + 1)), int(drawn[-1] * (width - w + 1)), h, w
    h, w = height, width
    if width / height < RATIO[0]:
        h = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(height * RATIO[1])
    return (height - h) // 2, (width - w) // 2, h, w


def resized_boxes(num_images: int, size: int, draw: torch.Generator) -> Tensor:
    """Return `(N, 4)`: top, left, height and width in whole pixels, drawn as for torchvision's RandomResizedCrop.

    Area 8 to 100 %, log-uniform aspect 3/4 to 4/3, the first of ten attempts that fits, else the whole (square) image.
    """
    area = torch.empty(num_images, ATTEMPTS).uniform_(*SCALE, generator=draw) * size**2
    ratio = torch.empty(num_images, ATTEMPTS).uniform_(math.log(RATIO[0]), math.log(RATIO[1]), generator=draw).exp()
    sides = torch.stack(((area / ratio).sqrt().round(), (area * ratio).sqrt().round()), 2)  # height, width
    fits = (sides <= size).all(2) & (sides >= 1).all(2)
    first = fits.int().argmax(1)  # the first True
    side = torch.where(fits.any(1, keepdim=True), sides[torch.arange(num_images), first], torch.tensor(float(size)))
    corner = (torch.rand(num_images, 2, generator=draw) * (size - side + 1)).floor()
    return torch.cat((corner, side), 1)
