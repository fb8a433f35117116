"""Random boxes: of the random resized crop, as torchvision and timm draw it, of one image or of all of a square set;
and of random erasing as timm does it, filled with normal noise, for a batch on the device."""

import math

import numpy as np
import torch
from torch import Tensor

from roadmap.data.image_ops import to_device
from roadmap.data.sampling import Draw, between, normals, uniforms

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of the image's area; width to height
ATTEMPTS = 10
ERASED, ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)  # of the image's area; height to width


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


def draw_erased(prob: float, size: int, seed: int, epoch: int, ids: np.ndarray) -> np.ndarray:
    """Draw the box that is erased of each image: int64 `(B, 4)`, top, left, height, width; height 0 for none.

    As timm's RandomErasing does: area 2 to 33 %, aspect log-uniform from 0.3 to 1 / 0.3, the first of ten attempts that
    is smaller than the image.
    """
    drawn = uniforms(Draw.erase, seed, epoch, ids, 2 * ATTEMPTS + 3)
    area = between(ERASED, drawn[:, :ATTEMPTS]) * size**2
    aspect = np.exp(between(np.log(ERASED_RATIO), drawn[:, ATTEMPTS:-3]))
    heights, widths = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (heights < size) & (widths < size)
    first, rows = fits.argmax(1), np.arange(len(ids))
    h, w = heights[rows, first], widths[rows, first]
    top, left = np.floor(drawn[:, -3] * (size - h + 1)), np.floor(drawn[:, -2] * (size - w + 1))
    box = np.stack((top, left, h, w), 1).astype(np.int64)
    box[~(fits.any(1) & (drawn[:, -1] < prob))] = 0
    return box


def erase(images: Tensor, boxes: np.ndarray, starts: np.ndarray) -> None:
    """Fill each image's box, int64 `(B, 4)` as from `draw_erased`, with normal noise: float32 `(B, H, W, 3)`, in place.

    A pixel's noise depends on where its image's numbers start (uint64 `(B,)`) and on its position.
    """
    size, rows = images.shape[1], np.flatnonzero(boxes[:, 2])
    if not len(rows):
        return
    ends = np.cumsum(boxes[rows, 2] * boxes[rows, 3])
    total = int(ends[-1])
    about = np.column_stack((rows, boxes[rows], starts[rows].view(np.int64), ends))
    columns = to_device(torch.from_numpy(about), images.device)
    pixel = torch.arange(total, device=images.device)
    # With the size given, the host need not wait for the device to know how long the result is.
    box = torch.repeat_interleave(columns[:, 3] * columns[:, 4], output_size=total)
    row, top, left, height, width, start, end = columns[box].unbind(1)
    within = pixel - (end - height * width)
    place = (top + within // width) * size + left + within % width
    channels = torch.arange(3, device=images.device)
    noise = normals(start[:, None], place[:, None] * 3 + channels)
    images.view(-1, 3).index_copy_(0, row * size**2 + place, noise)
