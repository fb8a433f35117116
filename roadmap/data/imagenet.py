"""ImageNet's official tar files into class folders.

    python -m roadmap.data.imagenet ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar --labels LABELS.txt --out FOLDER

LABELS.txt names the class of each validation image, one WordNet id a line, in the order of the file names: it is known
as imagenet_2012_validation_synset_labels.txt (the tar of validation images does not say, and the devkit counts classes
in another order). The train tar is a tar of one tar a class. Interrupted and typed again it goes on: a folder under its
final name is whole.
"""

import argparse
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from roadmap.catalog import DATA_SETS, DataSet
from roadmap.data.image_folder import WORDNET_ID, first_few
from roadmap.data.verify import ImageProgress
from roadmap.distributed.signals import StopSignal
from roadmap.errors import ConfigError, DataError, RoadmapError, StoppedEarly
from roadmap.files import disk_errors
from roadmap.runs.progress import SweepProgress
from roadmap.text import ArgumentParser, printable, reason, redact

CLASS_TAR = re.compile(r"(n\d{8})\.tar")
TRAIN_IMAGE = re.compile(r"(n\d{8})_\d+\.JPEG")
VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
UNFINISHED = ".unfinished"  # what is being unpacked; removed at the next start
BLOCK = 1 << 20  # bytes


def unpack(train: Path, val: Path, labels: Path, out: Path, expected: DataSet = DATA_SETS["imagenet"]) -> str:
    """Unpack both tars into `out/train/<class>/` and `out/val/<class>/`; return the line that says so.

    Raises DataError for tars and labels that are not ImageNet's, DiskError, StoppedEarly. Nothing is written outside
    `out`.
    """
    classes_of_val = read_labels(labels, expected)
    with opened(train), opened(val):
        pass  # better now than after the hours that the first one takes
    with StopSignal() as stop:
        prepare_out(out)
        with opened(train) as tar:
            unpack_train(tar, train, out, expected, stop)
        with opened(val) as tar:
            unpack_val(tar, val, classes_of_val, out, stop)
    with disk_errors(out):
        (out / UNFINISHED).rmdir()
        os.sync()
    counts = " + ".join(f"{n} {split}" for split, n in expected.num_images.items())
    return f"{out}: {counts} images in {expected.num_classes} classes; make data-check opens every one of them"


def read_labels(path: Path, expected: DataSet) -> list[str]:
    """Return the class of each validation image. Raises DataError."""
    try:
        lines = path.read_text(encoding="ascii").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"--labels {path}: cannot be read ({getattr(error, 'strerror', None) or 'not plain text'})"
        ) from None
    while lines and not lines[-1].strip():
        lines.pop()
    classes = [line.strip() for line in lines]
    wrong = next((n for n, name in enumerate(classes, 1) if not WORDNET_ID.fullmatch(name)), None)
    if wrong is not None:
        raise DataError(
            f"--labels {path}: line {wrong} is {printable(classes[wrong - 1])[:40]!r}; "
            "expected one WordNet id a line (n01440764)"
        )
    if (len(classes), len(set(classes))) != (expected.num_images["val"], expected.num_classes):
        raise DataError(
            f"--labels {path}: {len(classes)} lines of {len(set(classes))} classes; "
            f"expected {expected.num_images['val']} of {expected.num_classes}"
        )
    return classes


@contextmanager
def opened(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar, packed by nothing else. Whatever is wrong with it while it is read is a DataError that names it."""
    try:
        with tarfile.open(path, "r:") as tar:
            yield tar
    except tarfile.TarError as error:
        raise DataError(f"{path}: not a whole tar file ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({reason(error)})") from None


def prepare_out(out: Path) -> None:
    """Make the folder, or take up what an earlier start left in it.

    Raises ConfigError for a folder that holds anything else.
    """
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        strangers = sorted({p.name for p in out.iterdir()} - {"train", "val", UNFINISHED})
        for split in ("train", "val", UNFINISHED):
            place = out / split
            if place.is_symlink() or (place.exists() and not place.is_dir()):
                strangers.append(split)
            elif place.is_dir() and split != UNFINISHED:
                strangers += sorted(
                    f"{split}/{p.name}" for p in place.iterdir() if not WORDNET_ID.fullmatch(p.name) or p.is_symlink()
                )
    if strangers:
        raise ConfigError(
            f"--out {out}: holds {printable(first_few(strangers))}; "
            "must be a new folder, or one that this command began"
        )
    with disk_errors(out):
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)
        for name in ("train", UNFINISHED):
            (out / name).mkdir(exist_ok=True)


def unpack_train(tar: tarfile.TarFile, path: Path, out: Path, expected: DataSet, stop: StopSignal) -> None:
    """Unpack the classes that are not there yet, one inner tar each."""
    inner_tars: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        if inner_tars.setdefault(checked_name(path, member, CLASS_TAR)[1], member) is not member:
            raise DataError(f"{path}: holds {member.name} twice")
    check_end(tar, path)
    if len(inner_tars) != expected.num_classes:
        raise DataError(f"{path}: holds {len(inner_tars)} classes, {expected.title} has {expected.num_classes}")
    there = {place.name: sum(1 for _ in place.iterdir()) for place in (out / "train").iterdir()}
    if strangers := sorted(there.keys() - inner_tars.keys()):
        raise ConfigError(f"--out {out}: holds {first_few(strangers)} in train, which {path.name} does not")
    num_images = sum(there.values())
    progress = ImageProgress("train", expected.num_images["train"], num_images, SweepProgress(), verb="unpacked")
    try:
        for name, member in sorted(inner_tars.items(), key=lambda item: item[1].offset):
            if name in there:
                continue
            place = new_folder(out / UNFINISHED / name)
            with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
                num_images += unpack_class(inner, f"{path}: {member.name}", name, place, stop, progress)
            with disk_errors(place):
                os.rename(place, out / "train" / name)
    finally:
        progress.close()
    if num_images != expected.num_images["train"]:
        raise DataError(
            f"{path}: holds {num_images} images, {expected.title} has {expected.num_images['train']}; is it whole?"
        )


def unpack_class(
    tar: tarfile.TarFile, of: str, name: str, place: Path, stop: StopSignal, progress: ImageProgress
) -> int:
    """Unpack the images of one class; return how many."""
    num_images = 0
    for member in tar:
        if checked_name(of, member, TRAIN_IMAGE)[1] != name:
            raise DataError(f"{of}: holds {member.name}, of another class")
        write(tar, member, place)
        num_images += 1
        progress.count(1)
        stop.raise_if_set()
    check_end(tar, of)
    return num_images


def unpack_val(tar: tarfile.TarFile, path: Path, classes: list[str], out: Path, stop: StopSignal) -> None:
    """Unpack all validation images, each into its class; `out/val` appears once they are all there."""
    if (out / "val").exists():
        return
    place = new_folder(out / UNFINISHED / "val")
    for name in set(classes):
        new_folder(place / name)
    progress = ImageProgress("val", len(classes), 0, SweepProgress(), verb="unpacked")
    seen: set[int] = set()
    try:
        for member in tar:
            number = int(checked_name(path, member, VAL_IMAGE)[1])
            if not 1 <= number <= len(classes) or number in seen:
                raise DataError(
                    f"{path}: holds {member.name}, {'twice' if number in seen else f'past the {len(classes)} labels'}"
                )
            seen.add(number)
            write(tar, member, place / classes[number - 1])
            progress.count(1)
            stop.raise_if_set()
    finally:
        progress.close()
    check_end(tar, path)
    if len(seen) != len(classes):
        raise DataError(f"{path}: holds {len(seen)} images, the labels are {len(classes)}; is it whole?")
    with disk_errors(place):
        os.rename(place, out / "val")


def check_end(tar: tarfile.TarFile, of: Path | str) -> None:
    """Raise DataError unless a tar that was read to its end has one: tarfile takes a damaged header for the end."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"{of}: damaged or cut off at byte {tar.offset}")


def checked_name(of: Path | str, member: tarfile.TarInfo, pattern: re.Pattern[str]) -> re.Match[str]:
    """Return the match of a member's name.

    Raises DataError for any other name (a path, say) and for what is no plain file.
    """
    match = pattern.fullmatch(member.name)
    if match is None or not member.isreg():
        kind = "" if member.isreg() else ", which is no plain file"
        expected = pattern.pattern.replace("\\", "")
        raise DataError(f"{of}: holds {printable(member.name)[:80]}{kind}; expected files named {expected}")
    return match


def write(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write one checked member under its name. Raises DiskError, tarfile's errors for a tar that ends in it."""
    safe = tarfile.data_filter(
        member, str(folder)
    )  # refuses what leads outside, should a name ever pass `checked_name`
    path = folder / safe.name
    source = tar.extractfile(member)
    assert source is not None
    with disk_errors(path):
        target = open(path, "xb")  # noqa: SIM115 - closed below, apart from reading, whose errors are the tar's
    with closing(path, target):
        while block := source.read(BLOCK):
            with disk_errors(path):
                target.write(block)


@contextmanager
def closing(path: Path, target: IO[bytes]) -> Iterator[None]:
    """Close a file that was written; the last bytes may be the ones that do not fit."""
    try:
        yield
    finally:
        with disk_errors(path):
            target.close()


def new_folder(path: Path) -> Path:
    """Make a folder and return it. Raises DiskError."""
    with disk_errors(path):
        path.mkdir()
    return path


def main(words: list[str]) -> int:
    """Run the command line; return the exit code."""
    parser = ArgumentParser(
        prog="python -m roadmap.data.imagenet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("train", type=Path, metavar="TRAIN.tar")
    parser.add_argument("val", type=Path, metavar="VAL.tar")
    parser.add_argument(
        "--labels", type=Path, required=True, metavar="FILE", help="one WordNet id a line, of each validation image"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new, or what this command began")
    try:
        given = parser.parse_args(words)
        print(unpack(given.train, given.val, given.labels, given.out))
    except StoppedEarly as error:
        print(f"{error}; the same command goes on", file=sys.stderr)
        return error.code
    except RoadmapError as error:
        print(printable(redact(f"error: {error}")), file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return StoppedEarly.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
