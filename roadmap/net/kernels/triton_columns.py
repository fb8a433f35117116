"""Triton kernels of the depthwise convolution at stride 1 that keep a few columns in registers, channels-last.

A lane has a channel or two, its K * K taps, and K rows of sums for BLOCK_W neighbouring columns: an input value is
loaded once and meets all its taps. The next row is on its way while the present one is computed. Sums are kept in fp32
and taken in a fixed order. Padding is K // 2, K is odd. Needs Triton; `roadmap.net.kernels.depthwise` starts them.
"""

# mypy: ignore-errors
# ruff: noqa: N803, N806, RUF005 - Triton's own language: constants in capitals, tuples are added

import triton
import triton.language as tl


@triton.jit
def add_products(total, values, factors, N: tl.constexpr):
    """Add the products of N values and N factors, one after the other: a function is cheaper to compile than a loop."""
    for i in tl.static_range(N):
        total = total + values[i] * factors[i]
    return total


@triton.jit(do_not_specialize=["batch", "height", "width", "strip", "images"])
def columns_kernel(
    x, taps, bias, y, batch, height, width, strip, images,
    CHANNELS: tl.constexpr, K: tl.constexpr, FLIPPED: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y (N, H, W, C) from x (N, H, W, C), taps (K * K, C), bias (C,); `strip` rows of `images` images a program.

    FLIPPED turns the kernel around: with x the gradient of the output, y is that of the input.
    """
    PAD: tl.constexpr = K // 2
    SPAN: tl.constexpr = BLOCK_W + K - 1
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < CHANNELS
    if CHANNELS % BLOCK_C == 0:
        in_c = tl.full((BLOCK_C,), True, tl.int1)
    image = tl.full((), CHANNELS, tl.int64) * height * width
    tiles = tl.cdiv(width, BLOCK_W)
    ow = (tl.program_id(1) % tiles) * BLOCK_W
    first = (tl.program_id(1) // tiles) * strip
    last = tl.minimum(first + strip, height)
    begin = tl.maximum(first - PAD, 0)
    end = tl.minimum(last + PAD, height)  # of the input rows that reach the strip
    w = ()
    for i in tl.static_range(K * K):
        tap = K * K - 1 - i if FLIPPED else i
        w = w + (tl.load(taps + tap * CHANNELS + c, mask=in_c, other=0.0).to(tl.float32),)
    start = tl.zeros((BLOCK_C,), tl.float32)
    if HAS_BIAS:
        start += tl.load(bias + c, mask=in_c, other=0.0).to(tl.float32)
    for n in range(tl.program_id(2) * images, tl.minimum(batch, (tl.program_id(2) + 1) * images)):
        of_x = x + n * image + (ow - PAD) * CHANNELS
        to = n * image + ow * CHANNELS
        sums = ()  # sums[a * BLOCK_W + p]: row t - PAD + a of the output, column ow + p
        for _ in tl.static_range(K * BLOCK_W):
            sums = sums + (start,)
        ahead = ()
        for j in tl.static_range(SPAN):
            inside = in_c & (ow + j - PAD >= 0) & (ow + j - PAD < width)
            ahead = ahead + (tl.load(of_x + begin * width * CHANNELS + j * CHANNELS + c, mask=inside, other=0.0),)
        for t in range(begin, end):
            row = ()
            for j in tl.static_range(SPAN):
                row = row + (ahead[j].to(tl.float32),)
            following = tl.minimum(t + 1, end - 1)
            ahead = ()
            for j in tl.static_range(SPAN):
                inside = in_c & (ow + j - PAD >= 0) & (ow + j - PAD < width)
                at = of_x + following * width * CHANNELS + j * CHANNELS + c
                ahead = ahead + (tl.load(at, mask=inside, other=0.0),)
            added = ()
            for a in tl.static_range(K):
                for p in tl.static_range(BLOCK_W):
                    taps_of_row = w[(K - 1 - a) * K : (K - a) * K]
                    added = added + (add_products(sums[a * BLOCK_W + p], row[p : p + K], taps_of_row, K),)
            for p in tl.static_range(BLOCK_W):
                inside = in_c & (t - PAD >= first) & (ow + p < width)
                at = to + (t - PAD) * width * CHANNELS + p * CHANNELS + c
                tl.store(y + at, added[p].to(y.dtype.element_ty), mask=inside)
            sums = added[BLOCK_W:]
            for _ in tl.static_range(BLOCK_W):
                sums = sums + (start,)
        for a in tl.static_range(PAD):  # rows that the map's end has left unfinished: below it is nothing to add
            t = end - PAD + a
            for p in tl.static_range(BLOCK_W):
                inside = in_c & (t >= first) & (t < last) & (ow + p < width)
                at = to + t * width * CHANNELS + p * CHANNELS + c
                tl.store(y + at, sums[a * BLOCK_W + p].to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["batch", "height", "width"])
def columns_weight_gradient_kernel(
    x, g, partial, batch, height, width,
    CHANNELS: tl.constexpr, K: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """partial (P, K * K + 1, C), a program's share of the gradients of taps and bias from x and g (N, H, W, C)."""
    PAD: tl.constexpr = K // 2
    SPAN: tl.constexpr = BLOCK_W + K - 1
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < CHANNELS
    if CHANNELS % BLOCK_C == 0:
        in_c = tl.full((BLOCK_C,), True, tl.int1)
    image = tl.full((), CHANNELS, tl.int64) * height * width
    tiles = tl.cdiv(width, BLOCK_W)
    zero = tl.zeros((BLOCK_C,), tl.float32)
    dw = ()
    for _ in tl.static_range(K * K):
        dw = dw + (zero,)
    db = zero
    for item in range(tl.program_id(1), batch * tiles, tl.num_programs(1)):
        ow = (item % tiles) * BLOCK_W
        of_x = x + (item // tiles) * image + (ow - PAD) * CHANNELS
        of_g = g + (item // tiles) * image + ow * CHANNELS
        rows = ()  # rows[a * BLOCK_W + p]: row t - PAD + a of the gradient, column ow + p
        for _ in tl.static_range(PAD * BLOCK_W):
            rows = rows + (zero,)
        for a in tl.static_range(PAD):
            for p in tl.static_range(BLOCK_W):
                inside = in_c & (a < height) & (ow + p < width)
                value = tl.load(of_g + (a * width + p) * CHANNELS + c, mask=inside, other=0.0).to(tl.float32)
                db += value
                rows = rows + (value,)
        ahead = ()
        for j in tl.static_range(SPAN):
            inside = in_c & (ow + j - PAD >= 0) & (ow + j - PAD < width)
            ahead = ahead + (tl.load(of_x + j * CHANNELS + c, mask=inside, other=0.0),)
        of_last = ()
        for p in tl.static_range(BLOCK_W):
            inside = in_c & (PAD < height) & (ow + p < width)
            of_last = of_last + (tl.load(of_g + (PAD * width + p) * CHANNELS + c, mask=inside, other=0.0),)
        for t in range(height):
            row = ()
            for j in tl.static_range(SPAN):
                row = row + (ahead[j].to(tl.float32),)
            for p in tl.static_range(BLOCK_W):
                value = of_last[p].to(tl.float32)
                db += value
                rows = rows + (value,)
            following = tl.minimum(t + 1, height - 1)
            ahead = ()
            for j in tl.static_range(SPAN):
                inside = in_c & (ow + j - PAD >= 0) & (ow + j - PAD < width)
                at = of_x + following * width * CHANNELS + j * CHANNELS + c
                ahead = ahead + (tl.load(at, mask=inside, other=0.0),)
            of_last = ()
            for p in tl.static_range(BLOCK_W):
                inside = in_c & (t + 1 + PAD < height) & (ow + p < width)
                at = of_g + (t + 1 + PAD) * width * CHANNELS + p * CHANNELS + c
                of_last = of_last + (tl.load(at, mask=inside, other=0.0),)
            added = ()
            for k in tl.static_range(K):  # kernel row k meets row t + PAD - k of the gradient
                for d in tl.static_range(K):
                    of_row = rows[(K - 1 - k) * BLOCK_W : (K - k) * BLOCK_W]
                    added = added + (add_products(dw[k * K + d], row[d : d + BLOCK_W], of_row, BLOCK_W),)
            dw = added
            rows = rows[BLOCK_W:]
    to = partial + tl.program_id(1) * (K * K + 1) * CHANNELS + c
    for i in tl.static_range(K * K):
        tl.store(to + i * CHANNELS, dw[i], mask=in_c)
    tl.store(to + K * K * CHANNELS, db, mask=in_c)
