"""The operations of RandAugment on batches of square images, uint8 `(N, S, S, 3)` -> uint8 `(N, S, S, 3)`, any device.

The arithmetic is Pillow's, whose functions timm calls: tables of 256 values, blends in float32 that are truncated (not
rounded), and the bicubic and bilinear sampling of `Image.transform`. Nothing here waits for the device.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from roadmap.config.choices import Interpolation

Fill = tuple[int, int, int]  # the color of what comes into view from beyond the edges
Taps = tuple[int, int]  # the pixels that are read along a line, from first to end, counted from the one at the place
EXACT: Taps = (0, 1)
TAPS: dict[Interpolation, Taps] = {Interpolation.bilinear: (0, 2), Interpolation.bicubic: (-1, 3)}
ALIGNMENT = 16  # bytes, of what is copied together: Triton reads so many at once
LUMA = (19595, 38470, 7471)  # of red, green and blue in gray, as Pillow has them: ITU-R 601-2 in 1 / 65536


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor, without waiting for it on a GPU."""
    if device.type != "cuda":
        return tensor.to(device)
    pinned = torch.empty_like(tensor, pin_memory=True)
    # By NumPy: torch shares a copy of 32 KB or more among threads, which takes ms where workers keep all cores busy.
    np.copyto(pinned.numpy(), tensor.numpy())
    return pinned.to(device, non_blocking=True)


def to_device_together(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Copy small arrays to a device as `to_device` does, all at once: each transfer costs the host time."""
    ends = np.cumsum([-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays])
    packed = np.zeros(ends[-1], dtype=np.uint8)
    starts = [0, *ends[:-1]]
    for start, array in zip(starts, arrays, strict=True):
        packed[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
    there = to_device(torch.from_numpy(packed), device)
    return [
        there[start : start + array.nbytes].view(torch.from_numpy(array).dtype).view(array.shape)
        for start, array in zip(starts, arrays, strict=True)
    ]


# Tables: what becomes of each value, the same wherever it stands in the image


def fixed_tables(op: str, args: np.ndarray) -> np.ndarray:
    """Return the tables of an operation that does not depend on the image: float64 `(N,)` -> uint8 `(N, 256)`."""
    values, whole = np.arange(256), args.astype(np.int64)[:, None]
    if op == "Invert":
        tables = np.broadcast_to(255 - values, (len(args), 256))
    elif op == "Posterize":  # no bits left: black, as in the reference pipeline
        tables = values & (0xFF << (8 - whole.clip(0, 8)))
    elif op == "Solarize":
        tables = np.where(values < whole, values, 255 - values)
    elif op == "SolarizeAdd":
        tables = np.where(values < 128, np.minimum(255, values + whole), values)
    else:
        assert op == "Brightness", op
        tables = (args.astype(np.float32)[:, None] * values.astype(np.float32)).clip(0, 255)
    return tables.astype(np.uint8)


def contrast_tables(images: Tensor, factors: Tensor) -> Tensor:
    """Return the tables that blend each image with its mean gray: uint8 `(N, 3, 256)`; factors float32 `(N,)`."""
    total = gray(images).sum((1, 2), dtype=torch.int64)
    mean = (total.double() / (images.shape[1] * images.shape[2]) + 0.5).floor().float()[:, None]
    values = torch.arange(256, dtype=torch.float32, device=images.device)
    return blend(mean, values, factors[:, None])[:, None, :].expand(-1, 3, -1)


def autocontrast_tables(images: Tensor) -> Tensor:
    """Return the tables that stretch each channel from its least and largest value to 0..255: uint8 `(N, 3, 256)`."""
    low, high = (bound.double()[..., None] for bound in (images.amin((1, 2)), images.amax((1, 2))))
    values = torch.arange(256, dtype=torch.float64, device=images.device)
    # Dividing a number by a tensor would take the reciprocal first: an ulp off.
    scale = torch.full_like(high, 255.0) / (high - low)
    stretched = (values * scale + -low * scale).clamp(0, 255)
    return torch.where(high > low, stretched, values).to(torch.uint8)


def equalize_tables(images: Tensor) -> Tensor:
    """Return the tables that even out each channel's histogram: uint8 `(N, 3, 256)`."""
    planes = images.permute(0, 3, 1, 2).flatten(2)
    counts = torch.zeros(*planes.shape[:2], 256, dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, planes.long(), counts.new_ones(1, 1, 1).expand(planes.shape))
    before = counts.cumsum(2, dtype=torch.int32) - counts
    step = before.gather(2, planes.amax(2, keepdim=True).long()) // 255  # of all pixels but those of the largest value
    values = torch.arange(256, dtype=torch.int32, device=images.device)
    evened = ((before + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, evened, values).to(torch.uint8)


def apply_lut(images: Tensor, tables: Tensor) -> Tensor:
    """Replace each value by what its table says: tables uint8 `(N, 3, 256)`."""
    num, channels = tables.shape[:2]
    start = torch.arange(num * channels, dtype=torch.int32, device=images.device).view(num, 1, 1, channels) * 256
    return tables.reshape(-1).index_select(0, (images + start).view(-1)).view_as(images)


# Blends: between the image and a version of it with less in it (factor under 1), or away from it (above 1)


def blend(less: Tensor, image: Tensor, factor: Tensor) -> Tensor:
    """Go from `less` to `image` by a factor, and beyond; float32 -> uint8.

    The part after the point is cut off, as Pillow does.
    """
    return (less + factor * (image - less)).clamp(0, 255).to(torch.uint8)


def gray(images: Tensor) -> Tensor:
    """Return brightness, int32 `(N, H, W)`, 0 to 255."""
    red, green, blue = (images[..., i].int() * weight for i, weight in enumerate(LUMA))
    return (red + green + blue + 0x8000) >> 16


def color(images: Tensor, factors: Tensor) -> Tensor:
    """Blend each image with its gray version; factors float32 `(N,)`."""
    return blend(to_rgb(gray(images).float()), images.float(), factors[:, None, None, None])


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Blend each image with its mean over 3 x 3 pixels, the middle counting five times; factors float32 `(N,)`."""
    whole, smooth = images.float(), images.float()
    rows = whole[:, :-2] + whole[:, 1:-1] + whole[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * whole[:, 1:-1, 1:-1]
    # Whole numbers up to 3315: half way between two thirteenths is far from any rounding. The border stays as it is.
    smooth[:, 1:-1, 1:-1] = (total / 13 + 0.5).floor()
    return blend(smooth, whole, factors[:, None, None, None])


# Moves: each pixel is looked up at a place of the image, between pixels; beyond its edges is `fill`


def move(images: Tensor, matrices: Tensor, fill: Fill, across: Taps, down: Taps) -> Tensor:
    """Look each pixel `(x, y)` up at `(a x + b y + c, d x + e y + f)` from the corner: matrices float64 `(N, 6)`.

    `across` and `down` are the pixels read along a row and a column: one alone where no place is between two.
    """
    size = images.shape[1]
    a, b, c, d, e, f = matrices.T[..., None, None]
    x = torch.arange(size, dtype=torch.float64, device=images.device) + 0.5
    y = x[:, None]
    column, row = a * x + b * y + c, d * x + e * y + f
    columns, part_across = taps(column, size, across)
    rows, part_down = taps(row, size, down)
    index = (image_offsets(images) + rows * size)[:, None] + columns  # every row's tap with every column's
    lines = interpolate(gather_pixels(images, index).transpose(0, 1), part_across)
    value = interpolate(lines, part_down).clamp_(0, 255).to(torch.uint8)
    is_inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    beyond = to_device(torch.tensor(fill, dtype=torch.uint8).repeat(size, 1), images.device)
    return torch.where(to_rgb(is_inside), value, beyond)


def rotation_matrix(degrees: float, size: int) -> tuple[float, ...]:
    """Return the matrix of a rotation about the middle, counter-clockwise, with Pillow's own rounding."""
    angle, middle = -math.radians(degrees % 360.0), size / 2
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    return cos, sin, cos * -middle + sin * -middle + middle, -sin, cos, -sin * -middle + cos * -middle + middle


def move_matrices(op: str, args: np.ndarray, size: int) -> np.ndarray:
    """Return moves as matrices, as `move` takes them: float64 `(N,)` -> `(N, 6)`."""
    if op == "Rotate":
        return np.array([rotation_matrix(float(arg), size) for arg in args]).reshape(-1, 6)
    matrices = np.tile((1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (len(args), 1))
    slope, offset = (3, 5) if op.endswith("Y") else (1, 2)
    matrices[:, slope if op.startswith("Shear") else offset] = args if op.startswith("Shear") else args * size
    return matrices


def taps(place: Tensor, size: int, reach: Taps) -> tuple[Tensor, Tensor]:
    """Return the pixels around each place, int32 `(T, N, H, W)`, edges repeated, and how far past one it is.

    The place is in float64 as in Pillow: in float32 a photograph's edges would come out up to a level off.
    """
    place = place - 0.5
    first = place.floor()
    offsets = torch.arange(*reach, dtype=torch.int32, device=place.device)[:, None, None, None]
    return (first.int() + offsets).clamp_(0, size - 1), to_rgb((place - first).float())


def image_offsets(images: Tensor) -> Tensor:
    """Return the number of each square image's first pixel in the batch, int32 `(N, 1, 1)`."""
    num, size = images.shape[:2]
    return torch.arange(0, num * size**2, size**2, dtype=torch.int32, device=images.device)[:, None, None]


def to_rgb(plane: Tensor) -> Tensor:
    """Repeat a plane for three channels, `(..., 3)`: on a CPU torch is far slower where it repeats the last axis."""
    return plane[..., None].expand(*plane.shape, 3).contiguous()


def gather_pixels(images: Tensor, index: Tensor) -> Tensor:
    """Read pixels by their number in the batch: int32 of any shape -> float32 with three channels as last axis."""
    return images.reshape(-1, 3).index_select(0, index.reshape(-1)).float().view(*index.shape, 3)


def interpolate(pixels: Tensor, part: Tensor) -> Tensor:
    """Interpolate between the 4 or 2 pixels of the first axis, `part` of the way from the middle one to the next.

    Made of differences: a flat area stays what it is to the last bit, as in Pillow, which truncates.
    """
    if len(pixels) == 1:
        return pixels[0]
    if len(pixels) == 2:
        return torch.addcmul(pixels[0], pixels[1] - pixels[0], part)
    before, here, next_, after = pixels.unbind(0)
    rise, fall = before - here, next_ - after
    bend = torch.addcmul(torch.add(fall, rise, alpha=2), rise + fall, part, value=-1)
    return torch.addcmul(here, torch.addcmul(next_ - before, bend, part), part)


FIXED_TABLES = ("Invert", "Posterize", "Solarize", "SolarizeAdd", "Brightness")
MOVES = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # images, factors float32 `(N,)` -> images
    "AutoContrast": lambda images, _: apply_lut(images, autocontrast_tables(images)),
    "Equalize": lambda images, _: apply_lut(images, equalize_tables(images)),
    "Contrast": lambda images, factors: apply_lut(images, contrast_tables(images, factors)),
    "Color": color,
    "Sharpness": sharpness,
}


def apply_op(images: Tensor, op: str, args: np.ndarray, fill: Fill, interpolation: Interpolation) -> Tensor:
    """Apply an operation, timm's name without "Increasing" and "Rel", with each image's argument, float64 `(N,)`."""
    if op in MOVES:
        matrices = move_matrices(op, args, images.shape[1])
        across, down = (EXACT if op.endswith(axis) else TAPS[interpolation] for axis in "YX")
        return move(images, to_device(torch.from_numpy(matrices), images.device), fill, across, down)
    if op in FIXED_TABLES:
        tables = torch.from_numpy(fixed_tables(op, args))
        return apply_lut(images, to_device(tables, images.device)[:, None, :].expand(-1, 3, -1))
    return OPERATIONS[op](images, to_device(torch.from_numpy(args.astype(np.float32)), images.device))
