"""Training learns, repeats itself to the bit, can be stopped anywhere, and never goes on from what is wrong."""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
from contextlib import suppress
from io import BytesIO
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from roadmap.data import datasets
from roadmap.distributed.signals import StopSignal
from roadmap.errors import Busy, DataError, DiskError, NonFiniteError, Refused
from roadmap.files import MAX_JSON, read_json, sha256_of
from roadmap.net import build_net
from roadmap.runs import checkpoint, provenance, run_logger, schema
from roadmap.runs.progress import SweepProgress
from roadmap.runs.run_dir import RunDir, run_path
from roadmap.training import step as updating
from roadmap.training import train as training
from roadmap.training.evaluation import Evaluation, evaluation_files
from roadmap.training.optim import build_optimizer
from roadmap.training.setup import MAX_NAMES, recorded_names
from roadmap.training.train import train

from . import drive
from .conftest import Trap
from .records import assert_equal_runs, ledger, newest, same, status, stopped_at


@pytest.mark.parametrize("step", ["resnet", "separate_downsampling"])
def test_overfits_two_batches(small, step):
    sizes = ("data.train_images=64", "data.val_images=20", "recipe.epochs=30")
    config = small(step, "debug=overfit", *sizes, "recipe.lr=0.01", "checkpoint.keep=2")
    train(config)
    rows = [row for row in ledger(config) if row["kind"] == "train"]
    assert len(rows) == 60
    assert rows[0]["train/loss"] > 2.0
    assert rows[-1]["train/loss"] < 0.1


def test_ledger_has_every_step_once_and_the_summary_is_its_last_line(reference):
    config = reference()
    summary = read_json(run_path(config) / "summary.json")
    rows = ledger(config)
    assert [r["global_step"] for r in rows if r["kind"] == "train"] == list(range(1, 7))
    assert [(r["epoch"], r["global_step"]) for r in rows if r["kind"] == "val"] == [(1, 3), (2, 6)]
    assert summary["top1"] == rows[-1]["val/top1"]
    assert (summary["epoch"], summary["val_images"]) == (2, 40)
    bits = np.unpackbits(np.load(run_path(config) / "correct.npy"))[:40]
    assert 100 * bits.mean() == pytest.approx(summary["top1"])


def test_correct_bits_are_in_the_data_sets_order(reference):
    config = reference()
    images = datasets.load(config.data)
    net = build_net(config.model, 10)
    net.load_state_dict(newest(config)["net"])
    net.eval()
    mean, std = torch.tensor(config.data.mean)[:, None, None], torch.tensor(config.data.std)[:, None, None]
    with torch.no_grad():
        first = np.array([int(net(((image / 255 - mean) / std)[None]).argmax()) for image in images.val.images])
    right = (first == images.val.labels.numpy()).tolist()
    bits = np.unpackbits(np.load(run_path(config) / "correct.npy"))[:40].astype(bool)
    assert (bits == np.array(right)).mean() >= 0.95  # one by one and in batches round differently
    assert bits.tolist()[:10] == right[:10]
    predicted, labels = (np.load(run_path(config) / f"{name}.npy") for name in ("predictions", "labels"))
    assert (predicted.dtype, labels.dtype) == (np.uint8, np.uint8)
    assert np.array_equal(labels, images.val.labels.numpy())
    assert np.array_equal(predicted == labels, bits)
    assert (predicted == first).mean() >= 0.95
    assert read_json(run_path(config) / "summary.json")["classes"] == list(images.classes)


@pytest.mark.parametrize(
    ("num_classes", "dtype"), [(2, "u1"), (256, "u1"), (257, "<u2"), (65_536, "<u2"), (65_537, "<u4")]
)
def test_classes_are_in_the_smallest_type_that_holds_them(num_classes, dtype):
    last = np.array([num_classes - 1, 0])
    result = Evaluation(50.0, 50.0, 1.0, last == 0, last)
    files = evaluation_files(result, torch.tensor([0, 0]), num_classes)
    read = {name: np.load(BytesIO(data)) for name, data in files.items()}
    assert (read["predictions.npy"].dtype, read["labels.npy"].dtype) == (np.dtype(dtype), np.dtype(dtype))
    assert read["predictions.npy"].tolist() == last.tolist()


@pytest.mark.parametrize("step", ["patchify_stem", "separate_downsampling"])
def test_the_same_run_twice_is_equal_to_the_bit_and_another_seed_is_another_run(small, reference, step):
    one, two = reference(step, "recipe.drop_path=0.1"), small(step, "recipe.drop_path=0.1")
    train(two)
    assert_equal_runs(two, one)
    other = small(step, "recipe.drop_path=0.1", "seed=1")
    train(other)
    assert not same(newest(one)["net"], newest(other)["net"])


# 3 steps, 1 evaluation batch, 3 steps, 1 evaluation batch: of each kind of check one, some of the net with BatchNorm.
@pytest.mark.parametrize(("step", "at"), [
    pytest.param(step, at, marks=[] if at in fast else pytest.mark.slow)
    for step, fast in (("separate_downsampling", (1, 3, 4, 5, 8)), ("patchify_stem", (2, 4, 8))) for at in range(1, 9)
])  # fmt: skip
def test_stopped_at_any_point_and_resumed_is_equal_to_the_bit(small, reference, step, at):
    whole, config = reference(step, "recipe.drop_path=0.1"), small(step, "recipe.drop_path=0.1")
    with stopped_at(at):
        train(config)
    assert (status(config)["state"], status(config)["exit_code"]) == ("stopped", 75)
    assert newest(config)["global_step"] == at - (at > 3) - (at > 7)  # no step is lost
    assert not (run_path(config) / "summary.json").exists()
    train(config)
    assert_equal_runs(config, whole)


@pytest.fixture
def stopped(trained):
    """Return a function: a run of its own that was stopped at a check, the same one in every test."""
    return lambda at=4: trained("gelu", stopped_at=at)


def test_a_torn_or_flipped_checkpoint_is_passed_over(stopped, capsys):
    config = stopped(at=6)
    folder = run_path(config) / "checkpoints"
    last = sorted(folder.glob("step-*.pt"))[-1]
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    for name in ("step-0000000991-00099", "step-0000000992-00099"):  # of other runs
        for kind in (".pt", ".json"):
            shutil.copy(last.with_suffix(kind), folder / f"{name}{kind}")
    train(config)
    said = capsys.readouterr().err
    assert f"skipped {last.name}: its bytes have changed" in said
    assert "skipped step-0000000991-00099.pt: is of step" in said
    # They are no progress, and do not take the place of those that are kept.
    steps = sorted(int(path.name[5:15]) for path in folder.glob("step-*.pt"))
    assert len(steps) >= config.checkpoint.keep and steps[-1] == status(config)["step"]
    assert len(list(folder.glob("step-*.unusable"))) == 6
    assert status(config)["began_at"][0] < int(last.name[5:15])
    assert checkpoint.find_newest(folder).skipped == []


def test_a_checkpoint_that_could_not_be_read_once_is_no_obstacle_later(stopped, monkeypatch, capsys):
    """Its manifest knows the lines of metrics as they were, and not as they are written again."""
    config = stopped(at=6)
    last = sorted((run_path(config) / "checkpoints").glob("step-*.pt"))[-1]

    def stale(path):
        if path == last:
            raise OSError(116, "Stale file handle")
        return sha256_of(path)

    with monkeypatch.context() as patched, stopped_at(4):
        patched.setattr(checkpoint, "sha256_of", stale)
        train(config)
    assert f"skipped {last.name}: Stale file handle" in capsys.readouterr().err
    assert last.with_name(f"{last.name}.unusable").exists()
    train(config)
    assert read_json(run_path(config) / "status.json")["state"] == "done"


def test_never_starts_over_in_silence_when_no_checkpoint_is_whole(stopped):
    config = stopped()
    for path in (run_path(config) / "checkpoints").glob("step-*.pt"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="no checkpoint can be used"):
        train(config)
    assert list((run_path(config) / "checkpoints").glob("step-*.pt"))
    config.fresh = True
    train(config)
    assert run_path(config).with_name("seed0.old1").exists()


def test_a_checkpoint_that_holds_code_runs_nothing(stopped, tmp_path):
    config = stopped()
    marker = tmp_path / "marker"
    for path in (run_path(config) / "checkpoints").glob("step-*.pt"):
        torch.save({"net": Trap(os.mkdir, str(marker))}, path)
        manifest = json.loads(path.with_suffix(".json").read_text())
        manifest |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        manifest["checksum"] = schema.checksum(manifest)
        path.with_suffix(".json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="refused"):
        train(config)
    assert not marker.exists()


def dying(monkeypatch, name, nth):
    """Let the nth call of an os function within saving a checkpoint end the process's work, as a kill would."""

    class Killed(BaseException):
        pass

    calls = []
    real = {"replace": os.replace, "fsync": os.fsync}[name]

    def call(*args, **kwargs):
        calls.append(1)
        if len(calls) == nth:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, call)
    return Killed


# The first and the second checkpoint are written alike: the replaces from 11 on are those from 5 on once more.
@pytest.mark.parametrize(("name", "nth"), [
    *(pytest.param("replace", n, marks=[] if n < 11 or n in (15, 16) else pytest.mark.slow) for n in range(3, 17)),
    *(pytest.param("fsync", n, marks=[] if n in (8, 9, 12) else pytest.mark.slow) for n in (4, *range(7, 14))),
])  # fmt: skip
def test_killed_while_it_writes_anything_it_still_goes_on_to_the_same_bits(small, reference, monkeypatch, name, nth):
    whole, config = reference("gelu"), small("gelu")
    with monkeypatch.context() as patch:
        killed = dying(patch, name, nth)
        with suppress(killed):
            train(config)
    train(config)
    assert_equal_runs(config, whole)


def test_wrong_data_that_was_mended_is_no_drift_before_the_first_checkpoint(small, monkeypatch):
    config = small("gelu")
    monkeypatch.setattr(training.data, "train_batches", Mock(side_effect=DataError("3.jpg: cannot be decoded")))
    with pytest.raises(DataError):
        train(config)
    monkeypatch.undo()
    monkeypatch.setattr(provenance, "code_hash", lambda: "other")
    assert train(config)["state"] == "done"


@pytest.mark.parametrize("name", ["status.json", "config.yaml"])
def test_checkpoints_without_their_record_are_refused(stopped, name):
    config = stopped()
    (run_path(config) / name).unlink()
    with pytest.raises(Refused, match=f"no {name}"):
        train(config)


def test_a_checkpoint_of_another_config_is_refused(stopped, reference):
    config, other = stopped(), reference("gelu", "recipe.lr=0.001", stopped_at=4)
    shutil.rmtree(run_path(config) / "checkpoints")
    shutil.copytree(run_path(other) / "checkpoints", run_path(config) / "checkpoints")
    with pytest.raises(Refused, match=r"its checkpoint belongs to another run \(recipe\.lr: 0\.001 -> 0\.002\)"):
        train(config)


def test_a_summary_that_cannot_be_read_is_told(trained):
    config = trained("gelu")
    (run_path(config) / "summary.json").write_text("{")
    with pytest.raises(DataError, match=r"summary\.json"):
        train(config)


def test_a_dead_holder_is_waited_out_and_a_living_one_is_not(tmp_path, monkeypatch):
    run, waits = RunDir(tmp_path / "run"), []
    lock = run.path / ".lock"
    with run.lock():
        monkeypatch.setattr("roadmap.files.time.sleep", waits.append)
        lock.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        with pytest.raises(Busy), RunDir(run.path).lock():
            pass
        assert not waits
    fcntl.flock(held := lock.open(), fcntl.LOCK_EX)
    lock.write_text(f"process 4194305 on {socket.gethostname()}")  # there is none; its child lets go later
    monkeypatch.setattr("roadmap.files.time.sleep", lambda _: held.close())
    with run.lock():
        assert held.closed


def test_fresh_on_a_new_run_leaves_nothing_aside_and_an_incomplete_batch_is_dropped(small):
    config = small("gelu", "data.train_images=100")
    config.fresh = True
    train(config)
    assert status(config)["step"] == 2 * (96 // 32)
    assert [p.name for p in run_path(config).parent.iterdir()] == ["seed0"]


def test_a_signal_at_the_very_end_is_kept_for_the_sweep(small, monkeypatch):
    sweep = SweepProgress(1, 2)
    real = run_logger.RunLogger.finish

    def finish(self, result):
        signal.raise_signal(signal.SIGTERM)
        return real(self, result)

    monkeypatch.setattr(run_logger.RunLogger, "finish", finish)
    assert train(small("gelu"), sweep)["state"] == "done"
    assert sweep.stopped


def test_a_full_disk_ends_with_74_and_spares_what_was_saved(stopped, monkeypatch):
    config = stopped()
    before = {p.name: p.read_bytes() for p in (run_path(config) / "checkpoints").iterdir()}
    monkeypatch.setattr(checkpoint.torch, "save", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(DiskError, match="No space left"):
        train(config)
    assert status(config)["exit_code"] == 74
    assert {p.name: p.read_bytes() for p in (run_path(config) / "checkpoints").iterdir()} == before
    monkeypatch.undo()
    assert train(config)["state"] == "done"


def test_another_config_in_the_same_directory_is_refused(stopped):
    config = stopped()
    config.recipe.lr = 0.5
    with pytest.raises(Refused, match=r"recipe\.lr: 0\.002 -> 0\.5"):
        train(config)
    config.recipe.lr = 0.002
    config.checkpoint.keep = 5
    train(config)


def test_other_code_is_refused_unless_allowed_and_recorded(stopped, monkeypatch):
    config = stopped()
    monkeypatch.setattr(provenance, "code_hash", lambda: "other")
    with pytest.raises(Refused, match="code_hash"):
        train(config)
    config.allow_drift = True
    assert any("code_hash" in line for line in train(config)["drift"])


def test_a_second_writer_leaves_at_once(stopped):
    config = stopped()
    before = (run_path(config) / "status.json").read_bytes()
    with RunDir(run_path(config)).lock(), pytest.raises(Busy, match="another process is writing"):
        train(config)
    assert (run_path(config) / "status.json").read_bytes() == before


@pytest.mark.parametrize("begun", [True, False], ids=["another_run_began", "nothing_is_there"])
def test_a_run_whose_folder_is_moved_away_writes_into_no_other(small, monkeypatch, begun):
    config = small("gelu", "recipe.epochs=2")
    path = run_path(config)

    class Mover(StopSignal):
        def raise_if_set(self, save_due=False):
            if (path / "metrics.jsonl").exists() and not path.with_name("moved").exists():
                path.rename(path.with_name("moved"))
                if begun:
                    path.mkdir()
                    (path / ".lock").touch()
            return super().raise_if_set(save_due)

    monkeypatch.setattr(training, "StopSignal", Mover)
    with pytest.raises(DiskError, match="is another run's now" if begun else "No such file"):
        train(config)
    assert [file.name for file in path.glob("*")] == [".lock"] * begun


@pytest.mark.parametrize("words", [(), pytest.param(("compile=true",), marks=pytest.mark.slow)])
def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_weights(small, monkeypatch, words):
    config = small("gelu", "recipe.epochs=3", *words)
    real = updating.cross_entropy
    calls = []

    def poisoned(*args, **kwargs):
        calls.append(1)
        loss = real(*args, **kwargs)
        return loss * float("nan") if len(calls) == 5 else loss

    monkeypatch.setattr(updating, "cross_entropy", poisoned)
    with pytest.raises(NonFiniteError, match="step 5"):
        train(config)
    assert (status(config)["state"], status(config)["exit_code"]) == ("failed", 70)
    state = newest(config)
    assert state["global_step"] == 3
    assert all(torch.isfinite(v).all() for v in state["net"].values())


def test_a_step_that_is_not_finite_changes_no_weight(small):
    """The fused optimizer's own skip, for both optimizers."""
    for step in ("resnet", "gelu"):
        config = small(step)
        net = build_net(config.model, 10)
        optimizer = build_optimizer(net, config.recipe)
        before = {k: v.clone() for k, v in net.named_parameters()}
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, float("nan"))
        optimizer.found_inf = torch.tensor(1.0)
        optimizer.step()
        assert all(torch.equal(before[k], v) for k, v in net.named_parameters())


def test_memory_that_is_too_small_is_told_with_the_batch_that_fits(forks, tmp_path):
    images = ("data=synthetic", "data.image_size=128", "data.train_images=512", "data.val_images=8")
    recipe = ("recipe.batch_size=512", "recipe.epochs=1", "recipe.warmup_epochs=0")
    words = ("+step=gelu", *images, *recipe, "wandb.mode=disabled", f"paths.runs={tmp_path}")
    failed = forks.run(words, drive.accident("before", what="limit", mb=1000))
    what = r"recipe.micro_batch=512: a pass of so many images is too large for the memory of cpu; (\d+) fits"
    found = re.search(what, failed.stderr)
    assert found, failed.stderr
    assert failed.returncode == 64
    assert 2 <= int(found[1]) <= 256
    # Address space is lost to fragments, more or less of it each time.
    done = forks.run((*words, f"recipe.micro_batch={found[1]}"), drive.accident("before", what="limit", mb=1250))
    assert done.returncode == 0, done.stderr


def test_names_of_classes_that_would_fill_the_records_are_left_out_of_them():
    """Readers take no record of more than MAX_JSON: the longest names that folders can have, of few classes or many."""
    assert recorded_names(["a\x1b", "b"]) == ["a?", "b"]
    assert len(recorded_names(list(map(str, range(21_841)))) or ()) == 21_841
    for names in (["\U0001f600" * 60] * 21_841, list(map(str, range(1_000_000)))):
        assert recorded_names(names) is None
    longest = recorded_names(["\U0001f600" * 60] * (MAX_NAMES // 800))
    assert longest is not None
    assert len(json.dumps({"classes": longest}, indent=2)) < MAX_JSON / 2
