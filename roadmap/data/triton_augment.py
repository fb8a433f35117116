"""RandAugment's operations as two Triton kernels a layer, for a GPU: tables of the images that need their own, pixels.

The arithmetic is that of `image_ops`, value by value (no multiply-add is fused), which launches many kernels for each
operation. Needs Triton; `roadmap.data.rand_augment` launches them.
"""

# mypy: ignore-errors
# ruff: noqa: N803 - Triton's own language: constants in capitals

import triton
import triton.language as tl

# What a program does with its image.
UNCHANGED, LOOK_UP, COLOR, SHARPNESS, MOVE = (tl.constexpr(code) for code in range(5))
AUTO_CONTRAST, EQUALIZE, CONTRAST = (tl.constexpr(code) for code in range(5, 8))  # look up in tables of their own
BLOCK = tl.constexpr(512)  # pixels at a time; 1024 would spill registers where each reads 16 of them


@triton.jit
def gray_of(red, green, blue):
    """Return brightness, int32, 0 to 255: ITU-R 601-2 in 1 / 65536, as Pillow has it."""
    return (red.to(tl.int32) * 19595 + green.to(tl.int32) * 38470 + blue.to(tl.int32) * 7471 + 0x8000) >> 16


@triton.jit
def blend(less, image, factor):
    """Go from `less` to `image` by a factor, and beyond, float32; the part after the point is cut off."""
    value = less + factor * (image - less)
    return tl.minimum(tl.maximum(value, 0.0), 255.0).to(tl.uint8)


@triton.jit
def tables_kernel(images, tables, ops, args, PIXELS: tl.constexpr):
    """Write the tables of the images whose operation depends on them: uint8 `(N, 3, 256)`, a program a table."""
    image, channel = tl.program_id(0).to(tl.int64), tl.program_id(1)
    op = tl.load(ops + image)
    value = tl.arange(0, 256)
    start = images + image * PIXELS * 3
    table = tables + (image * 3 + channel) * 256 + value
    if op == CONTRAST:
        total = tl.zeros((1,), tl.int64)
        for first in range(0, PIXELS, BLOCK):
            at = first + tl.arange(0, BLOCK)
            inside = at < PIXELS
            red = tl.load(start + at * 3, inside, 0)
            green = tl.load(start + at * 3 + 1, inside, 0)
            total += tl.sum(gray_of(red, green, tl.load(start + at * 3 + 2, inside, 0)).to(tl.int64), 0)
        mean = tl.floor(total.to(tl.float64) / PIXELS + 0.5).to(tl.float32)
        tl.store(table, blend(mean, value.to(tl.float32), tl.load(args + image * 6).to(tl.float32)))
    if (op == AUTO_CONTRAST) | (op == EQUALIZE):
        counts = tl.zeros((256,), tl.int32)
        for first in range(0, PIXELS, BLOCK):
            at = first + tl.arange(0, BLOCK)
            inside = at < PIXELS
            counts += tl.histogram(tl.load(start + at * 3 + channel, inside, 0).to(tl.int32), 256, mask=inside)
        high = tl.max(tl.where(counts > 0, value, 0), 0)
        if op == AUTO_CONTRAST:
            low = tl.min(tl.where(counts > 0, value, 255), 0)
            span = tl.maximum(high - low, 1).to(tl.float64)
            scale = tl.full((256,), 255.0, tl.float64) / span
            stretched = value.to(tl.float64) * scale + (-low).to(tl.float64) * scale
            stretched = tl.minimum(tl.maximum(stretched, 0.0), 255.0)
            tl.store(table, tl.where(high > low, stretched, value.to(tl.float64)).to(tl.uint8))
        else:
            before = tl.cumsum(counts, 0) - counts
            step = (PIXELS - tl.sum(tl.where(value == high, counts, 0), 0)) // 255
            evened = tl.minimum((before + step // 2) // tl.maximum(step, 1), 255)
            tl.store(table, tl.where(step > 0, evened, value).to(tl.uint8))


@triton.jit
def taps_between(before, here, after, later, part, CUBIC: tl.constexpr):
    """Interpolate between the middle two of four values, or of two, `part` of the way, by differences."""
    if CUBIC:
        rise = before - here
        fall = after - later
        bend = (fall + 2 * rise) - (rise + fall) * part
        return here + ((after - before) + bend * part) * part
    return here + (after - here) * part


@triton.jit
def line_value(row, column, part, SIZE: tl.constexpr, CUBIC: tl.constexpr):
    """Interpolate along a row of pixels, edges repeated, between `column` and the next."""
    here = tl.load(row + tl.minimum(tl.maximum(column, 0), SIZE - 1) * 3).to(tl.float32)
    after = tl.load(row + tl.minimum(tl.maximum(column + 1, 0), SIZE - 1) * 3).to(tl.float32)
    before = here
    later = after
    if CUBIC:
        before = tl.load(row + tl.minimum(tl.maximum(column - 1, 0), SIZE - 1) * 3).to(tl.float32)
        later = tl.load(row + tl.minimum(tl.maximum(column + 2, 0), SIZE - 1) * 3).to(tl.float32)
    return taps_between(before, here, after, later, part, CUBIC)


@triton.jit
def pixels_kernel(images, changed, fixed, tables, ops, args, fill, SIZE: tl.constexpr, CUBIC: tl.constexpr):
    """Write what each image's operation makes of a block of its pixels: uint8 `(N, SIZE, SIZE, 3)`.

    `args` float64 `(N, 6)`: a move's matrix, from a pixel to the place it comes from, or a blend's factor first;
    `fill` is red + 256 green + 65536 blue.
    """
    image = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < SIZE * SIZE
    x = at % SIZE
    y = at // SIZE
    op = tl.load(ops + image)
    start = images + image * SIZE * SIZE * 3
    end = changed + image * SIZE * SIZE * 3 + at * 3
    factor = tl.load(args + image * 6).to(tl.float32)
    if op == MOVE:
        matrix = args + image * 6
        column = x.to(tl.float64) + 0.5
        row = y.to(tl.float64) + 0.5
        across = tl.load(matrix) * column + tl.load(matrix + 1) * row + tl.load(matrix + 2)
        down = tl.load(matrix + 3) * column + tl.load(matrix + 4) * row + tl.load(matrix + 5)
        is_inside = (across >= 0) & (across < SIZE) & (down >= 0) & (down < SIZE)
        first_column = tl.floor(across - 0.5)
        first_row = tl.floor(down - 0.5)
        part_across = ((across - 0.5) - first_column).to(tl.float32)
        part_down = ((down - 0.5) - first_row).to(tl.float32)
        # Places far beyond the edges fit into no int32.
        column = tl.minimum(tl.maximum(first_column, -2.0), SIZE * 1.0).to(tl.int32)
        row = tl.minimum(tl.maximum(first_row, -2.0), SIZE * 1.0).to(tl.int32)
        above = tl.minimum(tl.maximum(row - 1, 0), SIZE - 1) * SIZE * 3
        here = tl.minimum(tl.maximum(row, 0), SIZE - 1) * SIZE * 3
        below = tl.minimum(tl.maximum(row + 1, 0), SIZE - 1) * SIZE * 3
        under = tl.minimum(tl.maximum(row + 2, 0), SIZE - 1) * SIZE * 3
        for channel in tl.static_range(3):
            plane = start + channel
            middle = line_value(plane + here, column, part_across, SIZE, CUBIC)
            after = line_value(plane + below, column, part_across, SIZE, CUBIC)
            before = middle
            later = after
            if CUBIC:
                before = line_value(plane + above, column, part_across, SIZE, CUBIC)
                later = line_value(plane + under, column, part_across, SIZE, CUBIC)
            value = taps_between(before, middle, after, later, part_down, CUBIC)
            value = tl.minimum(tl.maximum(value, 0.0), 255.0).to(tl.uint8)
            tl.store(end + channel, tl.where(is_inside, value, ((fill >> 8 * channel) & 255).to(tl.uint8)), inside)
    elif op == SHARPNESS:
        is_inner = (x > 0) & (x < SIZE - 1) & (y > 0) & (y < SIZE - 1)
        for channel in tl.static_range(3):
            pixel = start + at * 3 + channel
            whole = tl.load(pixel, inside, 0).to(tl.float32)
            total = 4 * whole
            for dy in tl.static_range(-1, 2):
                for dx in tl.static_range(-1, 2):
                    total += tl.load(pixel + (dy * SIZE + dx) * 3, is_inner & inside, 0).to(tl.float32)
            smooth = tl.where(is_inner, tl.floor(total / 13 + 0.5), whole)
            tl.store(end + channel, blend(smooth, whole, factor), inside)
    else:
        red = tl.load(start + at * 3, inside, 0)
        green = tl.load(start + at * 3 + 1, inside, 0)
        blue = tl.load(start + at * 3 + 2, inside, 0)
        if op == COLOR:
            gray = gray_of(red, green, blue).to(tl.float32)
            red = blend(gray, red.to(tl.float32), factor)
            green = blend(gray, green.to(tl.float32), factor)
            blue = blend(gray, blue.to(tl.float32), factor)
        elif op == LOOK_UP:
            table = fixed + image * 256
            red = tl.load(table + red)
            green = tl.load(table + green)
            blue = tl.load(table + blue)
        elif op != UNCHANGED:
            table = tables + image * 768
            red = tl.load(table + red)
            green = tl.load(table + 256 + green)
            blue = tl.load(table + 512 + blue)
        tl.store(end, red, inside)
        tl.store(end + 1, green, inside)
        tl.store(end + 2, blue, inside)
