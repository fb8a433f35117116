"""`bench kernels` measures and records the operations of a regime's nets; `bench compiled` counts instructions."""

import json
import os
import time

import pytest
import torch

from roadmap.bench import __main__ as bench
from roadmap.bench import kernels
from roadmap.bench.bound import Rates
from roadmap.bench.compiled import counted, inner_loop
from roadmap.bench.kernels import Measured, best_row, chosen_forms, compile_ahead, compilers, measure_shape
from roadmap.bench.operations import OpShape, forms_at, shapes_of
from roadmap.net.kernels import PASSES
from roadmap.net.kernels.measured import read_tables
from roadmap.steps.compose import compose

CPU = torch.device("cpu")
SHAPE = OpShape("depthwise input gradient", 7, 1, 96, 56, 96)


def test_the_operations_of_a_row_are_found_at_their_shapes():
    found = shapes_of([compose("separate_downsampling", "tiny")], 224)
    assert OpShape("depthwise forward", 7, 1, 96, 56, 96) in found
    assert OpShape("gelu", None, None, 3072, 7, 3072) in found
    assert OpShape("pointwise", 1, 1, 384, 14, 1536) in found
    assert {shape.operation for shape in found} == {
        *PASSES, "norm", "join", "gelu", "pointwise",
    }  # fmt: skip
    assert [shape.height for shape in found if shape.operation == "join"] == [56, 28, 14, 7]


def test_bytes_and_arithmetic_of_an_operation():
    assert SHAPE.flop(2) == 2 * 2 * 96 * 56 * 56 * 49 and SHAPE.moved(2) == 2 * 2 * 96 * 56 * 56
    strided = SHAPE._replace(stride=2)
    assert strided.out_height == 28 and strided.flop(1) * 4 == SHAPE.flop(1)


def test_the_fastest_form_that_is_as_exact_as_torchs_own_is_recorded():
    found = {
        "plain": Measured(2.0, 1e-3),
        "wrong": Measured(0.1, 1e-2),
        "columns/7/32/1": Measured(0.5, 1.2e-3),
        "broken": Measured(None, None, "no"),
    }
    row = best_row(SHAPE, found, {"memory": 0.25})
    assert (row.form, row.gain, row.height) == ("columns/7/32/1", 4.0, 56)
    assert row.ms["memory bound"] == 0.25 and "wrong" not in row.ms
    assert best_row(SHAPE, found | {"columns/14/32/1": Measured(None, None, kernels.NO_TIME)}, {}) is None


def test_what_a_shape_has_no_time_for_is_left_out():
    shape = SHAPE._replace(channels=4, height=4, c_out=4, kernel=3)
    forms, lacking = [*forms_at(shape, CPU)], Measured(None, None, kernels.NO_TIME)
    assert measure_shape(shape, forms, CPU, torch.float32, 2, end=0.0) == dict.fromkeys(forms, lacking)


def test_compiling_alone_measures_nothing(tmp_path, capsys):
    words = ("--rows", "gelu", "--regime", "nano", "--device", "cpu", "--json", str(tmp_path / "kernels.json"))
    assert bench.main(["kernels", "--compile-only", *words]) == 0
    assert capsys.readouterr().out == "0 forms are compiled\n" and not [*tmp_path.iterdir()]


def test_forms_are_compiled_side_by_side_until_the_time_is_up():
    """Without a GPU each fails at once, in its process."""
    forms = [(SHAPE, f"columns/{tile}/32/1") for tile in (2, 4, 7)] + [(SHAPE, "plain")]
    with compilers(torch.device("cuda")) as pool:
        compile_ahead(pool, forms, torch.bfloat16, 0.0)  # what it cuts off is in the way of nothing
        assert compile_ahead(pool, forms, torch.bfloat16, time.monotonic() + 200) == 3
    with compilers(torch.device("cuda")) as pool:
        pool.submit(os._exit, 1).exception()
        assert compile_ahead(pool, forms, torch.bfloat16, time.monotonic() + 200) == 0
    with compilers(CPU) as pool:
        assert pool is None and compile_ahead(pool, forms, torch.bfloat16, 0.0) == 0


def test_later_shapes_of_an_operation_try_the_tiles_that_were_fastest_at_the_first(monkeypatch):
    monkeypatch.setattr(
        kernels, "forms_at", lambda shape, device: iter(["plain", "columns/1/32/1", "columns/2/32/1", "flipped"])
    )
    fastest = {SHAPE.family: ["columns/2/32/1", "flipped", "columns/1/32/1", "plain"]}
    assert chosen_forms(SHAPE, CPU, 1, fastest) == ["plain", "columns/2/32/1", "flipped"]
    assert len(chosen_forms(SHAPE, CPU, None, fastest)) == 4


def test_recorded_on_a_cpu_it_is_what_auto_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ROADMAP_KERNELS", str(tmp_path / "kernels.json"))
    monkeypatch.setattr(kernels, "CPU_CALLS", 1)
    monkeypatch.setattr(kernels, "measured_rates", lambda device, precision: Rates(1e11, 1e10))  # test_bench_bound
    words = ["--device", "cpu", "--regime", "nano", "--rows", "separate_downsampling", "--batch", "2", "--record"]
    assert bench.main(["kernels", *words, "--operations", "pointwise", "--json", str(tmp_path / "all.json")]) == 0
    (table,) = read_tables(tmp_path / "kernels.json")
    assert table.device == "cpu" and {row.operation for row in table.rows} == {"pointwise"}
    printed = capsys.readouterr().out
    assert printed.count("bounds: memory") == len(table.rows) == 8
    assert len(json.loads((tmp_path / "all.json").read_text())["rows"]) == 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--record"], "ROADMAP_KERNELS= is empty"),
        (["--image-size", "2", "--rows", "separate_downsampling"], "--image-size=2: too small"),
        (["--minutes", "0"], "0: must be a number above 0"),
        (["--operations", "gelus"], "gelus: unknown"),
        (["--operations", "gelu", "--rows", "gelu"], "none of these rows has one of: gelu"),
        (["--rows", "swin", "--regime", "tiny"], "none of these rows has one of: depthwise forward, "),
    ],
)
def test_wrong_options_are_refused_before_anything_is_measured(words, said, capsys):
    assert bench.main(["kernels", "--device", "cpu", "--regime", "nano", *words]) == 64
    assert said in capsys.readouterr().err


def test_the_inner_loop_of_a_disassembly_is_counted():
    line = "        /*{:04x}*/                   {} ;".format
    code = [
        ".L_x_0:", line(0, "LDG.E R1, [R2.64]"), ".L_x_1:", line(16, "FFMA R0, R1, R2, R0"),
        line(32, "FFMA R0, R1, R2, R0"),
        line(48, "@P0 BRA `(.L_x_1)"), line(64, "@!P1 BRA `(.L_x_0)"), line(80, "EXIT"),
    ]  # fmt: skip
    assert inner_loop(counted("\n".join(code))) == {"FFMA": 2, "BRA": 1}
