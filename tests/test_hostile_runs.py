"""A run directory that was made to do harm is named, in no time, and all others go on as if it were not there."""

import io
import json
import os
import pickle
import socket
import time

import numpy as np
import pytest
import torch

from roadmap.config.schema import Config
from roadmap.errors import ConfigError, DataError, DiskError, Refused
from roadmap.files import read_json, sha256_of, write_json
from roadmap.report import collect
from roadmap.report.__main__ import main
from roadmap.runs import schema
from roadmap.runs.progress import SweepProgress
from roadmap.runs.run_dir import RunDir, run_path
from roadmap.sweep import cell_states, jobs, plan, slurm_queue, status, sync
from roadmap.sweep.study_dir import StudyDir
from roadmap.training.evaluation import evaluate_weights
from roadmap.training.train import train
from tests.conftest import Trap
from tests.fabricate import write_run
from tests.test_hostile import BOMB, make

FILES = (
    schema.CONFIG, schema.STATUS, schema.SUMMARY, schema.METRICS, schema.CORRECT, schema.PREDICTIONS, schema.LABELS,
)  # fmt: skip
PLACES = ("pipe", "folder", "endless", "link to itself", "gigabytes")


def npy(header: str, data: bytes = b"\0" * 5) -> bytes:
    """Return a `.npy` file with a header of one's own."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


ROW = '{"kind": "val", "epoch": 3, "global_step": 30, "val/loss": 1.0, "val/top1": %s}\n'
CONTENTS = {
    (schema.CONFIG, "bomb"): BOMB,
    (schema.CONFIG, "loop"): "x: &a {b: *a}\n",
    (schema.CONFIG, "deep"): "x: " + "[" * 5000 + "]" * 5000,
    (schema.CONFIG, "code"): "x: !!python/object/apply:os.mkdir [/tmp/never]\n",
    (schema.CONFIG, "no text"): b"\xff\xfe\x00x",
    (schema.CONFIG, "list"): "- a\n",
    (schema.STATUS, "deep"): '{"state": ' + "[" * 100_000,
    (schema.STATUS, "less deep"): '{"state": ' + "[" * 300 + "]" * 300 + "}",
    (schema.STATUS, "digits"): '{"state": "done", "epoch": ' + "1" * 4000 + "}",
    (schema.STATUS, "list"): "[1, 2]",
    (schema.STATUS, "no text"): b'{"state": "\xff"}',
    (schema.STATUS, "types"): '{"state": {"a": 1}, "epoch": "x", "starts": [], "reason": 5}',
    (schema.SUMMARY, "deep"): '{"seed": ' * 2000,
    (schema.SUMMARY, "digits"): '{"seed": ' + "9" * 5000 + "}",
    (schema.SUMMARY, "types"): '{"seed": "0", "top1": {}, "adopted": []}',
    (schema.METRICS, "zeros"): b"\0" * 2**20,
    (schema.METRICS, "one line"): b'{"kind": "val", "x": "' + b"a" * 2**20 + b'"}\n',
    (schema.METRICS, "deep"): '{"kind": "val", "global_step": 1, "x": ' + "[" * 5000 + "]" * 5000 + "}\n",
    (schema.METRICS, "digits"): ROW % ("1" * 4500),
    (schema.METRICS, "types"): '{"kind": "val", "epoch": [], "global_step": {}, "val/top1": "x"}\n',
    (schema.METRICS, "text"): ROW % '"50"',
    (schema.METRICS, "no number"): ROW % "NaN",
    (schema.CORRECT, "zip"): b"PK\x03\x04" + b"\0" * 100,
    (schema.CORRECT, "empty zip"): b"PK\x05\x06" + b"\0" * 18,
    (schema.CORRECT, "brackets"): npy("(" * 5000),
    (schema.CORRECT, "more brackets"): npy("{'descr': '|u1', 'shape': " + "[" * 5000 + "]" * 5000 + "}"),
    (schema.CORRECT, "huge"): npy("{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999999,), }\n"),
    (schema.CORRECT, "large"): npy("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999,), }\n"),
    (schema.CORRECT, "negative"): npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-5,), }\n"),
    (schema.CORRECT, "objects"): npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"),
    (schema.PREDICTIONS, "zip"): b"PK\x03\x04" + b"\0" * 100,
    (schema.PREDICTIONS, "objects"): npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"),
    (schema.LABELS, "brackets"): npy("{'descr': '|u1', 'shape': " + "[" * 5000 + "]" * 5000 + "}"),
    (schema.LABELS, "large"): npy("{'descr': '<u4', 'fortran_order': False, 'shape': (99999999,), }\n"),
    (schema.LABELS, "large class"): npy(
        "{'descr': '<u4', 'fortran_order': False, 'shape': (40,), }\n", b"\xff\xff\xff\xff" * 40
    ),
}
KINDS = [*CONTENTS, *((file, kind) for file in FILES for kind in PLACES)]


def spoil(run, file: str, kind: str) -> None:
    """Put something hostile in a file's place."""
    (run / file).unlink(missing_ok=True)
    if kind in PLACES:
        make(run / file, kind)
    else:
        content = CONTENTS[file, kind]
        (run / file).write_bytes(content.encode() if isinstance(content, str) else content)


def by_image():
    return np.arange(40) // 20, np.zeros(40, int)


def test_each_hostile_run_is_suspect_by_file_and_reason_and_the_report_goes_on(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    write_run(runs, "gelu", by_image=by_image())
    for number, (file, kind) in enumerate(KINDS, 1):
        spoil(write_run(runs, "gelu", number, by_image=by_image()), file, kind)
    pickled = write_run(runs, "gelu", len(KINDS) + 1, by_image=by_image())
    (pickled / schema.CORRECT).write_bytes(pickle.dumps(Trap(os.mkdir, str(tmp_path / "ran"))))
    began = time.process_time()
    assert main([str(runs), "--out", str(out), "--tables-only"]) == 0
    assert time.process_time() - began < 5
    collected = collect([runs])
    assert [run.seed for run in collected.runs] == [0]
    left_out = {int(p.path.rpartition("seed")[2]): p.reason for p in (*collected.suspect, *collected.unfinished)}
    assert left_out.keys() == set(range(1, len(KINDS) + 2))
    for number, (file, kind) in enumerate(KINDS, 1):
        assert file in left_out[number], (file, kind, left_out[number])
    assert "cannot be read (" in left_out[KINDS.index((schema.METRICS, "pipe")) + 1]
    assert not (tmp_path / "ran").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_a_run_that_nobody_thought_of_is_left_out_alone(tmp_path, monkeypatch):
    from roadmap.report.analyse import collect as module

    for seed in range(2):
        write_run(tmp_path, "gelu", seed)
    real = module.read_run

    def read_run(source):
        if source.folder.name == "seed1":
            raise TypeError("what\x1b[31m is this")
        return real(source)

    monkeypatch.setattr(module, "read_run", read_run)
    collected = collect([tmp_path])
    assert [run.seed for run in collected.runs] == [0]
    assert collected.suspect[0].reason == "its record cannot be read (TypeError: what[31m is this)"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study as it was submitted, its first run sound and all others hostile."""
    runs = tmp_path_factory.mktemp("study")
    cells, keys = [], [("", ""), *KINDS]
    for number, (file, kind) in enumerate(keys):
        run = write_run(
            runs, "gelu", number, by_image=by_image(), status={"wandb_id": "0123456789abcdef"}, batch_size=64
        )
        key = "/".join(run.parts[-3:])
        config = {"recipe": {"epochs": 3}}
        cells.append({"key": key, "step": "gelu", "variant": None, "seed": number, "config": config})
        if file:
            spoil(run, file, kind)
    directory = StudyDir(runs, "roadmap")
    directory.make()
    (directory.notes / "cells.json").write_text(json.dumps({"schema": 1, "cells": cells}))
    return directory


def test_status_of_a_study_with_hostile_runs_is_a_table(study):
    began = time.process_time()
    cells, queue = cell_states.cell_states(study)
    text = status.as_text(study, cells, queue)
    json.dumps(status.as_json(study, cells, queue), allow_nan=False)
    assert time.process_time() - began < 5
    assert len(text.splitlines()) >= len(KINDS) + 2
    assert cells[0].state == "done"
    assert cells[0].top1 == 50.0
    assert "\x1b" not in text


def test_reconcile_leaves_hostile_runs_and_plan_takes_no_speed_of_them(study):
    began = time.process_time()
    assert jobs.reconcile(study) == "0 restarted"
    speeds = plan.earlier_speeds(study.path.parent, "a CPU")
    assert time.process_time() - began < 5
    assert {speed for found in speeds.values() for speed in found} == {1000.0}


def test_sync_leaves_out_what_cannot_be_read_and_sends_the_rest(study, monkeypatch):
    lines = []
    monkeypatch.setattr(sync, "connect", lambda: None)
    monkeypatch.setattr(sync, "from_record", lambda _: Config(wandb={"mode": "disabled"}))
    monkeypatch.setattr(sync, "rows_there", lambda *_: {(kind, n) for kind in ("train", "val") for n in range(50)})
    with pytest.raises(DataError, match=r"\d+ runs were left out, their records cannot be read"):
        sync.sync(study, lines.append)
    told = {line.partition(":")[0]: line for line in lines}
    for number, (file, kind) in enumerate(KINDS, 1):
        line = told.get(f"nano-digits/gelu/seed{number}", "")
        if file in (schema.CONFIG, schema.STATUS) and "left out" in line:
            assert file in line, (kind, line)
    assert told["nano-digits/gelu/seed0"].endswith("W&B has every row")
    assert sum("left out" in line for line in lines) >= 15
    assert all("\x1b" not in line and "\n" not in line for line in lines)


@pytest.mark.parametrize(("file", "kind"), [key for key in KINDS if key[0] in (schema.CONFIG, schema.STATUS)])
def test_a_run_beside_hostile_records_is_refused_not_resumed(tmp_path, file, kind):
    run = write_run(tmp_path, "gelu")
    spoil(run, file, kind)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        RunDir(run).load_status({}, {}, allow_drift=False)
    assert isinstance(caught.value, (Refused, DataError, ConfigError)) or "cannot be read" in str(caught.value)
    assert str(run) in str(caught.value)


@pytest.mark.parametrize(("file", "kind"), [key for key in KINDS if key[0] == schema.CONFIG])
def test_evaluating_a_hostile_run_is_an_error_of_the_data(small, trained, file, kind):
    config = trained()
    run = run_path(config)
    spoil(run, file, kind)
    began = time.process_time()
    with pytest.raises(DataError, match=f"weights=.*{schema.CONFIG}"):
        evaluate_weights(small("separate_downsampling", "mode=evaluate", f"weights='{run}'"))
    assert time.process_time() - began < 10


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_a_checkpoint_that_is_no_file_is_passed_over(small, trained, kind, suffix):
    run = run_path(trained())
    newest = sorted((run / "checkpoints").glob(f"step-*{suffix}"))[-1]
    newest.unlink()
    make(newest, kind)
    out = io.StringIO()
    evaluate_weights(small("separate_downsampling", "mode=evaluate", f"weights='{run}'"), SweepProgress(out=out))
    assert any(line.startswith(f"skipped {newest.stem}.pt: ") for line in out.getvalue().splitlines())


def no_layer(state):
    del state["net"]["head.bias"]


def small_moment(state):
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (no_layer, r"net\.head\.bias is missing, and not float32 \(10,\)"),
        (small_moment, r"optimizer\.state\.0\.exp_avg is float32 \(1,\), and not float32 \("),
        (lambda state: state.update(ema={}, optimizer=None), r"optimizer\.state is not of these parameters"),
        (lambda state: state.update(time_s="x"), "time_s is str, and not float"),
        (lambda state: state.pop("best_top1"), "best_top1 is missing, and not float"),
        (lambda state: state["net"].update({"more\x1b": torch.zeros(1)}), r"net\.more is not of this net"),
    ],
)
def test_a_checkpoint_of_another_net_or_optimizer_is_refused_when_a_run_goes_on(trained, change, reason):
    config = trained("gelu", stopped_at=4)
    newest = sorted((run_path(config) / "checkpoints").glob("step-*.pt"))[-1]
    state, manifest = torch.load(newest, weights_only=True), read_json(newest.with_suffix(".json"))
    change(state)
    torch.save(state, newest)
    manifest |= {"bytes": newest.stat().st_size, "sha256": sha256_of(newest)}
    write_json(newest.with_suffix(".json"), manifest | {"checksum": schema.checksum(manifest)})
    with pytest.raises(DataError, match=rf"{newest.name}: does not fit this run \({reason}.*\); fresh=true starts"):
        train(config)


JOB = {
    "kind": "slurm", "job": "12", "name": "roadmap-1", "log": "slurm/12_0_log.out", "snapshot": "0123456789abcdef",
    "line": ["-cn", "x"], "cluster": {}, "on_gpu": False,
}  # fmt: skip
LOCAL = {"kind": "local", "job": "local", "log": "logs/x.log", "host": socket.gethostname(), "pid": 0, "run_pid": 0}


@pytest.mark.parametrize(
    "row",
    [
        LOCAL, JOB | {"job": "1\0"}, JOB | {"name": "a\0b"}, JOB | {"log": None}, JOB | {"log": "a" * 5000},
        JOB | {"log": "../../x"}, JOB | {"snapshot": "../.."}, JOB | {"snapshot": None}, JOB | {"line": None},
        JOB | {"cluster": [1]}, JOB | {"runs": "a\0b"}, {k: v for k, v in JOB.items() if k != "on_gpu"},
    ],
)  # fmt: skip
def test_no_record_of_a_job_ends_a_command_on_a_study_with_a_traceback(tmp_path, monkeypatch, row):
    monkeypatch.setattr(slurm_queue, "run", lambda *command, **_: ("", ""))  # no job is known
    run = write_run(tmp_path, "gelu", state="stopped", status={"exit_code": 75, "reason": "SIGUSR2"})
    key = "/".join(run.parts[-3:])
    (run / schema.SUMMARY).unlink()
    directory = StudyDir(tmp_path, "roadmap")
    directory.make()
    cell = {"key": key, "step": "gelu", "variant": None, "seed": 0, "config": {"recipe": {"epochs": 3}}}
    (directory.notes / "cells.json").write_text(json.dumps({"schema": 1, "cells": [cell]}))
    (directory.notes / "jobs.jsonl").write_text(json.dumps({"cell": key} | row) + "\n")
    assert key in status.as_text(directory, *cell_states.cell_states(directory))
    assert jobs.reconcile(directory).startswith("0 restarted")
    assert jobs.cancel(directory).startswith("0 cancelled")


@pytest.mark.parametrize("kind", PLACES)
def test_records_of_jobs_that_are_no_file_are_an_error_at_once(tmp_path, kind):
    directory = StudyDir(tmp_path, "roadmap")
    directory.make()
    make(directory.notes / "jobs.jsonl", kind)
    with pytest.raises(DiskError, match=r"jobs\.jsonl: cannot be read \("):
        directory.jobs()
