"""What a study costs: speeds that are inferred, hours that were used, that restarts did again, and that are left."""

import json
from types import SimpleNamespace

import pytest

from roadmap.config import Config
from roadmap.files import read_json, write_json
from roadmap.report.__main__ import main as report
from roadmap.runs.metrics import append_metrics
from roadmap.runs.run_dir import run_path
from roadmap.runs.schema import METRICS, STATUS, SUMMARY
from roadmap.steps.compose import compose
from roadmap.sweep.__main__ import main
from roadmap.sweep.cell_states import CellState
from roadmap.sweep.cluster import load_cluster
from roadmap.sweep.launchers import local
from roadmap.sweep.plan import Net, Row, as_text, checkpoint_gb, earlier_speeds, infer, plan, read_bench, with_inferred
from roadmap.sweep.status import device_hours, hours_line
from roadmap.sweep.study import Cell
from roadmap.training.train import train
from tests.fabricate import write_run
from tests.records import stopped_at


def bench_file(path, rows, hardware="NVIDIA H100 80GB HBM3", regime="tiny", size=224, name="net"):
    """Write what `bench net --json` writes, as far as a plan reads it."""
    candidates = [
        {"row": row, "candidates": [
            {"candidate": form, "peer": "timm" if form == "timm" else None, "failed": None, "images_per_s": speed}
            for form, speed in speeds.items()
        ]}
        for row, speeds in rows.items()
    ]  # fmt: skip
    settings = {"regime": regime, "image_size": size}
    write_json(path, {"benchmark": name, "hardware": {"hardware": hardware}, "settings": settings, "rows": candidates})
    return path


def test_a_speed_is_inferred_by_the_bench_and_where_that_is_silent_by_macs(tmp_path):
    rows = {"resnet": {"eager": 400.0, "graph": 1000.0, "timm": 9000.0}, "gelu": {"eager": 100.0, "graph": 500.0}}
    bench = read_bench(str(bench_file(tmp_path / "mine.json", rows)))
    gmacs = {"resnet": 4.0, "gelu": 3.0, "x": 8.0}
    resnet, gelu, other = (Net("tiny", 224, name, cost) for name, cost in gmacs.items())
    known = [(resnet, 2000.0), (Net("tiny", 32, "gelu", 1.0), 9e9)]
    assert infer(gelu, known, bench) == (1000.0, "inferred, bench")  # the fastest form of both
    assert infer(other, known, bench) == (1000.0, "inferred, MACs")
    assert infer(Net("nano", 224, "gelu", 3.0), known, bench) == (None, "")
    assert infer(other, [*known, (gelu, 100.0)], bench)[0] == pytest.approx((1000 + 37.5) / 2)  # the median of both
    nobody = [(None, "")] * 3
    assert with_inferred([resnet, gelu, other], nobody, bench)[:2] == [(1000.0, "bench"), (500.0, "bench")]
    assert with_inferred([resnet, gelu, other], nobody, {}) == nobody


def test_earlier_speeds_are_of_one_device_of_this_hardware_and_of_no_run_that_was_set_aside(tmp_path):
    about = {"hardware": "NVIDIA H100 80GB HBM3", "train_images_per_s": 800.0, "batch_size": 64}
    write_run(tmp_path, "gelu", 0, world_size=8, group_size=2, **about)
    write_run(tmp_path, "gelu", 1, **(about | {"hardware": "NVIDIA A100"}))
    aside = write_run(tmp_path, "gelu", 2, **about)
    aside.rename(aside.with_name("seed2.old-1"))
    assert earlier_speeds(tmp_path, "h100") == {("gelu", "nano", "digits", 32, 64): [200.0]}
    assert earlier_speeds(tmp_path, None) == {}


def test_a_plan_counts_the_images_that_are_trained_on_and_each_copy_of_the_weights(tmp_path):
    config = compose("resnet", "nano", ["data.holdout=0.1", "recipe.epochs=10", f"paths.runs={tmp_path}"])
    (row,) = plan([Cell((), config)], tmp_path, None, {"resnet": 100.0}, {})
    assert row.images == pytest.approx(0.9 * 1437 * 10)
    assert (row.images_per_s, row.hours) == (100.0, pytest.approx(row.images / 100 / 3600))
    assert row.last_gb == pytest.approx(row.checkpoint_gb / 3)
    copies = [checkpoint_gb(compose("resnet", "nano", words), 1.0) / 3 / 4e-3 for words in (
        ["recipe.momentum=0"], [], ["recipe.ema_decay=0.9"], ["recipe.optimizer=adamw"],
    )]  # fmt: skip
    assert copies == pytest.approx([1, 2, 3, 3])


def test_the_total_of_a_plan_is_of_what_is_to_do():
    study = SimpleNamespace(name="mine", generator=SimpleNamespace(outlook=lambda *_: ()), left_out=())
    rows = [Row(key, 4.0, 28.0, 100.0, checkpoint_gb=3.0, last_gb=1.0, state="") for key in "abc"]
    rows[0].state, rows[0].hours, rows[1].hours, rows[1].source = "done", 2.0, 3.0, "inferred, MACs"
    told = "mine: 3 cells, 1 done; to do: 2, 3 GPU-hours for 1 of them (1 inferred from the others), 6.0 GB of "
    assert as_text(study, rows).splitlines()[-1] == told + "checkpoints by estimate, 2.0 GB after make prune"


@pytest.mark.parametrize(("word", "told"), [
    ("images_per_s=-1", "cluster.images_per_s=-1: must be a number above 0"),
    ("images_per_s=fast", "cluster.images_per_s=fast: must be a number above 0"),
    ("images_per_s.gelo=3", "images_per_s.gelo: there is no such row; did you mean gelu? There are: gelu, resnet,"),
    ("bench=nowhere.json", "cluster.bench=nowhere.json: no such file"),
    ("bench=README.md", "cluster.bench=README.md: cannot be read"),
    ("bench=docs/measured/h100_nets.json", "is not a record of python -m roadmap.bench net --json FILE"),
])  # fmt: skip
def test_speeds_and_files_that_are_none_are_told(capsys, tmp_path, word, told):
    words = ["plan", "demo", "--cluster", "local", "--runs", str(tmp_path), "--", "+step=resnet"]
    assert main([*words, "device=cpu", f"cluster.{word}"]) == 64
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("place", "head"), [("local", "CPU-hours"), ("slurm", "GPU-hours")])
def test_a_plan_for_this_machine_counts_hours_of_what_it_has(capsys, tmp_path, monkeypatch, place, head):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = ["plan", "demo", "--cluster", place, "--runs", str(tmp_path), "--steps", "resnet"]
    assert main([*words, "--", "cluster.per_cell=1"]) == 0
    assert head in capsys.readouterr().out


def test_a_plan_takes_the_speed_of_the_first_row_and_marks_what_it_infers(capsys, tmp_path):
    file = bench_file(tmp_path / "b.json", {"resnet": {"k": 300.0}, "gelu": {"k": 100.0}}, "CPU", "nano", 32)
    words = ["plan", "demo", "--cluster", "local", "--runs", str(tmp_path), "--", "+step=resnet,gelu,depthwise"]
    given = ["cluster.images_per_s=600", f"cluster.bench={file}", "device=cpu", "recipe.epochs=36"]
    assert main([*words, *given]) == 0
    lines = {line.split("/")[1].split(",")[0]: line for line in capsys.readouterr().out.splitlines() if "/" in line}
    assert "600  given " in lines["resnet"] and "200  inferred, bench     0.0719" in lines["gelu"]
    assert "inferred, MACs" in lines["depthwise"]
    assert main([*words, "device=cpu", "cluster.images_per_s={gelu: 50}"]) == 0
    told = capsys.readouterr().out
    assert "50  given" in told and "(2 inferred from the others)" in told
    assert load_cluster(local.Config, "local").images_per_s == {}


def test_work_that_a_restart_does_again_is_recorded_and_counted_once(small):
    config: Config = small("resnet")
    with stopped_at(5):
        train(config)
    run = run_path(config)
    status = read_json(run / STATUS)
    assert status["lost_s"] == 0.0 and status["time_s"] > 0  # a polite stop loses nothing
    row = {"kind": "train", "epoch": 9, "global_step": 99, "time_s": status["time_s"] + 50.0}
    append_metrics(run / METRICS, [row])  # as a run that was killed 50 s after its checkpoint
    summary = train(config)
    assert summary["lost_s"] == pytest.approx(50.0, abs=1.0)
    assert read_json(run / SUMMARY)["lost_gpu_hours"] is None  # of a CPU
    assert read_json(run / STATUS)["time_s"] == pytest.approx(summary["time_s"], abs=20.0)  # of a slow disk


def test_the_hours_of_a_study_count_all_devices():
    def cell(state, used=None, left=None, lost=0.0, devices=None):
        found = CellState("k", "gelu", None, 0, state, left_s=left, used_s=used, lost_s=lost, devices=devices)
        found.total_s = None if used is None else used + (left or 0.0)
        found.hardware = None if devices is None else "NVIDIA H100 80GB HBM3"
        return found

    cells = [cell("done", 3600.0, 0.0, 360.0, 8), cell("running", 1800.0, 1800.0, 0.0, 8), cell("planned")]
    assert device_hours(cells) == {"used": 12.0, "lost": 0.8, "left": 12.0}
    assert hours_line(cells) == "GPU-hours: 12 used, 0.8 more lost to restarts, about 12 left"
    assert hours_line([cell("planned")]) == ""
    shared = cell("done", 3600.0, 0.0, 0.0, 0.25)  # four runs on one device
    assert device_hours([shared])["used"] == 0.25


def test_a_report_has_the_hours_used_lost_and_left(tmp_path, capsys):
    for seed, lost in ((0, 0.0), (1, 0.25)):
        write_run(tmp_path / "runs", "resnet", seed, gpu_hours=2.0, lost_gpu_hours=lost)
    about = {"time_s": 1800.0, "lost_s": 360.0, "step": 10, "steps_per_epoch": 10, "world_size": 2, "epoch": 1}
    write_run(tmp_path / "runs", "gelu", 0, state="stopped", status={**about, "hardware": "NVIDIA H100"})
    hostile = {"time_s": "1", "step": -1, "steps_per_epoch": [], "world_size": 1e999, "hardware": {}}
    write_run(tmp_path / "runs", "depthwise", 0, state="stopped", status=hostile)
    assert report([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--tables-only"]) == 0
    told = capsys.readouterr().out
    assert "4 GPU-hours for 2 finished runs, and 0.25 lost to restarts" in told
    assert "stopped, 1 GPU-hours used, 0.2 lost to restarts, about 2 left" in told
    assert "0.125" in json.dumps(read_json(tmp_path / "out" / "report.json"))
