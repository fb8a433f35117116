"""Weights & Biases through its own client: offline records read back with its tool, failures that change nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from roadmap.config.schema import Config, WandbConfig
from roadmap.runs.metrics import read_metrics
from roadmap.runs.run_dir import run_path
from roadmap.runs.wandb_files import read_rows, recorded_rows
from roadmap.runs.wandb_logger import project_of, wandb_mode
from roadmap.training.train import train

from .conftest import SMALL
from .drive import accident
from .records import ledger, stopped_at


def inspect(folder: Path) -> list[dict]:
    """Return the records of an offline run, as `wandb leet inspect` prints them."""
    tool = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(tool, capture_output=True, text=True, check=True, env={**os.environ, "WANDB_MODE": "offline"})
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(records):
    return [
        {k: v for k, v in r["history"]["item"].items() if not k.startswith("_")}
        for r in records
        if r["type"] == "history"
    ]


def logged(rows):
    return [{k: v for k, v in row.items() if k != "kind" and v is not None} for row in rows]


@pytest.fixture
def offline(small):
    def call(*overrides):
        return small("gelu", "wandb.mode=offline", *overrides)

    return call


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
    assert (run["project"], run["run_group"], run["display_name"]) == (
        "convnext-roadmap",
        "single",
        f"nano/{config.cell}/seed0",
    )
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
    assert {"status.json", "correct.npy"} <= files


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


def test_what_a_killed_client_held_in_memory_is_logged_again_and_nothing_twice(command, tmp_path):
    """W&B's process writes its record every 15 seconds, and dies with the run's group."""
    words = ("+step=gelu", "wandb.mode=offline", "device=cpu", "checkpoint.every_min=0", *SMALL, "recipe.epochs=4")
    for step in (4, 5):
        assert command(*words, **accident("step", step, what="KILL", to="group")).returncode == -9
    (path,) = (tmp_path / "runs" / "single").glob("*/*/seed0")
    before = json.loads((path / "status.json").read_text())["wandb_rows"]
    rows = read_metrics(path / "metrics.jsonl").rows
    assert before == recorded_rows(path, rows, before) < len(rows)
    assert command(*words).returncode == 0
    rows = read_metrics(path / "metrics.jsonl").rows
    files = sorted(path.glob("wandb/offline-run-*/*.wandb"))
    assert [row for file in files for row in read_rows(file)] == [(row["kind"], row["global_step"]) for row in rows]
    assert json.loads((path / "status.json").read_text())["wandb_rows"] == len(rows)


def test_rows_in_a_record_of_many_blocks_are_read_up_to_a_torn_end(offline):
    config = offline("data.train_images=1400", "recipe.batch_size=8", "recipe.epochs=1")
    train(config)
    path = run_path(config)
    (file,) = path.glob("wandb/offline-run-*/*.wandb")
    rows = read_metrics(path / "metrics.jsonl").rows
    assert file.stat().st_size > 2 * 2**15
    assert list(read_rows(file)) == [(row["kind"], row["global_step"]) for row in rows]
    file.write_bytes(file.read_bytes()[: 2**15 + 100])
    torn = recorded_rows(path, rows, len(rows))
    assert 0 < torn < len(rows) and list(read_rows(file)) == [(r["kind"], r["global_step"]) for r in rows[:torn]]


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
    assert said.count("W&B: not online") == 1
    assert said.count("wandb sync") == 1
    assert "W&B failed" not in said
    (folder,) = run_path(config).glob("wandb/offline-run-*")
    assert history(inspect(folder)) == logged(read_metrics(run_path(config) / "metrics.jsonl").rows)
    for path in run_path(config).rglob("*"):
        if path.is_file():
            assert b"0123456789" * 4 not in path.read_bytes(), path


def test_a_client_that_fails_in_the_middle_is_said_once(small, monkeypatch, capsys):
    import wandb

    config = small("gelu", "wandb.mode=offline")
    monkeypatch.setattr(
        wandb.Run, "log", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("disk of the client is full"))
    )
    assert train(config)["state"] == "done"
    assert capsys.readouterr().err.count("disk of the client is full") == 1
