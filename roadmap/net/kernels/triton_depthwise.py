"""Triton kernels of the depthwise convolution on channels-last maps: forward, input gradient, weight and bias gradient.

All three slide along the height: a row is read once for each of its K shifts, and multiplied by all kernel rows in
registers: K loads and K * K multiply-adds a value. Sums are kept in fp32 and taken in a fixed order. Padding is K // 2,
K is odd. Needs Triton; `roadmap.net.kernels.depthwise` starts them.
"""

# mypy: ignore-errors
# ruff: noqa: N803, N806, RUF005 - Triton's own language: constants in capitals, tuples are added

import triton
import triton.language as tl


@triton.jit
def forward_kernel(
    x, taps, bias, y, height, width, channels, out_height, out_width, strip,
    K: tl.constexpr, S: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """y (N, OH, OW, C) from x (N, H, W, C), taps (K * K, C), bias (C,); `strip` rows of BLOCK_W pixels a program."""
    PAD: tl.constexpr = K // 2
    AHEAD: tl.constexpr = (K + S - 1) // S
    # Two channels a thread at most: with eight, as Triton would take for wide loads, the taps outgrow the registers.
    c = tl.max_contiguous(tl.multiple_of(tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), VEC), VEC)
    tiles = tl.cdiv(out_width, BLOCK_W)
    ow = (tl.program_id(1) % tiles) * BLOCK_W + tl.arange(0, BLOCK_W)
    first = (tl.program_id(1) // tiles) * strip
    last = tl.minimum(first + strip, out_height)
    n = tl.program_id(2).to(tl.int64)
    x += n * height * width * channels
    y += n * out_height * out_width * channels
    in_c = c < channels
    w = ()
    for i in tl.static_range(K * K):
        w = w + (tl.load(taps + i * channels + c, mask=in_c, other=0.0).to(tl.float32)[None, :],)
    start = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    if HAS_BIAS:
        start += tl.load(bias + c, mask=in_c, other=0.0).to(tl.float32)[None, :]
    rows = ()  # sums of the output rows t, t - 1, ...
    for _ in tl.static_range(AHEAD):
        rows = rows + (start,)
    for t in range(first, last + AHEAD - 1):
        for s in tl.static_range(S):
            row = S * t + s - PAD
            for d in tl.static_range(K):
                col = S * ow + d - PAD
                inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
                at = x + (row * width + col)[:, None] * channels + c[None, :]
                value = tl.load(at, mask=inside[:, None] & in_c[None, :], other=0.0).to(tl.float32)
                added = ()
                for a in tl.static_range(AHEAD):
                    if S * a + s < K:
                        added = added + (rows[a] + value * w[(S * a + s) * K + d],)
                    else:
                        added = added + (rows[a],)
                rows = added
        done = t - (AHEAD - 1)
        at = y + (done * out_width + ow)[:, None] * channels + c[None, :]
        mask = ((done >= first) & (ow < out_width))[:, None] & in_c[None, :]
        tl.store(at, rows[AHEAD - 1].to(y.dtype.element_ty), mask=mask)
        rows = (start,) + rows[:-1]


@triton.jit
def input_gradient_kernel(
    g, taps, dx, height, width, channels, out_height, out_width, strip,
    K: tl.constexpr, S: tl.constexpr, Q: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """dx (N, H, W, C) from g (N, OH, OW, C), taps (K * K, C), columns Q, Q + S, ...; `strip` rows of g a program."""
    PAD: tl.constexpr = K // 2
    c = tl.max_contiguous(tl.multiple_of(tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), VEC), VEC)
    tiles = tl.cdiv(tl.cdiv(width - Q, S), BLOCK_W)
    j = (tl.program_id(1) % tiles) * BLOCK_W + tl.arange(0, BLOCK_W)
    col = S * j + Q
    # Rows of dx belong to the strip in which the last gradient row that reaches them, oy = (row + PAD) // S, lies.
    first = (tl.program_id(1) // tiles) * strip
    last = first + strip
    n = tl.program_id(2).to(tl.int64)
    g += n * out_height * out_width * channels
    dx += n * height * width * channels
    in_c = c < channels
    w = ()
    for i in tl.static_range(K * K):
        w = w + (tl.load(taps + i * channels + c, mask=in_c, other=0.0).to(tl.float32)[None, :],)
    zero = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    rows = ()  # sums of the rows S * oy - PAD + 0, 1, ..., K - 1 of dx
    for _ in tl.static_range(K):
        rows = rows + (zero,)
    # The first rounds only gather: what they finish belongs to the strip above.
    for oy in range(first - (K - 1) // S, last):
        for d in tl.static_range(K):
            if (Q + PAD - d) % S == 0:
                ox = j + (Q + PAD - d) // S
                inside = (oy >= 0) & (oy < out_height) & (ox >= 0) & (ox < out_width)
                at = g + (oy * out_width + ox)[:, None] * channels + c[None, :]
                value = tl.load(at, mask=inside[:, None] & in_c[None, :], other=0.0).to(tl.float32)
                added = ()
                for a in tl.static_range(K):
                    added = added + (rows[a] + value * w[a * K + d],)
                rows = added
        for s in tl.static_range(S):
            row = S * oy - PAD + s
            at = dx + (row * width + col)[:, None] * channels + c[None, :]
            inside = (oy >= first) & (row >= 0) & (row < height) & (col < width)
            tl.store(at, rows[s].to(dx.dtype.element_ty), mask=inside[:, None] & in_c[None, :])
        rows = rows[S:]
        for _ in tl.static_range(S):
            rows = rows + (zero,)


@triton.jit
def weight_gradient_kernel(
    x, g, partial, batch, height, width, channels, out_height, out_width,
    K: tl.constexpr, S: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """partial (P, K * K + 1, C), a program's share of the gradients of taps and bias from x and g (N, OH, OW, C)."""
    PAD: tl.constexpr = K // 2
    AHEAD: tl.constexpr = (K + S - 1) // S
    c = tl.max_contiguous(tl.multiple_of(tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), VEC), VEC)
    in_c = c < channels
    tiles = tl.cdiv(out_width, BLOCK_W)
    zero = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    dw = ()  # column by column of the kernel
    for _ in tl.static_range(K * K):
        dw = dw + (zero,)
    db = zero
    for item in range(tl.program_id(1), batch * tiles, tl.num_programs(1)):
        ow = (item % tiles) * BLOCK_W + tl.arange(0, BLOCK_W)
        n = (item // tiles).to(tl.int64)
        of_x = x + n * height * width * channels
        of_g = g + n * out_height * out_width * channels
        rows = ()  # gradient rows t, t - 1, ...
        for _ in tl.static_range(AHEAD):
            rows = rows + (zero,)
        for t in range(out_height + AHEAD - 1):
            at = of_g + (t * out_width + ow)[:, None] * channels + c[None, :]
            mask = ((t < out_height) & (ow < out_width))[:, None] & in_c[None, :]
            fresh = tl.load(at, mask=mask, other=0.0).to(tl.float32)
            db += fresh
            rows = (fresh,) + rows[:-1]
            for s in tl.static_range(S):
                row = S * t + s - PAD
                for d in tl.static_range(K):
                    col = S * ow + d - PAD
                    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
                    at = of_x + (row * width + col)[:, None] * channels + c[None, :]
                    value = tl.load(at, mask=inside[:, None] & in_c[None, :], other=0.0).to(tl.float32)
                    added = ()
                    for k in tl.static_range(K):
                        if k % S == s:
                            added = added + (dw[d * K + k] + value * rows[k // S],)
                        else:
                            added = added + (dw[d * K + k],)
                    dw = dw[: d * K] + added + dw[(d + 1) * K :]
    to = partial + tl.program_id(1) * (K * K + 1) * channels + c
    for i in tl.static_range(K * K):
        tl.store(to + i * channels, tl.sum(dw[(i % K) * K + i // K], axis=0), mask=in_c)
    tl.store(to + K * K * channels, tl.sum(db, axis=0), mask=in_c)
