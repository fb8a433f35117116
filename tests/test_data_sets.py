"""The sets held in memory: the same bytes as scikit-learn and torchvision read, and plain errors for damaged files."""

import errno
import fnmatch
import gzip
import hashlib
import io
import os
import pickle
import socket
import subprocess
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from roadmap.catalog import DATA_SETS
from roadmap.config.images import DataConfig
from roadmap.data import download, in_memory
from roadmap.data.datasets import load
from roadmap.errors import ConfigError, DataError, DiskError
from roadmap.net.library_weights import fetch_weights

from .conftest import ROOT, Trap

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def test_digits_are_scikit_learns_enlarged_and_split_in_proportion():
    found = load(DataConfig(name="digits", num_classes=10))
    assert found.train.images.shape == (1437, 3, 32, 32)
    assert found.val.images.shape == (360, 3, 32, 32)
    assert found.train.images.dtype == torch.uint8
    assert found.train.labels.dtype == torch.int64
    assert found.classes == tuple("0123456789")
    shares = [torch.bincount(s.labels).float() / len(s) for s in (found.train, found.val)]
    assert torch.allclose(*shares, atol=0.003)
    # Every digit of scikit-learn's, enlarged here by Pillow, is in exactly one half, with its label.
    bunch = load_digits()
    scaled = np.rint(bunch.images * 255 / 16).astype(np.uint8)
    bicubic = [np.asarray(Image.fromarray(p).resize((32, 32), Image.Resampling.BICUBIC)).tobytes() for p in scaled]
    both = [pair for half in (found.train, found.val) for pair in zip(half.images, half.labels, strict=True)]
    ours = [(image[0].numpy().tobytes(), int(label)) for image, label in both]
    assert sorted(ours) == sorted(zip(bicubic, bunch.target.tolist(), strict=True))
    halves = train_test_split(np.arange(1797), test_size=0.2, stratify=bunch.target, random_state=0)
    for half, ids in zip((ours[:1437], ours[1437:]), halves, strict=True):
        assert half == [(bicubic[i], bunch.target[i]) for i in np.sort(ids)]


def test_an_image_read_one_by_one_is_the_image_in_memory():
    train = load(DataConfig(name="digits")).train
    image = train.read(5)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), train.images[5].permute(1, 2, 0).numpy())


def test_the_fingerprint_is_stable_and_changes_with_the_images():
    first, again = (load(DataConfig(name="digits")).fingerprint for _ in range(2))
    assert first == again
    assert load(DataConfig(name="digits", train_images=1436)).fingerprint != first
    assert load(DataConfig(name="digits", image_size=16)).fingerprint == first  # the same data, shown at another size


def test_a_subset_is_fixed_and_nested():
    large, small = (load(DataConfig(name="digits", train_images=n, val_images=50)) for n in (200, 100))
    assert (len(large.train), len(small.train), len(small.val)) == (200, 100, 50)
    of_large = {im.numpy().tobytes() for im in large.train.images}
    assert {im.numpy().tobytes() for im in small.train.images} <= of_large
    assert len(small.train.labels.unique()) == 10


def test_numbers_that_a_set_cannot_meet_name_the_key():
    with pytest.raises(ConfigError, match=r"data.train_images=1438: the set has 1437 images"):
        load(DataConfig(name="digits", train_images=1438))
    with pytest.raises(ConfigError, match=r"data.num_classes=11: data=digits has 10 classes"):
        load(DataConfig(name="digits", num_classes=11))


def test_synthetic_is_the_same_every_time_and_has_the_numbers_asked_for():
    config = DataConfig(name="synthetic", image_size=16, train_images=64, val_images=32, num_classes=7)
    one, two = load(config), load(config)
    assert one.train.images.shape == (64, 3, 16, 16)
    assert len(one.val) == 32
    assert len(one.classes) == 7
    assert int(one.train.labels.max()) < 7
    assert one.fingerprint == two.fingerprint
    assert torch.equal(one.train.images, two.train.images)
    assert not torch.equal(one.train.images[:32], one.val.images)
    assert len(load(DataConfig(name="synthetic", image_size=8)).train) == 2048


# Fashion-MNIST


def write_idx(path: Path, array: np.ndarray, packed: bool) -> None:
    content = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if packed else content)


def write_fashion(folder: Path, packed: bool, counts: tuple[int, int] = (60, 20)) -> None:
    draw = np.random.default_rng(0)
    for prefix, n in zip(("train", "t10k"), counts, strict=True):
        suffix = ".gz" if packed else ""
        images = draw.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images, packed)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", (np.arange(n) % 10).astype(np.uint8), packed)


def fashion(root: Path, **changes) -> DataConfig:
    return DataConfig(name="fashion_mnist", root=str(root), num_classes=10, **changes)


def test_fashion_mnist_is_what_torchvision_reads_with_a_border_of_zeros(tmp_path):
    write_fashion(tmp_path / "FashionMNIST" / "raw", packed=False)
    found = load(fashion(tmp_path))
    for split, is_train in ((found.train, True), (found.val, False)):
        theirs = torchvision.datasets.FashionMNIST(tmp_path, train=is_train)
        assert torch.equal(split.images[:, :, 2:-2, 2:-2], theirs.data[:, None].expand(-1, 3, -1, -1))
        assert torch.equal(split.labels, theirs.targets)
        assert split.images.sum() == 3 * theirs.data.sum()  # the border is zero
    assert found.classes == tuple(torchvision.datasets.FashionMNIST.classes)


def test_fashion_mnist_is_read_packed_or_not_in_either_layout_and_nothing_is_written(tmp_path):
    layouts = {}
    for name, inner in (("torchvision", "FashionMNIST/raw"), ("debian", ".")):
        for packed in (False, True):
            root = tmp_path / f"{name}{packed}"
            write_fashion(root / inner, packed)
            before = sorted(root.rglob("*"))
            layouts[name, packed] = load(fashion(root)).fingerprint
            assert sorted(root.rglob("*")) == before
    assert len(set(layouts.values())) == 1


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debians_fashion_mnist_is_whole():
    found = load(fashion(DEBIAN))
    assert (len(found.train), len(found.val)) == (60_000, 10_000)
    assert torch.bincount(found.train.labels).tolist() == [6000] * 10
    inner = found.train.images[:, 0, 2:-2, 2:-2].double() / 255
    assert inner.mean().item() == pytest.approx(0.2860, abs=1e-4)
    assert inner.std().item() == pytest.approx(0.3530, abs=1e-4)


def test_damaged_fashion_mnist_files_are_named(tmp_path):
    images = "train-images-idx3-ubyte"

    def broken(name: str, content: bytes, expect: str) -> None:
        root = tmp_path / hashlib.sha256(content + name.encode()).hexdigest()[:8]
        write_fashion(root, packed=name.endswith(".gz"))
        (root / name).write_bytes(content)
        with pytest.raises(DataError, match=expect) as raised:
            load(fashion(root))
        assert len(str(raised.value).splitlines()) <= 2

    write_fashion(tmp_path / "good", packed=True)
    write_fashion(tmp_path / "good", packed=False)
    whole, packed = ((tmp_path / "good" / n).read_bytes() for n in (images, images + ".gz"))
    broken(images, whole[:-1], r"train-images-idx3-ubyte: 47055 bytes, expected 47056; the file is truncated")
    broken(images, whole[:7], "magic number")
    broken(images, b"", "magic number")
    broken(images, b"\x01" + whole[1:], "magic number")
    broken(images + ".gz", packed[:-20], r"idx3-ubyte.gz: cannot be read, the file is truncated or damaged")
    broken(images + ".gz", b"no gzip at all", r"idx3-ubyte.gz: cannot be read")
    broken(images + ".gz", packed[:200] + bytes(50) + packed[250:], r"idx3-ubyte.gz: cannot be read")
    label = bytes((0, 0, 8, 1)) + np.array([59], ">u4").tobytes() + bytes(59)
    broken("train-labels-idx1-ubyte", label, "60 images but 59 labels of train")
    label = bytes((0, 0, 8, 1)) + np.array([60], ">u4").tobytes() + bytes([10] * 60)
    broken("train-labels-idx1-ubyte", label, "labels from 10 to 10, expected 0 to 9")
    bomb = gzip.compress(whole + bytes(in_memory.MAX_UNPACKED), 1)
    broken(images + ".gz", bomb, r"idx3-ubyte.gz: unpacks to more than 256 MiB, which no such file does")


def test_a_missing_fashion_mnist_file_is_named(tmp_path):
    write_fashion(tmp_path, packed=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\(.gz\) is missing"):
        load(fashion(tmp_path))


# CIFAR


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, published: type, label_key: str, num_classes: int) -> None:
    """Write small batches in CIFAR's format, and tell torchvision's class (and through it ours) their sums."""
    folder = root / published.base_folder
    folder.mkdir(parents=True)
    draw = np.random.default_rng(1)

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(n: int) -> dict[str, object]:
        pixels = draw.integers(0, 256, (n, 3072), dtype=np.uint8)
        return {"data": pixels, label_key: [i % num_classes for i in range(n)]}

    for part in ("train_list", "test_list"):
        monkeypatch.setattr(published, part, [[name, write(name, batch(30))] for name, _ in getattr(published, part)])
    names = {published.meta["key"]: [f"class {i}" for i in range(num_classes)]}
    monkeypatch.setattr(published, "meta", published.meta | {"md5": write(published.meta["filename"], names)})


@pytest.mark.parametrize(
    ("name", "label_key", "num_classes"), [("cifar10", "labels", 10), ("cifar100", "fine_labels", 100)]
)
def test_cifar_is_what_torchvision_reads(tmp_path, monkeypatch, name, label_key, num_classes):
    published = getattr(torchvision.datasets, name.upper())
    write_cifar(tmp_path, monkeypatch, published, label_key, num_classes)
    found = load(DataConfig(name=name, root=str(tmp_path), num_classes=num_classes))
    for split, is_train in ((found.train, True), (found.val, False)):
        theirs = published(tmp_path, train=is_train)
        assert torch.equal(split.images, torch.from_numpy(theirs.data).permute(0, 3, 1, 2))
        assert split.labels.tolist() == theirs.targets
        assert split.read(3).tobytes() == theirs[3][0].tobytes()
    assert found.classes == tuple(theirs.classes)


@pytest.mark.parametrize("target", ["data_batch_2", "batches.meta"])
def test_a_pickle_that_is_not_the_published_file_is_never_unpickled(tmp_path, monkeypatch, target):
    write_cifar(tmp_path, monkeypatch, torchvision.datasets.CIFAR10, "labels", 10)
    path = tmp_path / "cifar-10-batches-py" / target
    path.write_bytes(pickle.dumps(Trap(os.mkdir, str(tmp_path / "ran"))))
    with pytest.raises(DataError, match=rf"{target}: not the published file \(its MD5 sum must be [0-9a-f]+\)"):
        load(DataConfig(name="cifar10", root=str(tmp_path), num_classes=10))
    assert not (tmp_path / "ran").exists()


# Roots and downloads


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100", "imagenette"])
def test_a_missing_public_set_names_the_keys_and_the_download(tmp_path, name):
    for root in (None, str(tmp_path / "nowhere"), str(tmp_path)):
        with pytest.raises(DataError, match=r"data.download=true") as raised:
            load(DataConfig(name=name, root=root))
        message = str(raised.value)
        assert root is None or root in message
        assert root == str(tmp_path) or ("data.root" in message and "ROADMAP_DATA" in message)
        assert len(message.splitlines()) <= 2


def test_a_root_that_is_a_file_or_a_lost_link_says_so(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("gone")
    for name, told in (("file", "file is a file"), ("link", "link is a link to gone, which is not there")):
        with pytest.raises(DataError, match=rf"no such folder \(.*; {told}\)"):
            load(DataConfig(name="imagefolder", root=str(tmp_path / name)))


@pytest.mark.parametrize("name", ["imagenet", "imagefolder"])
def test_a_missing_private_set_names_the_keys_and_no_download(tmp_path, name):
    for root in (None, str(tmp_path / "nowhere")):
        with pytest.raises(DataError, match=r"data.root.*ROADMAP_DATA") as raised:
            load(DataConfig(name=name, root=root))
        assert "download" not in str(raised.value)
    with pytest.raises(DataError, match=r"data.download=true cannot fetch"):
        load(DataConfig(name=name, root=str(tmp_path / "nowhere"), download=True))


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100", "imagenette"])
def test_a_download_that_fails_is_one_plain_line(tmp_path, monkeypatch, name):
    offline = urllib.error.URLError("Name or service not known")
    monkeypatch.setattr("urllib.request.urlopen", Mock(side_effect=offline))
    told = rf"data.download=true: {name} could not be fetched into .*Name or service not known"
    with pytest.raises(DataError, match=told) as raised:
        load(DataConfig(name=name, root=str(tmp_path / "new"), download=True))
    assert "\n" not in str(raised.value)


class Answer(io.BytesIO):
    """What a server sends; half of it where the connection is lost."""

    def __init__(self, data: bytes, lost: bool = False) -> None:
        super().__init__(data[: len(data) // 2] if lost else data)
        self.url, self.length, self.lost = None, len(data), lost

    def read(self, *size: int) -> bytes:
        found = super().read(*size)
        if not found and self.lost:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        return found


def test_a_full_disk_ends_a_download_as_anything_else_that_is_written(tmp_path, monkeypatch):
    for name in ("urllib.request.urlopen", "torch.hub.urlopen"):
        monkeypatch.setattr(name, Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(DiskError, match=r"fetched into .*No space left on device"):
        load(DataConfig(name="fashion_mnist", root=str(tmp_path / "new"), download=True))
    with pytest.raises(DiskError, match=r"cannot be fetched \(.*No space left on device"):
        fetch_weights("torchvision", "resnet50", "IMAGENET1K_V1")


@pytest.fixture
def fashion_server(tmp_path, monkeypatch):
    """Let a small Fashion-MNIST be what is published; return the files of which the connection is lost once."""
    published, lost = tmp_path / "published", set()
    write_fashion(published, packed=True)
    sums = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(published.iterdir())]
    names = [name for name, _ in torchvision.datasets.FashionMNIST.resources]
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", sorted(sums, key=lambda f: names.index(f[0])))

    def urlopen(request: urllib.request.Request) -> Answer:
        name = request.full_url.rpartition("/")[2]
        is_lost = name in lost and not request.has_header("Method")  # with it: where to, only
        lost.difference_update({name} if is_lost else ())
        return Answer((published / name).read_bytes(), is_lost)

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return lost


def test_a_download_goes_where_it_is_found_again(tmp_path, fashion_server):
    fetched = load(fashion(tmp_path / "new", download=True))
    assert load(fashion(tmp_path / "new")).fingerprint == fetched.fingerprint


@pytest.mark.parametrize("kind", ["train-images", "train-labels", "t10k-images", "t10k-labels"])
def test_a_download_that_was_cut_off_is_no_set_and_goes_on(tmp_path, fashion_server, kind):
    name = next(name for name, _ in torchvision.datasets.FashionMNIST.resources if name.startswith(kind))
    fashion_server.add(name)
    with pytest.raises(DataError, match=r"could not be fetched into .*Connection reset"):
        load(fashion(tmp_path / "new", download=True))
    raw = tmp_path / "new" / "FashionMNIST" / "raw"
    assert name not in (left := [path.name for path in raw.iterdir()]) and not fnmatch.filter(left, ".*")
    dead = subprocess.Popen(["true"])
    dead.wait()
    (raw / f".{name}.{socket.gethostname()}.{dead.pid}.tmp").touch()  # what a kill would have left
    fetched = load(fashion(tmp_path / "new", download=True))
    assert load(fashion(tmp_path / "new")).fingerprint == fetched.fingerprint
    assert not list(raw.glob(".*"))


def test_an_archive_is_unpacked_whole_or_not_at_all_and_only_inside(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("x")
    root = tmp_path / "root"
    root.mkdir()
    for name, member in (("good", "set/file"), ("evil", "../outside")):
        with tarfile.open(tmp_path / f"{name}.tgz", "w:gz") as tar:
            tar.add(tmp_path / "source" / "file", "set/first")
            tar.add(tmp_path / "source" / "file", member)
    with pytest.raises(tarfile.FilterError):
        download.unpack(tmp_path / "evil.tgz", root, "set")
    assert list(root.iterdir()) == []
    assert not (tmp_path / "outside").exists()
    dead = subprocess.Popen(["true"])
    dead.wait()
    (root / f".set.{socket.gethostname()}.{dead.pid}.tmp" / "set").mkdir(parents=True)  # as a kill leaves it
    for _ in range(2):  # the second as a process that another one was faster than
        download.unpack(tmp_path / "good.tgz", root, "set")
    assert sorted(p.name for p in root.rglob("*")) == ["file", "first", "set"]


def test_workers_without_effect_are_told():
    from roadmap.config import Config
    from roadmap.steps.unused_settings import unused_settings

    (line,) = unused_settings(Config(), ["data.workers=3"])
    assert line.startswith("data.workers: has no effect here")


# The catalog


def test_every_set_has_its_row_and_its_file_and_both_agree():
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "conf" / "data").glob("*.yaml")}
    assert files.keys() == DATA_SETS.keys()
    for name, row in DATA_SETS.items():
        assert (files[name]["name"], files[name].get("num_classes")) == (name, row.num_classes)
        assert row.needs_root == ("root" in files[name])
        assert row.kind != "memory" or row.loader in in_memory.LOADERS
        assert not row.torchvision or hasattr(torchvision.datasets, row.torchvision)


# What may lie where a file is expected


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def test_a_folder_where_a_file_is_expected_is_named(tmp_path, monkeypatch):
    write_fashion(tmp_path, packed=True)
    replaced_by_a_folder(tmp_path / "t10k-images-idx3-ubyte.gz")
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\(.gz\) is missing"):
        load(fashion(tmp_path))
    write_cifar(tmp_path, monkeypatch, torchvision.datasets.CIFAR10, "labels", 10)
    replaced_by_a_folder(tmp_path / "cifar-10-batches-py" / "data_batch_3")
    with pytest.raises(DataError, match=r"data_batch_3: cannot be read \(Is a directory\)"):
        load(DataConfig(name="cifar10", root=str(tmp_path)))
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").rmdir()
    with pytest.raises(DataError, match=r"data_batch_3: cannot be read \(No such file or directory\)"):
        load(DataConfig(name="cifar10", root=str(tmp_path)))


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "imagenette", "imagefolder"])
def test_a_root_that_cannot_be_one_is_a_plain_line(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for root in (tmp_path / "file", tmp_path / "loop", tmp_path / ("x" * 300), "~nobody-of-this-name/images"):
        with pytest.raises(DataError) as raised:
            load(DataConfig(name=name, root=str(root)))
        assert str(root) in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "imagenette", "imagefolder"])
def test_a_folder_that_may_not_be_entered_is_a_plain_line(tmp_path, monkeypatch, name):
    """As for a user without the rights: those who run tests may have them all."""

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(DataError, match=rf"{tmp_path}: cannot be read \(Permission denied\)"):
        load(DataConfig(name=name, root=str(tmp_path)))


def test_pixels_that_may_not_be_written_are_taken_without_a_warning(recwarn):
    pixels = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    pixels.flags.writeable = False  # as those of an image that Pillow has read
    assert torch.equal(in_memory.at_size(pixels, 8)[0, 2].flatten(), torch.arange(64, dtype=torch.uint8))
    assert not [str(warning.message) for warning in recwarn if "writable" in str(warning.message)]
