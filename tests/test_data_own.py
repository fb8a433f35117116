"""Sets from outside the repository: class folders or .npz, by a YAML file of one's own and no code."""

import contextlib
import io
import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from roadmap.catalog import DATA_SETS, DataKind, DataSet
from roadmap.config.images import DataConfig
from roadmap.data.datasets import load
from roadmap.errors import ConfigError, DataError
from roadmap.steps.compose import compose
from roadmap.sweep.plan import set_size

from .conftest import Trap

COUNTS = {"train": 64, "val": 20}
SHORT = ("recipe.batch_size=32", "recipe.epochs=2", "recipe.warmup_epochs=0", "wandb.mode=disabled")


def arrays(split: str, *shape: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(COUNTS[split])
    pixels = draw.integers(0, 256, (COUNTS[split], *shape), dtype=np.uint8)
    return {"images": pixels, "labels": np.arange(COUNTS[split]) % 4}


def write_npz(root: Path, *shape: int) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for split in COUNTS:
        np.savez(root / f"{split}.npz", **arrays(split, *shape))
    return root


def write_folders(root: Path) -> Path:
    for split in COUNTS:
        for index, pixels in enumerate(arrays(split, 20, 24, 3)["images"]):
            path = root / split / f"class{index % 4}" / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


def own(root: Path, **changes) -> DataConfig:
    return DataConfig(**{"name": "mine", "kind": "npz", "root": str(root), "image_size": 16} | changes)


# On the command line


@pytest.fixture
def mydir(tmp_path: Path) -> Path:
    """A folder for `-cd` with a set of each kind."""
    folder = tmp_path / "mydir" / "data"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        "# Small gray images.\nname: mine\nkind: npz\nroot: null\nimage_size: 16\nflip: true\ncrop: pad\npadding: 2\n"
    )
    (folder / "photos.yaml").write_text(
        "name: photos\nkind: folders\nroot: null\nimage_size: 16\nresize_size: 20\nflip: true\ncrop: resized\n"
        "pipeline: reference\nworkers: 0\n"
    )
    return folder.parent


@pytest.mark.parametrize(("name", "write"), [("mine", lambda p: write_npz(p, 12, 12)), ("photos", write_folders)])
def test_a_set_of_ones_own_trains_and_is_checked_without_code(command, tmp_path, mydir, name, write):
    root = write(tmp_path / "images")
    words = ("-cd", str(mydir), f"data={name}", f"data.root={root}")
    done = command(*words, "+step=gelu", *SHORT)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs" / "single" / f"nano-{name}").glob("*/seed0")
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["data"], summary["epoch"], summary["val_images"]) == (name, 2, 20)
    checked = command(*words, "mode=data_check")
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.startswith(f"data={name}: 64 + 20 images in 4 classes")


def test_a_plan_counts_classes_and_images_of_a_set_of_ones_own(tmp_path, sweep):
    folders = write_folders(tmp_path / "folders")
    assert set_size(own(folders, kind="folders")) == (4, 64)
    assert set_size(own(write_npz(tmp_path / "arrays", 12, 12))) == (4, 64)
    assert set_size(own(tmp_path / "nowhere", num_classes=7)) == (7, None)
    words = ("plan", "demo", "--cluster", "local", "--runs", str(tmp_path / "runs"), "--steps", "gelu")
    more = ("data=imagefolder", f"data.root={folders}", "cluster.images_per_s=0.1", "device=cpu")
    code, told = sweep(*words, "--", *more)
    assert code == 0, told
    assert re.search(r"^nano-imagefolder/gelu/seed0 .* 3\.56 ", told, re.M), told  # 20 epochs of 64 images


def test_a_set_of_ones_own_is_listed_in_the_help(command, mydir):
    assert "data=mine" in command("-cd", str(mydir), "--help", "data", runs=None).stdout


def test_a_wrong_set_of_ones_own_is_one_plain_line(command, tmp_path, mydir):
    root = write_npz(tmp_path / "images", 12, 12)
    np.savez(root / "val.npz", images=np.zeros((20, 12, 12)), labels=np.zeros(20, int))
    words = ("-cd", str(mydir), "+step=gelu", "data=mine")
    for more, code, piece in (
        ((f"data.root={root}",), 65, f"{root}/val.npz: images are float64 (20, 12, 12), must be uint8"),
        ((), 65, "data=mine needs a folder: set data.root or ROADMAP_DATA"),
        (("data.kind=null",), 64, "data.name=mine: there is no such set"),
        (("data.kind=zip",), 64, "data.kind=zip: must be one of memory, folders, npz"),
    ):
        done = command(*words, *more)
        assert done.returncode == code, done.stderr
        assert piece in done.stderr
        assert len(done.stderr.splitlines()) <= 2
    assert not (tmp_path / "runs" / "single").exists()


@pytest.mark.parametrize(("group", "text", "lacks"), [
    ("data", "root: x\n", "name: mine and kind: folders (or npz)"),
    ("data", "root: x\nkind: npz\n", "name: mine"),
    ("recipe", "epochs: 3\n", "name: one of original, enhanced, swin"),
    ("regime", "swin_width: 8\n", "name: mine"),
])  # fmt: skip
def test_a_file_without_a_name_is_not_taken_for_what_has_the_default_name(tmp_path, group, text, lacks):
    (tmp_path / "variant").mkdir()
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        compose("resnet", overrides=[f"{group}=mine"], config_dir=tmp_path)
    assert str(error.value) == f"{tmp_path / group / 'mine.yaml'}: lacks {lacks}"


# The name and the kind


def test_an_unknown_name_says_what_there_is_and_what_a_set_of_ones_own_needs():
    with pytest.raises(ConfigError, match=r"fashion_mnist.*a set of your own needs data.kind=folders or npz"):
        DataConfig(name="fashion")
    with pytest.raises(ConfigError, match=r"data.kind=npz: data.name=digits is of kind memory"):
        DataConfig(name="digits", kind="npz")
    with pytest.raises(ConfigError, match=r"data.name=../x: a name consists of letters"):
        DataConfig(name="../x", kind="npz")
    with pytest.raises(ConfigError, match=r"data.kind=memory: there is no loader mine, only digits, idx"):
        load(own(Path("."), kind="memory"))
    assert DataConfig(name="digits", kind="memory").kind == DataKind.memory


def test_a_set_in_a_known_format_needs_its_row_only(tmp_path, monkeypatch):
    from .test_data_sets import write_fashion

    write_fashion(tmp_path / "KMNIST" / "raw", packed=True)
    row = DataSet("KMNIST", DataKind.memory, 10, image_size=28, loader="idx", torchvision="KMNIST")
    monkeypatch.setitem(DATA_SETS, "kmnist", row)
    found = load(DataConfig(name="kmnist", root=str(tmp_path)))
    assert (len(found.train), len(found.val), found.classes) == (60, 20, tuple("0123456789"))


# What an .npz holds


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 3)])
def test_npz_images_and_labels_are_taken_as_they_are(tmp_path, shape):
    found = load(own(write_npz(tmp_path, *shape)))
    for split, images in (("train", found.train), ("val", found.val)):
        expected = arrays(split, *shape)
        assert images.labels.tolist() == expected["labels"].tolist()
        pixels = torch.from_numpy(expected["images"])
        channels = pixels[..., None].expand(-1, -1, -1, 3) if len(shape) == 2 else pixels
        assert torch.equal(images.images, channels.permute(0, 3, 1, 2))
    assert found.classes == ("0", "1", "2", "3")
    assert len(load(own(tmp_path, num_classes=7)).classes) == 7


def test_npz_images_of_another_size_are_resized_by_pillow_and_get_no_border(tmp_path):
    found = load(own(write_npz(tmp_path, 28, 28), image_size=32))
    first = Image.fromarray(arrays("train", 28, 28)["images"][0]).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(found.train.images[0, 0].numpy(), np.asarray(first))


def test_the_fingerprint_of_an_npz_set_is_that_of_its_pixels_and_labels(tmp_path):
    first = load(own(write_npz(tmp_path, 12, 12))).fingerprint
    changed = arrays("val", 12, 12)
    np.savez_compressed(tmp_path / "val.npz", **changed)
    assert load(own(tmp_path)).fingerprint == first
    changed["labels"][0] = 3
    np.savez(tmp_path / "val.npz", **changed)
    assert load(own(tmp_path)).fingerprint != first


WRONG = {
    "floats": ({"images": np.zeros((20, 12, 12))}, r"images are float64 \(20, 12, 12\), must be uint8 \(N, H, H\)"),
    "channels first": ({"images": np.zeros((20, 3, 12, 12), np.uint8)}, r"must be uint8 \(N, H, H\) or \(N, H, H, 3\)"),
    "one image": ({"images": np.zeros((12, 12), np.uint8)}, "must be uint8"),
    "not square": ({"images": np.zeros((20, 12, 14), np.uint8)}, "must be square"),
    "none": (
        {"images": np.zeros((0, 12, 12), np.uint8), "labels": np.zeros(0, int)},
        "must be square and at least one",
    ),
    "too few labels": ({"labels": np.zeros(19, int)}, r"labels are int64 \(19,\), must be integers \(20,\)"),
    "one-hot labels": ({"labels": np.zeros((20, 4), int)}, "must be integers"),
    "float labels": ({"labels": np.zeros(20)}, "labels are float64"),
    "names as labels": ({"labels": np.array(["ant"] * 20)}, "must be integers"),
    "negative labels": ({"labels": np.full(20, -1)}, "labels from -1 to -1, expected 0 to"),
    "huge labels": ({"labels": np.full(20, 2**63, np.uint64)}, "labels from 9223372036854775808"),
    "objects": ({"labels": np.array([None] * 20)}, r"labels are object \(20,\), must be integers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_npz_that_holds_something_else_is_named(tmp_path, case):
    changes, expected = WRONG[case]
    np.savez(write_npz(tmp_path, 12, 12) / "val.npz", **arrays("val", 12, 12) | changes)
    with pytest.raises(DataError, match=rf"val.npz: .*{expected}") as raised:
        load(own(tmp_path, num_classes=4))
    assert "\n" not in str(raised.value)


def test_a_label_past_a_million_makes_no_classes_up_to_it(tmp_path):
    labels = {"labels": np.full(20, 2**40)}
    np.savez(write_npz(tmp_path, 12, 12) / "val.npz", **arrays("val", 12, 12) | labels)
    with pytest.raises(DataError, match=r"val.npz: labels from 1099511627776 to .*, expected 0 to 999999"):
        load(own(tmp_path))


@pytest.mark.parametrize(("train", "val", "told"), [
    ([0, 1, 2, 3], [3, 4, 5, 6], "val.npz: label 4, 5, 6 has no training image"),
    ([1, 2, 3, 4], [1, 2, 3, 4], "train.npz: labels from 1 to 4, none is 0: are they numbered from 1?"),
    ([0, 10, 20, 30], [0, 10], "train.npz: labels from 0 to 30, none is 1, 2, 3 and 24 more; number them"),
])  # fmt: skip
def test_a_label_that_training_never_has_is_refused(tmp_path, train, val, told):
    write_npz(tmp_path, 12, 12)
    for split, labels in (("train", train), ("val", val)):
        more = {"labels": np.resize(labels, COUNTS[split])}
        np.savez(tmp_path / f"{split}.npz", **arrays(split, 12, 12) | more)
    with pytest.raises(DataError, match=re.escape(told)):
        load(own(tmp_path))
    if val[-1] in train:  # of the user's own numbers of classes, some may have no image
        assert len(load(own(tmp_path, num_classes=31, train_images=2)).classes) == 31
    else:
        assert len(load(own(tmp_path, holdout=0.2)).classes) == 4  # which does not read them


def test_an_npz_that_is_missing_or_none_is_named(tmp_path):
    path = write_npz(tmp_path, 12, 12) / "train.npz"
    whole = path.read_bytes()
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    for content in (b"", b"no zip", array.getvalue(), whole[:-30], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"train.npz: must hold arrays `images` and `labels`, as numpy.savez"):
            load(own(tmp_path))
    np.savez(path, images=np.zeros((4, 12, 12), np.uint8))
    with pytest.raises(DataError, match=r"train.npz: must hold arrays .*labels.npy"):
        load(own(tmp_path))
    path.unlink()
    with pytest.raises(DataError, match=r"train.npz: cannot be read \(No such file or directory\)"):
        load(own(tmp_path))
    path.mkdir()
    with pytest.raises(DataError, match=r"train.npz: cannot be read \(Is a directory\)"):
        load(own(tmp_path))


def test_a_python_object_in_an_npz_is_never_unpickled(tmp_path):
    trap = np.array([Trap(os.mkdir, str(tmp_path / "sprung"))], dtype=object)
    np.savez(write_npz(tmp_path, 12, 12) / "train.npz", images=trap, labels=np.zeros(1, int))
    with pytest.raises(DataError, match=r"train.npz: images are object \(1,\), must be uint8"):
        load(own(tmp_path))
    assert not (tmp_path / "sprung").exists()


def npy(dtype: str, shape: tuple[int, ...], num_bytes: int) -> bytes:
    """Return an array's file whose header may say something else than what follows."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
    return out.getvalue() + bytes(num_bytes)


@pytest.mark.parametrize(
    ("shape", "num_bytes", "told"),
    [
        ((1000, 300, 300), 90_000, r"images.npy holds 90000 bytes, its header says uint8 \(1000, 300, 300\)"),
        ((1, 10, 10), 50_000_000, r"images.npy holds 50000000 bytes, its header says uint8 \(1, 10, 10\)"),
        ((10**9, 300, 300), 1000, r"images are uint8 \(1000000000, 300, 300\), 83819 GiB, and this machine's memory"),
    ],
)
def test_an_npz_is_refused_by_its_headers_before_it_is_unpacked(tmp_path, monkeypatch, shape, num_bytes, told):
    write_npz(tmp_path, 12, 12)
    with zipfile.ZipFile(tmp_path / "train.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", npy("|u1", shape, num_bytes))
        archive.writestr("labels.npy", npy("<i8", shape[:1], 0))
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(DataError, match=rf"train.npz: .*{told}"):
        load(own(tmp_path))


def test_random_damage_to_an_npz_is_either_read_or_a_plain_error(tmp_path):
    path = write_npz(tmp_path, 12, 12) / "val.npz"
    whole, draw = np.frombuffer(path.read_bytes(), np.uint8), np.random.default_rng(5)
    for _ in range(200):
        hurt = whole.copy()
        ends = np.concatenate([np.arange(400), np.arange(len(hurt) - 700, len(hurt))])  # where the headers are
        hurt[draw.choice(ends, 4)] = draw.integers(0, 256, 4)
        path.write_bytes(hurt.tobytes())
        with contextlib.suppress(DataError):
            load(own(tmp_path))
