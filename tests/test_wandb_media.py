"""What W&B has of a run beside its rows, read back through its own API: the last evaluation, the code, alerts."""

import json
from unittest.mock import Mock

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from roadmap.runs import provenance, wandb_media
from roadmap.runs.checkpoint_files import list_checkpoints, parse_checkpoint
from roadmap.runs.wandb_client import import_wandb
from roadmap.runs.wandb_media import class_media, write_diff
from tests.test_wandb import inspect, run_online
from tests.test_wandb import server as server


def api_run(server):
    """Return the only run that the server has, as W&B's API shows it."""
    (run,) = server.runs
    return import_wandb().Api(timeout=20).run(f"team/roadmap/{run['name']}")


def table(run, key, folder):
    """Return the rows of a table of a run's summary, downloaded."""
    about = run.summary[key]
    file = run.file(about["path"]).download(root=str(folder), replace=True)
    return json.load(file)


def test_the_last_evaluation_is_a_table_and_a_confusion_matrix(server, forks, tmp_path):
    done, folder = run_online(forks, tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    labels, predicted = (np.load(folder / f"{name}.npy") for name in ("labels", "predictions"))
    run = api_run(server)
    found = table(run, "evaluation/classes", tmp_path)
    assert found["columns"][:4] == ["class", "images", "right", "top-1 (%)"]
    counts = confusion_matrix(labels, predicted, labels=range(10))
    expected = [[str(c), int(counts[c].sum()), int(counts[c, c])] for c in range(10) if counts[c].sum()]
    assert [row[:3] for row in found["data"]] == expected
    pairs = table(run, "evaluation/confusion_table", tmp_path)["data"]
    assert {(int(own), int(other)): times for own, other, times in pairs} == {
        (i, j): int(counts[i, j]) for i in range(10) for j in range(10)
    }
    assert run.summary["top1"] == pytest.approx(100 * np.mean(labels == predicted))
    assert run.commit == provenance.git_state()["git_commit"] and run.state == "finished"
    assert not server.alerts


@pytest.mark.parametrize("which", ["last", "best"])
def test_a_checkpoint_that_is_asked_for_is_an_artifact_of_the_run(server, forks, tmp_path, which):
    done, folder = run_online(forks, tmp_path / "runs", f"wandb.checkpoints={which}", "recipe.epochs=2")
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 2, done.stderr  # its start, and where it goes
    files = list_checkpoints(folder / "checkpoints")
    manifest = json.loads(files[0].with_suffix(".json").read_text())
    if which == "best":
        files = [file for file in files if parse_checkpoint(file.name)[0] == manifest["best_step"]]
    (artifact,) = [found for found in api_run(server).logged_artifacts() if found.type == "model"]
    assert artifact.name.startswith("checkpoint-") and which in artifact.aliases
    assert artifact.metadata["global_step"] == parse_checkpoint(files[0].name)[0]
    sent = server.artifacts.found[int(artifact.id)]["files"]
    assert sent[files[0].name] == files[0].read_bytes() and files[0].with_suffix(".json").name in sent


def test_a_checkpoint_that_wandb_refuses_is_one_line_and_the_rest_goes_up(server, forks, tmp_path):
    server.always["createArtifactManifest"] = 403
    done, _ = run_online(forks, tmp_path / "runs", "wandb.checkpoints=last")
    assert done.returncode == 0 and done.stderr.count("W&B: the last checkpoint was not uploaded") == 1, done.stderr
    assert "left out" not in done.stderr and api_run(server).summary["state"] == "done"


def test_offline_no_checkpoint_goes_and_that_is_said_once(small, capsys):
    from roadmap.training.train import train

    train(small("gelu", "wandb.mode=offline", "wandb.checkpoints=last"))
    assert capsys.readouterr().err.count("wandb.checkpoints=last sends nothing; make sync does") == 1


def test_a_run_that_fails_is_an_alert_with_its_reason(server, forks, tmp_path):
    done, _ = run_online(forks, tmp_path / "runs", "recipe.lr=1000")
    assert done.returncode == 70, done.stderr
    (alert,) = server.alerts
    assert "A run failed (exit code 70)" in str(alert) and "single/gelu" in str(alert) and "NonFinite" in str(alert)
    assert api_run(server).state == "failed"


def test_a_stop_is_no_alert_and_offline_one_waits_for_the_sync(small, monkeypatch):
    from roadmap.errors import NonFiniteError
    from roadmap.runs.run_dir import run_path
    from roadmap.training.train import train
    from tests.records import stopped_at

    config = small("gelu", "wandb.mode=offline")
    with stopped_at(5):
        train(config)
    monkeypatch.setattr("roadmap.training.train.fit", Mock(side_effect=NonFiniteError("step 7: bad")))
    with pytest.raises(NonFiniteError):
        train(config)
    alerts = [
        [record["alert"] for record in inspect(folder) if record["type"] == "alert"]
        for folder in sorted(run_path(config).glob("wandb/offline-run-*"))
    ]
    assert [len(found) for found in alerts] == [0, 1] and "step 7: bad" in alerts[1][0]["text"]


def test_the_diff_of_the_checkout_holds_no_secret_and_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "gelu-secret-0123456789")
    monkeypatch.setattr(provenance, "git_state", lambda: {"git_commit": "a" * 40, "git_dirty": True})
    monkeypatch.setattr(wandb_media, "MAX_DIFF", 1000)
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "roadmap")
    words = []
    monkeypatch.setattr(provenance, "git", lambda *asked: words.append(asked) or "+key = gelu-secret-0123456789\n" * 99)
    text = write_diff(tmp_path).read_text()
    assert "gelu-secret" not in text and "+key = ***" in text and len(text) < 1100 and "(cut: " in text
    assert {"--no-ext-diff", "--no-textconv"} < set(words[0])  # neither runs what a config names
    monkeypatch.setattr(provenance, "git", lambda *_: "https://user:password1234@example.org/x.git\n")
    assert wandb_media.git_settings()["git_remote_url"] == "https://***@example.org/x.git"


def test_classes_by_name_and_number_and_no_matrix_of_too_many():
    wandb = import_wandb()
    labels, predicted = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 1, 1, 0])
    media = class_media(wandb, labels, predicted, ["cat", "dog"])
    assert media["evaluation/classes"].data == [
        ["cat", 2, 1, 50.0, "dog", 1], ["dog", 1, 1, 100.0, "", 0], ["2", 3, 0, 0.0, "dog", 2],
    ]  # fmt: skip
    many = np.arange(1000)
    assert list(class_media(wandb, many, many, [])) == ["evaluation/classes"]
    for bad in (np.array([-1, 0]), np.zeros((2, 2), int), np.array([0])):
        with pytest.raises(ValueError, match="go together"):
            class_media(wandb, bad, np.array([0, 0]), [])
