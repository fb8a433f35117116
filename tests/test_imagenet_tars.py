"""ImageNet's tar files into class folders: laid out as they should be, and nothing else, whatever the tars hold."""

import io
import os
import resource
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from roadmap.catalog import DataKind, DataSet
from roadmap.data import imagenet
from roadmap.errors import ConfigError, DataError, DiskError, StoppedEarly

CLASSES = ("n00000001", "n00000002", "n00000003")
SMALL = DataSet("ImageNet-1K", DataKind.folders, 3, {"train": 6, "val": 4})
LABELS = (CLASSES[2], CLASSES[0], CLASSES[1], CLASSES[0])
TRAIN = {f"{name}.tar": {f"{name}_{i}.JPEG": f"{name} {i}".encode() * 100 for i in (7, 12)} for name in CLASSES}
VAL = {f"ILSVRC2012_val_{i:08d}.JPEG": f"val {i}".encode() * 100 for i in (2, 1, 4, 3)}


def tar_of(files: dict[str, bytes], extra: tarfile.TarInfo | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        if extra is not None:
            tar.addfile(extra)
    return out.getvalue()


class Given:
    """The three files that are given, and the folder that is asked for."""

    def __init__(self, folder: Path) -> None:
        self.train, self.val, self.labels, self.out = (
            folder / name for name in ("train.tar", "val.tar", "labels.txt", "out")
        )
        self.pack(TRAIN)
        self.val.write_bytes(tar_of(VAL))
        self.labels.write_text("".join(f"{name}\n" for name in LABELS))

    def pack(self, train: dict[str, dict[str, bytes]]) -> None:
        self.train.write_bytes(tar_of({name: tar_of(files) for name, files in train.items()}))

    def unpack(self) -> str:
        return imagenet.unpack(self.train, self.val, self.labels, self.out, SMALL)

    def found(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.out)): p.read_bytes() for p in self.out.rglob("*") if p.is_file()}


EXPECTED = {f"train/{tar[:9]}/{name}": content for tar, files in TRAIN.items() for name, content in files.items()} | {
    f"val/{LABELS[int(name[15:23]) - 1]}/{name}": content for name, content in VAL.items()
}


@pytest.fixture
def given(tmp_path):
    return Given(tmp_path)


def test_every_image_lies_in_its_class_and_nothing_else_is_there(given):
    assert "6 train + 4 val images in 3 classes" in given.unpack()
    assert given.found() == EXPECTED
    assert sorted(p.name for p in given.out.iterdir()) == ["train", "val"]


@pytest.mark.parametrize("at", [1, 3, 6, 8])
def test_stopped_it_goes_on_where_it_was(given, at, monkeypatch):
    written = []

    def stop_at(tar, member, folder, real=imagenet.write):
        real(tar, member, folder)
        written.append(member.name)
        if len(written) == at:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(imagenet, "write", stop_at)
    with pytest.raises(StoppedEarly):
        given.unpack()
    assert len(written) == at
    assert not (given.out / "val").exists()
    for place in (given.out / "train").iterdir():
        assert len(list(place.iterdir())) == 2, "a folder under its final name is whole"
    done = sum(1 for _ in (given.out / "train").rglob("*.JPEG"))
    given.unpack()
    assert given.found() == EXPECTED
    assert len(written) - at == 10 - done, "what is there is not unpacked again"


@pytest.mark.parametrize(
    "name", ["../evil.JPEG", "/tmp/evil.JPEG", "ILSVRC2012_val_00000001.JPEG/../../../evil", "x.JPEG"]
)
def test_a_member_with_any_other_name_is_refused(given, name, tmp_path):
    given.val.write_bytes(tar_of({**VAL, name: b"evil"}))
    with pytest.raises(DataError, match=r"val.tar: holds .*expected files named ILSVRC2012_val"):
        given.unpack()
    assert not list(tmp_path.rglob("*evil*"))
    assert not (given.out / "val").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_member_that_is_no_plain_file_is_refused(given, kind):
    link = tarfile.TarInfo("n00000001_99.JPEG")
    link.type, link.linkname = kind, "/etc/passwd"
    first = {"n00000001.tar": tar_of(TRAIN["n00000001.tar"], link)}
    given.train.write_bytes(tar_of(first | {name: tar_of(files) for name, files in list(TRAIN.items())[1:]}))
    with pytest.raises(DataError, match=r"n00000001.tar: holds n00000001_99.JPEG, which is no plain file"):
        given.unpack()
    assert not any(path.is_symlink() for path in given.out.rglob("*"))


def test_an_image_of_another_class_or_a_class_twice_is_refused(given):
    given.pack({**TRAIN, "n00000002.tar": {"n00000001_1.JPEG": b"x"}})
    with pytest.raises(DataError, match=r"n00000002.tar: holds n00000001_1.JPEG, of another class"):
        given.unpack()
    whole = tar_of(TRAIN["n00000001.tar"])
    twice = tarfile.TarInfo("n00000001.tar")
    given.train.write_bytes(tar_of({"n00000001.tar": whole}, twice))
    with pytest.raises(DataError, match=r"holds n00000001.tar twice"):
        given.unpack()


@pytest.mark.parametrize("which", ["train", "val"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.8])
def test_a_tar_that_was_cut_off_is_named(given, which, share):
    path = getattr(given, which)
    whole = path.read_bytes().rstrip(b"\0")
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=rf"{which}.tar: "):
        given.unpack()


def test_a_damaged_header_is_not_taken_for_the_end(given):
    whole = bytearray(given.val.read_bytes())
    at = whole.rindex(b"ILSVRC2012_val_")
    whole[at] ^= 1
    given.val.write_bytes(whole)
    with pytest.raises(DataError, match=r"val.tar: damaged or cut off at byte"):
        given.unpack()


def test_too_few_images_are_named(given):
    given.pack({**TRAIN, "n00000002.tar": {"n00000002_1.JPEG": b"x"}})
    with pytest.raises(DataError, match=r"train.tar: holds 5 images, ImageNet-1K has 6"):
        given.unpack()
    given.pack(dict(list(TRAIN.items())[:2]))
    with pytest.raises(DataError, match=r"holds 2 classes, ImageNet-1K has 3"):
        given.unpack()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("n00000001\n" * 4, "4 lines of 1 classes; expected 4 of 3"),
        ("".join(f"{n}\n" for n in LABELS[:3]), "3 lines of 3 classes"),
        ("490\n361\n171\n822\n", "line 1 is '490'; expected one WordNet id a line"),
        ("n00000001\nn0000000\u00e9\n", "not plain text"),
        (None, "No such file"),
    ],
)
def test_labels_that_are_not_one_id_a_line_are_refused_before_anything_is_written(given, text, what):
    given.labels.unlink()
    if text is not None:
        given.labels.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=what):
        given.unpack()
    assert not given.out.exists()


@pytest.mark.parametrize("stranger", ["notes.txt", "train/dog", "val/dog"])
def test_a_folder_with_anything_else_in_it_is_refused_and_left_alone(given, stranger):
    (given.out / stranger).mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"holds {stranger}"):
        given.unpack()
    assert [p for p in given.out.rglob("*") if not any(p.iterdir())] == [given.out / stranger]


def test_a_link_in_place_of_a_folder_is_not_followed(given, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    given.out.mkdir()
    (given.out / "train").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="holds train"):
        given.unpack()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_disk_that_takes_no_more_is_a_disk_error_and_the_same_command_goes_on(given):
    big = {**TRAIN, "n00000003.tar": {"n00000003_1.JPEG": b"x" * 300_000, "n00000003_2.JPEG": b"y"}}
    given.pack(big)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(DiskError, match=r"n00000003_1.JPEG: cannot be written"):
            given.unpack()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    given.unpack()
    assert (given.out / "train/n00000003/n00000003_1.JPEG").stat().st_size == 300_000


def test_the_command_says_what_is_wrong_in_one_line(given):
    def call(*words: object):
        return subprocess.run(
            [sys.executable, "-m", "roadmap.data.imagenet", *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
        )

    wrong = call(given.train, given.val)
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (64, 1), wrong.stderr
    assert "--labels" in wrong.stderr
    of_three = call(given.train, given.val, "--labels", given.labels, "--out", given.out)
    assert (of_three.returncode, of_three.stdout) == (65, "")
    assert "4 lines of 3 classes; expected 50000 of 1000" in of_three.stderr
    assert len(of_three.stderr.splitlines()) == 1
    assert not given.out.exists()
