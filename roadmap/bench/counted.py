"""A Triton kernel compiled for a GPU that need not be present: its registers, shared memory and instruction counts."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

REGISTERS, SHARED, WARPS = 65536, 227 * 1024, 64  # of an H100's multiprocessor
FP32 = ("bias", "partial", "mean", "rstd", "gamma", "keep")  # pointers that are not of the map's type
MAPS = ("x", "y", "g", "dx", "dy", "dh", "taps", "weight", "shortcut", "out", "hidden")
BYTES = ("images", "changed", "fixed", "tables")  # in place of maps, where images are augmented
OTHERS = {"eps": "fp32", "ops": "*i32", "args": "*fp64"}


class Compiled(NamedTuple):
    """A compiled kernel: registers and spilled bytes of a thread, bytes of shared memory of a program.

    `code` has its instructions by operation: all of them, then those of each loop.
    """

    registers: int
    stack: int
    shared: int
    code: list[Counter[str]]

    @property
    def inner(self) -> Counter[str]:
        """Return the instructions of the inner loop."""
        return inner_loop(self.code)

    @property
    def warps(self) -> int:
        """Return for how many warps the registers of an SM suffice."""
        return REGISTERS // (-(-self.registers // 8) * 8 * 32)

    def executed(self, iterations: int) -> int:
        """Return the instructions of a warp whose longest loop runs `iterations` times."""
        loop = max((loop.total() for loop in self.code[1:]), default=0)
        return self.code[0].total() + (iterations - 1) * loop

    @property
    def per_multiply_add(self) -> float:
        """Return the instructions of the inner loop for each multiply-add."""
        return self.inner.total() / max(1, self.inner["FFMA"])


def compile_kernel(
    function: Any, constants: Mapping[str, Any], capability: int, *, kind: str = "bf16", warps: int = 4,
    registers: int = 0, stages: int = 3, wide: Sequence[str] = (),
) -> Compiled:  # fmt: skip
    """Compile a Triton kernel without a GPU, maps of type `kind`, the `wide` ones fp32, and count its instructions."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes, maps = {}, {}, BYTES if kind == "u8" else MAPS
    for index, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in maps or name in FP32:
            signature[name] = f"*{kind if name in maps and name not in wide else 'fp32'}"
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = OTHERS.get(name, "i32")
            if name == "channels":  # a multiple of 16 in nearly every net
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, dict(constants), attributes)
    options: dict[str, Any] = {"num_warps": warps, "num_stages": stages}
    options |= {"maxnreg": registers} if registers else {}
    options["enable_fp_fusion"] = kind != "u8"  # images are augmented to the byte
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    tools = Path(triton.knobs.nvidia.cuobjdump.path).parent
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(made.asm["cubin"])
        used = output_of(tools / "cuobjdump", "-res-usage", file.name)
        code = output_of(tools / "nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", used)
    assert found, used
    return Compiled(int(found[1]), int(found[2]), made.metadata.shared, counted(code))


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
