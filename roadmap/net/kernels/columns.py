"""The depthwise convolution at stride 1 by the kernels that keep columns in registers: what to start them with."""

from typing import NamedTuple

import torch

from roadmap.net.kernels.triton_support import NHWC, ceil_div, interpreted, operation, power_of_2

PROGRAMS = 4096  # that a map's work is shared among at most; more would read their taps too often


class ColumnTile(NamedTuple):
    """What one program works on: neighbouring columns, channels; its warps, and registers of a thread (0: any)."""

    width: int
    channels: int = 32
    warps: int = 1
    registers: int = 0


TILES = {3: ColumnTile(7, 64), 5: ColumnTile(7), 7: ColumnTile(4), 9: ColumnTile(4), 11: ColumnTile(2)}
WEIGHT_TILES = {3: ColumnTile(7), 5: ColumnTile(7), 7: ColumnTile(4), 9: ColumnTile(4), 11: ColumnTile(2)}


def convolve(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tile: ColumnTile, *,
    flipped: bool, programs: int = PROGRAMS,
) -> torch.Tensor:  # fmt: skip
    """Return x (N, C, H, W) convolved with a kernel (C, 1, K, K), or with it turned around, channels-last."""
    from roadmap.net.kernels.triton_columns import columns_kernel

    x = x.contiguous(memory_format=NHWC)
    n, c, height, width = x.shape
    kernel = weight.shape[-1]
    tile = of_map(tile, c, width)
    y = torch.empty_like(x, memory_format=NHWC)
    blocks, tiles = ceil_div(c, tile.channels), ceil_div(width, tile.width)
    strips = max(1, min(programs // 2 // (blocks * tiles * n), height // (2 * kernel)))
    strip = ceil_div(height, strips)
    strips = ceil_div(height, strip)
    images = max(1, blocks * tiles * strips * n // programs)
    columns_kernel[(blocks, tiles * strips, ceil_div(n, images))](
        x, weight.flatten(1).t().contiguous(), x if bias is None else bias, y, n, height, width, strip, images,
        CHANNELS=c, K=kernel, FLIPPED=flipped, HAS_BIAS=bias is not None, BLOCK_W=tile.width, BLOCK_C=tile.channels,
        num_warps=tile.warps, **({"maxnreg": tile.registers} if tile.registers else {}),
    )  # fmt: skip
    return y


def weight_gradient(
    x: torch.Tensor, g: torch.Tensor, kernel: int, tile: ColumnTile, *, programs: int = PROGRAMS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of kernel (C, 1, K, K) and bias (C,), in fp32, from maps (N, C, H, W)."""
    from roadmap.net.kernels.triton_columns import columns_weight_gradient_kernel

    x, g = x.contiguous(memory_format=NHWC), g.contiguous(memory_format=NHWC)
    n, c, height, width = x.shape
    tile = of_map(tile, c, width)
    blocks = ceil_div(c, tile.channels)
    programs = min(n * ceil_div(width, tile.width), max(1, programs // blocks))
    partial = torch.empty((programs, kernel * kernel + 1, c), dtype=torch.float32, device=x.device)
    columns_weight_gradient_kernel[(blocks, programs)](
        x, g, partial, n, height, width, CHANNELS=c, K=kernel, BLOCK_W=tile.width, BLOCK_C=tile.channels,
        num_warps=tile.warps, **({"maxnreg": tile.registers} if tile.registers else {}),
    )  # fmt: skip
    total = partial.sum(0)
    return total[:-1].t().reshape(c, 1, kernel, kernel).contiguous(), total[-1].clone()


def of_map(tile: ColumnTile, channels: int, width: int) -> ColumnTile:
    """Return a tile no wider than the map; for Triton's interpreter, whose time goes by programs, all channels."""
    tile = tile._replace(width=min(tile.width, width))
    return tile._replace(channels=power_of_2(min(channels, 512))) if interpreted() else tile


@operation("depthwise_columns", lambda x, weight, bias: torch.empty_like(x, memory_format=NHWC))
def forward_by_columns(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return the output (N, C, H, W)."""
    return convolve(x, weight, bias, TILES[weight.shape[-1]], flipped=False)


@operation("depthwise_columns_input_gradient", lambda g, weight: torch.empty_like(g, memory_format=NHWC))
def input_gradient_by_columns(g: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the map from that of the output, both (N, C, H, W)."""
    return convolve(g, weight, None, TILES[weight.shape[-1]], flipped=True)


@operation(
    "depthwise_columns_weight_gradient",
    lambda x, g, kernel: (
        x.new_empty((x.shape[1], 1, kernel, kernel), dtype=torch.float32),
        x.new_empty((x.shape[1],), dtype=torch.float32),
    ),
)
def weight_gradient_by_columns(x: torch.Tensor, g: torch.Tensor, kernel: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of kernel (C, 1, K, K) and bias (C,), in fp32."""
    return weight_gradient(x, g, kernel, WEIGHT_TILES[kernel])
