"""The depthwise convolution at any stride, in Triton: tiles, and how the kernels are started; used at stride 2."""

from typing import NamedTuple

import torch

from roadmap.net.kernels.triton_support import NHWC, ceil_div, interpreted, power_of_2

PROGRAMS = 4096  # that the map is cut into at least, where it is large enough


class Tile(NamedTuple):
    """What one program works on: pixels of a row, channels, neighbouring channels of a thread, warps."""

    width: int
    channels: int
    vec: int
    warps: int


# Chosen by the registers, and the instructions a multiply-add, of the code compiled for capability 9.0.
MAP_TILES = {
    3: Tile(8, 32, 2, 1), 5: Tile(8, 32, 2, 1), 7: Tile(4, 32, 2, 1), 9: Tile(4, 32, 2, 1), 11: Tile(2, 32, 1, 1),
}  # fmt: skip
WEIGHT_TILES = {
    3: Tile(8, 32, 2, 2), 5: Tile(8, 32, 2, 2), 7: Tile(8, 32, 2, 4), 9: Tile(4, 32, 1, 4), 11: Tile(4, 32, 1, 4),
}  # fmt: skip


def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int) -> torch.Tensor:
    """Return x (N, C, H, W) convolved with a kernel (C, 1, K, K), channels-last: (N, C, OH, OW)."""
    from roadmap.net.kernels.triton_depthwise import forward_kernel

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


def input_gradient(g: torch.Tensor, weight: torch.Tensor, stride: int, height: int, width: int) -> torch.Tensor:
    """Return the gradient (N, C, H, W) of the map from that of the output (N, C, OH, OW), channels-last."""
    from roadmap.net.kernels.triton_depthwise import input_gradient_kernel

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


def weight_gradient(x: torch.Tensor, g: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """Return each program's part of the gradients of kernel and bias, (programs, K * K + 1, C), in fp32."""
    from roadmap.net.kernels.triton_depthwise import weight_gradient_kernel

    n, c, out_height, out_width = g.shape
    tile = of_device(WEIGHT_TILES[kernel], c, out_width)
    blocks = ceil_div(c, tile.channels)
    programs = min(n * ceil_div(out_width, tile.width), max(1, PROGRAMS // 2 // blocks))
    partial = torch.empty((programs, kernel * kernel + 1, c), dtype=torch.float32, device=x.device)
    weight_gradient_kernel[(blocks, programs)](
        x, g, partial, n, x.shape[2], x.shape[3], c, out_height, out_width,
        K=kernel, S=stride, BLOCK_W=tile.width, BLOCK_C=tile.channels, VEC=tile.vec, num_warps=tile.warps,
    )  # fmt: skip
    return partial


def out_shape(x: torch.Tensor, stride: int) -> tuple[int, int, int, int]:
    """Return the shape of the output."""
    return x.shape[0], x.shape[1], (x.shape[2] - 1) // stride + 1, (x.shape[3] - 1) // stride + 1


def taps_of(weight: torch.Tensor) -> torch.Tensor:
    """Return a kernel (C, 1, K, K) as (K * K, C), so that neighbouring channels lie together."""
    return weight.flatten(1).t().contiguous()


def strips_of(rows: int, programs: int, kernel: int) -> tuple[int, int]:
    """Return the number of strips that rows are cut into, and the rows of each: short ones read mostly margins."""
    strips = min(ceil_div(PROGRAMS, programs), max(1, rows // (2 * kernel)))
    each = ceil_div(rows, strips)
    return ceil_div(rows, each), each


def of_device(tile: Tile, channels: int, width: int) -> Tile:
    """Return the tile; for Triton's interpreter, whose time depends on their number, one as large as the map."""
    if not interpreted():
        return tile
    return tile._replace(width=power_of_2(min(width, 64)), channels=power_of_2(min(channels, 512)))
