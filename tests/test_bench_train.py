"""`python -m roadmap.bench train`: the loops train the same epochs, and what is printed of them."""

import json
import re
from tempfile import TemporaryDirectory

import pytest

from roadmap.bench.__main__ import main
from roadmap.bench.bound import Rates
from roadmap.bench.train import seconds_to_first_row
from roadmap.errors import ConfigError

from .drive import python

SMALL = ("--regime", "nano", "--batch", "8", "--image-size", "32", "--steps", "2", "--repeats", "2", "--device", "cpu")


@pytest.fixture(autouse=True)
def rates(monkeypatch):
    """Take the device's rates as given: test_bench_bound measures them."""
    monkeypatch.setattr("roadmap.bench.train.measured_rates", lambda device, precision: Rates(1e11, 1e10))
    monkeypatch.setattr("roadmap.bench.train.seconds_to_first_row", lambda step, device: None)


def measured(file, *words):
    assert main(["train", *SMALL, *words, "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())["rows"]
    return row["candidates"]


def test_three_loops_train_the_same_epochs_and_the_start_is_told_beside_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("roadmap.bench.train.seconds_to_first_row", lambda step, device: 3.14159)
    entries = measured(tmp_path / "train.json")
    pattern = (
        r"loops: our loop is [\d.]+ \([\d.]+ to [\d.]+\) x as fast as (bare loop|timm's loop and net), the best peer"
    )
    out = capsys.readouterr().out
    assert re.fullmatch(pattern, next(line for line in out.splitlines() if line.startswith("loops: ")))
    assert "python run.py +step=separate_downsampling, from its start" in out
    assert "3.14 s of processor time" in out and json.loads((tmp_path / "train.json").read_text())["start_s"] == 3.14159
    found = [(entry["candidate"], entry["images_a_call"], entry["failed"]) for entry in entries]
    assert found == [(name, 16, None) for name in ("bare loop", "our loop", "timm's loop and net")]
    assert all(len(entry["times_s"]) == 2 for entry in entries)


@pytest.mark.parametrize("step", ["resnet", "gelu"])  # with a pool and its own draw of weights; without
def test_a_run_begins_without_the_compiler_and_other_libraries_of_seconds(step):
    """Each of these costs a second or more; a run of the demo has no use for them."""
    code = """
import sys
import run
assert run.CommandLine(run.run, sys.argv[1:]).main() == 0
heavy = ("torch._dynamo", "timm", "sklearn", "scipy", "torchvision", "pandas", "matplotlib")
heavy += ("sympy",) if sys.modules["torch"].__version__ > "2.14" else ()  # with 2.10 a net's shapes need it
print([name for name in heavy if name in sys.modules])
"""
    words = [f"+step={step}", "wandb.mode=disabled"]
    words += ["recipe.epochs=1", "recipe.warmup_epochs=0", "data.train_images=64"]
    with TemporaryDirectory() as runs:
        done = python("-c", code, *words, f"paths.runs={runs}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_start_of_a_run_is_measured_in_processor_seconds():
    assert 0.5 < seconds_to_first_row("gelu", "cpu") < 60
    with pytest.raises(ConfigError, match=r"ended before its first step: .*there is no such step"):
        seconds_to_first_row("gellu", "cpu")


def test_timms_loop_is_compared_with_its_own_optimizer_only(tmp_path):
    words = ("--regime", "tiny", "--step", "resnet", "--batch", "2", "--steps", "1", "--repeats", "1")
    *sound, theirs = measured(tmp_path / "train.json", *words)
    assert theirs["failed"] == "--step=resnet: timm's loop has AdamW only, not the recipe's sgd"
    assert [entry["failed"] for entry in sound] == [None, None]
