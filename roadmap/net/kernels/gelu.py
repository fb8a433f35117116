"""GELU after a pointwise convolution: its gradient and that of the convolution's bias in one pass.

Torch's own reads the gradient a second time for the bias. The forward pass is torch's, so that a compiler may fuse it.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, linear

from roadmap.net.kernels.pointwise import LinearPointwise
from roadmap.net.kernels.triton_support import NHWC, ceil_div, interpreted, operation, power_of_2, supported

CHANNELS, PIXELS = 128, 16  # of a program's block
PROGRAMS = 4096  # that share the map in the backward pass


class GeluPointwise(LinearPointwise):
    """A 1x1 `nn.Conv2d` with bias that applies GELU, too; the GELU after it is a `PassedGelu`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, c_in, H, W) -> (N, c_out, H, W), channels-last."""
        assert self.bias is not None
        if not supported(x, self.weight, self.bias):
            return gelu(super().forward(x))
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        # The bias is added by the product, but its gradient comes with that of GELU.
        hidden = linear(x.permute(0, 2, 3, 1), weight, self.bias.detach()).permute(0, 3, 1, 2)
        return GeluFunction.apply(hidden, self.bias)


class PassedGelu(nn.GELU):
    """A GELU that the convolution before it has applied."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W), as it is."""
        return x


class GeluFunction(torch.autograd.Function):
    """GELU of a map (N, C, H, W) to which a bias (C,) has been added; it gives the gradients of both."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return GELU of the map."""
        ctx.save_for_backward(hidden)
        ctx.kind = bias.dtype
        return gelu(hidden)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of map and bias."""
        (hidden,) = ctx.saved_tensors
        dh, db = gelu_backward_by_triton(g.contiguous(memory_format=NHWC), hidden.contiguous(memory_format=NHWC))
        return dh, db.to(ctx.kind)


@operation(
    "gelu_backward",
    lambda g, hidden: (
        torch.empty_like(hidden, memory_format=NHWC),
        hidden.new_empty(hidden.shape[1], dtype=torch.float32),
    ),
)
def gelu_backward_by_triton(g: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient of GELU's argument (N, C, H, W), and its sum over the pixels (C,), in fp32."""
    from roadmap.net.kernels.triton_channels import gelu_backward_kernel

    g, hidden = g.contiguous(memory_format=NHWC), hidden.contiguous(memory_format=NHWC)
    n, c, height, width = hidden.shape
    pixels = n * height * width
    rows, block = (power_of_2(min(pixels, 256)), power_of_2(c)) if interpreted() else (PIXELS, CHANNELS)
    blocks = ceil_div(c, block)
    programs = min(max(1, PROGRAMS // blocks), ceil_div(pixels, rows))
    dh = torch.empty_like(hidden, memory_format=NHWC)
    partial = torch.empty((programs, c), dtype=torch.float32, device=g.device)
    gelu_backward_kernel[(programs, blocks)](g, hidden, dh, partial, pixels, c, BLOCK_R=rows, BLOCK_C=block)
    return dh, partial.sum(0)
