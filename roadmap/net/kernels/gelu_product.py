"""GELU within the matrix products around it: the map before GELU is stored, GELU of it never.

The pointwise convolution before GELU gives its output, with its bias, as `Hidden` to the one after it, which computes:

- forward: output = GELU(hidden) weight^T + bias, GELU applied as the map is loaded;
- input gradient: (g weight) * GELU'(hidden) as it is stored, and its sum over the pixels, the gradient of the bias
  before GELU;
- weight gradient: g^T GELU(hidden), GELU applied as the map is loaded.

Form `product` is all three, `epilogue` the second alone: where a program does not cover all channels of the output,
GELU would be computed again for each part of them. Either is named with the numbers of its tiles in the tables below:
`product/FORWARD/INPUT_GRADIENT/WEIGHT_GRADIENT`, `epilogue/INPUT_GRADIENT`. In fp32 without TF32, where there are no
matrix units to feed, both are what form `triton` is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import gelu, linear

from roadmap.net.kernels.gelu import GeluPointwise
from roadmap.net.kernels.pointwise import LinearPointwise
from roadmap.net.kernels.triton_support import (
    autocast_dtype,
    ceil_div,
    interpreted,
    operation,
    power_of_2,
    supported,
)

PROGRAMS = 264  # that share the pixels of a weight gradient: two on each of an H100's multiprocessors


class Tile(NamedTuple):
    """What one program of a product computes, `rows` x `columns`, `deep` at a time; warps, stages of its pipeline, and
    registers of a thread (0: any).
    """

    rows: int
    columns: int
    deep: int
    warps: int
    stages: int
    registers: int = 0

    def fitting(self, rows: int, columns: int, deep: int, like: torch.Tensor) -> "Tile":
        """Return the tile, no larger than a product of this size needs, with the stages that fit into shared memory."""
        if interpreted():  # whose time goes by the number of programs
            return self._replace(rows=256, columns=512, deep=512)
        size = like.element_size()
        sides = (rows, self.rows), (columns, self.columns), (deep, self.deep * 2 // size)
        m, n, k = (max(16, min(most, power_of_2(needed))) for needed, most in sides)
        stages = min(self.stages, shared_memory(like.device) // ((m + n) * k * size))
        return Tile(m, n, k, self.warps, max(1, stages), self.registers)


# Tiles to try on a GPU, the first by itself, by the channels of the output that they are for at most. A recorded form
# has a tile's number here: add at the end alone.
FORWARD_TILES = {  # pixels / channels / hidden channels at a time / warps / stages
    128: "128/128/32/8/3 64/128/64/4/3 128/128/64/8/3/128 64/128/32/4/4 128/128/32/4/4",
    256: "128/256/64/8/3 64/256/64/4/3 128/256/32/8/3 64/256/32/4/3",
    1 << 30: "128/256/64/8/3 128/128/64/8/3 64/256/64/4/3",
}
INPUT_TILES = {  # pixels / hidden channels / channels at a time
    128: "128/64/32/8/3 64/64/32/4/3 64/128/32/8/3 128/64/128/8/1 128/128/32/8/3/128 64/64/64/4/2",
    256: "128/64/64/8/2 64/64/64/4/2 128/128/64/8/2/128 64/128/64/4/3 64/128/32/8/3",
    1 << 30: "128/128/64/8/3 128/128/64/8/3/128 128/128/64/16/3 64/128/64/4/3 128/256/64/16/3 128/64/64/8/2",
}
WEIGHT_TILES = {  # hidden channels / channels / pixels at a time
    128: "128/128/64/8/3 64/128/64/4/3 128/128/32/8/4 128/128/64/4/3",
    256: "128/256/64/8/3 64/256/64/4/3 128/256/32/8/4 64/256/32/4/3",
    1 << 30: "128/256/64/8/3 128/128/64/8/3 64/256/64/4/3",
}
TILES = (FORWARD_TILES, INPUT_TILES, WEIGHT_TILES)


class Hidden(NamedTuple):
    """A map before GELU, (N, H, W, C), and the bias (C,) that was added to it, which has its gradient from GELU's."""

    map: torch.Tensor
    bias: torch.Tensor


class HiddenPointwise(GeluPointwise):
    """A 1x1 `nn.Conv2d` with bias that leaves GELU to the `GeluProduct` after it."""

    def forward(self, x: torch.Tensor) -> Any:
        """(N, c_in, H, W) -> `Hidden`; in a type that the products are not for GELU of the map, (N, c_out, H, W)."""
        assert self.bias is not None
        if not supported(x, self.weight, self.bias) or not has_products(autocast_dtype(x) or x.dtype):
            return super().forward(x)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return Hidden(linear(x.permute(0, 2, 3, 1), weight, self.bias.detach()), self.bias)


class GeluProduct(LinearPointwise):
    """A 1x1 `nn.Conv2d` after a `HiddenPointwise`: it applies GELU, too."""

    form: str

    def forward(self, x: Any) -> torch.Tensor:
        """`Hidden` of (N, H, W, c_in) -> (N, c_out, H, W), channels-last; of a map as a convolution."""
        if not isinstance(x, Hidden):
            return super().forward(x)
        kind = x.map.dtype
        weight = self.weight.permute(0, 2, 3, 1).flatten(1).to(kind)
        bias = None if self.bias is None else self.bias.to(kind)
        return GeluProductFunction.apply(x.map, x.bias, weight, bias, self.form).permute(0, 3, 1, 2)


class GeluProductFunction(torch.autograd.Function):
    """GELU(hidden) weight^T + bias: hidden (N, H, W, K), weight (C, K), bias (C,) or None, of one type.

    `before` (K,) is the bias that hidden has in it.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, before: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, form: str
    ) -> torch.Tensor:
        """Return the output (N, H, W, C)."""
        stored = None if form.startswith("product") else gelu(hidden)
        ctx.save_for_backward(hidden, weight, stored)
        ctx.kind, ctx.has_bias, ctx.form = before.dtype, bias is not None, form
        if stored is None:
            return gelu_forward_by_triton(hidden, weight, bias, form)
        return linear(stored, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of hidden, its bias, weight and bias."""
        hidden, weight, stored = ctx.saved_tensors
        g = g.contiguous()
        dh, before = gelu_input_gradient_by_triton(g, weight, hidden, ctx.form)
        if stored is None:
            dw = gelu_weight_gradient_by_triton(g, hidden, ctx.form)
        else:
            dw = g.flatten(0, -2).t() @ stored.flatten(0, -2)
        db = g.flatten(0, -2).sum(0) if ctx.has_bias else None
        return dh, before.to(ctx.kind), dw.to(weight.dtype), db, None


def fuse_gelu(conv: nn.Conv2d, product: nn.Conv2d, form: str) -> None:
    """Make the convolutions before and after a GELU compute it in a form, `product` or `epilogue`."""
    conv.__class__, product.__class__ = HiddenPointwise, GeluProduct
    product.form = form  # type: ignore[assignment]


def has_products(kind: torch.dtype) -> bool:
    """Tell whether a GPU's matrix units take a type: fp32 as TF32, if torch is allowed to."""
    return kind in (torch.bfloat16, torch.float16) or (kind == torch.float32 and torch.backends.cuda.matmul.allow_tf32)


def tile_of(form: str, which: int, channels: int) -> Tile:
    """Return the tile of a pass (0 forward, 1 input gradient, 2 weight gradient) in a form, for so many channels."""
    base, *numbers = form.split("/")
    number = dict(zip((1,) if base == "epilogue" else (0, 1, 2), map(int, numbers), strict=False)).get(which, 0)
    tiles = tiles_for(TILES[which], channels)
    return Tile(*map(int, tiles[min(number, len(tiles) - 1)].split("/")))


def tiles_for(tiles: Mapping[int, str], channels: int) -> list[str]:
    """Return the tiles for a number of channels of the output."""
    return next(tiles[most] for most in sorted(tiles) if channels <= most).split()


def shared_memory(device: torch.device) -> int:
    """Return the bytes of shared memory that a program's tiles may have: a KiB is the driver's, one for sums."""
    if device.type != "cuda":
        return 1 << 30
    return torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor - 2048


def options(tile: Tile) -> dict[str, Any]:
    """Return a tile's launch options for Triton."""
    limit = {"maxnreg": tile.registers} if tile.registers else {}
    return {"WIDEN": interpreted(), "num_warps": tile.warps, "num_stages": tile.stages, **limit}


@operation(
    "gelu_product_forward", lambda hidden, weight, bias, form: hidden.new_empty((*hidden.shape[:-1], weight.shape[0]))
)
def gelu_forward_by_triton(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, form: str
) -> torch.Tensor:
    """Return GELU(hidden (N, H, W, K)) weight (C, K)^T + bias (C,), (N, H, W, C)."""
    from roadmap.net.kernels.triton_products import gelu_forward_kernel

    hidden, weight = hidden.contiguous(), weight.contiguous()
    c, k = weight.shape
    rows = hidden.numel() // k
    y = hidden.new_empty((*hidden.shape[:-1], c))
    tile = tile_of(form, 0, c).fitting(rows, c, k, hidden)
    gelu_forward_kernel[(ceil_div(rows, tile.rows) * ceil_div(c, tile.columns),)](
        hidden, weight, weight if bias is None else bias, y, rows, C=c, H=k, HAS_BIAS=bias is not None,
        BLOCK_R=tile.rows, BLOCK_C=tile.columns, BLOCK_H=tile.deep, **options(tile),
    )  # fmt: skip
    return y


@operation(
    "gelu_product_input_gradient",
    lambda g, weight, hidden, form: (
        torch.empty_like(hidden, memory_format=torch.contiguous_format),
        hidden.new_empty(hidden.shape[-1], dtype=torch.float32),
    ),
)
def gelu_input_gradient_by_triton(
    g: torch.Tensor, weight: torch.Tensor, hidden: torch.Tensor, form: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (g (N, H, W, C) weight (C, K)) GELU'(hidden (N, H, W, K)), and its sum over the pixels (K,), in fp32."""
    from roadmap.net.kernels.triton_products import gelu_input_gradient_kernel

    g, weight, hidden = g.contiguous(), weight.contiguous(), hidden.contiguous()
    c, k = weight.shape
    rows = hidden.numel() // k
    tile = tile_of(form, 1, c).fitting(rows, k, c, hidden)
    shares = ceil_div(rows, tile.rows)
    dh = torch.empty_like(hidden)
    partial = torch.empty((shares, k), dtype=torch.float32, device=g.device)
    gelu_input_gradient_kernel[(shares * ceil_div(k, tile.columns),)](
        g, weight, hidden, dh, partial, rows, C=c, H=k,
        BLOCK_R=tile.rows, BLOCK_H=tile.columns, BLOCK_C=tile.deep, **options(tile),
    )  # fmt: skip
    return dh, partial.sum(0)


@operation(
    "gelu_product_weight_gradient",
    lambda g, hidden, form: g.new_empty((g.shape[-1], hidden.shape[-1]), dtype=torch.float32),
)
def gelu_weight_gradient_by_triton(g: torch.Tensor, hidden: torch.Tensor, form: str) -> torch.Tensor:
    """Return g^T GELU(hidden), (C, K), in fp32, of g (N, H, W, C) and hidden (N, H, W, K)."""
    from roadmap.net.kernels.triton_products import gelu_weight_gradient_kernel

    g, hidden = g.contiguous(), hidden.contiguous()
    c, k = g.shape[-1], hidden.shape[-1]
    rows = hidden.numel() // k
    tile = tile_of(form, 2, c).fitting(k, c, rows, hidden)
    blocks = ceil_div(k, tile.rows), ceil_div(c, tile.columns)
    share, shares = shares_of(rows, blocks, tile.deep)
    partial = torch.empty((shares, c, k), dtype=torch.float32, device=g.device)
    gelu_weight_gradient_kernel[(*blocks, shares)](
        g, hidden, partial, rows, share, C=c, H=k,
        BLOCK_H=tile.rows, BLOCK_C=tile.columns, BLOCK_R=tile.deep, **options(tile),
    )  # fmt: skip
    return partial.sum(0)


def shares_of(rows: int, blocks: Sequence[int], deep: int) -> tuple[int, int]:
    """Return the rows of a program's share, a multiple of `deep`, and how many shares of the rows there are."""
    wanted = max(1, PROGRAMS // (blocks[0] * blocks[1]))
    share = ceil_div(ceil_div(rows, wanted), deep) * deep
    return share, ceil_div(rows, share)
