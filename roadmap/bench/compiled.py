"""`python -m roadmap.bench compiled`: Triton kernels compiled for a GPU that need not be present, and analysed.

The depthwise kernels: for every tile registers and spilled bytes of a thread, instructions a multiply-add in the inner
loop, warps that an SM holds, and the least milliseconds that issuing these instructions takes on an H100 for 256 maps
of 96 channels, 56x56. A kernel that never waits takes that long; those in docs/speed.md take 1.2 to 1.6 times as long.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from roadmap.bench.options import empty_parser, names
from roadmap.errors import ConfigError
from roadmap.net.kernels.depthwise_columns import MAP_TILES, WEIGHT_TILES, ColumnTile, tile_of
from roadmap.net.kernels.triton_support import has_triton

CAPABILITIES = ("90", "80")
MULTIPLY_ADDS = 256 * 56 * 56 * 96  # of a tap
ISSUED_PER_S = 4 * 132 * 32 * 1.755e9  # lanes: schedulers of an SM, SMs, lanes of a warp, Hz
REGISTERS = 65536  # of an H100's multiprocessor
FP32 = ("bias", "partial", "mean", "rstd", "gamma", "keep")  # pointers that are not of the map's type
MAPS = ("x", "y", "g", "dx", "dy", "dh", "taps", "weight", "shortcut", "out", "hidden")
BYTES = ("images", "changed", "fixed", "tables", "rows", "crops")  # in place of maps, where images are prepared
OTHERS = {"eps": "fp32", "ops": "*i32", "args": "*fp64", "boxes": "*i64"}


class Compiled(NamedTuple):
    """A compiled kernel: registers and spilled bytes of a thread.

    `code` has its instructions by operation: all of them, then those of each loop.
    """

    registers: int
    stack: int
    code: list[Counter[str]]

    @property
    def inner(self) -> Counter[str]:
        """Return the instructions of the inner loop."""
        return inner_loop(self.code)

    @property
    def warps(self) -> int:
        """Return for how many warps the registers of an SM suffice."""
        return REGISTERS // (-(-self.registers // 8) * 8 * 32)

    @property
    def per_multiply_add(self) -> float:
        """Return the instructions of the inner loop for each multiply-add."""
        return self.inner.total() / max(1, self.inner["FFMA"])


def compile_kernel(
    function: Any, constants: Mapping[str, Any], capability: int, *, kind: str = "bf16", warps: int = 4,
    registers: int = 0,
) -> Compiled:  # fmt: skip
    """Compile a Triton kernel without a GPU, maps of type `kind`, and count its instructions."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes, maps = {}, {}, BYTES if kind == "u8" else MAPS
    for index, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in maps or name in FP32:
            signature[name] = f"*{'fp32' if name in FP32 else kind}"
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = OTHERS.get(name, "i32")
            if name == "channels":  # a multiple of 16 in nearly every net
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, dict(constants), attributes)
    options: dict[str, Any] = {"num_warps": warps}
    options |= {"maxnreg": registers} if registers else {}
    options["enable_fp_fusion"] = kind != "u8"  # images are prepared to the byte
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    tools = Path(triton.knobs.nvidia.cuobjdump.path).parent
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(made.asm["cubin"])
        used = output_of(tools / "cuobjdump", "-res-usage", file.name)
        code = output_of(tools / "nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", used)
    assert found, used
    return Compiled(int(found[1]), int(found[2]), counted(code))


def output_of(*command: str | Path) -> str:
    """Return what a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def counted(assembly: str) -> list[Counter[str]]:
    """Count the operations of a disassembly: all of them, then those of each of its loops."""
    labels: dict[str, int] = {}
    code: list[tuple[str, str]] = []
    for line in assembly.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        if found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?\S+\s+)?([A-Z][A-Z0-9_.]*)", line):
            code.append((found[1].split(".")[0], line))
    loops = [Counter(operation for operation, _ in code)]
    for index, (operation, line) in enumerate(code):
        target = re.search(r"(\.L_x_\d+)", line)
        if operation == "BRA" and target and labels.get(target[1], index) < index:
            loops.append(Counter(name for name, _ in code[labels[target[1]] : index + 1]))
    return loops


def inner_loop(code: Sequence[Counter[str]]) -> Counter[str]:
    """Return the shortest loop with multiply-adds; all of the code without a loop."""
    return min((loop for loop in code if loop["FFMA"]), key=Counter.total, default=code[0])


def main(argv: Sequence[str]) -> int:
    """Compile the tiles of kernels and print a line for each. Raises ConfigError without Triton."""
    options = empty_parser("compiled", __doc__)
    sizes = [str(kernel) for kernel in MAP_TILES]
    options.add_argument("--kernels", type=names(sizes), default=sizes, metavar="K,K", help=f"of {', '.join(sizes)}")
    options.add_argument("--capability", default="90", choices=CAPABILITIES)
    options.add_argument("--all-tiles", action="store_true", help="not the first of each alone")
    args = options.parse_args(argv)
    if not has_triton():
        raise ConfigError("python -m roadmap.bench compiled: Triton is not installed")
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


def compile_columns(name: str, kernel: int, tile: ColumnTile, capability: int) -> Compiled:
    """Compile a depthwise kernel for 96 channels: of `map` (forward and input gradient) or of `weight gradient`."""
    from roadmap.net.kernels import triton_columns as made

    constants: dict[str, Any] = {"CHANNELS": 96, "K": kernel, "BLOCK_W": tile.width, "BLOCK_C": tile.channels}
    function = made.columns_weight_gradient_kernel
    if name == "map":
        function = made.columns_kernel
        constants |= {"FLIPPED": False, "HAS_BIAS": True}
    return compile_kernel(function, constants, capability, warps=tile.warps, registers=tile.registers)
