"""The depthwise convolution at stride 1 by the kernels that keep columns in registers: what to start them with."""

from typing import NamedTuple

import torch

from roadmap.net.kernels.triton_support import NHWC, ceil_div, interpreted, power_of_2

PROGRAMS, WEIGHT_PROGRAMS = 8192, 4096  # that a map's work is shared among; more would read their taps too often


class ColumnTile(NamedTuple):
    """What one program works on: neighbouring columns, channels; its warps, and registers of a thread (0: any)."""

    width: int
    channels: int = 32
    warps: int = 1
    registers: int = 0


# Tiles to try on a GPU, those of `columns` by itself first: of the maps, and of the kernel's gradient.
MAP_TILES = {
    3: "7/64/1 14/64/1 14/32/1 4/64/1 7/32/1 7/128/1",
    5: "7/32/1/128 7/32/1 7/64/1/168 7/64/1 14/32/1 4/32/1 4/64/1",
    7: "7/32/1/168 7/32/1 14/32/1 14/32/1/224 8/32/1/168 4/32/1/128 4/64/1",
    9: "7/32/1 8/32/1 14/32/1 4/32/1/168 4/32/1",
    11: "4/32/1 7/32/1 4/32/1/224 2/32/1",
}
WEIGHT_TILES = {
    3: "7/32/1/64 2/64/1 4/32/1 7/32/1 4/64/1 7/64/1",
    5: "7/32/1 4/32/1/96 4/32/1 4/64/1",
    7: "7/32/1/168 4/32/1/128 7/32/1 14/32/1 2/32/1",
    9: "7/32/1 4/32/1 7/32/1/200 2/32/1",
    11: "4/32/1 7/32/1 2/32/1",
}


def convolve(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, form: str, *, flipped: bool = False
) -> torch.Tensor:
    """Return x (N, C, H, W) convolved with a kernel (C, 1, K, K), or with it turned around, channels-last."""
    from roadmap.net.kernels.triton_columns import columns_kernel

    n, c, height, width = x.shape
    kernel = weight.shape[-1]
    tile = of_map(tile_of(form, MAP_TILES[kernel]), c, width)
    y = torch.empty_like(x, memory_format=NHWC)
    blocks, tiles = ceil_div(c, tile.channels), ceil_div(width, tile.width)
    strips = max(1, min(PROGRAMS // (2 * blocks * tiles * n), height // (2 * kernel)))
    strip = ceil_div(height, strips)
    strips = ceil_div(height, strip)
    images = max(1, blocks * tiles * strips * n // PROGRAMS)
    columns_kernel[(blocks, tiles * strips, ceil_div(n, images))](
        x, weight.flatten(1).t().contiguous(), x if bias is None else bias, y, n, height, width, strip, images,
        CHANNELS=c, K=kernel, FLIPPED=flipped, HAS_BIAS=bias is not None, BLOCK_W=tile.width, BLOCK_C=tile.channels,
        num_warps=tile.warps, **({"maxnreg": tile.registers} if tile.registers else {}),
    )  # fmt: skip
    return y


def weight_gradient(x: torch.Tensor, g: torch.Tensor, kernel: int, form: str) -> torch.Tensor:
    """Return each program's part of the gradients of kernel and bias, (programs, K * K + 1, C), in fp32."""
    from roadmap.net.kernels.triton_columns import columns_weight_gradient_kernel

    n, c, height, width = x.shape
    tile = of_map(tile_of(form, WEIGHT_TILES[kernel]), c, width)
    blocks = ceil_div(c, tile.channels)
    strips = n * ceil_div(width, tile.width)
    each = ceil_div(strips, max(1, WEIGHT_PROGRAMS // blocks))  # as many for every program: the last one is waited for
    programs = ceil_div(strips, each)
    partial = torch.empty((programs, kernel * kernel + 1, c), dtype=torch.float32, device=x.device)
    columns_weight_gradient_kernel[(blocks, programs)](
        x, g, partial, n, height, width, CHANNELS=c, K=kernel, BLOCK_W=tile.width, BLOCK_C=tile.channels,
        num_warps=tile.warps, **({"maxnreg": tile.registers} if tile.registers else {}),
    )  # fmt: skip
    return partial


def of_map(tile: ColumnTile, channels: int, width: int) -> ColumnTile:
    """Return a tile no wider than the map; for Triton's interpreter, few large ones."""
    tile = tile._replace(width=min(tile.width, width))
    return tile._replace(channels=power_of_2(min(channels, 512))) if interpreted() else tile


def tile_of(form: str, tiles: str) -> ColumnTile:
    """Return the tile in the name of a form, `columns/WIDTH/CHANNELS/WARPS/REGISTERS`, or the first of the tiles."""
    named = form.partition("/")[2] or tiles.split()[0]
    return ColumnTile(*map(int, named.split("/")))
