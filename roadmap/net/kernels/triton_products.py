"""Triton kernels of a matrix product whose operand is GELU of a map, computed as the map is loaded and never stored.

The map before GELU is `hidden` (R, H), one row a pixel; the product's weight is (C, H), its output (R, C). Sums are in
fp32; those over rows come in two stages, a share a program first, in a fixed order. Needs Triton;
`roadmap.net.kernels.gelu_product` starts them.
"""

# mypy: ignore-errors
# ruff: noqa: N803 - Triton's own language: constants in capitals, tuples are added

import triton
import triton.language as tl


@triton.jit
def add_product(a, b, total, WIDEN: tl.constexpr):
    """Add the matrix product of two blocks of one type; WIDEN multiplies in fp32: the interpreter cannot in bf16."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="tf32")


@triton.jit
def upper_tail(x):
    """Return 1 - Phi(|x|) of the normal distribution, within 3e-7, and exp(-x^2 / 2).

    Abramowitz and Stegun, 7.1.26, for erf: fewer instructions than the library's, the exponential is that of the
    density, and far from zero it is nearer to the true tail than 1 - erf in fp32.
    """
    s = 1.0 + tl.abs(x) * 0.2316418882
    t = tl.math.rsqrt(s * s)  # 1 / s in one instruction
    scaled = x * 0.8493218002880191  # sqrt(log2(e) / 2)
    density = tl.math.exp2(-scaled * scaled)
    poly = t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145))))
    return poly * density, density


@triton.jit
def gelu(x):
    """Return GELU of a block, in fp32."""
    tail, _ = upper_tail(x)
    return tl.maximum(x, 0.0) - tl.abs(x) * tail


@triton.jit
def gelu_slope(x):
    """Return the derivative of GELU at a block, in fp32."""
    tail, density = upper_tail(x)
    return tl.where(x > 0.0, 1.0 - tail, tail) + x * 0.3989422804014327 * density


@triton.jit(do_not_specialize=["rows"])
def gelu_forward_kernel(
    hidden, weight, bias, y, rows,
    C: tl.constexpr, H: tl.constexpr, HAS_BIAS: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """y (R, C) = GELU(hidden (R, H)) weight (C, H)^T + bias (C,)."""
    parts: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C  # programs beside each other read the same rows
    r = (tl.program_id(0) // parts) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = (tl.program_id(0) % parts) * BLOCK_C + tl.arange(0, BLOCK_C)
    k = tl.arange(0, BLOCK_H)
    in_r, in_c = r < rows, c < C
    of_hidden = hidden + r.to(tl.int64)[:, None] * H + k[None, :]
    of_weight = weight + c[None, :] * H + k[:, None]
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for at in range(0, H, BLOCK_H):
        in_h = at + k < H
        h = tl.load(of_hidden + at, mask=in_r[:, None] & in_h[None, :], other=0.0).to(tl.float32)
        w = tl.load(of_weight + at, mask=in_h[:, None] & in_c[None, :], other=0.0)
        total = add_product(gelu(h).to(w.dtype), w, total, WIDEN)
    if HAS_BIAS:
        total += tl.load(bias + c, mask=in_c, other=0.0).to(tl.float32)[None, :]
    to = y + r.to(tl.int64)[:, None] * C + c[None, :]
    tl.store(to, total.to(y.dtype.element_ty), mask=in_r[:, None] & in_c[None, :])


@triton.jit(do_not_specialize=["rows"])
def gelu_input_gradient_kernel(
    g, weight, hidden, dh, partial, rows,
    C: tl.constexpr, H: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dh (R, H) = (g (R, C) weight (C, H)) GELU'(hidden (R, H)), and partial (P, H): a program's share of dh's sum."""
    parts: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    share = tl.program_id(0) // parts
    r = share * BLOCK_R + tl.arange(0, BLOCK_R)
    n = (tl.program_id(0) % parts) * BLOCK_H + tl.arange(0, BLOCK_H)
    k = tl.arange(0, BLOCK_C)
    in_r, in_h = r < rows, n < H
    inside = in_r[:, None] & in_h[None, :]
    at = r.to(tl.int64)[:, None] * H + n[None, :]
    h = tl.load(hidden + at, mask=inside, other=0.0)  # under way while the product is computed
    of_g = g + r.to(tl.int64)[:, None] * C + k[None, :]
    of_weight = weight + k[:, None] * H + n[None, :]
    total = tl.zeros((BLOCK_R, BLOCK_H), tl.float32)
    for c in range(0, C, BLOCK_C):
        in_c = c + k < C
        grad = tl.load(of_g + c, mask=in_r[:, None] & in_c[None, :], other=0.0)
        w = tl.load(of_weight + c * H, mask=in_c[:, None] & in_h[None, :], other=0.0)
        total = add_product(grad, w, total, WIDEN)
    total *= gelu_slope(h.to(tl.float32))
    tl.store(dh + at, total.to(dh.dtype.element_ty), mask=inside)
    tl.store(partial + share.to(tl.int64) * H + n, tl.sum(total, axis=0), mask=in_h)


@triton.jit(do_not_specialize=["rows", "share"])
def gelu_weight_gradient_kernel(
    g, hidden, partial, rows, share,
    C: tl.constexpr, H: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """partial (P, C, H): g (R, C)^T GELU(hidden (R, H)) of a program's `share` of the rows, a multiple of BLOCK_R."""
    n = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    k = tl.arange(0, BLOCK_R)
    in_h, in_c = n < H, c < C
    first = tl.program_id(2).to(tl.int64) * share
    total = tl.zeros((BLOCK_H, BLOCK_C), tl.float32)
    for row in range(first, tl.minimum(first + share, rows), BLOCK_R):
        in_r = row + k < rows
        h = tl.load(hidden + (row + k)[None, :] * H + n[:, None], mask=in_h[:, None] & in_r[None, :], other=0.0)
        grad = tl.load(g + (row + k)[:, None] * C + c[None, :], mask=in_r[:, None] & in_c[None, :], other=0.0)
        total = add_product(gelu(h.to(tl.float32)).to(grad.dtype), grad, total, WIDEN)
    to = partial + tl.program_id(2).to(tl.int64) * C * H + c[None, :] * H + n[:, None]
    tl.store(to, total, mask=in_h[:, None] & in_c[None, :])
