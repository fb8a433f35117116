"""What checkpoints take on the disk, and what `make prune` removes of a finished run: nothing that anybody reads."""

import io
import os
import shutil

import pytest

from roadmap.config.choices import Mode
from roadmap.files import read_json, read_yaml
from roadmap.report.__main__ import main as report
from roadmap.runs.run_dir import RunDir, run_path
from roadmap.runs.schema import CHECKPOINTS, STATUS, Status, read_or_empty
from roadmap.sweep.cell_states import CellState, State, add_progress
from roadmap.sweep.status import disk_line
from roadmap.sweep.study_dir import StudyDir
from roadmap.training.evaluation import evaluate_weights


@pytest.fixture
def prune(sweep, tmp_path, monkeypatch):
    """Return a function that types `prune` for the study `single`, with an answer; it returns code and lines."""

    def call(*words, answer=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        return sweep("prune", "single", "--runs", tmp_path / "runs", *words)

    return call


def names(run):
    return sorted(path.name for path in (run / CHECKPOINTS).iterdir())


def test_the_last_checkpoint_stays_and_all_that_reads_it_still_works(trained, prune, tmp_path, capsys):
    config = trained()
    run = run_path(config)
    before = names(run)
    assert len(before) >= 4
    older = sum((run / CHECKPOINTS / name).stat().st_size for name in before[:-2])
    code, told = prune(answer="n\n")
    assert code == 0 and f"{older / 1e6:.1f} MB in 1 finished runs" in told and before[0][:-5] in told
    assert "nothing was removed" in told and names(run) == before
    code, told = prune("--yes")
    assert code == 0 and f"{older / 1e6:.1f} MB removed" in told and names(run) == before[-2:]
    assert "0.0 MB in 0 finished runs" in prune()[1]
    config.weights, config.mode = str(run), Mode.evaluate
    top1 = read_json(run / "summary.json")["top1"]
    assert evaluate_weights(config).result.top1 == pytest.approx(top1)
    assert RunDir(run).is_done(read_yaml(run / "config.yaml"))
    assert report([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--tables-only"]) == 0
    assert f"{top1:.2f}" in capsys.readouterr().out


def test_a_run_that_is_not_done_not_whole_locked_linked_or_unsafe_is_never_touched(trained, prune, tmp_path):
    config = trained()
    run = run_path(config)
    folder, before = run / CHECKPOINTS, names(run)
    status = (run / STATUS).read_text()
    for state in ("running", "stopped", "failed"):
        (run / STATUS).write_text(status.replace('"done"', f'"{state}"'))
        assert "in 0 finished runs" in prune("--yes")[1]
    (run / STATUS).write_text(status)
    with RunDir(run).lock():
        assert "another process is writing this run" in prune("--yes")[1]
    kept = (run / "correct.npy").read_bytes()
    (run / "correct.npy").write_bytes(b"x" + kept)
    assert "changed after the run had ended" in prune("--yes")[1]
    (run / "correct.npy").write_bytes(kept)
    newest = folder / before[-1]
    whole = newest.read_bytes()
    newest.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "its last checkpoint is not whole" in prune("--yes")[1]
    newest.write_bytes(whole)
    folder.chmod(0o777)
    assert "is writable by everyone" in prune("--yes")[1]
    folder.chmod(0o700)
    shutil.move(folder, tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert "skipped, checkpoints is a link" in prune("--yes")[1]
    folder.unlink()
    shutil.move(tmp_path / "elsewhere", folder)
    assert names(run) == before
    shutil.move(run, tmp_path / "seed")
    os.symlink(tmp_path / "seed", run)
    assert "seed0 is a link" in prune("--yes")[1]
    assert names(run) == before


def test_only_files_of_a_checkpoints_name_go_and_no_link_is_followed(trained, prune, tmp_path):
    run = run_path(trained())
    folder = run / CHECKPOINTS
    outside = tmp_path / "precious.pt"
    outside.write_bytes(b"mine")
    (folder / "step-0000000001-00000.pt").symlink_to(outside)
    (folder / "mine.pt").write_bytes(b"mine")
    (folder / "step-0000000001-00000.pt.unusable").write_bytes(b"set aside")
    for name in ("seed0.old1", "seed0-mine"):
        shutil.copytree(run, run.parent / name, symlinks=True)
    shutil.copytree(run.parent / "seed0-mine", run.parent.with_name("two\nlines") / "seed0", symlinks=True)
    code, told = prune("--yes")
    assert code == 0 and "removed" in told and "two lines/seed0" in told
    left = {"step-0000000001-00000.pt", "step-0000000001-00000.pt.unusable", "mine.pt"}
    assert left < set(names(run)) and outside.read_bytes() == b"mine"
    assert len(names(run)) == 5
    assert all(len(names(run.parent / name)) > 5 for name in ("seed0.old1", "seed0-mine"))


def test_status_says_what_checkpoints_take(trained):
    run = run_path(trained())
    cell = CellState("k", "gelu", None, 0, State("done").name)
    add_progress(cell, run, read_or_empty(Status, run / STATUS))
    sizes = sum(path.stat().st_size for path in (run / CHECKPOINTS).iterdir())
    assert cell.checkpoints_gb == sizes / 1e9 and 0 < cell.surplus_gb < cell.checkpoints_gb
    line = disk_line(StudyDir(run.parents[3], "demo"), [cell, CellState("l", "gelu", None, 1, "planned")])
    assert line.startswith(f"checkpoints: {sizes / 1e6:.1f} MB; make prune STUDY=demo removes ")
    assert disk_line(StudyDir(run.parents[3], "demo"), [CellState("l", "gelu", None, 1, "planned")]) == ""
