"""LayerNorm over the channels of a channels-last map in one pass: statistics in fp32, mean and 1 / deviation saved.

Under autocast torch's own writes fp32, which the next convolution casts back: three passes over the map in eager mode.
"""

from typing import Any

import torch

from roadmap.net.kernels.triton_support import (
    NHWC,
    autocast_dtype,
    ceil_div,
    interpreted,
    operation,
    power_of_2,
    supported,
)
from roadmap.net.layers import ChannelNorm

ELEMENTS = 2048  # of a program's block
PROGRAMS = 1024  # that share the pixels in the backward pass
TILES = "1/1/1056 1/1/2112 2/1/2112 2/2/1056 4/2/1056 4/4/528 4/4/1056 8/4/528 8/8/528 16/4/528"  # to try there


class FusedNorm(ChannelNorm):
    """A `ChannelNorm` of one kernel forward and one, with a short sum, backward."""

    narrow: bool  # only convolutions read the output, which autocast would narrow: written so at once
    form: str = "triton"  # with the tile of its backward pass, `triton/ROWS/WARPS/PROGRAMS`

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H, W), channels-last; under autocast fp32 as LayerNorm is, or narrow."""
        if not supported(x, self.weight, self.bias):
            return super().forward(x)
        kind = autocast_dtype(x)
        out = x.dtype if kind is None else kind if self.narrow else torch.float32
        return NormFunction.apply(x, self.weight, self.bias, self.eps, out, self.form)


class NormFunction(torch.autograd.Function):
    """LayerNorm over the channels of x (N, C, H, W), into type `out`."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, out: torch.dtype, form: str
    ) -> torch.Tensor:
        """Return the normalised map, channels-last; save it as it came, with its pixels' mean and deviation."""
        x = x.contiguous(memory_format=NHWC)
        y, mean, rstd = norm_by_triton(x, weight, bias, eps, out)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.form = form
        return y

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of map, weight and bias."""
        return (
            *norm_backward_by_triton(g.contiguous(memory_format=NHWC), *ctx.saved_tensors, ctx.form),
            None,
            None,
            None,
        )


def fake_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, out: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """Return tensors of the shapes of a norm."""
    n, _, height, width = x.shape
    mean, rstd = (x.new_empty((n, height, width), dtype=torch.float32) for _ in range(2))
    return torch.empty(x.shape, dtype=out, device=x.device, memory_format=NHWC), mean, rstd


@operation("channel_norm", fake_norm)
def norm_by_triton(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, out: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x (N, C, H, W) normalised over its channels, in type `out`, with mean and 1 / deviation (N, H, W)."""
    from roadmap.net.kernels.triton_channels import norm_kernel

    x = x.contiguous(memory_format=NHWC)
    n, c, height, width = x.shape
    y = torch.empty(x.shape, dtype=out, device=x.device, memory_format=NHWC)
    mean, rstd = (torch.empty((n, height, width), dtype=torch.float32, device=x.device) for _ in range(2))
    rows, block, warps = block_of(c, n * height * width)
    norm_kernel[(ceil_div(n * height * width, rows),)](
        x, weight, bias, y, mean, rstd, n * height * width, c, eps, BLOCK_R=rows, BLOCK_C=block, num_warps=warps
    )
    return y, mean, rstd


@operation(
    "channel_norm_backward",
    lambda g, x, weight, mean, rstd, form: (
        torch.empty_like(x, memory_format=NHWC),
        torch.empty_like(weight),
        torch.empty_like(weight),
    ),
)
def norm_backward_by_triton(
    g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, form: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of map (N, C, H, W), weight and bias (C,)."""
    from roadmap.net.kernels.triton_channels import norm_backward_kernel

    g, x = g.contiguous(memory_format=NHWC), x.contiguous(memory_format=NHWC)
    n, c, height, width = x.shape
    pixels = n * height * width
    rows, block, warps = block_of(c, pixels)
    programs = PROGRAMS
    if "/" in form and not interpreted():
        rows, warps, programs = map(int, form.split("/")[1:])
    programs = min(programs, ceil_div(pixels, rows))
    dx = torch.empty_like(x, memory_format=NHWC)
    partial = torch.empty((programs, 2, c), dtype=torch.float32, device=x.device)
    norm_backward_kernel[(programs,)](
        g, x, weight, mean, rstd, dx, partial, pixels, c, BLOCK_R=rows, BLOCK_C=block, num_warps=warps
    )
    dw, db = partial.sum(0).to(weight.dtype).unbind()
    return dx, dw.clone(), db.clone()


def block_of(channels: int, pixels: int) -> tuple[int, int, int]:
    """Return pixels and channels of a program's block, and its warps; in the interpreter few large blocks."""
    block = power_of_2(channels)
    if interpreted():
        return power_of_2(min(pixels, 256)), block, 4
    return max(1, ELEMENTS // block), block, 4 if block <= 1024 else 8
