"""`make sync`: W&B, played by a few lines here, ends up with every row of the ledger once, whatever it had before."""

import os
import re
import shutil
from contextlib import closing
from unittest.mock import Mock

import pytest
import wandb
from wandb.errors import CommError

from roadmap.errors import DataError, StoppedEarly
from roadmap.files import read_json, write_json
from roadmap.runs.metrics import read_metrics
from roadmap.sweep.study import read_study
from roadmap.sweep.study_dir import StudyDir
from roadmap.sweep.sync import sync
from roadmap.training.train import train
from tests import wandb_server
from tests.conftest import SMALL
from tests.drive import accident, python
from tests.test_wandb import history, inspect


class Server:
    """What W&B keeps: rows by run id."""

    def __init__(self):
        self.rows, self.summaries, self.default_entity, self.viewer = {}, {}, "someone", "someone"

    def run(self, path):
        entity, project, run_id = path.split("/")
        assert (entity, project) == ("someone", "convnext-roadmap")
        if run_id not in self.rows:
            raise CommError(f"Could not find run {path}")  # what its RunNotFoundError is made
        return Found(self.rows[run_id])

    def init(self, *, id, mode, resume, dir, **_):
        assert (mode, resume) == ("online", "allow")
        return Online(self, id, dir)


class Found:
    """A run as the reading interface shows it."""

    def __init__(self, rows):
        self.rows = rows

    def scan_history(self, keys, page_size):
        return ({key: row[key] for key in keys} for row in self.rows if all(key in row for key in keys))


class Online:
    """A run as it is written."""

    url = "https://example.org/run"

    def __init__(self, server, run_id, folder):
        self.server, self.run_id, self.summary, self.dir = server, run_id, {}, str(folder / "wandb")
        server.rows.setdefault(run_id, [])

    def define_metric(self, *_, **__):
        pass

    def log(self, row):
        if "global_step" in row:  # the others are tables and charts
            self.server.rows[self.run_id].append(row)

    def alert(self, **_):
        pass

    def save(self, *_, **__):
        pass

    def finish(self, exit_code):
        self.server.summaries[self.run_id] = (dict(self.summary), exit_code)


@pytest.fixture
def server(monkeypatch):
    """Return a W&B that lives in this process."""
    here = Server()
    monkeypatch.setattr(wandb, "Api", lambda **_: here)
    return here


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a runs directory with a study of one finished run that was logged offline, and that run's key."""
    runs = tmp_path_factory.mktemp("runs")
    found = read_study("demo", ["+step=gelu", *SMALL, "device=cpu", "wandb.mode=offline"], runs)
    train(found.cells[0].config)
    directory = StudyDir(runs, "demo")
    directory.make()
    directory.write_cells(found)
    return runs, found.cells[0].key


@pytest.fixture
def study(trained, tmp_path):
    """Return a study with one finished run that was logged offline, and that run's directory."""
    runs, key = trained
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    directory = StudyDir(tmp_path, "demo")
    return directory, directory.path / key


def as_logged(run):
    return [
        {k: v for k, v in row.items() if k != "kind" and v is not None}
        for row in read_metrics(run / "metrics.jsonl").rows
    ]


def test_an_offline_run_is_sent_whole_and_once(server, study):
    directory, run = study
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wandb, "init", server.init)
        assert sync(directory, print) == len(as_logged(run)) > 0
        assert sync(directory, print) == 0
    (run_id,) = server.rows
    assert run_id == read_json(run / "status.json")["wandb_id"]
    assert server.rows[run_id] == as_logged(run)
    assert server.summaries[run_id][0]["top1"] == read_json(run / "summary.json")["top1"]
    assert list(run.glob("wandb/offline-run-*/*.wandb.synced")), "wandb sync would send it again"


def test_the_real_client_sends_what_a_server_does_not_know(study, tmp_path):
    _, run = study
    here = {name: str(tmp_path / name) for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "NETRC")}
    with closing(wandb_server.Server(tmp_path / "nothing")) as served:
        env = {**os.environ, **here, "WANDB_BASE_URL": served.url, "WANDB_API_KEY": wandb_server.KEY}
        done = python("-m", "roadmap.sweep", "sync", "demo", "--runs", tmp_path, env=env, timeout=120)
    number = len(as_logged(run))
    assert done.returncode == 0 and f"demo: {number} rows sent" in done.stdout, done.stderr
    (sent,) = served.runs
    assert sent["name"] == read_json(run / "status.json")["wandb_id"] and sent["state"] == "finished"
    assert sum("train/loss" in row or "val/top1" in row for row in sent["rows"]) == number


def test_runs_that_nobody_submitted_are_sent_too(server, study, monkeypatch, capsys):
    """`make sync STUDY=single`: each run was typed by hand."""
    directory, run = study
    shutil.rmtree(directory.notes)
    shutil.copytree(run, run.with_name("seed0.old1"))  # set aside
    monkeypatch.setattr(wandb, "init", server.init)
    assert sync(directory, print) == len(as_logged(run)) > 0
    assert sync(directory, print) == 0
    assert "seed0: W&B has every row" in capsys.readouterr().out
    assert list(server.rows) == [read_json(run / "status.json")["wandb_id"]]
    with pytest.raises(DataError, match="no study was submitted there"):
        sync(StudyDir(directory.path.parent, "other"), print)


def test_rows_that_the_network_swallowed_are_sent_and_no_other(server, study, monkeypatch):
    directory, run = study
    run_id, rows = read_json(run / "status.json")["wandb_id"], as_logged(run)
    server.rows[run_id] = rows[:3] + rows[5:]
    monkeypatch.setattr(wandb, "init", server.init)
    assert sync(directory, print) == 2
    assert sorted(map(str, server.rows[run_id])) == sorted(map(str, rows))


def test_what_the_client_of_a_killed_run_took_with_it_is_sent(server, command, tmp_path, monkeypatch):
    words = ("+step=gelu", "wandb.mode=offline", "device=cpu", "checkpoint.every_min=0", *SMALL)
    assert command(*words, **accident("step", 5, what="KILL", to="group")).returncode == -9
    assert command(*words).returncode == 0
    (run,) = (tmp_path / "runs" / "single").glob("*/*/seed0")
    rows = as_logged(run)
    recorded = history(inspect(max(run.glob("wandb/offline-run-*"))))  # of the killed start nothing is on disk
    assert 0 < len(recorded) < len(rows)
    there = server.rows[read_json(run / "status.json")["wandb_id"]] = [*recorded]
    monkeypatch.setattr(wandb, "init", server.init)
    assert sync(StudyDir(tmp_path / "runs", "single"), print) == len(rows) - len(recorded)
    assert sorted(there, key=lambda row: (row["global_step"], "val/top1" in row)) == rows


def test_without_an_answer_of_wandb_that_is_said_and_the_command_may_be_typed_again(study, monkeypatch):
    monkeypatch.setattr(wandb, "Api", Mock(side_effect=OSError("no route to host")))
    with pytest.raises(StoppedEarly, match="no route to host"):
        sync(study[0], print)


def test_runs_without_wandb_are_left_out_and_alone_need_no_answer_of_it(server, study, monkeypatch, capsys):
    directory, run = study
    status = read_json(run / "status.json")
    shutil.rmtree(run / "wandb")
    write_json(run / "status.json", status | {"wandb_rows": 0})
    config = (run / "config.yaml").read_text()
    for mode in ("auto", "disabled"):
        (run / "config.yaml").write_text(re.sub("mode: (auto|online|offline)", f"mode: {mode}", config))
        with monkeypatch.context() as patch:
            patch.setattr(wandb, "Api", None)
            patch.setenv("WANDB_MODE", "disabled" if mode == "auto" else "online")
            assert sync(directory, print) == 0
        told = "demo: 1 run with W&B turned off (wandb.mode, WANDB_MODE) left out\n"
        assert capsys.readouterr().out.endswith(told)
    (run / "config.yaml").write_text(config)  # it was to log, and its client could not begin
    monkeypatch.setattr(wandb, "init", server.init)
    assert sync(directory, print) == len(as_logged(run))


def test_what_is_not_taken_to_the_end_is_not_said_to_be_sent(server, study, monkeypatch, capsys):
    directory, run = study
    monkeypatch.setattr(wandb, "init", server.init)
    for name, told in (("log", "W&B failed .connection lost"), ("finish", "W&B has not taken all of it")):
        with monkeypatch.context() as patch:
            patch.setattr(Online, name, Mock(side_effect=OSError("connection lost")))
            with pytest.raises(StoppedEarly, match=rf"seed0: {told}.*; try again"):
                sync(directory, print)
        assert "rows sent" not in capsys.readouterr().out and not list(run.glob("wandb/*/*.synced"))
    server.rows.clear()
    assert sync(directory, print) == len(as_logged(run))


def test_runs_at_work_are_left_to_themselves(server, study):
    directory, run = study
    status = (run / "status.json").read_text().replace('"state": "done"', '"state": "running"')
    (run / "status.json").write_text(status)
    assert sync(directory, print) == 0
