"""A set is checked before it costs: what must be there, every image opened, and what is remembered of it."""

import hashlib
import importlib.resources
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from roadmap.catalog import DATA_SETS, DataKind, DataSet
from roadmap.config.images import DataConfig
from roadmap.config.schema import Config, PathsConfig
from roadmap.data import datasets, verify, workers
from roadmap.errors import DataError, DiskError, LoaderError, StoppedEarly

from .conftest import ROOT, Trap

CLASSES = ("ant", "bee", "cat")


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (24, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes, four training and two validation images each."""
    for split, num_images in (("train", 4), ("val", 2)):
        for c, name in enumerate(CLASSES):
            for i in range(num_images):
                write_image(tmp_path / "data" / split / name / f"{i}.jpg", seed=100 * c + i)
    return tmp_path / "data"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def config(root: Path, runs: Path, fresh: bool = False, **changes) -> Config:
    data = DataConfig(**({"name": "imagefolder", "root": str(root)} | changes))
    return Config(data=data, paths=PathsConfig(runs=str(runs)), fresh=fresh)


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Return the list of the images that are opened, and open them in this process."""
    names: list[str] = []
    find_problem = verify.find_problem

    def note(folder, files, index):
        names.append(os.fsdecode(files[index]))
        return find_problem(folder, files, index)

    monkeypatch.setattr(verify, "find_problem", note)
    monkeypatch.setattr(verify, "num_cores", lambda: 0)
    monkeypatch.setattr(verify, "CHUNK", 4)
    return names


# What a published set must have


def test_imagenets_classes_are_those_that_timm_ships():
    names = (importlib.resources.files("timm") / "data" / "_info" / "imagenet_synsets.txt").read_text().split()
    must = DATA_SETS["imagenet"]
    assert len(names) == must.num_classes == 1000
    assert hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest() == must.classes_sha256
    assert must.num_images == {"train": 1_281_167, "val": 50_000}


def test_imagenettes_classes_are_ten_of_imagenets():
    names = ["n01440764", "n02102040", "n02979186", "n03000684", "n03028079"]
    names += ["n03394916", "n03417042", "n03425413", "n03445777", "n03888257"]
    must = DATA_SETS["imagenette"]
    assert hashlib.sha256("\n".join(names).encode()).hexdigest() == must.classes_sha256
    assert (must.num_classes, must.num_images) == (10, {"train": 9_469, "val": 3_925})
    known = (importlib.resources.files("timm") / "data" / "_info" / "imagenet_synsets.txt").read_text().split()
    assert set(names) <= set(known)


def published(num_classes: int, classes_sha256: str, num_images: dict[str, int]) -> DataSet:
    return DataSet("Set", DataKind.folders, num_classes, num_images, classes_sha256=classes_sha256)


@pytest.mark.parametrize("name", ["imagenet", "imagenette"])
def test_other_classes_or_counts_than_a_set_has_are_named_before_training(root, name, monkeypatch):
    right = hashlib.sha256("\n".join(CLASSES).encode()).hexdigest()
    for expected, words in (
        (published(4, right, {}), "3 class folders, Set has 4"),
        (published(3, "0", {}), r"not the 3 classes of Set \(ant, bee, cat among them is no WordNet id"),
        (published(3, right, {"train": 12, "val": 7}), "val: 6 images, Set has 7"),
        (published(3, right, {"train": 13, "val": 6}), "train: 12 images, Set has 13"),
    ):
        monkeypatch.setitem(DATA_SETS, name, expected)
        with pytest.raises(DataError, match=words):
            datasets.load(DataConfig(name=name, root=str(root)))
    monkeypatch.setitem(DATA_SETS, name, published(3, right, {"train": 12, "val": 6}))
    assert len(datasets.load(DataConfig(name=name, root=str(root), train_images=5)).train) == 5


# Every image is opened


def test_a_set_that_is_whole_is_said_in_one_line_with_the_fingerprint_that_training_records(root, runs):
    fingerprint = datasets.load(DataConfig(name="imagefolder", root=str(root))).fingerprint
    line = verify.data_check(config(root, runs))
    assert line == f"data=imagefolder: 12 + 6 images in 3 classes, every file opened, fingerprint {fingerprint}"
    verdict = json.loads((runs / ".data" / f"{fingerprint}.json").read_text())
    assert (verdict["state"], verdict["fingerprint"], verdict["train_images"]) == ("whole", fingerprint, 12)


def test_every_broken_image_is_named_and_only_what_changed_is_opened_again(root, runs, opened, capsys):
    (root / "train" / "bee" / "1.jpg").write_bytes(b"<html>404</html>")
    (root / "val" / "cat" / "0.jpg").write_bytes((root / "val" / "cat" / "0.jpg").read_bytes()[:-200])
    (root / "train" / "ant" / "3.jpg").write_bytes(b"")
    (root / "train" / "cat" / "link.jpg").symlink_to(root / "gone.jpg")
    (root / "train" / "cat" / "new\nline.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="5 of 20 images cannot be read"):
        verify.data_check(config(root, runs))
    names = ["train/ant/3.jpg", "train/bee/1.jpg", "train/cat/link.jpg", "train/cat/new?line.jpg", "val/cat/0.jpg"]
    for lines in (
        (runs / ".data" / "broken-imagefolder.txt").read_text().splitlines(),
        capsys.readouterr().err.splitlines(),
    ):
        assert [line.split(": ")[0].removeprefix(f"{root}/") for line in lines] == names
    assert not any(verify.checked_on(runs, p.stem) for p in (runs / ".data").glob("*.json"))
    for path in (root / "train" / "cat").glob("[ln]*.jpg"):
        path.unlink()
    for name in ("train/ant/3.jpg", "train/bee/1.jpg", "val/cat/0.jpg"):
        write_image(root / name)
    opened.clear()
    assert "12 + 6 images" in verify.data_check(config(root, runs))
    assert opened == ["train/ant/3.jpg", "train/bee/1.jpg", "val/cat/0.jpg"]


def test_everything_that_is_wrong_in_the_class_folders_is_named_at_once(root, runs, opened):
    write_image(root / "train" / "bee" / "parts" / "0.jpg")
    (root / "train" / "cat" / "a.gif").write_bytes(b"GIF89a")
    (root / "val" / "ant" / "scan.tif").write_bytes(b"II*")
    for i in range(3):
        (root / "val" / "cat" / f"{i}.heic").write_bytes(b"")
    with pytest.raises(DataError) as error:
        verify.data_check(config(root, runs))
    told = str(error.value).split("; ")
    assert [line.split(": ")[0] for line in told if ": " in line] == [
        str(root / name)
        for name in ("train/bee/parts", "train/cat/a.gif", "val/ant/scan.tif", "val/cat/0.heic", "val/cat/1.heic")
    ]
    assert told[-1] == "and 1 more"
    assert opened == []


def test_only_the_first_twenty_are_on_the_screen(root, runs, opened, capsys):
    for i in range(10, 40):
        (root / "train" / "ant" / f"{i}.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="30 of 48"):
        verify.data_check(config(root, runs))
    lines = capsys.readouterr().err.splitlines()
    assert (len(lines), lines[-1]) == (21, "and 10 more")
    assert len((runs / ".data" / "broken-imagefolder.txt").read_text().splitlines()) == 30


def test_the_same_size_under_the_same_name_is_opened_again(root, runs, opened):
    verify.data_check(config(root, runs))
    path = root / "val" / "ant" / "1.jpg"
    path.write_bytes(bytes(path.stat().st_size))
    opened.clear()
    with pytest.raises(DataError, match="1 of 18"):
        verify.data_check(config(root, runs))
    assert opened == ["val/ant/1.jpg"]


def test_stopped_it_goes_on_where_it_was_and_fresh_opens_all(root, runs, opened, monkeypatch):
    count = verify.ImageProgress.count

    def stop_after_eight(self, *args):
        count(self, *args)
        if self.done == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(verify.ImageProgress, "count", stop_after_eight)
    with pytest.raises(StoppedEarly, match="SIGTERM: 8 of 18 images opened"):
        verify.data_check(config(root, runs))
    first = list(opened)
    monkeypatch.setattr(verify.ImageProgress, "count", count)
    verify.data_check(config(root, runs))
    assert len(first) == 8
    assert len(opened) == len(set(opened)) == 18
    verify.data_check(config(root, runs))
    assert len(opened) == 18
    verify.data_check(config(root, runs, fresh=True))
    assert len(opened) == 36


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "other"])
def test_a_damaged_memory_of_what_was_opened_is_not_trusted(root, runs, opened, damage):
    verify.data_check(config(root, runs))
    (path,) = (runs / ".data").glob("opened-*")
    whole = path.read_bytes()
    middle = len(whole) // 2
    if damage == "other":  # whole, but not what is asked for
        verify.write_opened(path, np.array([1.5]))
    else:
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        path.write_bytes({"cut": whole[:middle], "flip": flipped, "text": b"not arrays at all"}[damage])
    opened.clear()
    verify.data_check(config(root, runs))
    assert len(opened) == 18


def test_python_objects_in_it_run_nothing(root, runs, opened, tmp_path):
    verify.data_check(config(root, runs))
    (path,) = (runs / ".data").glob("opened-*")
    np.savez(tmp_path / "trap.npz", ids=np.array([Trap(os.mkdir, str(tmp_path / "sprung"))], dtype=object))
    evil = (tmp_path / "trap.npz").read_bytes()
    path.write_bytes(hashlib.sha256(evil).digest() + evil)
    verify.data_check(config(root, runs))
    assert len(opened) == 36
    assert not (tmp_path / "sprung").exists()


def test_a_process_that_dies_is_told(root, runs, monkeypatch):
    monkeypatch.setattr(verify, "find_problem", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(LoaderError, match=r"was killed .*; it was at train/ant/0.jpg or behind it"):
        verify.data_check(config(root, runs))


def test_an_image_that_a_decoder_trips_over_is_named_like_the_others(root, runs, opened, monkeypatch):
    monkeypatch.setattr(Image, "open", Mock(side_effect=ZeroDivisionError("in a decoder")))
    with pytest.raises(DataError, match="18 of 18"):
        verify.data_check(config(root, runs))


def test_a_place_that_cannot_be_written_is_a_disk_error(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        verify.data_check(config(root, tmp_path / "file"))


def test_sets_in_memory_are_loaded_and_counted(runs, monkeypatch):
    told = verify.data_check(config(Path(), runs, name="digits"))
    assert told.startswith("data=digits: 1437 + 360 images in 10 classes, all read")
    synthetic = config(Path(), runs, name="synthetic", num_classes=5, train_images=50, val_images=20)
    assert "50 + 20 images" in verify.data_check(synthetic)
    assert not runs.exists()
    more = replace(DATA_SETS["digits"], num_images={"train": 1437, "val": 361})
    monkeypatch.setitem(DATA_SETS, "digits", more)
    with pytest.raises(DataError, match="360 val images, the set has 361"):
        verify.data_check(config(Path(), runs, name="digits"))


# What a training says of it


def test_training_can_say_whether_exactly_this_set_was_checked(root, runs):
    data = DataConfig(name="imagefolder", root=str(root))

    def standing(**changes):
        return verify.verification_note(datasets.load(config(root, runs, **changes).data), data, str(runs))

    assert "not fully checked; mode=data_check" in standing()
    verify.data_check(config(root, runs))
    assert re.search(r"images [0-9a-f]{12}: fully checked on 20", standing())
    assert ": the whole set fully checked on 20" in standing(train_images=5)
    write_image(root / "val" / "bee" / "9.jpg")
    assert "not fully checked" in standing()
    digits = DataConfig(name="digits")
    assert "held in memory" in verify.verification_note(datasets.load(digits), digits, str(runs))


# The command


def test_the_command_needs_no_step_and_says_what_it_found(command, tmp_path, root):
    done = command("mode=data_check", "data=imagefolder", f"data.root={root}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("data=imagefolder: 12 + 6 images in 3 classes, every file opened, fingerprint ")
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [".data"]
    (root / "val" / "bee" / "1.jpg").write_bytes(b"x" * 50)
    again = command("mode=data_check", "+step=gelu", "data=imagefolder", f"data.root={root}")
    assert (again.returncode, again.stdout) == (65, "")
    told, first, error = again.stderr.splitlines()
    assert "17 of 18 images were opened before" in told
    assert first.startswith(f"{root}/val/bee/1.jpg: cannot be decoded")
    assert error.startswith(f"error: {root}: 1 of 18 images cannot be read")


@pytest.mark.parametrize(
    ("words", "code", "piece"),
    [
        (("mode=data_check", "data=imagenet"), 65, "data.root or ROADMAP_DATA"),
        (("mode=data_check", "+step=gleu"), 64, "did you mean gelu?"),
        (("mode=data_check", "data.wrokers=2"), 64, "data.wrokers"),
    ],
)
def test_a_wrong_command_is_told_in_one_line(command, words, code, piece):
    done = command(*words)
    assert done.returncode == code
    assert piece in done.stderr
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_command_and_its_processes(tmp_path, number):
    root = tmp_path / "data"
    for split in ("train", "val"):
        write_image(root / split / "bee" / "0.jpg")
        write_image(root / split / "ant" / "0.jpg", size=(800, 800))
        for i in range(1, 1500):
            os.link(root / split / "ant" / "0.jpg", root / split / "ant" / f"{i}.jpg")
    words = ["mode=data_check", "data=imagefolder", f"data.root={root}", "data.workers=2"]
    command, pipe = [sys.executable, "run.py", *words, f"paths.runs={tmp_path / 'runs'}"], subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(children.read_text().split()) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)  # ends once no process holds the pipes any more
    assert process.returncode == (75 if number != signal.SIGKILL else -9), errors
    if number != signal.SIGKILL:
        told = rf".*stopped by {number.name}: \d+ of 3002 images opened; run the same command again to continue\n"
        assert re.fullmatch(told, errors)
    shutil.rmtree(root)


def test_a_worker_whose_parent_was_killed_while_it_started_ends():
    parent = subprocess.Popen([sys.executable, "-c", ""])
    parent.wait()
    worker = multiprocessing.get_context("fork").Process(target=wait_as_worker_of, args=(parent.pid,))
    worker.start()
    worker.join(30)
    assert worker.exitcode == 0


def wait_as_worker_of(pid: int) -> None:
    workers.start_worker(pid, 0, 0)
    time.sleep(60)
