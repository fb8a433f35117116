"""A run is what its record says: what is not finite, missing, damaged or misnamed is told, and never counted."""

import json
import os
import shutil
import zipfile
from unittest.mock import Mock

import pytest
import torch
import yaml

from roadmap.errors import DataError, DiskError, NonFiniteError, OutOfMemory, Refused
from roadmap.files import read_json, sha256_of, write_json
from roadmap.report.read.run import read_run
from roadmap.runs import checkpoint, run_logger
from roadmap.runs.progress import Progress
from roadmap.runs.recorded_run import RecordedRun, Suspect
from roadmap.runs.run_dir import RunDir, run_path
from roadmap.runs.schema import checksum
from roadmap.training import train as training
from roadmap.training.setup import find_checkpoint
from roadmap.training.train import train

from . import drive
from .conftest import SMALL
from .records import assert_equal_runs, ledger, newest, status, stopped_at

ARRAYS = ("correct.npy", "predictions.npy", "labels.npy")
RECORD = ("config.yaml", "status.json", "summary.json", "metrics.jsonl", *ARRAYS)
EMA = "recipe.ema_decay=0.9"
WORDS = ("+step=gelu", "wandb.mode=disabled", *SMALL)  # what is typed for the runs of these tests


@pytest.fixture
def stopped(trained):
    """Return a function: a run that was stopped in its second epoch; two checkpoints lie in it."""
    return lambda at=6: trained("gelu", stopped_at=at)


def checkpoints(config):
    return run_path(config) / "checkpoints"


def report(config):
    return read_run(RecordedRun(run_path(config), "the run"))


def first(tensors):
    return next(iter(tensors))


# What is not finite.


def poison(tensor, value):
    tensor.detach()[(0,) * tensor.dim()] = value


def spoil(state, what):
    """Put a number that is not finite into one part of the state, as rounding or a bad chip might."""
    if what == "buffer":
        poison(next(b for name, b in state.net.named_buffers() if name.endswith("running_var")), float("inf"))
    elif what == "moment":
        poison(first(state.optimizer.state.values())["exp_avg"], float("-inf"))
    elif what == "average":
        poison(first(state.ema.module.parameters()), float("nan"))
    else:
        poison(first(state.net.parameters()), float("nan"))


@pytest.mark.parametrize(
    ("what", "step", "message"),
    [
        ("buffer", "patchify_stem", r"step 6: net\.\S+running_var is not finite; no checkpoint is written"),
        ("moment", "gelu", r"step 6: optimizer\.state\.0\.exp_avg is not finite"),
        ("average", "gelu", "step 6: the moving average gives outputs that are not finite"),
        ("weight", "gelu", "step 6: the net gives outputs that are not finite"),
    ],
)
def test_a_state_that_is_not_finite_is_never_kept_and_ends_the_run(small, monkeypatch, what, step, message):
    config = small(step, EMA) if what == "average" else small(step)
    real = training.train_step

    def train_step(ctx, state, batches, lr):
        done = real(ctx, state, batches, lr)
        if state.global_step == 5:  # the last of them: no loss is computed with it any more
            spoil(state, what)
        return done

    monkeypatch.setattr(training, "train_step", train_step)
    with pytest.raises(NonFiniteError, match=message) as caught:
        train(config)
    assert caught.value.on_all_ranks == (what in ("average", "weight"))  # only rank 0 saves: the others are told
    assert (status(config)["state"], status(config)["exit_code"]) == ("failed", 70)
    assert not (run_path(config) / "summary.json").exists()
    assert newest(config)["global_step"] == 3
    for path in checkpoints(config).glob("*.pt"):
        assert not checkpoint.first_non_finite(checkpoint.load(path))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("at", [0, 500, 1000])
def test_any_number_of_any_tensor_is_seen(bad, dtype, at):
    state = {"a": [torch.ones(3, dtype=torch.int64), {"b": torch.randn(1001).to(dtype)}], "c": torch.zeros(()), "d": 1}
    state["e"] = torch.zeros(0)
    assert checkpoint.first_non_finite(state) == ""
    state["a"][1]["b"][at] = bad
    assert checkpoint.first_non_finite(state) == "a.1.b"


def test_a_checkpoint_of_an_earlier_version_that_is_not_finite_is_passed_over(stopped, reference, capsys):
    config = stopped()
    last = max(checkpoints(config).glob("*.pt"))
    state = checkpoint.load(last)
    poison(first(state["net"].values()), float("inf"))
    torch.save(state, last)
    manifest = read_json(last.with_suffix(".json"))
    manifest |= {"bytes": last.stat().st_size, "sha256": sha256_of(last)}
    write_json(last.with_suffix(".json"), manifest | {"checksum": checksum(manifest)})
    assert train(config)["state"] == "done"
    assert f"skipped {last.name}: net.stem.conv.weight is not finite" in capsys.readouterr().err
    assert_equal_runs(config, reference("gelu"))


@pytest.mark.parametrize("key", ["val/loss", "val/top1", "val/ema_top1"])
@pytest.mark.parametrize("value", ["null", "NaN", "Infinity"])
def test_a_report_counts_no_evaluation_that_is_not_finite(trained, key, value):
    config = trained("gelu")
    as_of_an_earlier_version(config)
    lines = (run_path(config) / "metrics.jsonl").read_text().splitlines()
    lines[3] = json.dumps({**json.loads(lines[3]), key: "?"}).replace('"?"', value)
    (run_path(config) / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, epoch 1: "):
        report(config)


# The ledger.


def as_of_an_earlier_version(config):
    """Take what this version added out of a summary."""
    path = run_path(config) / "summary.json"
    write_json(path, {k: v for k, v in read_json(path).items() if k not in ("sha256", "checksum")})


def damage_line(config, number, how):
    path = run_path(config) / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if how == "lost":
        del lines[number]
    elif how == "doubled":
        lines.insert(number, lines[number])
    elif how == "cut":
        lines[number] = lines[number][:40] + b"\n"
    else:  # one digit of a number
        lines[number] = lines[number].replace(b'"time_s": ', b'"time_s": 1', 1)
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize("how", ["lost", "doubled", "cut", "changed"])
# Of each epoch's four lines the first and the evaluation; the others in the slow tests.
@pytest.mark.parametrize(
    "number", [n if n in (0, 3, 4, 7) else pytest.param(n, marks=pytest.mark.slow) for n in range(8)]
)
def test_a_line_of_a_finished_run_that_is_lost_doubled_or_changed_is_told(trained, number, how):
    config = trained("gelu")
    damage_line(config, number, how)
    before = (run_path(config) / "status.json").read_bytes()
    with pytest.raises(Suspect, match=r"metrics\.jsonl"):
        report(config)
    with pytest.raises(DataError, match=r"metrics\.jsonl changed after the run had ended"):
        train(config)
    assert (run_path(config) / "status.json").read_bytes() == before
    as_of_an_earlier_version(config)
    if how == "changed":
        report(config)
        return
    what = "evaluation" if number in (3, 7) else "step"
    with pytest.raises(Suspect, match=f"{what}|metrics.jsonl: (train|val) rows|corrupt"):
        report(config)


@pytest.mark.parametrize(
    ("number", "how", "reason"),
    [
        (1, "lost", "step 2 is missing"),
        (3, "lost", "evaluation 1 is missing"),
        (0, "doubled", "step 1 is repeated or out of order"),
        (2, "cut", "step 3 is missing"),
        (1, "changed", "a value has changed"),
    ],
)
def test_a_hole_before_the_checkpoint_refuses_to_resume_and_is_named(stopped, number, how, reason):
    config = stopped()
    damage_line(config, number, how)
    with pytest.raises(DataError, match=rf"metrics\.jsonl: its lines up to the checkpoint .* \({reason}\); fresh=true"):
        train(config)
    assert status(config)["exit_code"] == 65


def test_a_run_whose_checkpoints_are_gone_does_not_start_over_in_silence(stopped, capsys):
    config = stopped()
    last = max(checkpoints(config).glob("*.pt"))
    last.unlink()
    train(config)
    assert "the checkpoint of step 5, which its status.json names, is gone" in capsys.readouterr().err
    config = stopped_again(stopped, config)
    shutil.rmtree(checkpoints(config))
    with pytest.raises(DataError, match=r"the checkpoint of step 5.* is gone, and there is no other"):
        train(config)


def stopped_again(stopped, config):
    shutil.rmtree(run_path(config))
    return stopped()


# Checkpoints by their names.


def test_the_newest_checkpoints_and_that_of_the_best_step_are_kept(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in range(1, 6):
        state = {"global_step": step, "epochs_evaluated": 0, "weight": torch.ones(1)}
        assert checkpoint.save(folder, state, {"best_step": 2}, keep=2) == []
    kept = [f"step-{step:010d}-00000.{kind}" for step in (2, 4, 5) for kind in ("json", "pt")]
    assert sorted(path.name for path in folder.iterdir()) == kept


def test_checkpoints_that_are_not_what_they_are_named_are_passed_over_and_named(stopped, reference, capsys):
    config = stopped()
    old, new = sorted(checkpoints(config).glob("*.pt"))
    for suffix in (".pt", ".json"):
        shutil.copy(old.with_suffix(suffix), checkpoints(config) / f"step-0000000009-00003{suffix}")
    (checkpoints(config) / "best.pt").write_bytes(b"mine")
    shutil.copy(new, checkpoints(config) / f"{new.stem} (copy).pt")
    (checkpoints(config) / "notes.txt").write_text("mine")
    (checkpoints(config) / ".nfs0001").touch()  # of the file system
    train(config)
    told = capsys.readouterr().err
    assert "nfs0001" not in told
    assert "skipped step-0000000009-00003.pt: is of step 3 after 1 epochs, and not what it is named" in told
    for name in ("best.pt", f"{new.stem} (copy).pt", "notes.txt"):
        assert f"skipped {name}: not the name of a checkpoint" in told
        assert (checkpoints(config) / name).exists()
    assert "resuming at step 5" in told
    assert_equal_runs(config, reference("gelu"))


def test_a_checkpoint_without_its_manifest_is_passed_over_and_a_folder_in_its_place_moves_away(stopped, reference):
    config = stopped()
    old, new = sorted(checkpoints(config).glob("*.pt"))
    new.with_suffix(".json").unlink()
    found = checkpoint.find_newest(checkpoints(config))
    assert (found.path, found.skipped) == (old, [f"{new.name}: its manifest is missing"])
    new.unlink()
    new.mkdir()
    train(config)
    assert new.with_name(f"{new.name}.unusable").is_dir()
    assert_equal_runs(config, reference("gelu"))


def signed(path, **changes):
    """Let a checkpoint's manifest say what is true of its file, and what is given."""
    manifest = read_json(path.with_suffix(".json"))
    manifest |= {"bytes": path.stat().st_size, "sha256": sha256_of(path), **changes}
    write_json(path.with_suffix(".json"), manifest | {"checksum": checksum(manifest)})


def test_a_checkpoint_of_a_later_version_is_not_damaged_and_stays_where_it_is(stopped):
    config = stopped()
    new = sorted(checkpoints(config).glob("*.pt"))[-1]
    before = sorted(checkpoints(config).iterdir())
    signed(new, schema=99)
    with pytest.raises(Refused, match=r"written by a later version of this code \(schema 99, this one knows up to 2\)"):
        train(config)
    assert sorted(checkpoints(config).iterdir()) == before


def test_a_checkpoint_that_memory_is_too_small_for_is_not_damaged_and_stays_where_it_is(stopped, monkeypatch):
    config = stopped()
    before = sorted(checkpoints(config).iterdir())
    error = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
    monkeypatch.setattr(checkpoint, "load", Mock(side_effect=error))
    with pytest.raises(OutOfMemory, match="memory is too small for this run"):
        train(config)
    with pytest.raises(OutOfMemory):  # by itself, since rank 0 passes on the project's own errors alone
        find_checkpoint(None, RunDir(run_path(config)))
    assert sorted(checkpoints(config).iterdir()) == before


@pytest.mark.parametrize("how", ["compressed", "repeated"])
def test_a_checkpoint_that_unfolds_to_more_than_its_file_is_not_read(stopped, how):
    config = stopped()
    old, new = sorted(checkpoints(config).glob("*.pt"))
    state = torch.load(new, weights_only=True)
    state["net"]["stem.conv.weight"] = torch.zeros(1).expand(2**40) if how == "repeated" else torch.zeros(2**20)
    torch.save(state, new)
    if how == "compressed":
        with zipfile.ZipFile(new) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
    signed(new)
    found = checkpoint.find_newest(checkpoints(config))
    told = {"compressed": "data.pkl in it is compressed", "repeated": "net.stem.conv.weight is larger than the file"}
    assert found.path == old
    assert told[how] in found.skipped[0]


def test_two_checkpoints_that_were_exchanged_cannot_be_used(stopped):
    config = stopped()
    old, new = sorted(checkpoints(config).glob("*.pt"))
    for suffix in (".pt", ".json"):
        third = new.with_suffix(".x")
        new.with_suffix(suffix).rename(third)
        old.with_suffix(suffix).rename(new.with_suffix(suffix))
        third.rename(old.with_suffix(suffix))
    with pytest.raises(DataError, match=r"no checkpoint can be used .*step 3 after 1 .*step 5 after 1"):
        train(config)


def test_a_renamed_only_checkpoint_does_not_start_over_in_silence(stopped):
    config = stopped(at=4)
    for path in checkpoints(config).iterdir():
        path.rename(path.with_name("mine" + path.suffix))
    with pytest.raises(DataError, match=r"the checkpoint of step 3.* is gone"):
        train(config)


# The disk.


def test_a_rank_that_does_not_see_the_checkpoint_of_rank_0_says_so(stopped, monkeypatch):
    """As on a node with a runs directory of its own."""

    def found_by_another(folder):
        found = find_newest(folder)
        found.path.rename(found.path.with_suffix(".away"))
        return found

    config, find_newest = stopped(), checkpoint.find_newest
    monkeypatch.setattr(checkpoint, "find_newest", found_by_another)
    with pytest.raises(
        DiskError, match=r"\.pt: rank 0 cannot read it \(No such file .*\); every node must see the runs"
    ):
        train(config)


def test_an_old_checkpoint_that_cannot_be_deleted_is_a_warning(small, monkeypatch, capsys):
    config, real = small("gelu", "recipe.epochs=6"), os.unlink
    old = "step-0000000006-00002.pt"

    def unlink(path, *args, **kwargs):
        if os.fspath(path).endswith(old) and os.path.exists(path):
            raise PermissionError(1, "Operation not permitted", os.fspath(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "unlink", unlink)
    assert train(config)["state"] == "done"
    told = capsys.readouterr().err
    warning = f"warning: {checkpoints(config) / old}: cannot be removed (Operation not permitted)"
    assert told.count("warning") == told.count(warning) == 1
    assert (checkpoints(config) / old).with_suffix(".json").exists()  # what is left still counts


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "correct.npy", "summary.json", "run.log"])
def test_a_file_in_the_place_of_a_folder_or_the_other_way_round_is_told_by_its_path(small, name):
    config = small("gelu")
    (run_path(config)).mkdir(parents=True)
    (run_path(config) / name).touch() if name == "checkpoints" else (run_path(config) / name).mkdir()
    with pytest.raises((DiskError, Refused), match=name):
        train(config)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["run.log", ".lock"])
def test_a_pipe_in_the_place_of_a_file_is_refused_by_its_path(small, name):
    config = small("gelu")
    run_path(config).mkdir(parents=True)
    os.mkfifo(run_path(config) / name)
    with pytest.raises(DiskError, match=rf"{name}: cannot be written \(not a regular file\)"):
        train(config)


@pytest.mark.parametrize("name", ["sha256_of", "append_metrics"])
def test_a_ledger_that_cannot_be_read_back_or_written_is_told(small, monkeypatch, name):
    monkeypatch.setattr(run_logger, name, Mock(side_effect=OSError(5, "Input/output error")))
    config = small("gelu")
    with pytest.raises(DiskError, match=r"metrics\.jsonl: cannot be written \(Input/output error\)"):
        train(config)
    assert status(config)["exit_code"] == 74


def test_a_log_that_the_disk_does_not_take_costs_nothing_else(small, reference, capfd):
    config = small("gelu")
    run_path(config).mkdir(parents=True)
    (run_path(config) / "run.log").symlink_to("/dev/full")
    train(config)
    assert "error" not in capfd.readouterr().err
    assert_equal_runs(config, reference("gelu"))


def test_what_killed_writers_left_goes_at_the_next_start_and_what_others_left_stays(stopped):
    config = stopped()
    folder = run_path(config)
    ours = [folder / f".{name}.some.host.4711.tmp" for name in RECORD]
    ours += [folder / "checkpoints" / f".step-0000000006-00002.{kind}.some.host.4711.tmp" for kind in ("pt", "json")]
    ours += [folder / "checkpoints" / "step-0000000004-00001.json"]  # its checkpoint was never whole
    theirs = [folder / ".mine.tmp", folder / "checkpoints" / ".mine.tmp", folder / "checkpoints" / "step-mine.json"]
    for path in ours + theirs:
        path.touch()
    train(config)
    assert not [path for path in ours if path.exists()]
    assert all(path.exists() for path in theirs)


# Runs that are done.


@pytest.mark.parametrize("name", RECORD)
def test_a_finished_run_that_lost_a_file_is_told_in_a_line_and_left_as_it_is(trained, name):
    config = trained("gelu")
    (run_path(config) / name).unlink()
    before = {path.name: path.read_bytes() for path in run_path(config).iterdir() if path.is_file()}
    expected = f"{run_path(config)}: the run is done, but its {name} is missing; fresh=true starts over"
    with pytest.raises(DataError, match=expected):
        train(config)
    after = {path.name: path.read_bytes() for path in run_path(config).iterdir() if path.is_file()}
    assert {**after, ".lock": b""} == {**before, ".lock": b""}
    config.fresh = True
    assert train(config)["state"] == "done"


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", *ARRAYS, "summary.json"])
def test_a_file_of_a_finished_run_that_was_changed_is_told_and_suspect(trained, name):
    config = trained("gelu")
    path = run_path(config) / name
    change = {"summary.json": (b'"params_m": 0', b'"params_m": 1'), "config.yaml": (b"every_min: 10", b"every_min: 11")}
    data = path.read_bytes()
    if name in change:
        path.write_bytes(data.replace(*change[name]))
    else:
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    assert path.read_bytes() != data
    with pytest.raises(DataError, match=rf"{name}"):
        train(config)
    with pytest.raises(Suspect, match=name):
        report(config)


def test_a_finished_run_of_a_version_without_classes_is_whole_as_it_is(trained):
    config = trained("gelu")
    folder = run_path(config)
    for name in ("predictions.npy", "labels.npy"):
        (folder / name).unlink()
    summary = json.loads((folder / "summary.json").read_text())
    summary = {key: value for key, value in summary.items() if key != "classes"}
    summary["sha256"] = {name: summary["sha256"][name] for name in ("config.yaml", "metrics.jsonl", "correct.npy")}
    summary["checksum"] = checksum(summary)
    (folder / "summary.json").write_text(json.dumps(summary))
    assert train(config) == summary
    run = report(config)
    assert (run.classes, len(run.correct())) == (None, 40)


def test_a_finished_run_typed_again_says_so_at_once_without_torch(trained):
    config = trained("gelu")
    words = [f"paths.runs={config.paths.runs}", *WORDS]
    code = f"import sys; sys.argv[1:] = {words!r}; import run; code = run.main(); "
    code += "sys.exit(code or ('torch' in sys.modules) * 99)"
    before = (run_path(config) / "status.json").read_bytes()
    done = drive.python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"{config.cell}: already finished\n"
    assert done.stdout.startswith(f"{config.cell}: top-1 ")
    assert (run_path(config) / "status.json").read_bytes() == before


def test_a_finished_run_says_where_its_images_were_if_another_folder_is_asked_for(small, tmp_path):
    """Nothing lists the images of a run that is done, and a folder of one's own may hold others under the same name."""
    config = small("gelu")
    root, other, link = (tmp_path / name for name in ("images", "other images", "link"))
    link.symlink_to(root)
    at = {path: config.data.replace(name="mine", kind="npz", root=str(path)) for path in (root, other, link)}
    folder = run_path(config.replace(data=at[root]))
    folder.mkdir(parents=True)
    for name in RECORD:
        (folder / name).touch()
    (folder / "config.yaml").write_text(yaml.safe_dump(config.replace(data=at[root]).values()))
    write_json(folder / "status.json", {"state": "done"})
    notes = {}
    for path, data in at.items():
        run = RunDir(folder)
        assert run.is_done(config.replace(data=data).values())
        notes[path] = run.notes
    told = f"on the images of data.root={root}; if those of data.root={other} are others"
    assert notes.pop(other)[0].startswith(told)
    assert not any(notes.values())


# Threads, the right epoch, restarts.


def test_a_run_keeps_its_number_of_threads(small, capsys):
    before = torch.get_num_threads()
    config = small("gelu")
    try:
        torch.set_num_threads(2)
        with stopped_at(6):
            train(config)
        assert status(config)["threads"] == 2
        torch.set_num_threads(1)
        seen = []
        with pytest.MonkeyPatch.context() as patch:
            real = training.train_step
            patch.setattr(training, "train_step", lambda *a: seen.append(torch.get_num_threads()) or real(*a))
            summary = train(config)
        assert torch.get_num_threads() == 1  # for whatever comes after it in this process
    finally:
        torch.set_num_threads(before)
    assert seen == [2]
    assert (summary["threads"], summary["rounding"]) == (2, [])
    assert "uses 2 threads, as when it started; this machine would use 1" in capsys.readouterr().err


def test_the_top1_that_is_shown_is_that_of_its_epoch(small, monkeypatch):
    shown, config = [], small("separate_downsampling", "recipe.batch_size=16")
    monkeypatch.setattr(Progress, "advance", lambda self, note: shown.append(note))
    train(config)
    top1 = {row["epoch"]: f"top-1 {row['val/top1']:.2f} %" for row in ledger(config) if row["kind"] == "val"}
    assert len(set(top1.values())) > 1
    log = (run_path(config) / "run.log").read_text().splitlines()
    lines = [line for line in log if " epoch " in line and "top-1" in line]
    assert all(f"epoch {epoch}/2, {top1[epoch]}, loss" in line for epoch, line in enumerate(lines, 1))
    assert len(lines) == 2
    assert not [note for note in shown[:6] if "top-1" in note or not note.startswith("epoch 1/2")]
    of_first = f"{top1[1]} after epoch 1"
    assert not [note for note in shown[6:] if not note.startswith("epoch 2/2") or not note.endswith(of_first)]
    assert len(shown) == 12
    assert status(config)["epoch"] == 2


def test_a_start_that_dies_before_it_trains_is_counted_too(forks, small, tmp_path):
    words = (*WORDS, f"paths.runs={tmp_path / 'runs'}")
    config = small("gelu")
    assert forks.run(words, drive.accident("step", 2)).returncode == -9
    assert status(config)["starts"] == 1
    for starts in (2, 3):
        assert forks.run(words, drive.accident("images")).returncode == -9
        assert status(config)["starts"] == starts
    assert forks.run(words).returncode == 0
    assert status(config)["starts"] == 4
    forks.run(words)
    assert status(config)["starts"] == 4  # it was done
