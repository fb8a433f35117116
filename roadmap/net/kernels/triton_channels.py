"""Triton kernels along the channels of a channels-last map: LayerNorm; layer scale, stochastic depth, shortcut; GELU.

A map is (R, C), one row a pixel. Sums are kept in fp32; those over pixels come in two stages, a share a program first,
in a fixed order. Needs Triton; `roadmap.net.kernels.norm` and `roadmap.net.kernels.residual` start them.
"""

# mypy: ignore-errors
# ruff: noqa: N803 - Triton's own language: constants in capitals, tuples are added

import triton
import triton.language as tl


@triton.jit
def norm_kernel(x, weight, bias, y, mean, rstd, pixels, channels, eps, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """y (R, C), mean (R,) and 1 / standard deviation (R,) of x (R, C); BLOCK_C covers all channels."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.arange(0, BLOCK_C)
    in_r, in_c = r < pixels, c < channels
    inside = in_r[:, None] & in_c[None, :]
    at = r[:, None] * channels + c[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    mu = tl.sum(value, axis=1) / channels
    centred = tl.where(inside, value - mu[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / channels + eps)
    w = tl.load(weight + c, mask=in_c, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=in_c, other=0.0).to(tl.float32)
    out = centred * scale[:, None] * w[None, :] + b[None, :]
    tl.store(y + at, out.to(y.dtype.element_ty), mask=inside)
    tl.store(mean + r, mu, mask=in_r)
    tl.store(rstd + r, scale, mask=in_r)


@triton.jit
def norm_backward_kernel(
    g, x, weight, mean, rstd, dx, partial, pixels, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """dx (R, C) from g (R, C), and partial (P, 2, C): a program's share of the gradients of weight and bias."""
    c = tl.arange(0, BLOCK_C)
    in_c = c < channels
    w = tl.load(weight + c, mask=in_c, other=0.0).to(tl.float32)
    dw = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    db = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(pixels, BLOCK_R), tl.num_programs(0)):
        r = block * BLOCK_R + tl.arange(0, BLOCK_R).to(tl.int64)
        in_r = r < pixels
        inside = in_r[:, None] & in_c[None, :]
        at = r[:, None] * channels + c[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
        mu = tl.load(mean + r, mask=in_r, other=0.0)
        scale = tl.load(rstd + r, mask=in_r, other=0.0)
        normed = tl.where(inside, (value - mu[:, None]) * scale[:, None], 0.0)
        dw += grad * normed
        db += grad
        weighted = grad * w[None, :]
        along = tl.sum(weighted * normed, axis=1) / channels
        out = (weighted - tl.sum(weighted, axis=1)[:, None] / channels - normed * along[:, None]) * scale[:, None]
        tl.store(dx + at, out.to(dx.dtype.element_ty), mask=inside)
    to = partial + tl.program_id(0) * 2 * channels + c
    tl.store(to, tl.sum(dw, axis=0), mask=in_c)
    tl.store(to + channels, tl.sum(db, axis=0), mask=in_c)


@triton.jit
def residual_kernel(
    y, shortcut, gamma, keep, out, pixels, channels, image,
    HAS_KEEP: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out (R, C) = y (R, C) * gamma (C,) * keep (N,) + shortcut (R, C); `image` pixels a sample."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_r, in_c = r < pixels, c < channels
    inside = in_r[:, None] & in_c[None, :]
    at = r[:, None] * channels + c[None, :]
    value = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    value *= tl.load(gamma + c, mask=in_c, other=0.0).to(tl.float32)[None, :]
    if HAS_KEEP:
        value *= tl.load(keep + r // image, mask=in_r, other=0.0).to(tl.float32)[:, None]
    value += tl.load(shortcut + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def residual_backward_kernel(
    g, y, gamma, keep, dy, partial, pixels, channels, image,
    HAS_KEEP: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dy (R, C) from g (R, C), and partial (P, C): a program's share of gamma's gradient."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < channels
    scale = tl.load(gamma + c, mask=in_c, other=0.0).to(tl.float32)
    dgamma = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(pixels, BLOCK_R), tl.num_programs(0)):
        r = block * BLOCK_R + tl.arange(0, BLOCK_R).to(tl.int64)
        in_r = r < pixels
        inside = in_r[:, None] & in_c[None, :]
        at = r[:, None] * channels + c[None, :]
        grad = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
        if HAS_KEEP:
            grad *= tl.load(keep + r // image, mask=in_r, other=0.0).to(tl.float32)[:, None]
        dgamma += grad * tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dy + at, (grad * scale[None, :]).to(dy.dtype.element_ty), mask=inside)
    tl.store(partial + tl.program_id(0) * channels + c, tl.sum(dgamma, axis=0), mask=in_c)


@triton.jit
def gelu_backward_kernel(g, hidden, dh, partial, pixels, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """dh (R, C) from g (R, C), both of GELU(hidden (R, C)), and partial (P, C): a program's share of dh's sum."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < channels
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(pixels, BLOCK_R), tl.num_programs(0)):
        r = block * BLOCK_R + tl.arange(0, BLOCK_R).to(tl.int64)
        inside = (r < pixels)[:, None] & in_c[None, :]
        at = r[:, None] * channels + c[None, :]
        h = tl.load(hidden + at, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
        # The normal distribution's integral and density.
        normal = 0.5 + 0.5 * tl.math.erf(h * 0.7071067811865476)
        density = 0.3989422804014327 * tl.exp(-0.5 * h * h)
        out = (grad * (normal + h * density)).to(dh.dtype.element_ty)
        tl.store(dh + at, out, mask=inside)
        total += out.to(tl.float32)
    tl.store(partial + tl.program_id(0) * channels + c, tl.sum(total, axis=0), mask=in_c)
