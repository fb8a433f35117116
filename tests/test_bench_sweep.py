"""`python -m roadmap.bench sweep` measures what it says, and a study's bookkeeping stays cheap."""

import re

import pytest

from roadmap.bench.__main__ import main


@pytest.mark.slow
def test_the_benchmark_of_a_study_tells_every_number(capsys):
    assert main(["sweep", "--repeats", "1"]) == 0
    told = capsys.readouterr().out
    for what in (
        "submitting 108 cells",
        "peak memory of submitting",
        "status of 108 cells at work",
        "a cell's start-up",
    ):
        assert float(re.search(rf"{what}[^:]*: ([\d.]+)", told)[1]) > 0, told


def test_an_unknown_benchmark_is_told(capsys):
    assert main(["nope"]) == 64
    assert "sweep" in capsys.readouterr().err
