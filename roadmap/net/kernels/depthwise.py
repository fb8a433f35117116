"""The depthwise convolution with other forms of its passes: (N, C, H, W) -> (N, C, OH, OW), odd K, padding K // 2.

Each of its three passes has a form. `plain` is torch's own. `flipped` (input gradient, stride 1) is a forward
convolution with the flipped kernel, for which cuDNN and oneDNN have a better algorithm. `bias_apart` (weight gradient)
sums the bias gradient by itself. `triton` is ours. Whatever the forms, taps that a small map cannot meet are left out.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import conv2d

from roadmap.net.kernels.depthwise_columns import (
    forward_by_columns,
    input_gradient_by_columns,
    weight_gradient_by_columns,
)
from roadmap.net.kernels.triton_support import (
    NHWC,
    autocast_dtype,
    ceil_div,
    interpreted,
    operation,
    power_of_2,
    supported,
)

KERNELS = (3, 5, 7, 9, 11)  # that the Triton kernels have tiles for
PROGRAMS = 4096  # that the map is cut into at least, where it is large enough


class Forms(NamedTuple):
    """The form of each pass."""

    forward: str = "plain"  # plain | triton
    input_gradient: str = "plain"  # plain | flipped | triton
    weight_gradient: str = "plain"  # plain | bias_apart | triton


class Tile(NamedTuple):
    """What one program works on: pixels of a row, channels, neighbouring channels of a thread, warps."""

    width: int
    channels: int
    vec: int
    warps: int


# Chosen by the registers, and the instructions a multiply-add, of the code compiled for capability 9.0.
MAP_TILES = {
    3: Tile(8, 32, 2, 1),
    5: Tile(8, 32, 2, 1),
    7: Tile(4, 32, 2, 1),
    9: Tile(4, 32, 2, 1),
    11: Tile(2, 32, 1, 1),
}
WEIGHT_TILES = {
    3: Tile(8, 32, 2, 2),
    5: Tile(8, 32, 2, 2),
    7: Tile(8, 32, 2, 4),
    9: Tile(4, 32, 1, 4),
    11: Tile(4, 32, 1, 4),
}


class Depthwise(nn.Conv2d):
    """A depthwise `nn.Conv2d` whose passes have the forms that `use_kernels` has chosen."""

    forms: Forms

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, OH, OW), channels-last; in autocast's type, as a convolution is."""
        weight = reachable_taps(self.weight, x)
        size = weight.shape[-1]
        if size == 1 or self.forms == Forms():  # of one tap there is nothing to gain
            return conv2d(x, weight, self.bias, self.stride, size // 2, groups=self.groups)
        kind = autocast_dtype(x) or x.dtype
        bias = None if self.bias is None else self.bias.to(kind)
        return DepthwiseFunction.apply(x.to(kind), weight.to(kind), bias, self.stride[0], *self.forms)


def reachable_taps(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return of a kernel (C, 1, K, K) the inner 2H - 1 rows and columns: those beyond meet padding alone on a map of H.

    Exact: what is cut off adds zeros, and its gradient is zero.
    """
    reach, middle = max(x.shape[2:]), weight.shape[-1] // 2
    if reach > middle:
        return weight
    taps = slice(middle - reach + 1, middle + reach)
    # Permuted like the map, so that the gradient lies in memory as a channels-last kernel does.
    return weight.permute(0, 2, 3, 1)[:, taps, taps].permute(0, 3, 1, 2)


class DepthwiseFunction(torch.autograd.Function):
    """A depthwise convolution of x (N, C, H, W) with a kernel (C, 1, K, K) and a bias (C,), each pass in its form."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, *forms: str
    ) -> torch.Tensor:
        """Return the output (N, C, OH, OW), channels-last."""
        x = x.contiguous(memory_format=NHWC)
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.has_bias, ctx.forms = stride, bias is not None, forms
        return output(x, weight, bias, stride, forms[0])

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of map, kernel and bias."""
        x, weight = ctx.saved_tensors
        # Every form, cuDNN's too, is far slower on a gradient that is not channels-last.
        g = g.contiguous(memory_format=NHWC)
        dx = input_gradient(g, x, weight, ctx.stride, ctx.forms[1]) if ctx.needs_input_grad[0] else None
        dw = db = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            dw, db = weight_gradient(g, x, weight, ctx.stride, ctx.has_bias, ctx.forms[2])
        return dx, dw, db, None, None, None, None


def output(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, form: str) -> torch.Tensor:
    """Return the output (N, C, OH, OW)."""
    if form == "triton" and supported(x, weight, bias):
        return forward_by_triton(x, weight, bias, stride)
    if form.startswith("columns") and supported(x, weight, bias):
        return forward_by_columns(x, weight, bias, form)
    return conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=x.shape[1])


def input_gradient(g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: int, form: str) -> torch.Tensor:
    """Return the gradient of the map (N, C, H, W)."""
    if form == "triton" and supported(g, weight):
        return input_gradient_by_triton(g, weight, stride, x.shape[2], x.shape[3])
    if form.startswith("columns") and supported(g, weight):
        return input_gradient_by_columns(g, weight, form)
    if form == "flipped":
        return conv2d(g, weight.flip(-1, -2), None, 1, weight.shape[-1] // 2, groups=x.shape[1])
    return by_torch(g, x, weight, stride, [True, False, False])[0]


def weight_gradient(
    g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: int, has_bias: bool, form: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the gradients of kernel and bias."""
    if form == "triton" and supported(g, x, weight):
        dw, db = weight_gradient_by_triton(x, g, weight.shape[-1], stride)
        return dw.to(weight.dtype), db.to(weight.dtype) if has_bias else None
    if form.startswith("columns") and supported(g, x, weight):
        dw, db = weight_gradient_by_columns(x, g, weight.shape[-1], form)
        return dw.to(weight.dtype), db.to(weight.dtype) if has_bias else None
    if form == "bias_apart" and has_bias:
        return by_torch(g, x, weight, stride, [False, True, False])[1], g.sum((0, 2, 3))
    _, dw, db = by_torch(g, x, weight, stride, [False, True, has_bias])
    return dw, db if has_bias else None


def by_torch(
    g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: int, mask: list[bool]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return torch's own gradients of map, kernel and bias, those of the mask."""
    c, pad = x.shape[1], weight.shape[-1] // 2
    return torch.ops.aten.convolution_backward(
        g, x, weight, [c], [stride, stride], [pad, pad], [1, 1], False, [0, 0], c, mask
    )


def out_shape(x: torch.Tensor, stride: int) -> tuple[int, int, int, int]:
    """Return the shape of the output."""
    return x.shape[0], x.shape[1], (x.shape[2] - 1) // stride + 1, (x.shape[3] - 1) // stride + 1


@operation(
    "depthwise_forward",
    lambda x, weight, bias, stride: torch.empty(
        out_shape(x, stride), dtype=x.dtype, device=x.device, memory_format=NHWC
    ),
)
def forward_by_triton(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int) -> torch.Tensor:
    """Return the output (N, C, OH, OW)."""
    from roadmap.net.kernels.triton_depthwise import forward_kernel

    x = x.contiguous(memory_format=NHWC)
    n, c, height, width = x.shape
    kernel = weight.shape[-1]
    y = torch.empty(out_shape(x, stride), dtype=x.dtype, device=x.device, memory_format=NHWC)
    tile = of_device(MAP_TILES[kernel], c, y.shape[3])
    columns = ceil_div(c, tile.channels), ceil_div(y.shape[3], tile.width)
    strips, rows = strips_of(y.shape[2], columns[0] * columns[1] * n, kernel)
    forward_kernel[(columns[0], columns[1] * strips, n)](
        x, taps_of(weight), x if bias is None else bias, y, height, width, c, y.shape[2], y.shape[3], rows,
        K=kernel, S=stride, HAS_BIAS=bias is not None,
        BLOCK_W=tile.width, BLOCK_C=tile.channels, VEC=tile.vec, num_warps=tile.warps,
    )  # fmt: skip
    return y


@operation(
    "depthwise_input_gradient",
    lambda g, weight, stride, height, width: torch.empty(
        (*g.shape[:2], height, width), dtype=g.dtype, device=g.device, memory_format=NHWC
    ),
)
def input_gradient_by_triton(
    g: torch.Tensor, weight: torch.Tensor, stride: int, height: int, width: int
) -> torch.Tensor:
    """Return the gradient (N, C, H, W) of the map from that of the output (N, C, OH, OW)."""
    from roadmap.net.kernels.triton_depthwise import input_gradient_kernel

    g = g.contiguous(memory_format=NHWC)
    n, c, out_height, out_width = g.shape
    kernel, taps = weight.shape[-1], taps_of(weight)
    dx = torch.empty((n, c, height, width), dtype=g.dtype, device=g.device, memory_format=NHWC)
    for q in range(min(stride, width)):  # the columns q, q + stride, ... meet the same columns of the kernel
        of_class = ceil_div(width - q, stride)
        tile = of_device(MAP_TILES[kernel], c, of_class)
        columns = ceil_div(c, tile.channels), ceil_div(of_class, tile.width)
        strips, rows = strips_of((height - 1 + kernel // 2) // stride + 1, columns[0] * columns[1] * n, kernel)
        input_gradient_kernel[(columns[0], columns[1] * strips, n)](
            g, taps, dx, height, width, c, out_height, out_width, rows,
            K=kernel, S=stride, Q=q, BLOCK_W=tile.width, BLOCK_C=tile.channels, VEC=tile.vec, num_warps=tile.warps,
        )  # fmt: skip
    return dx


def fake_weight_gradient(
    x: torch.Tensor, g: torch.Tensor, kernel: int, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tensors of the shapes of a weight gradient."""
    c = x.shape[1]
    return x.new_empty((c, 1, kernel, kernel), dtype=torch.float32), x.new_empty((c,), dtype=torch.float32)


@operation("depthwise_weight_gradient", fake_weight_gradient)
def weight_gradient_by_triton(
    x: torch.Tensor, g: torch.Tensor, kernel: int, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of kernel (C, 1, K, K) and bias (C,), in fp32."""
    from roadmap.net.kernels.triton_depthwise import weight_gradient_kernel

    x, g = x.contiguous(memory_format=NHWC), g.contiguous(memory_format=NHWC)
    n, c, out_height, out_width = g.shape
    tile = of_device(WEIGHT_TILES[kernel], c, out_width)
    blocks = ceil_div(c, tile.channels)
    programs = min(n * ceil_div(out_width, tile.width), max(1, PROGRAMS // 2 // blocks))
    partial = torch.empty((programs, kernel * kernel + 1, c), dtype=torch.float32, device=x.device)
    weight_gradient_kernel[(blocks, programs)](
        x, g, partial, n, x.shape[2], x.shape[3], c, out_height, out_width,
        K=kernel, S=stride, BLOCK_W=tile.width, BLOCK_C=tile.channels, VEC=tile.vec, num_warps=tile.warps,
    )  # fmt: skip
    total = partial.sum(0)
    return total[:-1].t().reshape(c, 1, kernel, kernel).contiguous(), total[-1].clone()


def taps_of(weight: torch.Tensor) -> torch.Tensor:
    """Return a kernel (C, 1, K, K) as (K * K, C), so that neighbouring channels lie together."""
    return weight.flatten(1).t().contiguous()


def strips_of(rows: int, programs: int, kernel: int) -> tuple[int, int]:
    """Return into how many strips rows are cut, and the rows of each; a short strip would read mostly its margins."""
    strips = min(ceil_div(PROGRAMS, programs), max(1, rows // (2 * kernel)))
    each = ceil_div(rows, strips)
    return ceil_div(rows, each), each


def of_device(tile: Tile, channels: int, width: int) -> Tile:
    """Return a tile, for Triton's interpreter one as large as the map: its time goes by the number of programs."""
    if not interpreted():
        return tile
    return tile._replace(width=power_of_2(min(width, 64)), channels=power_of_2(min(channels, 512)))
