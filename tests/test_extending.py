"""Extending keeps runs: a key, code and a computer that are new leave what was trained before where it was."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from roadmap.errors import DataError, Refused
from roadmap.files import read_json, write_json
from roadmap.report import aggregate, collect
from roadmap.runs import provenance
from roadmap.runs.metrics import read_metrics
from roadmap.runs.run_dir import run_path
from roadmap.runs.schema import CONFIG, STATUS, SUMMARY
from roadmap.training.train import train

from .records import ledger

EARLIER = Path(__file__).parent / "fixtures" / "earlier"  # made by an earlier version: fewer keys, other code
CELL = Path("nano-digits", "patchify_stem", "seed0")
NEW_KEYS = ("model.stem_stride", "model.conv_bias", "data.kind", "recipe.sync_batch_norm")


def make_older(config):
    """Let a run's record be one from before some keys, made by other code."""
    run = run_path(config)
    values = yaml.safe_load((run / CONFIG).read_text())
    for section, _, name in (key.partition(".") for key in NEW_KEYS):
        del values[section][name]
    (run / CONFIG).write_text(yaml.safe_dump(values))
    for name in (STATUS, SUMMARY):
        if (run / name).exists():
            kept = {key: value for key, value in read_json(run / name).items() if key not in ("sha256", "checksum")}
            write_json(run / name, kept | {"code_hash": "0123456789abcdef"})


def test_a_run_of_an_earlier_version_goes_on(command, tmp_path):
    shutil.copytree(EARLIER / "stopped", tmp_path / "runs" / "earlier")
    words = ["-cd", str(EARLIER), "-cn", "small", "+step=patchify_stem"]
    refused = command(*words)
    assert refused.returncode == 78
    assert "code_hash: 4f4a34ce132b09c6 -> " in refused.stderr
    done = command(*words, "allow_drift=true")
    assert done.returncode == 0, done.stderr
    assert "resuming at step 3, 0 of 6 epochs done" in done.stderr
    rows, expected = (
        read_metrics(runs / CELL / "metrics.jsonl").rows for runs in (tmp_path / "runs/earlier", EARLIER / "whole")
    )
    assert [(row["kind"], row["global_step"]) for row in rows] == [(r["kind"], r["global_step"]) for r in expected]
    for key in ("train/lr", "train/loss", "val/loss"):
        found, wanted = ([row[key] for row in part if key in row] for part in (rows, expected))
        assert found[:4] == pytest.approx(wanted[:4], rel=1e-3)  # three steps from the record, and the first one after
        assert found == pytest.approx(wanted, rel=0.05)  # another number of threads, or another computer
    assert read_json(tmp_path / "runs/earlier" / CELL / STATUS)["drift"][0].startswith("code_hash: ")


def test_a_finished_run_of_an_earlier_version_is_found_done(command, tmp_path):
    shutil.copytree(EARLIER / "whole", tmp_path / "runs" / "earlier")
    done = command("-cd", str(EARLIER), "-cn", "small", "+step=patchify_stem")
    assert done.returncode == 0, done.stderr
    assert "top-1 20.00 %" in done.stdout


def test_a_new_key_orphans_no_stopped_run(trained, reference):
    config = trained("gelu", stopped_at=4)
    make_older(config)
    config.allow_drift = True  # of the code
    train(config)
    assert ledger(config) == ledger(reference("gelu"))


def test_a_key_that_is_switched_on_is_another_run(trained):
    config = trained("gelu", stopped_at=4)
    make_older(config)
    config.model = config.model.replace(stem_stride=2)  # an older record counts as 4
    with pytest.raises(Refused, match=r"model\.stem_stride: 4 -> 2"):
        train(config)


def test_an_old_study_and_a_new_row_make_one_report(trained, small):
    older = [trained(step) for step in ("resnet", "gelu")]
    for config in older:
        make_older(config)
    new = small("separate_downsampling")
    train(new)
    collected = collect([Path(new.paths.runs)])
    (group,) = aggregate(collected.runs)
    counted = {cell.step for cell in group.cells if cell.n}
    assert counted == {"resnet", "gelu", "separate_downsampling"}


def test_a_run_that_is_done_under_an_older_name_is_named(trained, small, capsys):
    config = trained("gelu")
    older = run_path(config).parent.with_name(f"{config.cell},recipe.label_smoothing=0.1")
    run_path(config).parent.rename(older)
    train(small("gelu"))
    assert f"the same run is finished under another name: {older / 'seed0'}" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["lost", "doubled", "changed"])
def test_a_ledger_that_is_not_whole_is_refused(trained, damage):
    config = trained("gelu", stopped_at=6)
    path = run_path(config) / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    new = {"lost": b"", "doubled": 2 * lines[1], "changed": lines[1].replace(b'"train/loss": 2', b'"train/loss": 1')}
    assert new[damage] != lines[1]
    path.write_bytes(lines[0] + new[damage] + b"".join(lines[2:]))
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"metrics\.jsonl: its lines up to the checkpoint of step"):
        train(config)
    assert path.read_bytes() == before


def test_a_manifest_that_has_changed_is_passed_over(trained, reference, capsys):
    config = trained("gelu", stopped_at=6)
    newest = max((run_path(config) / "checkpoints").glob("*.json"))
    text = newest.read_text()
    newest.write_text(text.replace('"best_step": 3', '"best_step": 2'))
    assert newest.read_text() != text
    train(config)
    assert f"skipped {newest.stem}.pt: its manifest has changed" in capsys.readouterr().err
    assert ledger(config) == ledger(reference("gelu"))


def test_a_result_depends_on_few_rooms(tmp_path, monkeypatch):
    package = tmp_path / "roadmap"
    shutil.copytree(provenance.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "PACKAGE", package)
    before = provenance.code_hash.__wrapped__()
    for name in ("report/__init__.py", "steps/help.py", "sweep/status.py", "bench/__main__.py", "text.py"):
        with (package / name).open("a") as file:
            file.write("# changed\n")
    assert provenance.code_hash.__wrapped__() == before
    with (package / "training" / "step.py").open("a") as file:
        file.write("# changed\n")
    assert provenance.code_hash.__wrapped__() != before


def test_threads_are_part_of_the_record(reference):
    summary = read_json(run_path(reference("gelu")) / SUMMARY)
    assert summary["threads"] == torch.get_num_threads()
    assert summary["rounding"] == []
