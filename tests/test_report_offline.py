"""Offline directories of W&B, written by the run's own mirror: they give the report where the run directory is lost."""

import shutil

import numpy as np
import pytest

from roadmap import files
from roadmap.report import collect
from roadmap.report.__main__ import main
from roadmap.runs import schema
from roadmap.runs.wandb_logger import WandbLogger
from roadmap.steps.compose import compose
from tests.fabricate import write_run

TABLES = ("table.csv", "table.md", "table.tex", "findings.txt")


def mirror(run, run_id: str, lines: tuple[int, ...] = (0,), done: bool = True) -> None:
    """Let the mirror of a run write offline, in as many starts as there are `lines` that are sent before each."""
    import yaml

    config = compose("gelu", "nano", ["wandb.mode=offline"])
    values = yaml.safe_load((run / schema.CONFIG).read_text())
    values |= {
        key: value
        for key, value in files.read_json(run / schema.STATUS).items()
        if key not in ("state", "epoch", "step")
    }
    said: list[str] = []
    for number, sent in enumerate(lines):
        last = number == len(lines) - 1
        one = WandbLogger(config, run, run_id, values, said.append)
        one.follow(sent, 10**6 if last else lines[number + 1])
        one.finish(files.read_json(run / schema.SUMMARY) if last and done else {}, 0 if last and done else 75)
    assert not said


def lose(run) -> None:
    """Lose all of a run directory but its offline directories."""
    for path in run.iterdir():
        if path.is_file():
            path.unlink()


@pytest.fixture
def study(tmp_path):
    rng = np.random.default_rng(1)
    runs = []
    for i, step in enumerate(("resnet", "enhanced_recipe")):
        about = {"status": {"code_hash": "aaaa"}, "code_hash": "aaaa", "correct": rng.random(100) < 0.4 + 0.3 * i}
        runs.append(write_run(tmp_path / "runs", step, **about))
    return tmp_path, runs


def test_they_give_the_same_tables_as_the_lost_directories_over_several_starts_too(study):
    tmp_path, runs = study
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "before"), "--tables-only"]) == 0
    there = collect([tmp_path / "runs"]).runs
    mirror(runs[0], "aaaaaaaa")
    mirror(runs[1], "bbbbbbbb", lines=(0, 2))
    assert len(list(runs[1].glob("wandb/offline-run-*"))) == 2
    for run in runs:
        lose(run)
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "after"), "--tables-only"]) == 0
    assert collect([tmp_path / "runs"]).runs == there  # curves, config and bits too
    for name in TABLES:
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes(), name
    assert "95 % over images" in (tmp_path / "after" / "table.md").read_text()


def test_beside_a_run_directory_that_is_there_they_are_not_read(study):
    tmp_path, runs = study
    mirror(runs[0], "aaaaaaaa")
    collected = collect([tmp_path / "runs"])
    assert (len(collected.runs), collected.suspect) == (2, ())


def test_a_run_that_did_not_end_and_a_broken_log_give_no_number(study):
    tmp_path, runs = study
    files.write_json(runs[0] / schema.STATUS, {"state": "stopped", "epoch": 1, "epochs": 3})
    mirror(runs[0], "aaaaaaaa", done=False)
    mirror(runs[1], "bbbbbbbb")
    for run in runs:
        lose(run)
    (log,) = runs[1].glob("wandb/offline-run-*/run-*.wandb")
    log.write_bytes(b"not a log of W&B")
    collected = collect([tmp_path / "runs"])
    assert not collected.runs
    assert [finding.reason for finding in collected.unfinished] == ["epoch 1 of 3, stopped"]
    assert "offline-run" in collected.suspect[0].path
    shutil.rmtree(tmp_path / "runs")
