"""`python -m roadmap.bench compiled`: Triton kernels compiled for a GPU that need not be present, and analysed.

The depthwise kernels: for every tile registers and spilled bytes of a thread, instructions a multiply-add in the inner
loop, warps that an SM holds, and the least milliseconds that issuing these instructions takes on an H100 for 256 maps
of 96 channels, 56x56. A kernel that never waits takes that long; those in docs/speed.md take 1.2 to 1.5 times as long.

With `--products` the matrix products with GELU in them, at the shapes of ConvNeXt-T's stages for 256 images of 224
pixels, with the milliseconds that issuing, moving the maps, and multiplying whole tiles take at least.
"""

from collections.abc import Sequence
from typing import Any

import torch

from roadmap.bench.counted import SHARED, WARPS, Compiled, compile_kernel
from roadmap.bench.options import empty_parser, names
from roadmap.errors import ConfigError
from roadmap.net.kernels.depthwise_columns import MAP_TILES, WEIGHT_TILES, ColumnTile, tile_of
from roadmap.net.kernels.gelu_product import TILES, Tile, shares_of, tiles_for
from roadmap.net.kernels.triton_support import ceil_div, has_triton

CAPABILITIES = ("90", "80")
MULTIPLY_ADDS = 256 * 56 * 56 * 96  # of a tap
ISSUED_PER_S = 4 * 132 * 32 * 1.755e9  # lanes: schedulers of an SM, SMs, lanes of a warp, Hz
MOVED_PER_S, FLOP_PER_S = 2.989e12, 700e12  # bytes copied, bf16 multiplied: measured on an H100
STAGES = {96: 56, 192: 28, 384: 14, 768: 7}  # channels of ConvNeXt-T: height of their map
PRODUCTS = ("forward", "input gradient", "weight gradient")


def main(argv: Sequence[str]) -> int:
    """Compile the tiles of kernels and print a line for each. Raises ConfigError without Triton."""
    options = empty_parser("compiled", __doc__)
    sizes = [str(kernel) for kernel in MAP_TILES]
    options.add_argument("--kernels", type=names(sizes), default=sizes, metavar="K,K", help=f"of {', '.join(sizes)}")
    options.add_argument("--capability", default="90", choices=CAPABILITIES)
    options.add_argument("--all-tiles", action="store_true", help="not the first of each alone")
    options.add_argument("--products", action="store_true", help="matrix products with GELU in them, not the depthwise")
    args = options.parse_args(argv)
    if not has_triton():
        raise ConfigError("python -m roadmap.bench compiled: Triton is not installed")
    if args.products:
        return print_products(int(args.capability), args.all_tiles)
    print("| pass | kernel | tile | registers | spilled bytes | instructions a multiply-add | warps an SM | bound ms |")
    print("|---|---|---|---|---|---|---|---|")
    for name, tiles in (("map", MAP_TILES), ("weight gradient", WEIGHT_TILES)):
        for kernel in map(int, args.kernels):
            for tile in tiles[kernel].split()[: None if args.all_tiles else 1]:
                made = compile_columns(name, kernel, tile_of(f"columns/{tile}", tile), int(args.capability))
                ms = 1e3 * MULTIPLY_ADDS * kernel**2 * made.per_multiply_add / ISSUED_PER_S
                cells = (name, kernel, tile, made.registers, made.stack, f"{made.per_multiply_add:.2f}", made.warps)
                print("| " + " | ".join(map(str, cells)) + f" | {ms:.3f} |", flush=True)
    return 0


def compile_columns(name: str, kernel: int, tile: ColumnTile, capability: int, kind: str = "bf16") -> Compiled:
    """Compile a depthwise kernel for 96 channels: of `map` (forward and input gradient) or of `weight gradient`."""
    from roadmap.net.kernels import triton_columns as made

    constants: dict[str, Any] = {"CHANNELS": 96, "K": kernel, "BLOCK_W": tile.width, "BLOCK_C": tile.channels}
    function = made.columns_weight_gradient_kernel
    if name == "map":
        function = made.columns_kernel
        constants |= {"FLIPPED": False, "HAS_BIAS": True}
    return compile_kernel(function, constants, capability, kind=kind, warps=tile.warps, registers=tile.registers)


def print_products(capability: int, all_tiles: bool) -> int:
    """Print a line for each pass of the products with GELU in them, at each stage of ConvNeXt-T."""
    print(
        "| pass | channels | tile | registers | spilled bytes | KiB shared | warps an SM | instructions a value |",
        end="",
    )
    print(" bounds: issue / memory / products, ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    for which, name in enumerate(PRODUCTS):
        for channels, height in STAGES.items():
            for text in tiles_for(TILES[which], channels)[: None if all_tiles else 1]:
                rows, hidden = 256 * height**2, 4 * channels
                tile = Tile(*map(int, text.split("/")))
                made, block, launched = compile_product(which, channels, rows, tile, capability)
                instructions = made.executed(launched[1]) * launched[0] * 32 * block.warps
                maps = rows * (hidden * (1, 2, 1)[which] + channels) * 2
                flop = 2 * launched[0] * launched[1] * block.rows * block.columns * block.deep
                programs = min(made.warps // block.warps, SHARED // (made.shared + 1024), WARPS // block.warps)
                bounds = (instructions / ISSUED_PER_S, maps / MOVED_PER_S, flop / FLOP_PER_S)
                cells = (
                    *(name, channels, text, made.registers, made.stack, made.shared // 1024, programs * block.warps),
                    *(f"{instructions / (rows * hidden):.1f}", " / ".join(f"{1e3 * s:.3f}" for s in bounds)),
                )
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    return 0


def compile_product(
    which: int, channels: int, rows: int, tile: Tile, capability: int, kind: str = "bf16"
) -> tuple[Compiled, Tile, tuple[int, int]]:
    """Compile a product with GELU in it; also return its tile here, its programs, and their iterations."""
    from roadmap.net.kernels import triton_products as made

    hidden = 4 * channels
    like = torch.empty(0, dtype={"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[kind])
    sizes = ((rows, channels, hidden), (rows, hidden, channels), (hidden, channels, rows))[which]
    names_of = (("BLOCK_R", "BLOCK_C", "BLOCK_H"), ("BLOCK_R", "BLOCK_H", "BLOCK_C"), ("BLOCK_H", "BLOCK_C", "BLOCK_R"))
    block = tile.fitting(*sizes, like)
    blocks = ceil_div(sizes[0], block.rows), ceil_div(sizes[1], block.columns)
    programs, deep = blocks[0] * blocks[1], sizes[2]
    if which == 2:
        deep, shares = shares_of(rows, blocks, block.deep)
        programs *= shares
    constants: dict[str, Any] = {"C": channels, "H": hidden, "WIDEN": False}
    constants |= dict(zip(names_of[which], block[:3], strict=True)) | ({"HAS_BIAS": True} if which == 0 else {})
    function = (made.gelu_forward_kernel, made.gelu_input_gradient_kernel, made.gelu_weight_gradient_kernel)[which]
    found = compile_kernel(
        function, constants, capability, kind=kind, warps=block.warps, registers=block.registers, stages=block.stages
    )
    return found, block, (programs, ceil_div(deep, block.deep))
