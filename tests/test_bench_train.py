"""`python -m roadmap.bench train`: every part says what it measured, with its number of measurements."""

import json
import re

import pytest

from roadmap.bench.__main__ import main

SMALL = ("--regime", "nano", "--batch", "8", "--image-size", "32", "--steps", "2", "--repeats", "2", "--device", "cpu")
THREE = r"-?\d+\.\d{3} \(-?\d+\.\d{3} to -?\d+\.\d{3}, n = 2\)"


@pytest.mark.parametrize(
    ("part", "pattern"),
    [
        ("data", r"data: training waits \d+\.\d % of its time for the reference pipeline at [\d,.]+ images/s; the pipeline alone gives"),
        ("checkpoint", rf"checkpoint: 0\.9 M parameters, \d+ MB; training waits {THREE} s for the copy and loses {THREE} s in all"),
    ],
)  # fmt: skip
def test_a_part_tells_what_it_measured(capsys, tmp_path, part, pattern):
    file = tmp_path / "train.json"
    assert main(["train", part, *SMALL, "--json", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(pattern, lines[-1]), lines
    assert part in json.loads(file.read_text())


def test_three_loops_train_the_same_epochs(tmp_path, capsys):
    file = tmp_path / "train.json"
    assert main(["train", "overhead", *SMALL, "--json", str(file)]) == 0
    pattern = (
        r"overhead: our loop is [\d.]+ \([\d.]+ to [\d.]+\) x as fast as (bare loop|timm's loop and net), the best peer"
    )
    assert re.fullmatch(pattern, capsys.readouterr().out.splitlines()[-1])
    (row,) = json.loads(file.read_text())["rows"]
    found = [(entry["candidate"], entry["images_a_call"], entry["failed"]) for entry in row["candidates"]]
    assert found == [(name, 16, None) for name in ("bare loop", "our loop", "timm's loop and net")]
    assert all(len(entry["times_s"]) == 2 for entry in row["candidates"])


def test_timms_loop_stands_beside_its_own_optimizer_only(tmp_path):
    file, short = tmp_path / "train.json", ("--steps", "1", "--repeats", "1")
    assert (
        main(
            [
                "train",
                "overhead",
                *SMALL,
                "--regime",
                "tiny",
                "--step",
                "resnet",
                "--batch",
                "2",
                *short,
                "--json",
                str(file),
            ]
        )
        == 0
    )
    *sound, theirs = json.loads(file.read_text())["rows"][0]["candidates"]
    assert theirs["failed"] == "--step=resnet: timm's loop has AdamW only, not the recipe's sgd"
    assert [entry["failed"] for entry in sound] == [None, None]


def test_a_part_that_there_is_not_is_told(capsys):
    assert main(["train", "everything"]) == 64
    assert "PART=everything: there is no such part; allowed: overhead, data, checkpoint" in capsys.readouterr().err
