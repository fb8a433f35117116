"""Layer scale, stochastic depth and the addition of the shortcut in one pass.

As torch does it: with a `gamma` in fp32 the sum, and with it the residual stream, is fp32 under autocast; a branch of
1e-6 of its size would vanish in bf16.
"""

from typing import Any, cast

import torch

from roadmap.net.block import Block
from roadmap.net.kernels.triton_support import NHWC, ceil_div, interpreted, operation, power_of_2, supported
from roadmap.net.layers import DropPath, LayerScale

CHANNELS, PIXELS = 128, 16  # of a program's block
PROGRAMS = 1024  # that share the pixels in the backward pass


class FusedJoin(Block):
    """A `Block` with layer scale that joins branch and shortcut in one kernel."""

    def join(self, y: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """Return scale * branch + shortcut, (N, C, H, W), channels-last, with the same draws as `DropPath`."""
        gamma = cast(LayerScale, self.scale).gamma
        if not supported(y, shortcut, gamma):
            return super().join(y, shortcut)
        keep = None
        if isinstance(self.drop_path, DropPath) and self.training:
            scaled = torch.promote_types(y.dtype, gamma.dtype)
            keep = self.drop_path.draw(y.new_empty((len(y), 1, 1, 1), dtype=scaled)).flatten()
        return JoinFunction.apply(y, shortcut, gamma, keep)


class JoinFunction(torch.autograd.Function):
    """y * gamma * keep + shortcut: maps (N, C, H, W), gamma (C,), keep (N,) or None."""

    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, shortcut: torch.Tensor, gamma: torch.Tensor, keep: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the sum, channels-last; save the branch, for gamma's gradient."""
        y = y.contiguous(memory_format=NHWC)
        ctx.save_for_backward(y, gamma, keep)
        ctx.of_shortcut = shortcut.dtype
        return join_by_triton(y, shortcut.contiguous(memory_format=NHWC), gamma, keep)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of branch, shortcut and gamma."""
        dy, dgamma = join_backward_by_triton(g.contiguous(memory_format=NHWC), *ctx.saved_tensors)
        return dy, g.to(ctx.of_shortcut), dgamma, None


@operation(
    "join",
    lambda y, shortcut, gamma, keep: torch.empty(
        y.shape, dtype=kind_of(y, shortcut, gamma), device=y.device, memory_format=NHWC
    ),
)
def join_by_triton(
    y: torch.Tensor, shortcut: torch.Tensor, gamma: torch.Tensor, keep: torch.Tensor | None
) -> torch.Tensor:
    """Return y * gamma * keep + shortcut, (N, C, H, W)."""
    from roadmap.net.kernels.triton_channels import residual_kernel

    y, shortcut = y.contiguous(memory_format=NHWC), shortcut.contiguous(memory_format=NHWC)
    n, c, height, width = y.shape
    pixels = n * height * width
    out = torch.empty(y.shape, dtype=kind_of(y, shortcut, gamma), device=y.device, memory_format=NHWC)
    rows, block = block_of(c, pixels)
    residual_kernel[(ceil_div(pixels, rows), ceil_div(c, block))](
        y, shortcut, gamma, y if keep is None else keep, out, pixels, c, height * width,
        HAS_KEEP=keep is not None, BLOCK_R=rows, BLOCK_C=block,
    )  # fmt: skip
    return out


@operation(
    "join_backward", lambda g, y, gamma, keep: (torch.empty_like(y, memory_format=NHWC), torch.empty_like(gamma))
)
def join_backward_by_triton(
    g: torch.Tensor, y: torch.Tensor, gamma: torch.Tensor, keep: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of branch (N, C, H, W) and gamma (C,)."""
    from roadmap.net.kernels.triton_channels import residual_backward_kernel

    g, y = g.contiguous(memory_format=NHWC), y.contiguous(memory_format=NHWC)
    n, c, height, width = y.shape
    pixels = n * height * width
    rows, block = block_of(c, pixels)
    programs = min(PROGRAMS, ceil_div(pixels, rows))
    dy = torch.empty_like(y, memory_format=NHWC)
    partial = torch.empty((programs, c), dtype=torch.float32, device=g.device)
    residual_backward_kernel[(programs, ceil_div(c, block))](
        g, y, gamma, y if keep is None else keep, dy, partial, pixels, c, height * width,
        HAS_KEEP=keep is not None, BLOCK_R=rows, BLOCK_C=block,
    )  # fmt: skip
    return dy, partial.sum(0).to(gamma.dtype)


def kind_of(y: torch.Tensor, shortcut: torch.Tensor, gamma: torch.Tensor) -> torch.dtype:
    """Return the type of the sum."""
    return torch.promote_types(torch.promote_types(y.dtype, gamma.dtype), shortcut.dtype)


def block_of(channels: int, pixels: int) -> tuple[int, int]:
    """Return pixels and channels of a program's block; in the interpreter few large blocks."""
    if interpreted():
        return power_of_2(min(pixels, 256)), power_of_2(channels)
    return PIXELS, min(CHANNELS, power_of_2(channels))
