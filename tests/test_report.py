"""The report's numbers: which runs count, which do not and why, how seeds become rows, what the command writes."""

import csv
import itertools
import json
import multiprocessing
import os
import shutil
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roadmap import paper
from roadmap.errors import ConfigError
from roadmap.escape import for_csv, for_markdown
from roadmap.report import aggregate, charts, collect, frame
from roadmap.report.__main__ import main
from roadmap.report.analyse import collect as collecting
from roadmap.report.write.csv_files import csv_files
from roadmap.report.write.tables import to_markdown
from roadmap.runs import schema
from roadmap.runs.metrics import find_hole, parse_metrics
from roadmap.text import clean, shorten
from tests.drive import python
from tests.fabricate import groups_of, unfinished, write_roadmap, write_run

TABLES = {"table.csv", "table.md", "table.tex", "report.json", "findings.txt"}


def edit(path: Path, **values: object) -> None:
    """Change keys of a JSON file; NaN is written as Python writes it."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def set_last_val(run: Path, **values: object) -> None:
    lines = (run / schema.METRICS).read_text().splitlines()
    lines[-1] = json.dumps(json.loads(lines[-1]) | values)
    (run / schema.METRICS).write_text("\n".join(lines) + "\n")


# --- seeds and rows


@settings(max_examples=15)
@given(st.lists(st.floats(0, 100), min_size=2, max_size=5))
def test_seeds_become_n_mean_and_standard_deviation_as_numpys_for_any_accuracies(tmp_path_factory, values):
    runs = tmp_path_factory.mktemp("runs")
    for seed, top1 in enumerate(values):
        write_run(runs, "gelu", seed, top1=top1, epochs=1)
    (row,) = groups_of(runs)[0].rows
    assert (row.n, row.seeds) == (len(values), tuple(range(len(values))))
    assert row.top1 == pytest.approx(np.mean(values))
    assert row.top1_std == pytest.approx(np.std(values, ddof=1), abs=1e-9)


def test_one_seed_has_no_standard_deviation(tmp_path):
    write_run(tmp_path, "gelu")
    collected = collect([tmp_path])
    (row,) = aggregate(collected.runs)[0].rows
    assert row.n == 1
    assert row.top1_std is None
    assert np.isnan(frame(aggregate(collected.runs))["top1_std"].astype(float)[0])


def test_studies_regimes_and_data_are_never_averaged_together(tmp_path):
    for study, regime, data, top1 in (
        ("a", "nano", "digits", 10),
        ("b", "nano", "digits", 20),
        ("a", "mini", "digits", 30),
        ("a", "nano", "cifar10", 40),
    ):
        write_run(tmp_path, "gelu", top1=float(top1), study=study, regime=regime, data=data)
    groups = groups_of(tmp_path)
    assert sorted((g.study, g.regime, g.data, g.rows[0].top1, g.rows[0].n) for g in groups) == [
        ("a", "mini", "digits", 30, 1),
        ("a", "nano", "cifar10", 40, 1),
        ("a", "nano", "digits", 10, 1),
        ("b", "nano", "digits", 20, 1),
    ]


def test_rows_come_in_the_papers_order(tmp_path):
    write_roadmap(tmp_path, seeds=1, epochs=1)
    (group,) = groups_of(tmp_path)
    assert [row.step for row in group.rows] == list(paper.order())


def test_own_steps_stand_behind_their_parents_in_the_table(tmp_path):
    for step in ("separate_downsampling", "kernel_7", "kernel_9", "gelu", "swin"):
        write_run(tmp_path, step)
    write_run(tmp_path, "my_next", parent="my_first", label="next")
    write_run(tmp_path, "my_first", parent="kernel_7", label="first")
    write_run(tmp_path, "orphan", parent="never_run")
    table = frame(groups_of(tmp_path))
    behind = ["my_first", "my_next"]
    assert list(table["step"]) == ["kernel_7", *behind, "kernel_9", "gelu", "separate_downsampling", "swin", "orphan"]
    assert list(table["label"])[1:3] == ["first", "next"]


@pytest.mark.parametrize("own", ["alone", "beside", "without"])
def test_the_papers_swin_stands_beside_ours_under_its_own_recipe_only(tmp_path, own):
    write_run(tmp_path, "gelu", regime="tiny", data="imagenet")
    if own != "alone":
        write_run(tmp_path, "swin", regime="tiny", data="imagenet")
    if own != "without":
        write_run(tmp_path, "swin", regime="tiny", data="imagenet", cell="swin,recipe=swin", recipe="swin")
    (group,) = groups_of(tmp_path)
    printed = {cell.cell: cell.paper.top1 for cell in group.cells if cell.paper and cell.step == "swin"}
    assert printed == ({} if own == "without" else {"swin,recipe=swin": 81.30})
    assert [row.cell for row in group.rows] == ["gelu", "swin,recipe=swin" if own == "alone" else "swin"]
    said = [note for note in group.notes if "Swin-T's printed 81.30 comes from Swin's own recipe" in note]
    assert len(said) == (own != "alone")


def test_a_report_says_where_training_departs_from_what_the_paper_printed(tmp_path):
    write_run(tmp_path, "resnet", regime="base", data="imagenet", precision="fp32")
    write_run(tmp_path, "gelu", regime="base", data="imagenet", precision="bf16")
    write_run(tmp_path, "gelu", regime="nano", precision="bf16")
    write_run(tmp_path, "separate_downsampling", regime="xlarge", data="imagenet", precision="bf16")
    notes = {group.regime: " ".join(group.notes) for group in groups_of(tmp_path)}
    assert "trained in bf16; the authors' commands for ImageNet-1K ran in fp32" in notes["base"]
    assert "ResNet-200's printed 78.20 has no published recipe" in notes["base"]
    assert "ConvNeXt-XL from scratch on ImageNet-1K has no published recipe" in notes["xlarge"]
    assert "bf16;" not in notes["nano"] + notes["xlarge"]  # no number of the paper stands there


def test_own_steps_that_are_each_others_parents_do_not_hang(tmp_path):
    write_run(tmp_path, "a_step", parent="b_step")
    write_run(tmp_path, "b_step", parent="a_step")
    (group,) = groups_of(tmp_path)
    assert {row.step for row in group.rows} == {"a_step", "b_step"}


def test_variants_and_overrides_are_no_rows_but_listed_apart(tmp_path):
    write_run(tmp_path, "gelu", top1=50.0)
    write_run(tmp_path, "gelu", top1=10.0, cell="gelu+without_depthwise", variant="without_depthwise")
    write_run(tmp_path, "gelu", top1=20.0, cell="gelu,recipe.lr=0.001")
    groups = groups_of(tmp_path)
    assert list(frame(groups)["top1_mean"]) == [50.0]
    others = dict(frame(groups, "others")[["cell", "top1_mean"]].values)
    assert others == {"gelu+without_depthwise": 10.0, "gelu,recipe.lr=0.001": 20.0}
    text = to_markdown(groups, collect([tmp_path])).decode()
    assert text.index("### Other cells") < text.index("without\\_depthwise")


@pytest.mark.parametrize(
    ("regime", "data", "image_size", "beside"),
    [
        ("tiny", "imagenet", 224, True),
        ("base", "imagenet", 224, True),
        ("tiny", "imagenet", 192, False),
        ("tiny", "cifar10", 224, False),
        ("nano", "imagenet", 224, False),
    ],
)
def test_the_papers_numbers_stand_beside_ours_only_where_they_compare(tmp_path, regime, data, image_size, beside):
    write_run(tmp_path, "gelu", regime=regime, data=data, image_size=image_size)
    (row,) = groups_of(tmp_path)[0].rows
    assert (row.paper is not None) == beside
    if beside:
        assert row.paper.top1 == {"tiny": 80.62, "base": 82.19}[regime]


@pytest.mark.parametrize(
    ("size", "net", "note"),
    [
        (
            48,
            "  stem_stride: 2\n  kernel_size: 7",
            "of 24, 12, 6 and 3 pixels: kernels above 47, 23, 11 and 5 have weights that see only padding",
        ),
        (48, "  stem_stride: 2\n  kernel_size: 5", None),
        (
            32,
            "  kernel_size: 3",
            "of 8, 4, 2 and 1 pixels: kernels above 15, 7, 3 and 1 have weights that see only padding",
        ),
        (224, "  kernel_size: 11", None),
        (32, "  stem_stride: __import__('os')\n  kernel_size: 1e9", None),  # a config is anybody's text
    ],
)
def test_maps_that_kernels_outgrow_are_noted(tmp_path, size, net, note):
    write_run(tmp_path, "gelu", image_size=size, config=f"model:\n{net}\n")
    (group,) = groups_of(tmp_path)
    assert [line for line in group.notes if "GPU-hours" not in line] == ([f"maps {note}"] if note else [])


def test_costs_of_runs_that_trained_side_by_side_say_that_they_are_a_runs_share(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "gelu", seed, group_size=3)
    write_run(tmp_path, "gelu", study="alone")
    collected = collect([tmp_path])
    groups = aggregate(collected.runs)
    hours = {group.study: [note for note in group.notes if "GPU-hours" in note] for group in groups}
    assert hours["alone"] == ["0.5 GPU-hours for 1 finished run"]
    shared = "1.5 GPU-hours for 3 finished runs, up to 3 side by side (training speed is of one of them)"
    assert hours["roadmap"] == [shared]
    text = to_markdown(groups, collected).decode()
    assert "- training speed (images/s): of one run, beside the others where several train side by side; mean" in text
    assert "- peak memory (GiB): of one process, a run's share where several train side by side; mean over" in text
    assert "- GPU-hours (h): of all GPUs of a run together, its share where several train side by side; mean" in text


@pytest.mark.parametrize(
    ("regime", "data", "caution"),
    [
        ("nano", "imagenet", "order"),
        ("tiny", "digits", "order"),
        ("tiny", "synthetic", "accuracy means nothing"),
        ("tiny", "imagenet", ""),
    ],
)
def test_small_scales_and_synthetic_images_are_labelled(tmp_path, regime, data, caution):
    write_run(tmp_path, "gelu", regime=regime, data=data)
    (group,) = groups_of(tmp_path)
    assert (caution in group.caution) if caution else not group.caution
    assert (for_markdown(group.caution) in to_markdown([group], collect([tmp_path])).decode()) or not caution


# --- what does not count


def test_an_unfinished_run_is_listed_and_never_a_number(tmp_path):
    write_run(tmp_path, "gelu", 0, top1=50.0)
    unfinished(tmp_path, "gelu", 1, epoch=7, epochs=20, top1=99.0)
    collected = collect([tmp_path])
    (line,) = map(str, collected.unfinished)
    assert line == f"{tmp_path}/roadmap/nano-digits/gelu/seed1: epoch 7 of 20, stopped"
    assert not collected.suspect
    assert [(run.seed, run.top1) for run in collected.runs] == [(0, 50.0)]


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
def test_a_summary_without_a_finished_state_is_not_believed(tmp_path, state):
    write_run(tmp_path, "gelu", state=state, status={"reason": "the loss is not finite"})
    collected = collect([tmp_path])
    assert not collected.runs
    assert state in collected.unfinished[0].reason
    assert ("not finite" in collected.unfinished[0].reason) == (state == "failed")


def test_a_run_that_is_done_but_has_no_summary_is_unfinished(tmp_path):
    (write_run(tmp_path, "gelu") / schema.SUMMARY).unlink()
    collected = collect([tmp_path])
    assert not collected.runs
    assert "no summary.json" in collected.unfinished[0].reason


def break_line(run: Path) -> None:
    lines = (run / schema.METRICS).read_text().splitlines(keepends=True)
    (run / schema.METRICS).write_text("".join([lines[0], '{"kind": "tra\x00\n', *lines[1:]]))


def deep(run: Path) -> None:
    (run / schema.SUMMARY).write_text("[" * 200_000)


def pipe(run: Path) -> None:
    (run / schema.METRICS).unlink()
    os.mkfifo(run / schema.METRICS)


def twice(run: Path) -> None:
    lines = (run / schema.METRICS).read_text().splitlines(keepends=True)
    (run / schema.METRICS).write_text("".join([*lines, *lines[-2:]]))


def nan_everywhere(run: Path) -> None:
    set_last_val(run, **{"val/top1": float("nan")})
    edit(run / schema.SUMMARY, top1=float("nan"))


BOMB = "".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9 if i else ['x'])}]\n" for i in range(9))
BREAKS = {
    "a corrupt line": (break_line, "corrupt line"),
    "a torn last line": (lambda run: (run / schema.METRICS).open("a").write('{"kind'), "corrupt line"),
    "a line that is there twice": (twice, "repeated"),
    "an empty ledger": (lambda run: (run / schema.METRICS).write_text(""), "no evaluation"),
    "no ledger": (lambda run: (run / schema.METRICS).unlink(), "metrics.jsonl is missing"),
    "no config": (lambda run: (run / schema.CONFIG).unlink(), "config.yaml is missing"),
    "a config that grows": (lambda run: (run / schema.CONFIG).write_text(BOMB), "holds more than 10000 values"),
    "a config without end": (lambda run: (run / schema.CONFIG).write_text("{a: " * 900 + "}" * 900), "config.yaml"),
    "a config that is no YAML": (lambda run: (run / schema.CONFIG).write_text("a: [b"), "not YAML"),
    "no status": (lambda run: (run / schema.STATUS).unlink(), "status.json is missing"),
    "a ledger that is a pipe": (pipe, "not a regular file"),
    "NaN in summary and ledger": (nan_everywhere, "is not what a run writes"),
    "NaN in the summary": (lambda run: edit(run / schema.SUMMARY, top1=float("nan")), "is not what a run writes"),
    "no accuracy": (lambda run: edit(run / schema.SUMMARY, top1=None), "is not what a run writes"),
    "an accuracy above 100": (lambda run: edit(run / schema.SUMMARY, top1=100.5), "is not what a run writes"),
    "an accuracy below 0": (lambda run: edit(run / schema.SUMMARY, top1=-1), "is not what a run writes"),
    "an accuracy of 400 digits": (lambda run: edit(run / schema.SUMMARY, top1=10**400), "a number of 401 digits"),
    "an accuracy that is text": (lambda run: edit(run / schema.SUMMARY, top1="50"), "is not what a run writes"),
    "an accuracy that is true": (lambda run: edit(run / schema.SUMMARY, top1=True), "is not what a run writes"),
    "top-5 below top-1": (lambda run: edit(run / schema.SUMMARY, top5=1.0), "below top1"),
    "a summary better than the ledger": (lambda run: edit(run / schema.SUMMARY, top1=51.0), "metrics.jsonl says 50"),
    "the best epoch's accuracy": (lambda run: set_last_val(run, **{"val/top1": 49.0}), "metrics.jsonl says 49"),
    "another epoch": (lambda run: edit(run / schema.SUMMARY, epoch=2), "is of epoch 3"),
    "too few epochs": (lambda run: edit(run / schema.SUMMARY, epochs=20), "epoch 3 of 20"),
    "a summary of another cell": (lambda run: edit(run / schema.SUMMARY, cell="kernel_7"), "belongs to kernel_7"),
    "a summary of another seed": (lambda run: edit(run / schema.SUMMARY, seed=5), "belongs to seed5"),
    "a summary that is a list": (lambda run: (run / schema.SUMMARY).write_text("[]"), "not a JSON object"),
    "a summary that is no JSON": (lambda run: (run / schema.SUMMARY).write_bytes(b"\xff\xfe\x00"), "not JSON"),
    "brackets without end": (deep, "not JSON"),
    "a foreign summary": (lambda run: (run / schema.SUMMARY).write_text('{"hello": 1}'), "study=None"),
    "a foreign status": (lambda run: (run / schema.STATUS).write_text('{"state": 7}'), "state=7"),
    "a huge name": (lambda run: edit(run / schema.SUMMARY, step="x" * 100_000), "(not a name)"),
    "a hostile name": (lambda run: edit(run / schema.SUMMARY, study="../\u202e\x1b[31m"), "(not a name)"),
    "adopted is no choice": (lambda run: edit(run / schema.SUMMARY, adopted="perhaps"), "adopted=perhaps"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_suspect_run_is_listed_left_out_and_hides_no_other(tmp_path, name):
    damage, reason = BREAKS[name]
    write_run(tmp_path, "gelu", 0, top1=40.0)
    run = write_run(tmp_path, "gelu", 1, top1=50.0)
    if name == next(iter(BREAKS)):  # nothing of it is suspect before it is damaged
        assert (len(collect([tmp_path]).runs), collect([tmp_path]).suspect) == (2, ())
    damage(run)
    collected = collect([tmp_path])
    assert [(run.seed, run.top1) for run in collected.runs] == [(0, 40.0)]
    (finding,) = collected.suspect
    assert "gelu/seed1" in finding.path
    assert reason in finding.reason
    shown = str(finding)
    assert len(shown) < 1000
    assert shown == clean(shown, 1000)


def test_the_same_folder_by_two_names_counts_once_and_silently(tmp_path):
    write_run(tmp_path / "runs", "gelu")
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    collected = collect([tmp_path / "runs", tmp_path / "runs" / "roadmap", tmp_path / "link", str(tmp_path)])
    assert (len(collected.runs), collected.suspect) == (1, ())


def test_a_copy_counts_once_and_is_listed(tmp_path):
    write_run(tmp_path / "a", "gelu")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    collected = collect([tmp_path / "a", tmp_path / "b"])
    assert len(collected.runs) == 1
    assert [f.path for f in collected.suspect] == [f"{tmp_path}/b/roadmap/nano-digits/gelu/seed0"]
    assert "a copy of" in collected.suspect[0].reason


def test_two_results_of_one_cell_and_seed_are_both_left_out(tmp_path):
    write_run(tmp_path / "a", "gelu", top1=50.0)
    write_run(tmp_path / "b", "gelu", top1=60.0)
    write_run(tmp_path / "b", "gelu", 1, top1=55.0)
    collected = collect([tmp_path / "a", tmp_path / "b"])
    assert [run.seed for run in collected.runs] == [1]
    assert len(collected.suspect) == 2
    assert all("50.00, 60.00" in finding.reason for finding in collected.suspect)
    for source, images in (("a", "f00d"), ("b", "beef")):  # the same accuracy is not the same result
        write_run(tmp_path / source, "gelu", 2, top1=52.0, data_fingerprint=images)
    assert [run.seed for run in collect([tmp_path / "a", tmp_path / "b"]).runs] == [1]


def test_seeds_trained_for_other_lengths_are_not_averaged(tmp_path):
    for seed, epochs in enumerate((3, 3, 6)):
        write_run(tmp_path, "gelu", seed, top1=50.0 + seed, epochs=epochs)
    collected = collect([tmp_path])
    assert [run.seed for run in collected.runs] == [0, 1]
    assert "epochs=6, not 3" in collected.suspect[0].reason


def test_link_loops_end_and_linked_studies_are_found(tmp_path):
    write_run(tmp_path / "elsewhere", "gelu")
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "a_loop").symlink_to(runs)
    (runs / "itself").symlink_to(runs / "itself")
    (runs / "roadmap").symlink_to(tmp_path / "elsewhere" / "roadmap")
    collected = collect([runs])
    assert (len(collected.runs), collected.suspect) == (1, ())


@pytest.mark.parametrize("depth", range(5))
def test_runs_are_found_from_any_folder_above_them(tmp_path, depth):
    run = write_run(tmp_path / "runs", "gelu")
    start = [run, *run.parents][depth]
    assert len(collect([start]).runs) == 1


def test_a_run_set_aside_and_what_lies_inside_a_run_are_no_runs(tmp_path):
    run = write_run(tmp_path, "gelu", top1=50.0)
    shutil.copytree(run, run.with_name("seed0.old1"))
    (run / "wandb" / "files").mkdir(parents=True)
    shutil.copy(run / schema.STATUS, run / "wandb" / "files")
    collected = collect([tmp_path])
    assert (len(collected.runs), collected.suspect, collected.unfinished) == (1, (), ())


@pytest.mark.parametrize("lost", [False, True])
def test_offline_folders_of_wandb_are_no_runs_whether_the_run_is_there_or_lost(tmp_path, lost):
    run = write_run(tmp_path, "gelu")
    files = run / "wandb" / "offline-run-20260101_000000-abcdef" / "files"
    files.mkdir(parents=True)
    (files.parent / "run-abcdef.wandb").write_bytes(b"a log")
    shutil.copy(run / schema.STATUS, files)
    (run / "wandb" / "latest-run").symlink_to(files.parent)
    for path in run.iterdir() if lost else ():
        if path.is_file():
            path.unlink()
    collected = collect([tmp_path])
    assert (len(collected.runs), collected.suspect, collected.unfinished) == (0 if lost else 1, (), ())


def test_a_missing_folder_is_listed_beside_good_ones(tmp_path):
    write_run(tmp_path / "runs", "gelu")
    (tmp_path / "file").write_text("")
    collected = collect([tmp_path / "absent", tmp_path / "file", tmp_path / "runs"])
    assert len(collected.runs) == 1
    missing = f"no such folder; in {tmp_path} there are: file, runs"
    assert [f.reason for f in collected.suspect] == [missing, "is neither a folder nor an archive (.zip)"]


@pytest.mark.parametrize("name", ["#recycle", "$RECYCLE.BIN", "@eaDir", "lost+found"])
def test_what_a_system_keeps_of_deleted_runs_is_not_counted(tmp_path, name):
    write_run(tmp_path / "runs", "gelu")
    write_run(tmp_path / "runs" / name, "resnet")
    collected = collect([tmp_path / "runs"])
    assert [run.step for run in collected.runs] == ["gelu"]


def test_many_long_ledgers_are_read_in_several_processes_with_the_same_result(tmp_path, monkeypatch):
    for step in ("resnet", "gelu", "kernel_7"):
        write_run(tmp_path, step, top1=50.0)
    break_line(write_run(tmp_path, "kernel_9"))
    unfinished(tmp_path, "kernel_5")
    alone = collect([tmp_path])
    used = []
    monkeypatch.setattr(collecting, "LONG", 0)
    monkeypatch.setattr(collecting, "num_cores", lambda: 2)
    monkeypatch.setattr(collecting, "get_context", lambda kind: used.append(kind) or multiprocessing.get_context(kind))
    assert collect([tmp_path]) == alone
    assert (len(alone.runs), len(alone.suspect), len(alone.unfinished), used) == (3, 1, 1, ["spawn"])


# --- the ledger and the numbers of a summary


LINES = st.sampled_from(
    [
        b'{"kind": "train", "epoch": 1, "global_step": 1, "train/loss": 1.0}',
        b'{"kind": "train", "epoch": 1, "global_step": 2, "train/loss": 1.0}',
        b'{"kind": "train", "epoch": 1, "global_step": 2, "train/loss": NaN}',
        b'{"kind": "train", "global_step": "2"}',
        b'{"kind": "train", "epoch": 1, "global_step": 3, "a": {"b": 1}}',
        b'{"kind": "val", "epoch": 1, "global_step": 2, "val/top1": 50.0}',
        b'{"kind": "val", "epoch": 1, "global_',
        b'{"kind": "other", "global_step": 1}',
        b"[1]",
        b"",
        b"\xff\x00",
    ]
)


ROW = b'{"kind": "train", "epoch": 1, "global_step": %d, "train/loss": 1.0}\n'


@given(st.lists(LINES, max_size=6), st.booleans())
def test_a_ledger_is_judged_alike_whether_training_lines_are_decoded_or_not(tmp_path_factory, lines, ended):
    path = tmp_path_factory.mktemp("ledger") / "metrics.jsonl"
    path.write_bytes(b"\n".join(lines) + (b"\n" if ended else b""))
    whole, quick = (parse_metrics(path.read_bytes(), train=train) for train in (True, False))
    assert quick.problem == whole.problem
    assert quick.rows == [row for row in whole.rows if row["kind"] == "val"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (ROW % 1 + ROW % 2, ""),
        (ROW % 1 + b"[1]\n" * 6, "6 corrupt line(s) (2, 3, 4, 5, 6)"),
        (ROW % 1 + ROW[:20], "1 corrupt line(s) (last)"),
        (b"[1]\n" + ROW[:20], "2 corrupt line(s) (1)"),
        (ROW % 2 + ROW % 2, "train rows are out of order or repeated"),
        ((ROW % 1).replace(b"1.0", b"null"), "contains a training loss that is not a number"),
        ((ROW % 1).replace(b"1.0", b"NaN"), "contains a training loss that is not a number"),
        (b"\0" * 70_000 + b"\n" + ROW % 1, "1 corrupt line(s) (1)"),
        (ROW % 1 + (ROW % 2).replace(b"1.0", b"1." + b"0" * 70_000), "1 corrupt line(s) (2)"),
        (b'{"kind": "val", "epoch": 1, "global_step": "2"}\n', "1 corrupt line(s) (1)"),
        (b'{"kind": "val", "epoch": null, "global_step": 2}\n', "1 corrupt line(s) (1)"),
    ],
)
def test_what_is_wrong_with_a_ledger_is_said(data, problem):
    assert parse_metrics(data).problem == (f"metrics.jsonl: {problem}" if problem else "")


@pytest.mark.parametrize(
    ("numbers", "hole"),
    [
        ([1, 2, 3], ""),
        ([1, 3], "step 2 is missing"),
        ([1], "steps 2 to 3 are missing"),
        ([1, 2, 2, 3], "step 2 is repeated or out of order"),
        ([1, 2, 3, 4], "steps continue to 4, past 3"),
    ],
)
def test_where_a_ledger_has_a_hole_is_said(numbers, hole):
    assert find_hole("step", numbers, 3) == hole


def test_one_seed_that_has_the_macs_has_them_for_the_net(tmp_path):
    for seed, gmacs in enumerate((None, 4.2)):
        write_run(tmp_path, "gelu", seed, gmacs=gmacs)
    assert groups_of(tmp_path)[0].rows[0].numbers["gmacs"] == 4.2


def test_a_number_that_runs_record_is_shown_everywhere_by_its_line_in_the_table(tmp_path, monkeypatch):
    energy = schema.Quantity("energy_kwh", "energy", "kWh", "of one run, mean over seeds", digits=1)
    monkeypatch.setitem(schema.QUANTITIES, "energy_kwh", energy)
    for seed in range(2):
        write_run(tmp_path / "runs", "resnet", seed, energy_kwh=12.5 + seed)
        older = {} if seed else {"energy_kwh": 9.5}  # of one seed alone a mean says nothing
        write_run(tmp_path / "runs", "enhanced_recipe", seed, **older)
    out = tmp_path / "out"
    monkeypatch.setattr("roadmap.report.__main__.FORMATS", ("svg",))  # what the page shows
    assert main([str(tmp_path / "runs"), "--out", str(out)]) == 0
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert [row["energy_kwh"] for row in rows] == ["13", ""]
    report = json.loads((out / "report.json").read_text())
    assert [cell["energy_kwh"] for cell in report["groups"][0]["cells"]] == [13.0, None]
    assert report["quantities"]["energy_kwh"] == {"name": "energy", "unit": "kWh", "about": energy.about}
    for name in ("table.md", "table.tex", "index.html"):
        text = (out / name).read_text()
        assert ("energy (kWh)" in text, "13.0" in text) == (True, True), name


# --- text that others wrote


@settings(max_examples=200)
@given(st.text(max_size=300))
def test_any_text_becomes_one_safe_line(text):
    shown = clean(text)
    assert len(shown) <= 200
    assert shown.isprintable()
    shown.encode()  # no lone surrogates
    assert for_csv(text)[:1] not in set("=+-@\t\r")
    marked = for_markdown(text)
    assert "<" not in marked
    assert "|" not in marked.replace("\\|", "")


def test_directions_controls_and_stacked_marks_are_stripped():
    assert clean("a\u202eb\u200f\x1b[31mc\x00\ud800\n d") == "ab[31mc d"
    assert clean("z" + "\u0300" * 50).count("\u0300") <= 2


def test_long_names_keep_both_ends():
    assert shorten("a" * 50 + "_end", 20) == "aaaaaaaaaaaaaa…a_end"
    assert len(shorten("x" * 1000, 36)) == 36


def test_csv_can_be_read_back_and_computes_nothing(tmp_path):
    labels = ["=cmd()|' /C calc'!A0", "+1", "-1", "@SUM(A1)", 'a, "b"\n| c', "plain"]
    for i, label in enumerate(labels):
        for seed in range(2):
            write_run(tmp_path, f"own{i}", seed, top1=50.123456 + seed, parent="gelu", label=label)
    rows = list(csv.DictReader(csv_files(groups_of(tmp_path))["table.csv"].decode().splitlines()))
    assert [row["label"] for row in rows] == [*(f"'{label}" for label in labels[:4]), 'a, "b" | c', "plain"]
    assert all(float(row["top1_mean"]) == pytest.approx(50.623456) for row in rows)
    assert all(float(row["top1_std"]) == pytest.approx(statistics.stdev([0, 1]), abs=1e-5) for row in rows)
    assert {row["n"] for row in rows} == {"2"}


# --- the command


def test_the_command_writes_the_report_and_says_where(tmp_path, capsys):
    write_roadmap(tmp_path / "runs", seeds=1, epochs=1)
    break_line(write_run(tmp_path / "runs", "gelu", 7))
    out = tmp_path / "new" / "report"
    assert main([str(tmp_path / "runs"), "--out", str(out)]) == 0
    assert TABLES <= {p.name for p in out.iterdir()}
    assert {"roadmap.pdf", "roadmap.png", "roadmap.svg"} <= {p.name for p in out.iterdir()}
    shown = capsys.readouterr().out
    assert shown.startswith("Suspect")
    assert "gelu/seed7" in shown.splitlines()[1]
    written = shown.partition(f"Written to {out}")[2]
    assert str(out / "index.html") in written
    assert all(p.stem in written for p in out.iterdir())
    assert (out / "table.md").read_text().index("gelu/seed7") < (out / "table.md").read_text().index("| step")


def test_the_same_runs_give_the_same_bytes(tmp_path):
    chain = ("resnet", "enhanced_recipe", "move_up_depthwise", "kernel_5", "kernel_7", "gelu")
    for i, (step, seed) in enumerate(itertools.product(chain, range(2))):
        write_run(tmp_path / "runs", step, seed, top1=50.0 + i, epochs=2)
    write_run(tmp_path / "runs", "gelu", cell="gelu,recipe.lr=1")
    for name in ("1", "2"):
        words = ("-m", "roadmap.report", tmp_path / "runs", "--out", tmp_path / name)
        python(*words, check=True, env=os.environ | {"PYTHONHASHSEED": name})
    files = sorted(p.name for p in (tmp_path / "1").iterdir())
    assert TABLES | {"other_cells.csv", "roadmap.png", "ranking.svg", "kernel_size.pdf"} <= set(files)
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_a_table_that_an_earlier_report_left_is_emptied_where_it_is_no_longer_true(tmp_path):
    write_run(tmp_path / "runs", "gelu")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tuning.csv").write_text("study,step\nold,gelu\n")
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--tables-only"]) == 0
    (heading,) = (tmp_path / "out" / "tuning.csv").read_text().splitlines()
    assert heading.startswith("study,regime,data,step")
    assert not (tmp_path / "out" / "holdout.csv").exists()


def test_tiny_and_base_share_a_chart_and_other_groups_have_their_own(tmp_path):
    write_run(tmp_path, "gelu", study="roadmap_tiny", regime="tiny", data="imagenet")
    write_run(tmp_path, "gelu", study="roadmap_base", regime="base", data="imagenet")
    groups = groups_of(tmp_path)
    regimes = {name: [group.regime for group in together] for name, together in charts(groups).items()}
    assert regimes == {"roadmap": ["tiny", "base"]}
    write_run(tmp_path, "gelu", study="demo")
    named = charts(groups_of(tmp_path))
    assert list(named) == ["roadmap-demo-nano-digits", "roadmap-roadmap_tiny-roadmap_base-tiny-base-imagenet"]


def test_charts_of_long_and_ambiguous_names_do_not_overwrite_each_other(tmp_path):
    for study in ("a-nano", "a", "x" * 80):
        regime, data = "nano-nano" if study == "a" else "nano", "d" * 80 if study[0] == "x" else "digits"
        write_run(tmp_path, "gelu", study=study, regime=regime, data=data)
    names = list(charts(groups_of(tmp_path)))
    assert len({name.casefold() for name in names}) == 3
    assert max(map(len, names)) <= 120


def test_a_report_of_variants_alone_has_tables_and_no_chart(tmp_path, capsys):
    write_run(tmp_path / "runs", "gelu", cell="gelu+without_depthwise", variant="without_depthwise")
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert TABLES | {"other_cells.csv"} <= {p.name for p in (tmp_path / "out").iterdir()}
    assert not list((tmp_path / "out").glob("roadmap*"))
    assert "there is no chart" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda runs: runs.mkdir(), "nothing to report"),
        (lambda runs: (runs.mkdir(), (runs / "a.zip").touch()), "archives count where they are named themselves: /"),
        (lambda runs: unfinished(runs, "gelu"), "epoch 7 of 20"),
        (lambda runs: break_line(write_run(runs, "gelu")), "corrupt"),
        (lambda runs: runs.write_text("no folder"), "neither a folder"),
        (lambda runs: None, "no such folder"),
    ],
)
def test_without_one_usable_run_it_exits_65_in_plain_words_and_writes_nothing(tmp_path, capsys, make, words):
    make(tmp_path / "runs")
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 65
    captured = capsys.readouterr()
    assert words in captured.err
    assert len(captured.err.splitlines()) <= 2
    assert not captured.out
    assert not (tmp_path / "out").exists()


def test_on_a_terminal_a_report_says_what_it_reads(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main([str(tmp_path / "absent"), "--out", str(tmp_path / "out")]) == 65
    assert capsys.readouterr().err.startswith(f"Reading {tmp_path / 'absent'} ...\n")


def test_an_empty_output_is_not_this_folder(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "runs", "gelu")
    monkeypatch.chdir(tmp_path)
    assert main(["runs", "--out", ""]) == 64
    assert capsys.readouterr().err == (
        "error: --out '': is empty, perhaps from a variable that is not set; `.` is this folder\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize("arguments", [[], ["runs"], ["--out", "x"], ["runs", "--out", "x", "--colour"]])
def test_bad_arguments_exit_64(arguments, capsys):
    assert main(arguments) == 64
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_output_that_cannot_be_written_exits_74(tmp_path, capsys):
    write_run(tmp_path / "runs", "gelu")
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        for command in ([str(tmp_path / "absent")], [str(tmp_path / "runs")]):  # before anything is read
            assert main([*command, "--out", str(out)]) == 74
            assert f"{out}: cannot be written, {tmp_path / 'file'} is no folder; --out takes" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"


def test_as_a_command_it_imports_neither_torch_nor_hydra_and_shows_no_traceback(tmp_path):
    write_run(tmp_path / "runs", "gelu")
    code = "import sys; from roadmap.report.__main__ import main; main(sys.argv[1:]); "
    code += "print({'torch', 'hydra'} & set(sys.modules))"
    done = python("-c", code, tmp_path / "runs", "--out", tmp_path / "out", check=True)
    assert done.stdout.rstrip().endswith("set()")
    failed = python("-m", "roadmap.report", tmp_path / "absent", "--out", tmp_path / "no")
    assert failed.returncode == 65
    assert "Traceback" not in failed.stderr


def test_a_terminal_without_our_signs_and_a_home_that_cannot_be_written_do_not_end_the_report(tmp_path):
    for seed in range(2):
        write_run(tmp_path / "runs", "gelu", seed, top1=50.0 + seed)
    nowhere = {"HOME": "/proc/none", "MPLCONFIGDIR": "/proc/none/mpl", "PYTHONIOENCODING": "ascii"}
    nowhere |= {"MPLBACKEND": "Qt4Agg"}  # left by something else
    env = {name: value for name, value in os.environ.items() if not name.startswith("XDG")} | nowhere
    done = python("-m", "roadmap.report", tmp_path / "runs", "--out", tmp_path / "out", env=env, text=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"50.50 ? 0.71" in done.stdout
    assert (tmp_path / "out" / "index.html").exists()


def test_an_empty_source_is_not_this_folder():
    """As `--runs "$NOT_SET"` has it: all that lies below would be reported."""
    with pytest.raises(ConfigError, match="source '': is empty"):
        collect([""])
