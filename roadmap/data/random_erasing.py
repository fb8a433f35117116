"""Random erasing as timm does it: one box an image, filled with normal noise, for a batch on the device."""

import numpy as np
import torch
from torch import Tensor

from roadmap.data.counter_rng import between, normals, uniforms
from roadmap.data.image_ops import to_device
from roadmap.data.sampling import Draw

AREA, RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)  # of the image's area; height to width
ATTEMPTS = 10


def draw_erased(prob: float, size: int, seed: int, epoch: int, ids: np.ndarray) -> np.ndarray:
    """Draw the box that is erased of each image: int64 `(B, 4)`, top, left, height, width; height 0 for none.

    As timm's RandomErasing does: area 2 to 33 %, aspect log-uniform from 0.3 to 1 / 0.3, the first of ten attempts that
    is smaller than the image.
    """
    drawn = uniforms(Draw.erase, seed, epoch, ids, 2 * ATTEMPTS + 3)
    area = between(AREA, drawn[:, :ATTEMPTS]) * size**2
    aspect = np.exp(between(np.log(RATIO), drawn[:, ATTEMPTS:-3]))
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
