"""`python -m roadmap.bench train`: the loops train the same epochs, and what is printed of them."""

import json
import re

import pytest

from roadmap.bench.__main__ import main
from roadmap.bench.bound import Rates

SMALL = ("--regime", "nano", "--batch", "8", "--image-size", "32", "--steps", "2", "--repeats", "2", "--device", "cpu")


@pytest.fixture(autouse=True)
def rates(monkeypatch):
    """Take the device's rates as given: test_bench_bound measures them."""
    monkeypatch.setattr("roadmap.bench.train.measured_rates", lambda device, precision: Rates(1e11, 1e10))


def measured(file, *words):
    assert main(["train", *SMALL, *words, "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())["rows"]
    return row["candidates"]


def test_three_loops_train_the_same_epochs(tmp_path, capsys):
    entries = measured(tmp_path / "train.json")
    pattern = (
        r"loops: our loop is [\d.]+ \([\d.]+ to [\d.]+\) x as fast as (bare loop|timm's loop and net), the best peer"
    )
    assert re.fullmatch(pattern, capsys.readouterr().out.splitlines()[-1])
    found = [(entry["candidate"], entry["images_a_call"], entry["failed"]) for entry in entries]
    assert found == [(name, 16, None) for name in ("bare loop", "our loop", "timm's loop and net")]
    assert all(len(entry["times_s"]) == 2 for entry in entries)


def test_timms_loop_is_compared_with_its_own_optimizer_only(tmp_path):
    words = ("--regime", "tiny", "--step", "resnet", "--batch", "2", "--steps", "1", "--repeats", "1")
    *sound, theirs = measured(tmp_path / "train.json", *words)
    assert theirs["failed"] == "--step=resnet: timm's loop has AdamW only, not the recipe's sgd"
    assert [entry["failed"] for entry in sound] == [None, None]
