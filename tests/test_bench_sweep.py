"""`python -m roadmap.bench sweep` measures what it says."""

import re

import pytest

from roadmap.bench.__main__ import main


@pytest.mark.slow
def test_the_benchmark_of_a_study_prints_every_number(capsys):
    assert main(["sweep", "--repeats", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    names = [
        "submitting 108 cells",
        "status of 108 cells at work",
        "a cell of one step, from the process's start to its end",
    ]
    assert [line.split(": ")[0] for line in lines] == names
    cost = r"[\d.]+ \(n = 1\) s, [\d.]+ \(n = 1\) s of processor time, at most [\d.]+ GiB"
    assert all(re.fullmatch(cost, line.split(": ")[1]) for line in lines), lines
