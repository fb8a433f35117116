"""`make runs`: every run of every study, a line each; a bad one says why and ends nothing."""

import json
import os
import socket
import time

import pytest

from roadmap.files import read_json, write_json
from roadmap.report import collect
from roadmap.runs import schema
from roadmap.runs.__main__ import main
from roadmap.runs.listing import list_runs
from roadmap.runs.pack import pack
from roadmap.runs.process import process_start
from tests.conftest import ROOT
from tests.fabricate import unfinished, write_run
from tests.test_hostile_runs import KINDS, by_image, spoil

HERE = {"host": socket.gethostname(), "pid": os.getpid(), "pid_start": process_start(os.getpid())}


def as_it_is(run, status):
    write_json(run / schema.STATUS, read_json(run / schema.STATUS) | status)


@pytest.fixture
def runs(tmp_path):
    """Runs in every state, of two studies, one of them in an archive too."""
    folder = tmp_path / "runs"
    write_run(folder, "gelu", 0, status={"updated": "2026-11-25T10:00:00Z"})
    write_run(folder, "gelu", 10, top1=61.5, status={"updated": "2026-11-26T10:00:59Z"})
    write_run(folder, "gelu", 2, cell="gelu,model.kernel_size=9")
    write_run(folder, "resnet", 0, study="other", data="imagenet", regime="tiny")
    as_it_is(unfinished(folder, "layer_norm", 0, state="running"), HERE)
    as_it_is(unfinished(folder, "layer_norm", 1, state="running"), {**HERE, "pid_start": 1})
    as_it_is(unfinished(folder, "layer_norm", 2, state="running"), {"host": "node7"})
    as_it_is(unfinished(folder, "layer_norm", 3, state="failed"), {"reason": "NonFiniteError: loss"})
    pack(str(folder / "other"), folder / "other.zip")
    return folder


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_every_run_is_listed_with_state_accuracy_epochs_time_and_path(runs, capsys):
    assert main([str(runs)]) == 0
    table = lines(capsys)
    assert table[0].split() == ["state", "top-1", "epoch", "updated", "(UTC)", "run", "below", str(runs)]
    assert table[-1] == "9 runs: 5 done, 2 running, 2 failed"
    paths = [line[table[0].index("run below") :] for line in table[1:-1]]
    assert paths == [
        "other.zip/other/tiny-imagenet/resnet/seed0",
        "other/tiny-imagenet/resnet/seed0",
        "roadmap/nano-digits/gelu/seed0",
        "roadmap/nano-digits/gelu/seed10",
        "roadmap/nano-digits/gelu,model.kernel_size=9/seed2",
        "roadmap/nano-digits/layer_norm/seed0",
        "roadmap/nano-digits/layer_norm/seed1: killed: its process is gone",
        "roadmap/nano-digits/layer_norm/seed2: on node7, by its own record",
        "roadmap/nano-digits/layer_norm/seed3: NonFiniteError: loss",
    ]
    assert "61.50    3/3  2026-11-26 10:00" in table[4]
    assert table[6].startswith("running")
    assert "20/20" in table[6]


def test_a_run_that_prepares_itself_or_waits_for_others_has_taken_no_step(runs, capsys):
    run = runs / "roadmap" / "nano-digits" / "layer_norm" / "seed0"
    (run / schema.METRICS).unlink()
    assert main([str(run)]) == 0
    assert lines(capsys)[1].endswith("no step yet")


FILTERED = [
    (["--state", "failed"], 2),
    (["--state", "done", "--step", "gelu"], 3),
    (["--cell", "gelu"], 2),
    (["--study", "other"], 2),
    (["--data", "digits", "imagenet"], 9),
    (["--regime", "tiny", "--seed", "0"], 2),
    (["--seed", "10", "--state", "failed"], 0),
    (["--state", "damaged"], 0),
]


@pytest.mark.parametrize(("words", "count"), FILTERED)
def test_filters_narrow_what_is_listed(runs, capsys, words, count):
    assert main([str(runs), "--json", *words]) == 0
    assert len(json.loads(capsys.readouterr().out)) == count


def test_json_and_newest_first(runs, capsys):
    assert main([str(runs), "--json", "--newest"]) == 0
    first, second, *_ = json.loads(capsys.readouterr().out)
    assert (first["seed"], second["seed"]) == (10, 0)
    assert first | {"path": ""} == {
        "path": "", "study": "roadmap", "regime": "nano", "data": "digits", "cell": "gelu", "step": "gelu", "seed": 10,
        "state": "done", "top1": 61.5, "epoch": 3, "epochs": 3, "updated": "2026-11-26 10:00", "reason": "",
    }  # fmt: skip


def test_hostile_runs_are_listed_with_their_reason_and_end_nothing(tmp_path, capsys):
    write_run(tmp_path / "runs", "gelu", by_image=by_image())
    for number, (file, kind) in enumerate(KINDS, 1):
        spoil(write_run(tmp_path / "runs", "gelu", number, by_image=by_image()), file, kind)
    (tmp_path / "runs" / "bad.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    write_run(tmp_path / "runs", "layer_norm", status={"reason": "\x1b[2Jx", "state": "failed"})
    began = time.process_time()
    assert main([str(tmp_path / "runs")]) == 0
    assert time.process_time() - began < 3
    table = lines(capsys)
    assert "\x1b" not in "".join(table)
    for number, (file, _) in enumerate(KINDS, 1):
        if file in (schema.STATUS, schema.SUMMARY):
            (line,) = [line for line in table if f"gelu/seed{number}:" in line]
            assert line.startswith("damaged")
            assert file in line
    assert any("bad.zip: is damaged, or not an archive of runs" in line for line in table)


def test_wrong_commands(tmp_path, capsys):
    for words, code, error in [
        ([str(tmp_path / "none")], 64, "no such folder or archive"),
        ([str(tmp_path)], 65, "holds no run"),
        ([str(tmp_path), "--stat", "x"], 64, "see --help"),
    ]:
        assert main(words) == code
        assert error in capsys.readouterr().err
    write_run(tmp_path, "gelu")
    assert main([str(tmp_path), "--step", "gel"]) == 64
    assert "--step gel: no run here has it; did you mean gelu?" in capsys.readouterr().err
    assert main([str(tmp_path), "--state", "finished"]) == 64
    assert "did you mean failed? There are: failed, damaged, done, running, stopped" in capsys.readouterr().err


def test_it_agrees_with_the_report_on_the_recorded_results():
    source = str(ROOT / "notebooks" / "results")
    listed = {run.path: run.top1 for run in list_runs([source])}
    archives = [f"{source}/{name}.zip" for name in ("demo", "mini_h100")]
    assert listed == {run.path: run.top1 for run in collect(archives).runs}
