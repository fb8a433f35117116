"""The benchmark of the report: its runs are sound, it measures both reports, and a wrong name is refused."""

import tempfile

import pytest

from roadmap.bench.__main__ import NAMES, main
from roadmap.bench.report import write_runs
from roadmap.report import aggregate, collect


def test_the_runs_it_makes_are_sound_and_have_every_number(tmp_path):
    assert write_runs(tmp_path, seeds=2, epochs=3, images=400, steps=2) == 68
    collected = collect([tmp_path])
    assert (len(collected.runs), collected.suspect, collected.unfinished) == (68, (), ())
    groups = aggregate(collected.runs)
    assert [(group.regime, len(group.rows)) for group in groups] == [("tiny", 17), ("base", 17)]
    gains = [row.gain for group in groups for row in group.rows if row.gain]
    assert len(gains) == 32
    assert all(gain.over_seeds and gain.over_images for gain in gains)


def test_it_times_the_tables_and_the_whole_report(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert main(["report", "--seeds", "1", "--epochs", "2", "--images", "80", "--repeats", "1"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("34 runs, 2 epochs, 80 bits")
    assert [line.split(":")[0] for line in lines[1:]] == ["tables alone", "whole report"]
    assert all("(n = 1) s" in line and "GiB" in line for line in lines[1:])
    assert not list(tmp_path.iterdir())


def test_a_benchmark_that_there_is_not_is_refused(capsys):
    assert main(["rport"]) == 64
    assert (
        "rport: there is no such benchmark; allowed: net, input, train, mini, sweep, report" in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_word_that_a_benchmark_does_not_know_is_a_wrong_command(name, capsys):
    assert main([name, "--nonesuch"]) == 64
    assert "--nonesuch" in capsys.readouterr().err
