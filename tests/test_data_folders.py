"""Class folders: what is found in them, and every way in which they can be wrong, named plainly."""

import contextlib
import io
import logging
import math
import os
import shutil
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from roadmap.config.images import DataConfig
from roadmap.config.recipe import RecipeConfig
from roadmap.data import eval_batches
from roadmap.data.datasets import load
from roadmap.data.sampling import eval_index_batches
from roadmap.distributed.cores import cgroup_quota, num_cores
from roadmap.errors import DataError

from .drive import python

CPU = torch.device("cpu")


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes, four training and two validation images each."""
    for split, n in (("train", 4), ("val", 2)):
        for c, name in enumerate(("ant", "bee", "cat")):
            for i in range(n):
                write_image(tmp_path / split / name / f"{i}.jpg", seed=100 * c + i)
    return tmp_path


def config(root: Path, **changes) -> DataConfig:
    settings = {"name": "imagefolder", "root": str(root), "image_size": 16, "resize_size": 20, "pipeline": "reference"}
    return DataConfig(**(settings | changes))


def refuses(root: Path, *words: str, **changes) -> None:
    with pytest.raises(DataError) as raised:
        load(config(root, **changes))
    message = str(raised.value)
    assert all(word in message for word in words), message
    assert len(message.splitlines()) <= 2


def test_files_classes_and_labels_are_torchvisions(root):
    found = load(config(root))
    for split, name in ((found.train, "train"), (found.val, "val")):
        theirs = torchvision.datasets.ImageFolder(root / name)
        assert split.labels.tolist() == theirs.targets
        assert found.classes == tuple(theirs.classes)
        assert all(split.read(i).tobytes() == theirs[i][0].tobytes() for i in range(len(split)))


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "Png", "bmp", "webp"])
def test_extensions_count_whatever_their_case(root, suffix):
    write_image(root / "train" / "bee" / f"more.{suffix}")
    assert len(load(config(root)).train) == 13


def test_the_fingerprint_is_that_of_names_and_sizes_wherever_they_lie(root, tmp_path_factory):
    first = load(config(root)).fingerprint
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(root, elsewhere)
    assert load(config(elsewhere)).fingerprint == first
    (elsewhere / "val" / "cat" / "0.jpg").rename(elsewhere / "val" / "cat" / "9.jpg")
    renamed = load(config(elsewhere)).fingerprint
    with (elsewhere / "train" / "cat" / "0.jpg").open("ab") as file:
        file.write(b"\0")
    assert len({first, renamed, load(config(elsewhere)).fingerprint}) == 3


def test_a_subset_of_a_folder_keeps_files_and_labels_together(root):
    everything, some = load(config(root)).train, load(config(root, train_images=5)).train
    labels = {everything.read(i).tobytes(): int(everything.labels[i]) for i in range(12)}
    assert len(some) == 5
    assert all(labels[some.read(i).tobytes()] == int(some.labels[i]) for i in range(5))


# What can be wrong with a folder


SYSTEMS = ("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX", "lost+found", "THUMBS.DB")


@pytest.mark.parametrize("name", SYSTEMS)
def test_folders_of_a_system_are_neither_classes_nor_remarks(root, caplog, name):
    expected = load(config(root)).fingerprint
    for place in ("train", "val", "train/ant"):
        write_image(root / place / name / "0.jpg")
    for stray in (".DS_Store", "._0.jpg", "Thumbs.db", "desktop.ini"):
        (root / "train" / "ant" / stray).write_bytes(b"not ours")
        (root / "val" / stray).write_bytes(b"not ours")
    with caplog.at_level(logging.WARNING):
        assert load(config(root)).fingerprint == expected
    assert caplog.text == ""


def test_many_files_that_are_no_images_are_one_line(root, caplog):
    for place in root.glob("*/*"):
        (place / "notes.txt").write_text("x")
    (root / "train" / "README.md").write_text("x")
    with caplog.at_level(logging.WARNING):
        assert len(load(config(root)).train) == 12
    (line,) = caplog.messages
    assert "train/ant/notes.txt, train/bee/notes.txt, train/cat/notes.txt and 3 more not taken" in line


@pytest.mark.parametrize(
    ("train", "val", "words"),
    [
        ("café", "cafe\u0301", ("two Unicode forms", r"'caf\xe9' and 'cafe\u0301'")),
        ("Dog", "dog", ("Dog and dog differ in case alone",)),
    ],
)
def test_names_that_look_alike_show_how_they_differ(root, train, val, words):
    (root / "train" / "cat").rename(root / "train" / train)
    (root / "val" / "cat").rename(root / "val" / val)
    refuses(root, "same class folders", *words)


def test_a_folder_that_is_not_there_comes_with_what_is(root):
    (root / "val").rename(root / "valid")
    refuses(root, "val: no such folder", f"did you mean valid? In {root} there are: valid, train")
    refuses(root / "trian", "did you mean train?")
    deep = root / "zzz" / "b"
    refuses(deep, f"; in {root} there are: train, valid")


def test_workers_are_no_more_than_the_cores_of_this_process(root):
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert num_cores() == 1
        split = load(config(root)).val
        with warnings.catch_warnings(action="error"):
            batches = eval_index_batches(len(split), 2)
            found = list(eval_batches(split, config(root, workers=8), RecipeConfig(), batches, device=CPU))
    finally:
        os.sched_setaffinity(0, allowed)
    assert len(found) == 3


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/job/step", {"job/cpu.max": "250000 100000", "job/step/cpu.max": "max 100000"}, 2.5),
        ("0::/job/step", {"job/cpu.max": "800000 100000", "job/step/cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "50000 100000"}, 0.5),
        ("4:cpu:/job\n3:memory:/x", {"cpu/job/cpu.cfs_quota_us": "300000", "cpu/job/cpu.cfs_period_us": "100000"}, 3.0),
        ("4:cpu:/job", {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, math.inf),
        ("0::/gone", {}, math.inf),
        ("nonsense", {}, math.inf),
    ],
)
def test_a_control_groups_quota_counts(tmp_path, membership, files, cores):
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    assert cgroup_quota(tmp_path / "membership", tmp_path / "cgroup") == cores


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda root: shutil.rmtree(root / "train"), "train: no such folder; expected train/<class>/"),
        (lambda root: (root / "val").rename(root / "validation"), "val: no such folder"),
        (lambda root: [shutil.rmtree(path) for path in root.glob("val/*")], "val: has no class folders"),
        (lambda root: write_image(root / "val" / "1.JPEG"), "val: holds 1.JPEG outside of any class folder"),
        (lambda root: [(root / split / "dog").mkdir() for split in ("train", "val")], "dog: class folder without"),
        (lambda root: write_image(root / "val" / "bee" / "scan.TIFF"), "bee/scan.TIFF: .tiff images are not read"),
        (lambda root: write_image(root / "train" / "cat" / "images" / "0.jpg"), "cat/images: a folder inside"),
        (lambda root: (root / "train" / "cat" / "gone.jpg").symlink_to("nowhere"), "cat/gone.jpg: cannot be read"),
        (lambda root: (root / "train" / "cat" / "loop.jpg").symlink_to("loop.jpg"), "cat/loop.jpg: cannot be read"),
        (lambda root: (root / "train" / "loop").symlink_to("loop"), "train/loop: cannot be read"),
        (lambda root: (root / "train" / "cat" / "zero.jpg").touch(), "cat/zero.jpg: is empty (0 bytes)"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_folder_is_named_before_training(root, make, told):
    make(root)
    refuses(root, told)


@pytest.mark.parametrize(("split", "other"), [("train", "val"), ("val", "train")])
def test_a_class_that_only_one_split_has_is_named(root, split, other):
    write_image(root / split / "dog" / "0.jpg")
    (root / other / "ant").rename(root / other / "asp")
    refuses(root, "same class folders", f"only in {split}: ant, dog", f"only in {other}: asp")


def test_hidden_folders_never_become_a_class(root, caplog):
    write_image(root / "train" / ".ipynb_checkpoints" / "0.jpg")
    write_image(root / "train" / "ant" / ".ipynb_checkpoints" / "0.jpg")
    (root / "train" / "ant" / "._0.jpg").write_bytes(b"made by a Mac")
    with caplog.at_level(logging.WARNING):
        found = load(config(root))
    assert found.classes == ("ant", "bee", "cat")
    assert len(found.train) == 12
    assert ".ipynb_checkpoints hidden, not taken for a class" in caplog.text


def test_a_wrong_number_of_classes_is_named(root):
    refuses(root, "has 3 class folders", "data.num_classes=4", num_classes=4)
    refuses(root, "3 class folders", "1000", name="imagenet", num_classes=1000)
    refuses(root, "3 class folders", "Imagenette has 10", name="imagenette", num_classes=10)


def test_imagenette_is_found_in_its_own_folder_and_two_of_them_are_a_question(tmp_path, monkeypatch):
    monkeypatch.setattr("roadmap.data.folders.check_published", lambda *_: None)  # tests/test_data_check.py has it
    for split in ("train", "val"):
        for c in range(10):
            write_image(tmp_path / "imagenette2-160" / split / f"n{c}" / "0.JPEG")
    assert len(load(config(tmp_path, name="imagenette", num_classes=10)).classes) == 10
    (tmp_path / "imagenette2").mkdir()
    refuses(tmp_path, "imagenette2, imagenette2-160", "data.root", name="imagenette")


# What can be wrong with an image


def jpeg(size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_no_image_starts_another_program(root, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("Ghostscript was asked for"))
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    (root / "val" / "ant" / "0.jpg").write_bytes(drawing)
    with pytest.raises(DataError, match=r"val/ant/0.jpg: cannot be decoded"):
        load(config(root)).val.read(0)


def test_remarks_on_what_lies_beside_the_pixels_are_neither_printed_nor_errors(tmp_path):
    """EXIF data that end too early, as in many of ImageNet's files, and more pixels than Pillow likes."""
    entry = (3).to_bytes(2, "little") + struct.pack("<HHIIHHII", 0x011A, 5, 1, 5000, 0x0128, 3, 1, 2)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + entry + b"1\1"
    Image.new("RGB", (8, 6)).save(tmp_path / "exif.jpg", exif=exif)
    Image.new("L", (9500, 9500)).save(tmp_path / "large.png")
    code = "import sys; from pathlib import Path; from roadmap.data.folders import read_image as read; "
    code += "print([read(Path(name)).size for name in sys.argv[1:]])"
    for strict in ((), ("-W", "error")):
        done = python(*strict, "-c", code, tmp_path / "exif.jpg", tmp_path / "large.png", check=True)
        assert (done.stdout, done.stderr) == ("[(8, 6), (9500, 9500)]\n", "")


def test_a_workers_error_is_the_same_plain_line(root):
    (root / "val" / "bee" / "1.jpg").write_bytes(jpeg()[:-600])
    messages = []
    for workers in (0, 2):
        data = config(root, workers=workers)
        with pytest.raises(DataError) as raised:
            list(eval_batches(load(data).val, data, RecipeConfig(), eval_index_batches(6, 2), device=CPU))
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert "Traceback" not in messages[1]


def test_a_file_that_vanishes_after_listing_is_named(root):
    found = load(config(root))
    (root / "val" / "ant" / "0.jpg").unlink()
    with pytest.raises(DataError, match=r"val/ant/0.jpg: .*No such file"):
        found.val.read(0)


def test_random_damage_is_either_read_or_a_data_error(root):
    path = root / "val" / "ant" / "0.jpg"
    draw = np.random.default_rng(3)
    val = load(config(root)).val
    for kind in ("JPEG", "PNG", "WEBP", "BMP"):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(jpeg())).save(buffer, kind)
        whole = np.frombuffer(buffer.getvalue(), np.uint8)
        for _ in range(100):
            hurt = whole.copy()
            hurt[draw.integers(0, min(len(hurt), 400), 5)] = draw.integers(0, 256, 5)
            path.write_bytes(hurt.tobytes()[: draw.integers(1, len(hurt))] if draw.random() < 0.3 else hurt.tobytes())
            with contextlib.suppress(DataError):
                assert val.read(0).mode == "RGB"


def test_a_file_with_a_strange_name_is_told_on_one_line(root):
    path = root / "val" / "bee" / "two\nlines.jpg"
    path.write_bytes(b"<html>404 Not Found</html>")
    found = load(config(root)).val
    index = next(i for i in range(len(found)) if found.path(i) == path)
    with pytest.raises(DataError, match=r"two\?lines.jpg: cannot be decoded as an image"):
        found.read(index)


EVIL = "x\x1b[2J\x1b]0;title\x07\nerror: all is well\r"


@pytest.mark.parametrize(
    "make",
    [
        lambda root: (root / "train" / "ant" / f"{EVIL}.jpg").write_bytes(b""),
        lambda root: (root / "train" / "ant" / f"{EVIL}.gif").write_bytes(b"GIF89a"),
        lambda root: (root / "train" / "ant" / EVIL).mkdir(),
        lambda root: (root / "train" / EVIL).mkdir(),
        lambda root: (root / "train" / f"{EVIL}.jpg").write_bytes(b"x"),
        lambda root: write_image(root / "train" / EVIL / "0.png"),
    ],
)
def test_a_name_that_would_write_on_the_terminal_is_told_on_one_plain_line(root, make):
    make(root)
    with pytest.raises(DataError) as raised:
        load(config(root))
    assert str(raised.value).isprintable()
    assert "error: all is well" in str(raised.value)


def test_names_that_are_passed_over_are_warned_of_on_plain_lines(root, caplog):
    for split in ("train", "val"):
        (root / split / "ant").rename(root / split / EVIL)
        (root / split / EVIL / f"{EVIL}.txt").write_text("")
    with caplog.at_level(logging.WARNING):
        load(config(root))
    lines = [record.getMessage() for record in caplog.records]
    (line,) = [line for line in lines if "not taken for" in line]  # one for the whole set
    assert "train/x" in line and "val/x" in line
    assert all(line.isprintable() for line in lines)
