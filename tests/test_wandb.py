"""Weights & Biases through its own client: offline records read back with its tool, failures that change nothing."""

import json
import os
import resource
import subprocess
import sys
import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest

from roadmap.config.choices import WandbMode
from roadmap.config.schema import Config, WandbConfig
from roadmap.runs.metrics import read_metrics
from roadmap.runs.run_dir import run_path
from roadmap.runs.wandb_client import Budget
from roadmap.runs.wandb_logger import WandbLogger, project_of, wandb_mode, warn_of_environment
from roadmap.steps.compose import compose
from roadmap.training.train import train

from .drive import python
from .records import ledger, stopped_at
from .wandb_server import KEY, Server


def inspect(folder: Path) -> list[dict]:
    """Return the records of an offline run, as `wandb leet inspect` prints them."""
    tool = ("-m", "wandb", "leet", "inspect", "--json", folder)
    done = python(*tool, check=True, env={**os.environ, "WANDB_MODE": "offline"})
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(records):
    return [
        {k: v for k, v in r["history"]["item"].items() if not k.startswith("_")}
        for r in records
        if r["type"] == "history" and "global_step" in r["history"]["item"]  # the others are tables and charts
    ]


def logged(rows):
    return [{k: v for k, v in row.items() if k != "kind" and v is not None} for row in rows]


@pytest.fixture
def offline(small):
    return lambda: small("gelu", "wandb.mode=offline")


def test_offline_record_holds_what_the_ledger_holds(offline):
    config = offline()
    summary = train(config)
    path = run_path(config)
    (folder,) = path.glob("wandb/offline-run-*")
    records = inspect(folder)
    assert history(records) == logged(read_metrics(path / "metrics.jsonl").rows)
    (run,) = [r["run"] for r in records if r["type"] == "run"]
    status = json.loads((path / "status.json").read_text())
    assert run["run_id"] == status["wandb_id"]
    assert (run["project"], run["run_group"]) == ("convnext-roadmap", "single")
    assert run["display_name"] == f"nano/{config.cell}/seed0"
    assert run["job_type"] == config.cell[:64]
    assert sorted(run["tags"]) == ["digits", "gelu", "nano"]
    logged_config = run["config"]["update"]
    assert logged_config["model"]["activation"] == "gelu"
    assert logged_config["gmacs"] == pytest.approx(summary["gmacs"])
    assert logged_config["git_commit"] == status["git_commit"]
    assert logged_config["versions"]["torch"]
    axes = {r["metric"].get("glob_name"): r["metric"].get("step_metric") for r in records if r["type"] == "metric"}
    assert (axes["train/*"], axes["val/*"]) == ("global_step", "epoch")
    last = {k: v for r in records if r["type"] == "summary" for k, v in r["summary"]["update"].items()}
    assert (last["top1"], last["state"]) == (summary["top1"], "done")
    files = {f["path"] for r in records if r["type"] == "files" for f in r["files"]["files"]}
    assert {"status.json", "correct.npy", "predictions.npy", "labels.npy"} <= files
    assert "classes" not in logged_config  # a name a class: the status has them


def test_a_resumed_run_logs_no_step_twice(offline):
    config = offline()
    with stopped_at(5):
        train(config)
    train(config)
    parts = [inspect(folder) for folder in sorted(run_path(config).glob("wandb/offline-run-*"))]
    assert len(parts) == 2
    rows = [row for part in parts for row in history(part)]
    assert rows == logged(read_metrics(run_path(config) / "metrics.jsonl").rows)
    assert len({next(r["run"]["run_id"] for r in part if r["type"] == "run") for part in parts}) == 1


def test_disabled_leaves_no_trace(reference):
    config = reference("gelu")
    assert not (run_path(config) / "wandb").exists()


@pytest.mark.parametrize(
    ("env", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "x" * 40}, "online"),
        ({"WANDB_BASE_URL": "http://127.0.0.1:9"}, "online"),
        ({"WANDB_API_KEY": "x" * 40, "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_API_KEY": "x" * 40, "WANDB_DISABLED": "true"}, "disabled"),
        ({"WANDB_MODE": "offline", "WANDB_DISABLED": "true"}, "offline"),
        ({"WANDB_DISABLED": "false"}, "offline"),
    ],
)
def test_online_where_there_is_a_login(monkeypatch, env, mode):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(Config()) == mode


def test_a_login_at_a_server_of_ones_own_counts(monkeypatch, tmp_path):
    """As `wandb login --host=https://wandb.lab.example` leaves it: the server in W&B's settings, the key in netrc."""
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text(f"machine wandb.lab.example login user password {'x' * 40}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert wandb_mode(Config()) == "offline"
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.lab.example\n")
    assert wandb_mode(Config()) == "online"
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.lab.example\nmode = offline\n")
    assert wandb_mode(Config()) == "offline"


def test_a_project_of_wandbs_settings_fills_the_gap_that_nobody_else_did(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    assert project_of(Config()) == "convnext-roadmap"
    (tmp_path / "settings").write_text("[default]\nproject = theirs\n")
    assert project_of(Config()) == "theirs"
    assert project_of(Config(wandb=WandbConfig(project="mine"))) == "mine"


def test_a_netrc_counts_as_a_login(monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'x' * 40}\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_mode(Config()) == "online"


def test_an_unreachable_server_neither_stops_nor_changes_a_run(small, reference, monkeypatch, capsys):
    quiet = reference("gelu")
    capsys.readouterr()
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setattr("roadmap.runs.wandb_logger.INIT_TIMEOUT_S", 3.0)
    config = small("gelu", "wandb.mode=auto")
    train(config)
    assert ledger(config) == ledger(quiet)
    said = capsys.readouterr().err
    assert said.count("W&B: offline (") == 1
    assert said.count("wandb sync") == 1
    assert "W&B failed" not in said
    (folder,) = run_path(config).glob("wandb/offline-run-*")
    assert history(inspect(folder)) == logged(read_metrics(run_path(config) / "metrics.jsonl").rows)
    for path in run_path(config).rglob("*"):
        if path.is_file():
            assert b"0123456789" * 4 not in path.read_bytes(), path


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Return a server that knows nothing yet, to which this process is logged in."""
    with closing(Server(tmp_path / "none")) as here:
        monkeypatch.setenv("WANDB_BASE_URL", here.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield here


def run_online(forks, tmp_path, *words, **env):
    """Run a small run online, in a process of its own; return how it ended and what lies in its folder."""
    short = ("data.train_images=96", "data.val_images=40", "recipe.batch_size=32", "recipe.epochs=1")
    done = forks.run(("+step=gelu", *short, "recipe.warmup_epochs=0", f"paths.runs={tmp_path}", *words), env)
    (folder,) = tmp_path.glob("single/*/*/seed0")
    return done, folder


def test_an_online_run_sends_its_files_and_nothing_about_the_client(server, forks, tmp_path):
    done, _ = run_online(forks, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "W&B: http://" in done.stderr
    assert len(done.stderr.splitlines()) == 2  # that, and that it starts
    asked = " ".join(server.asked)
    assert all(f"/{name}.npy" in asked for name in ("correct", "predictions", "labels"))
    assert not [path for path in server.asked if "otel" in path or "sentry" in path]


def test_a_process_of_the_client_that_dies_is_one_line_and_none_after_the_result(server, tmp_path):
    server.crash = True
    words = ("+step=gelu", "data.train_images=96", "data.val_images=40", "recipe.batch_size=32", "recipe.epochs=1")
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "run.py", *words, "recipe.warmup_epochs=0", f"paths.runs={tmp_path}"]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == [lines[0].split(":")[0], "W&B"]
    assert lines[2].startswith("W&B failed, and the run continues without it")
    assert "top-1" in lines[3]
    assert len(lines) == 4, done.stdout
    assert list(tmp_path.glob("single/*/*/seed0/wandb/core.log"))  # where it says what has killed it


AT_THE_END = """
import sys, threading
from types import SimpleNamespace
from roadmap.runs import wandb_client
sys.modules["wandb"] = SimpleNamespace(teardown=lambda: print("ended"))
wandb_client._end_service_with_main_thread()
start = threading.Thread.start

def as_since_python_3_12(self):
    if not threading.main_thread().is_alive():
        raise RuntimeError("can't create new thread at interpreter shutdown")
    start(self)

threading.Thread.start = as_since_python_3_12
"""


def test_the_client_is_ended_with_the_main_thread_when_no_thread_can_be_started():
    done = python("-c", AT_THE_END, check=True)
    assert (done.stdout, done.stderr) == ("ended\n", "")


@pytest.mark.parametrize("delay_s", [0.5, 60.0])
def test_a_slow_server_costs_no_more_than_its_budget(server, small, reference, monkeypatch, capsys, delay_s):
    quiet = reference("gelu")
    capsys.readouterr()
    server.delay_s = delay_s
    for name, seconds in (("BUDGET_S", 9.0), ("INIT_TIMEOUT_S", 4.0), ("FINISH_TIMEOUT_S", 2.0)):
        monkeypatch.setattr(f"roadmap.runs.wandb_logger.{name}", seconds)
    spent = []
    for name in ("__init__", "finish"):
        real = getattr(WandbLogger, name)

        def timed(self, *args, real=real):
            began = time.monotonic()
            real(self, *args)
            spent.append(time.monotonic() - began)

        monkeypatch.setattr(WandbLogger, name, timed)
    config = small("gelu", "wandb.mode=auto")
    assert train(config)["state"] == "done"
    assert ledger(config) == ledger(quiet)
    assert sum(spent) < 9.0 + 11.0  # and the start of its process, twice, on a machine that is busy
    said = capsys.readouterr().err
    assert said.count("W&B: offline (") <= 1
    assert "W&B: offline" in said or delay_s < 4


def test_a_client_that_hangs_is_left():
    budget, hangs = Budget(0.2), threading.Event()
    with pytest.raises(TimeoutError, match="no answer"):
        budget.call(hangs.wait)
    assert budget.left_s == pytest.approx(0.2)  # a moment costs nothing
    hangs.set()
    assert Budget(5.0).call(max, 1, 2) == 2
    with pytest.raises(ZeroDivisionError):
        Budget(5.0).call(lambda: 1 / 0)


def test_the_environment_of_the_client_names_the_project(offline, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_ENTITY", "them")
    config = compose("gelu", "nano", ["data.val_images=30"])
    assert (config.wandb.project, config.wandb.entity) == ("theirs", "them")
    config = compose("gelu", "nano", ["wandb.project=mine"])
    warned = []
    config.wandb.mode = WandbMode.disabled
    assert (config.wandb.project, config.wandb.entity) == ("mine", "them")
    config.wandb.mode = WandbMode.offline
    warn_of_environment(config, warned.append)
    assert warned == ["W&B: wandb.project=mine counts, not WANDB_PROJECT=theirs"]


def test_a_client_that_fails_in_the_middle_is_said_once(small, monkeypatch, capsys):
    import wandb

    config = small("gelu", "wandb.mode=offline")
    monkeypatch.setattr(wandb.Run, "log", Mock(side_effect=RuntimeError("disk of the client is full")))
    assert train(config)["state"] == "done"
    assert capsys.readouterr().err.count("disk of the client is full") == 1


def test_a_process_of_the_client_that_lacks_memory_is_not_waited_for_without_end():
    script = "from roadmap.runs import wandb_client as c\nc.START_S = 3.0\nc.start_service()\nprint('started')"
    little = partial(resource.setrlimit, resource.RLIMIT_AS, (1200 * 2**20,) * 2)
    done = python("-c", script, timeout=60, preexec_fn=little)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "TimeoutError: its process has not started in 3 s; does it lack memory?"
