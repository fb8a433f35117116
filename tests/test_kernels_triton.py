"""The Triton kernels: in the interpreter, in a process of its own (it reads TRITON_INTERPRET once), and compiled."""

import importlib.util
import math
import os
import re
from importlib.metadata import version
from pathlib import Path

import pytest

from roadmap.bench.compiled import FP32, compile_kernel
from roadmap.bench.compiled import main as compiled
from roadmap.net.kernels.depthwise import KERNELS
from roadmap.net.kernels.depthwise_columns import MAP_TILES as COLUMN_TILES
from roadmap.net.kernels.depthwise_columns import WEIGHT_TILES as COLUMN_WEIGHT_TILES
from roadmap.net.kernels.depthwise_columns import tile_of
from roadmap.net.kernels.depthwise_strided import MAP_TILES, WEIGHT_TILES
from roadmap.net.kernels.gelu import CHANNELS, PIXELS
from roadmap.net.kernels.norm import block_of as norm_block
from roadmap.net.kernels.residual import block_of as join_block
from tests.drive import python

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

HERE = Path(__file__).resolve().parent
LIMITS_OF = "3.8."  # the Triton that spills no more than is allowed below; others share out registers differently


def interpreted(selection, file="interpreted_kernels.py"):
    """Run tests of a file in the interpreter, of a Triton whose own is sound."""
    if version("triton").startswith("3.6.") and version("numpy") >= "2.4":
        pytest.skip("Triton 3.6's interpreter makes numbers of arrays, which NumPy 2.4 ended")
    if version("triton").startswith("3.9."):
        pytest.skip("Triton 3.9's interpreter refuses masks that a number and a block make")
    words = ["-m", "pytest", "-p", "no:cacheprovider", "-m", selection, str(HERE / file)]
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = python(*words, env=env)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 0


@pytest.mark.timeout(1200)  # on a busy machine
def test_in_the_interpreter_they_are_as_exact_as_torch():
    interpreted("not slow")


def test_in_the_interpreter_images_are_prepared_as_by_torch_and_pillow():
    interpreted("not slow", "interpreted_images.py")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_in_the_interpreter_every_row_and_every_shape_of_both_regimes():
    interpreted("slow")


def depthwise_cases(kernel, stride):
    """Yield every depthwise kernel of a size with its constants, warps and registers."""
    from roadmap.net.kernels import triton_columns as columns
    from roadmap.net.kernels import triton_depthwise as made

    if stride == 1:
        for tiles, function, more in (
            (COLUMN_TILES, columns.columns_kernel, [{"FLIPPED": False, "HAS_BIAS": True}]),
            (COLUMN_TILES, columns.columns_kernel, [{"FLIPPED": True, "HAS_BIAS": False}]),
            (COLUMN_WEIGHT_TILES, columns.columns_weight_gradient_kernel, [{}]),
        ):
            tile = tile_of("columns", tiles[kernel])
            for extra in more:
                block = {"BLOCK_W": tile.width, "BLOCK_C": tile.channels}
                yield function, {"CHANNELS": 96, "K": kernel} | block | extra, tile.warps, tile.registers
        return
    for tile, function, more in (
        (MAP_TILES[kernel], made.forward_kernel, [{"HAS_BIAS": False}, {"HAS_BIAS": True}]),
        (MAP_TILES[kernel], made.input_gradient_kernel, [{"Q": q} for q in range(stride)]),
        (WEIGHT_TILES[kernel], made.weight_gradient_kernel, [{}]),
    ):
        for extra in more:
            block = {"BLOCK_W": tile.width, "BLOCK_C": tile.channels, "VEC": tile.vec}
            yield function, {"K": kernel, "S": stride} | block | extra, tile.warps, 0


def channel_cases(channels):
    """Yield every kernel along the channels with its constants and warps."""
    from roadmap.net.kernels import triton_channels as made

    rows, block, warps = norm_block(channels, 10_000)
    yield made.norm_kernel, {"BLOCK_R": rows, "BLOCK_C": block}, warps, 0
    yield made.norm_backward_kernel, {"BLOCK_R": rows, "BLOCK_C": block}, warps, 0
    rows, block = join_block(channels, 10_000)
    yield made.gelu_backward_kernel, {"BLOCK_R": PIXELS, "BLOCK_C": CHANNELS}, 4, 0
    for keep in (False, True):
        yield made.residual_kernel, {"BLOCK_R": rows, "BLOCK_C": block, "HAS_KEEP": keep}, 4, 0
        yield made.residual_backward_kernel, {"BLOCK_R": rows, "BLOCK_C": block, "HAS_KEEP": keep}, 4, 0


def residual_stream_cases(channels):
    """Yield those that read or write the residual stream, which is fp32 under autocast, with what is fp32 in them."""
    from roadmap.net.kernels import triton_channels as made

    rows, block, warps = norm_block(channels, 10_000)
    yield made.norm_kernel, {"BLOCK_R": rows, "BLOCK_C": block}, warps, ("x",)
    yield made.norm_kernel, {"BLOCK_R": rows, "BLOCK_C": block}, warps, ("y",)
    yield made.norm_backward_kernel, {"BLOCK_R": rows, "BLOCK_C": block}, warps, ("x", "dx")
    rows, block = join_block(channels, 10_000)
    for keep in (False, True):
        yield made.residual_kernel, {"BLOCK_R": rows, "BLOCK_C": block, "HAS_KEEP": keep}, 4, ("shortcut", "out")
        yield made.residual_backward_kernel, {"BLOCK_R": rows, "BLOCK_C": block, "HAS_KEEP": keep}, 4, ("g",)


def image_cases():
    """Yield the kernels of RandAugment and of resized crops for images of 224 pixels."""
    from roadmap.data import triton_augment as made
    from roadmap.data import triton_crops as crops

    yield made.tables_kernel, {"PIXELS": 224 * 224}, 4, 0
    for cubic in (True, False):
        for function in (made.pixels_kernel, crops.across_kernel, crops.down_kernel):
            yield function, {"SIZE": 224, "CUBIC": cubic}, 4, 0


def assert_fits(cases, kind, capability):
    for function, constants, warps, registers in cases:
        made = compile_kernel(function, constants, capability, kind=kind, warps=warps, registers=registers)
        case = (function, constants, kind, capability, made.registers, made.stack)
        assert made.registers <= 255 and made.stack <= allowed_stack(constants, registers, capability), case


def allowed_stack(constants, registers, capability):
    """Return the bytes that a thread may spill: a few values where its registers are capped, so that more threads fit,
    and of the 81 and 121 of a kernel's that do not fit."""
    capped = (16 if capability == 90 else 24) if registers else 0
    return most_spilled({9: 96, 11: 96}.get(constants.get("K"), capped))


def most_spilled(limit):
    """Return the bytes that a thread may spill: the limits are those of one Triton, another only has to compile."""
    import triton

    return limit if triton.__version__.startswith(LIMITS_OF) else math.inf


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Compile anew, and leave nothing behind."""
    import triton

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))


def test_small_kernels_compile_for_an_h100_and_spill_nothing(monkeypatch):
    assert_fits(depthwise_cases(3, 2), "bf16", 90)
    assert_fits(channel_cases(96), "bf16", 90)
    assert_fits(image_cases(), "u8", 90)
    for function, constants, warps, wide in residual_stream_cases(96):
        monkeypatch.setattr("roadmap.bench.compiled.FP32", (*FP32, *wide))
        assert compile_kernel(function, constants, 90, warps=warps).stack <= most_spilled(0)


def test_the_command_that_counts_them_prints_a_line_a_tile(capsys):
    assert compiled(["--kernels", "3"]) == 0
    assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["| map", "| weight gradient"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", ["bf16", "fp16", "fp32"])
def test_every_kernel_compiles_for_all_types_and_sizes(kind, capability):
    for kernel in KERNELS:
        for stride in (1, 2):
            assert_fits(depthwise_cases(kernel, stride), kind, capability)
    assert_fits(image_cases(), "u8", capability)
    for channels in (24, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048):
        assert_fits(channel_cases(channels), kind, capability)
