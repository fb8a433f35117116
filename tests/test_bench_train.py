"""`python -m roadmap.bench train`: every part says what it measured, with its number of measurements."""

import re

import pytest

from roadmap.bench.__main__ import main

SMALL = ("--regime", "nano", "--batch", "8", "--image-size", "32", "--steps", "2", "--rounds", "2", "--device", "cpu")
THREE = r"-?\d+\.\d{3} \(-?\d+\.\d{3} to -?\d+\.\d{3}, n = 2\)"


@pytest.mark.parametrize(
    ("part", "pattern"),
    [
        ("overhead", rf"overhead: our loop takes {THREE} of a bare loop's time; [\d,.]+ images/s, peak memory \d+\.\d\d GiB; 2 x 2 steps"),
        ("data", r"data: training waits \d+\.\d % of its time for the reference pipeline at [\d,.]+ images/s; the pipeline alone gives"),
        ("checkpoint", rf"checkpoint: 0\.9 M parameters, \d+ MB; training waits {THREE} s for the copy and loses {THREE} s in all"),
    ],
)  # fmt: skip
def test_a_part_prints_one_line(capsys, part, pattern):
    assert main(["train", part, *SMALL]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert re.match(pattern, line), line


@pytest.mark.slow
def test_nets_measures_every_row(capsys):
    assert main(["train", "nets", *SMALL]) == 0
    assert len(re.findall(r"^\| \w+ \| [\d,]+ \| [\d,]+ \|", capsys.readouterr().out, re.MULTILINE)) >= 17


def test_a_part_that_there_is_not_is_told(capsys):
    with pytest.raises(SystemExit):
        main(["train", "everything"])
    assert "everything: there is no such part; allowed: overhead, data, checkpoint, nets" in capsys.readouterr().err
