"""The operations of RandAugment on batches of square images, uint8 `(N, S, S, 3)` -> uint8 `(N, S, S, 3)`, any device.

The arithmetic is Pillow's, whose functions timm calls: tables of 256 values, blends in float32 that are cut off (not
rounded), and the bicubic and bilinear sampling of `Image.transform`. Operations of a kind are done together, since on a
GPU the number of kernels counts; nothing here waits for the device.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from roadmap.config.choices import Interpolation

LUMA = (19595, 38470, 7471)  # of red, green and blue in gray, as Pillow has them: ITU-R 601-2 in 1 / 65536


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor, without waiting for it on a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


# Tables: what becomes of each value, the same wherever it stands in the image


def fixed_table(op: str, arg: float) -> np.ndarray:
    """Return the table of an operation that does not depend on the image, uint8 `(256,)`."""
    values = np.arange(256)
    if op == "Invert":
        return (255 - values).astype(np.uint8)
    if op == "Posterize":  # no bits left: black, as in the reference pipeline
        return (values & (0xFF << (8 - max(0, min(8, int(arg)))))).astype(np.uint8)
    if op == "Solarize":
        return np.where(values < int(arg), values, 255 - values).astype(np.uint8)
    if op == "SolarizeAdd":
        return np.where(values < 128, np.minimum(255, values + int(arg)), values).astype(np.uint8)
    assert op == "Brightness", op
    return (np.float32(arg) * values.astype(np.float32)).clip(0, 255).astype(np.uint8)


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
    scale = torch.full_like(high, 255.0) / (high - low)  # a number over a tensor is its reciprocal first: an ulp off
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


# Moves: each pixel is looked up at a place of the image, between pixels; beyond its edges is `fill`, uint8 `(S, 3)`


def shift_lines(images: Tensor, moves: Tensor, fill: Tensor, interpolation: Interpolation) -> Tensor:
    """Shear or translate each square image: `moves` float64 `(N, 3)`, 1 for columns or 0 for rows, slope, offset.

    A pixel `v` lines from the corner comes from `slope * v + offset` further along its line: both read one line alone.
    """
    size = images.shape[1]
    upright, slope, offset = moves.T[..., None, None]
    line = torch.arange(size, dtype=torch.float64, device=images.device)
    is_column, x, y = upright > 0, line, line[:, None]
    across, along = torch.where(is_column, x, y), torch.where(is_column, y, x)
    place = (along + 0.5) + slope * (across + 0.5) + offset
    pixels, part = taps(place, size, interpolation)
    stride = torch.where(is_column, size, 1).int()
    index = image_offsets(images) + across.int() * (size + 1 - stride) + pixels * stride
    value = interpolate(gather_pixels(images, index), part, interpolation)
    return fill_outside(value, (place >= 0) & (place < size), fill)


def rotate(images: Tensor, matrices: Tensor, fill: Tensor, interpolation: Interpolation) -> Tensor:
    """Turn each square image by its matrix, float64 `(N, 6)`: to `(a x + b y + c, d x + e y + f)` from the corner."""
    size = images.shape[1]
    a, b, c, d, e, f = matrices.T[..., None, None]
    x = torch.arange(size, dtype=torch.float64, device=images.device) + 0.5
    y = x[:, None]
    across, down = a * x + b * y + c, d * x + e * y + f
    columns, part_across = taps(across, size, interpolation)
    rows, part_down = taps(down, size, interpolation)
    index = (image_offsets(images) + rows * size)[:, None] + columns  # every row's tap with every column's
    lines = interpolate(gather_pixels(images, index).transpose(0, 1), part_across, interpolation)
    value = interpolate(lines, part_down, interpolation)
    return fill_outside(value, (across >= 0) & (across < size) & (down >= 0) & (down < size), fill)


def shift_of(op: str, arg: float, size: int) -> tuple[float, float, float]:
    """Return what `shift_lines` needs for an operation: whether columns move, slope, offset in pixels."""
    is_column = float(op.endswith("Y"))
    return (is_column, arg, 0.0) if op.startswith("Shear") else (is_column, 0.0, arg * size)


def rotation_matrix(degrees: float, size: int) -> tuple[float, ...]:
    """Return the matrix of a rotation about the middle, counter-clockwise, with Pillow's own rounding."""
    angle, middle = -math.radians(degrees % 360.0), size / 2
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    return cos, sin, cos * -middle + sin * -middle + middle, -sin, cos, -sin * -middle + cos * -middle + middle


def move_matrix(op: str, arg: float, size: int) -> tuple[float, ...]:
    """Return a move as a matrix, as `rotate` takes it."""
    if op == "Rotate":
        return rotation_matrix(arg, size)
    is_column, slope, offset = shift_of(op, arg, size)
    return (1.0, 0.0, 0.0, slope, 1.0, offset) if is_column else (1.0, slope, offset, 0.0, 1.0, 0.0)


def taps(place: Tensor, size: int, interpolation: Interpolation) -> tuple[Tensor, Tensor]:
    """Return the pixels around each place, int32 `(4 or 2, N, H, W)`, edges repeated, and how far past one it is.

    The place is in float64 as in Pillow: in float32 a photograph's edges would come out up to a level off.
    """
    place = place - 0.5
    first = place.floor()
    start, end = (-1, 3) if interpolation == Interpolation.bicubic else (0, 2)
    offsets = torch.arange(start, end, dtype=torch.int32, device=place.device)[:, None, None, None]
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


def interpolate(pixels: Tensor, part: Tensor, interpolation: Interpolation) -> Tensor:
    """Interpolate between the 4 or 2 pixels of the first axis, `part` of the way from the middle one to the next.

    Made of differences: a flat area stays what it is to the last bit, as in Pillow, which cuts off what comes after the
    point.
    """
    if interpolation == Interpolation.bilinear:
        return torch.addcmul(pixels[0], pixels[1] - pixels[0], part)
    before, here, next_, after = pixels.unbind(0)
    rise, fall = before - here, next_ - after
    bend = torch.addcmul(torch.add(fall, rise, alpha=2), rise + fall, part, value=-1)
    return torch.addcmul(here, torch.addcmul(next_ - before, bend, part), part)


def fill_outside(value: Tensor, is_inside: Tensor, fill: Tensor) -> Tensor:
    """Return what was interpolated as bytes, and `fill` for places beyond the image."""
    return torch.where(to_rgb(is_inside), value.clamp_(0, 255).to(torch.uint8), fill)


TABLES_OF: dict[str, Callable[[Tensor], Tensor]] = {"AutoContrast": autocontrast_tables, "Equalize": equalize_tables}
FIXED_TABLES = ("Invert", "Posterize", "Solarize", "SolarizeAdd", "Brightness")
BLENDS = {"Color": color, "Sharpness": sharpness}
LINE_SHIFTS = ("ShearX", "ShearY", "TranslateX", "TranslateY")
