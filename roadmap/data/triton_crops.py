"""Resized crops of a batch of images as two Triton kernels: across the boxes' rows, then down their columns.

The arithmetic is Pillow's, value by value: weights in float64, then in whole numbers of 2^-22, bytes in between. Needs
Triton; `roadmap.data.decoding` launches them. A line of `boxes`, int64 `(B, 7)`, is an image's address (uint8
`(3, H, W)`), H * W, W, the offset of the box's first pixel, its height and width, and its first row in `rows`.
"""

# mypy: ignore-errors
# ruff: noqa: N803 - Triton's own language: constants in capitals

import triton
import triton.language as tl

ROWS, COLUMNS = tl.constexpr(8), tl.constexpr(64)  # of a program
BITS, ONE, HALF = tl.constexpr(22), tl.constexpr(2.0**22), tl.constexpr(2**21)  # of a weight, after the point


@triton.jit
def window(place, length, SIZE: tl.constexpr, CUBIC: tl.constexpr):
    """Return which pixels of a line make those at `place`: the first, the end, the centre and the stretch."""
    scale = length.to(tl.float64) / SIZE
    stretch = tl.maximum(scale, 1.0)
    reach = (2.0 if CUBIC else 1.0) * stretch
    centre = (place.to(tl.float64) + 0.5) * scale
    first = tl.maximum((centre - reach + 0.5).to(tl.int32), 0)
    end = tl.minimum((centre + reach + 0.5).to(tl.int32), length.to(tl.int32))
    return first, end, centre, stretch


@triton.jit
def weight(pixel, end, centre, stretch, CUBIC: tl.constexpr):
    """Return the weights of pixels, float64, which do not sum up to 1 yet; 0 from `end` on."""
    x = tl.abs((pixel.to(tl.float64) - centre + 0.5) * (1.0 / stretch))
    if CUBIC:  # with a = -0.5
        inner = (1.5 * x - 2.5) * x * x + 1.0
        outer = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
        value = tl.where(x < 1.0, inner, tl.where(x < 2.0, outer, 0.0))
    else:
        value = tl.maximum(1.0 - x, 0.0)
    return tl.where(pixel < end, value, 0.0)


@triton.jit
def whole(value, total):
    """Return a weight as a whole number of 2^-22 of the total, rounded half away from zero."""
    part = value / tl.where(total == 0.0, 1.0, total)
    return (part * ONE + tl.where(part < 0.0, -0.5, 0.5)).to(tl.int32)


@triton.jit
def to_byte(total):
    """Return sums of bytes by whole weights, a half included, as bytes."""
    return tl.minimum(tl.maximum(total >> BITS, 0), 255).to(tl.uint8)


@triton.jit
def colors(start, step, plane, place, length, inside, SIZE: tl.constexpr, CUBIC: tl.constexpr):
    """Return red, green and blue at places of lines that begin at `start`, ROWS x COLUMNS bytes each.

    A line has `length` pixels, `step` bytes apart, and its three colors lie `plane` bytes apart.
    """
    first, end, centre, stretch = window(place, length, SIZE, CUBIC)
    most = tl.max(tl.max(end - first, 1), 0)
    total = tl.zeros_like(centre)
    for tap in range(most):
        total += weight(first + tap, end, centre, stretch, CUBIC)
    red = tl.full((ROWS, COLUMNS), HALF, tl.int32)
    green = red
    blue = red
    for tap in range(most):
        pixel = first + tap
        of_pixel = whole(weight(pixel, end, centre, stretch, CUBIC), total)
        at = start + pixel.to(tl.int64) * step
        is_read = inside & (pixel < end)
        red += tl.load(at, is_read, 0).to(tl.int32) * of_pixel
        green += tl.load(at + plane, is_read, 0).to(tl.int32) * of_pixel
        blue += tl.load(at + 2 * plane, is_read, 0).to(tl.int32) * of_pixel
    return to_byte(red), to_byte(green), to_byte(blue)


@triton.jit
def across_kernel(boxes, rows, SIZE: tl.constexpr, CUBIC: tl.constexpr):
    """Resize the rows of each box: uint8 `(all rows, 3, SIZE)`."""
    box = boxes + tl.program_id(0) * 7
    height = tl.load(box + 4)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    if tl.program_id(1) * ROWS < height:
        column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        image = tl.load(box).to(tl.pointer_type(tl.uint8))
        start = image + tl.load(box + 3) + row.to(tl.int64) * tl.load(box + 2)
        plane = tl.load(box + 1)
        red, green, blue = colors(start, 1, plane, column, tl.load(box + 5), row < height, SIZE, CUBIC)
        to = rows + (tl.load(box + 6) + row.to(tl.int64)) * (3 * SIZE) + column
        inside = (row < height) & (column < SIZE)
        tl.store(to, red, inside)
        tl.store(to + SIZE, green, inside)
        tl.store(to + 2 * SIZE, blue, inside)


@triton.jit
def down_kernel(boxes, rows, crops, SIZE: tl.constexpr, CUBIC: tl.constexpr):
    """Resize the columns of each box's rows: uint8 `(B, SIZE, SIZE, 3)`."""
    number = tl.program_id(0).to(tl.int64)
    box = boxes + number * 7
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    start = rows + tl.load(box + 6) * (3 * SIZE) + column
    red, green, blue = colors(start, 3 * SIZE, SIZE, row, tl.load(box + 4), column < SIZE, SIZE, CUBIC)
    to = crops + ((number * SIZE + row) * SIZE + column) * 3
    inside = (row < SIZE) & (column < SIZE)
    tl.store(to, red, inside)
    tl.store(to + 1, green, inside)
    tl.store(to + 2, blue, inside)
