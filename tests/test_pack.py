"""A study as one file: packed with all but its checkpoints, read where it lies, refused where it means harm."""

import json
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from roadmap.errors import DataError
from roadmap.files import read_json
from roadmap.report import collect
from roadmap.report.__main__ import main as report
from roadmap.runs import archive, schema
from roadmap.runs.pack import main, pack
from roadmap.runs.result import HASHED, write_result
from roadmap.runs.run_dir import RESULT_FILES
from roadmap.runs.search import find_run_directories
from tests.fabricate import unfinished, write_run

ALL = {*RESULT_FILES, *HASHED, schema.LOG}
RUN = "roadmap/nano-digits/gelu/seed0"


@pytest.fixture
def runs(tmp_path):
    """Three finished runs and a stopped one, with what else lies in run directories and studies."""
    labels = np.arange(40) % 4
    for seed in range(3):
        predicted = np.where(np.roll(np.arange(40) < 30, seed), labels, (labels + 1) % 4)
        folder = write_run(tmp_path / "runs", "gelu", seed, by_image=(predicted, labels))
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "step-0000000030-00003.pt").write_bytes(b"weights")
        (folder / ".lock").write_text("process 1 on here")
        (folder / "wandb").mkdir()
        (folder / "wandb" / "core.log").write_text("log")
        (folder / schema.LOG).write_text("epoch 1\n")
    unfinished(tmp_path / "runs", "layer_norm")
    (tmp_path / "runs" / "roadmap" / ".study").mkdir()
    (tmp_path / "runs" / "roadmap" / ".study" / "jobs.jsonl").write_text("{}\n")
    return tmp_path / "runs" / "roadmap"


@pytest.fixture
def packed(runs, tmp_path):
    pack(str(runs), tmp_path / "study.zip")
    return tmp_path / "study.zip"


def rewritten(path: Path, out: Path, change) -> Path:
    """Write an archive with the same members, each as `change(member, data)` returns them: a list of pairs."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            for info, data in change(member, old.read(member)):
                new.writestr(info, data)
    return out


def test_the_records_are_packed_and_nothing_else(runs, packed):
    with zipfile.ZipFile(packed) as file:
        names = file.namelist()
        for name in names:
            assert file.read(name) == (runs.parent / name).read_bytes()
    expected = {f"roadmap/nano-digits/gelu/seed{seed}/{name}" for seed in range(3) for name in ALL}
    stopped = {
        f"roadmap/nano-digits/layer_norm/seed0/{name}" for name in ("config.yaml", "status.json", schema.METRICS)
    }
    assert set(names) == expected | stopped
    assert ALL == set(schema.RECORD)


def test_the_same_runs_make_the_same_bytes_wherever_they_lie(runs, packed, tmp_path):
    for path in runs.rglob("*"):
        path.touch()
    runs.parent.rename(tmp_path / "moved")
    assert main([str(tmp_path / "moved" / "roadmap"), "--out", str(tmp_path / "again.zip")]) == 0
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()


@pytest.mark.parametrize("inside", ["", "/roadmap", "/roadmap/nano-digits"])
def test_the_report_of_an_archive_is_that_of_the_folder(runs, packed, tmp_path, inside):
    for source, out in ((runs, "folder"), (f"{packed}{inside}", "archive")):
        assert report([str(source), "--out", str(tmp_path / out), "--tables-only"]) == 0
    for file in ("table.csv", "findings.txt"):
        assert (tmp_path / "folder" / file).read_bytes() == (tmp_path / "archive" / file).read_bytes()
    there, here = collect([str(packed)]), collect([str(runs)])
    assert there.runs == here.runs
    assert [problem.reason for problem in there.unfinished] == [problem.reason for problem in here.unfinished]
    assert there.unfinished[0].path == f"{packed}/roadmap/nano-digits/layer_norm/seed0"
    assert not there.suspect


def test_without_steps_the_report_is_the_same_and_a_changed_ledger_is_still_seen(runs, tmp_path):
    for seed in range(3):
        folder = runs / "nano-digits" / "gelu" / f"seed{seed}"
        write_result(folder, read_json(folder / schema.SUMMARY))
    with open(runs / "nano-digits" / "gelu" / "seed2" / schema.METRICS, "a") as ledger:
        ledger.write('{"kind": "train", "epoch": 4, "global_step": 40, "time_s": 9.0}\n')
    assert main([str(runs), "--out", str(tmp_path / "small.zip"), "--no-steps"]) == 0
    here, there = collect([runs]), collect([tmp_path / "small.zip"])
    assert there.runs == here.runs
    assert [run.seed for run in here.runs] == [0, 1]
    assert "metrics.jsonl changed after the run had ended" in there.suspect[0].reason
    with zipfile.ZipFile(tmp_path / "small.zip") as file:
        assert b'"train"' not in file.read(f"{RUN}/{schema.METRICS}")
        assert json.loads(file.read(f"{RUN}/{schema.SUMMARY}"))["steps_left_out"] is True


def test_archives_in_a_folder_are_no_second_copy_unless_asked_for(runs, packed):
    packed.rename(runs / "study.zip")
    assert len(find_run_directories([str(runs)])[0]) == 4
    assert len(find_run_directories([str(runs)], archives=True)[0]) == 8
    assert len(find_run_directories([str(runs / "study.zip")] * 2)[0]) == 4


def test_what_another_zip_tool_wrote_is_read_too(runs, tmp_path):
    words = [sys.executable, "-m", "zipfile", "-c", str(tmp_path / "other.zip"), "."]
    subprocess.run(words, cwd=runs.parent, check=True)
    found = collect([tmp_path / "other.zip"])
    assert len(found.runs) == 3
    assert not found.suspect


def member(name, data=b"{}", mode=0o100644, **more):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


HOSTILE = {
    "absolute": (member("/etc/status.json"), "leads out"),
    "parent": (member(f"{RUN}/../../../../../x/status.json"), "leads out"),
    "backslash": (member("a\\..\\status.json"), "leads out"),
    "drive": (member("C:/x/status.json"), "leads out"),
    "empty": (member("a//status.json"), "leads out"),
    "link": (member("roadmap/link", b"/etc/passwd", stat.S_IFLNK | 0o777), "link or a device"),
    "pipe": (member("roadmap/pipe", b"", stat.S_IFIFO | 0o600), "link or a device"),
    "device": (member("roadmap/null", b"", stat.S_IFCHR | 0o600), "link or a device"),
    "double": (member(f"{RUN}/status.json"), "occurs twice"),
    "case": (member(f"{RUN}/STATUS.JSON"), "occurs twice"),
    "unicode": (member(f"{RUN}/ｓtatus.json"), "occurs twice"),
    "deep": (member("a/" * 20 + "status.json"), "not a valid name of a file"),
    "long": (member("a" * 600), "not a valid name of a file"),
    "control": (member("a\x1b[2J/status.json"), "not a valid name of a file"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", HOSTILE)
def test_an_archive_that_means_harm_is_refused_whole(packed, tmp_path, capsys, kind):
    (info, data), reason = HOSTILE[kind]
    with zipfile.ZipFile(packed, "a") as file:
        file.writestr(info, data)
    before = sorted(tmp_path.rglob("*"))
    assert report([str(packed), "--out", str(tmp_path / "out"), "--tables-only"]) == 65
    error = capsys.readouterr().err
    assert reason in error
    assert len(error.splitlines()) == 2
    assert "\x1b" not in error
    assert sorted(tmp_path.rglob("*")) == before


def damaged(data: bytes, kind: str) -> bytes:
    end = bytearray(data[-22:])
    if kind == "count":
        end[10:12] = struct.pack("<H", 65_535)
    if kind == "list":
        end[12:16] = struct.pack("<L", 2**31)
    bodies = {
        "empty": b"", "text": b"no zip at all\n" * 9, "cut": data[: len(data) // 2], "comment": data[:-2] + b"\1\0x",
        "before": b"#!/bin/sh\n" + data, "zip64": data[:-22] + b"PK\x06\x07" + bytes(16) + data[-22:],
        "count": data[:-22] + bytes(end), "list": data[:-22] + bytes(end), "zeros": data[:100] + bytes(len(data) - 122)
        + data[-22:],
    }  # fmt: skip
    return bodies[kind]


KINDS = ["empty", "text", "cut", "comment", "before", "zip64", "count", "list", "zeros"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_archive_is_a_plain_line(packed, tmp_path, capsys, kind):
    packed.write_bytes(damaged(packed.read_bytes(), kind))
    assert report([str(packed), "--out", str(tmp_path / "out")]) == 65
    assert "study.zip: is damaged, or not an archive of runs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_archive_that_unpacks_to_far_more_than_itself_is_refused(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_TOTAL", 2**20)
    monkeypatch.setattr(archive, "MAX_RATIO", 2)
    zeros = rewritten(packed, tmp_path / "large.zip", lambda info, _: [(info, bytes(2**18))])
    (problem,) = collect([zeros]).suspect
    assert "bytes, more than 2 times its own" in problem.reason


def spoiled(kind: str, member: zipfile.ZipInfo, data: bytes):
    if member.filename != f"{RUN}/metrics.jsonl":
        return [(member, data)]
    if kind == "bomb":
        return [(member, bytes(2**26))]
    if kind == "method":
        member.compress_type = zipfile.ZIP_LZMA
    return [] if kind == "missing" else [(member, b"[" * 5000 if kind == "deep" else data)]


@pytest.mark.parametrize("kind", ["bomb", "method", "missing", "deep"])
def test_a_hostile_run_in_an_archive_is_suspect_alone(packed, tmp_path, kind):
    found = collect([rewritten(packed, tmp_path / "bad.zip", lambda *one: spoiled(kind, *one))])
    assert [run.seed for run in found.runs] == [1, 2]
    (problem,) = found.suspect
    assert problem.path.endswith(f"bad.zip/{RUN}")
    assert schema.METRICS in problem.reason


def test_a_flipped_bit_makes_one_run_suspect(packed):
    with zipfile.ZipFile(packed) as file:
        info = file.getinfo(f"{RUN}/metrics.jsonl")
    data = bytearray(packed.read_bytes())
    data[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 0xFF
    packed.write_bytes(data)
    found = collect([packed])
    assert [run.seed for run in found.runs] == [1, 2]
    assert "damaged in the archive" in found.suspect[0].reason


def test_a_list_that_lies_of_a_size_makes_one_run_suspect(packed):
    data = packed.read_bytes()
    with zipfile.ZipFile(packed) as file:
        info = file.getinfo(f"{RUN}/summary.json")
    size = struct.pack("<L", info.file_size)
    at = data.index(b"PK\x01\x02", data.rindex(info.filename.encode()) - 46)
    assert data[at + 24 : at + 28] == size
    for lie in (info.file_size - 1, info.file_size + 1, 2**31):
        packed.write_bytes(data[: at + 24] + struct.pack("<L", lie) + data[at + 28 :])
        found = collect([packed])
        assert [run.seed for run in found.runs] == [1, 2], lie
        assert schema.SUMMARY in found.suspect[0].reason


def test_what_is_no_archive_or_no_folder_in_it_is_named(packed, tmp_path, capsys):
    assert report([f"{packed}/roadmap/nano-digit", "--out", str(tmp_path / "out")]) == 65
    assert "did you mean roadmap/nano-digits?" in capsys.readouterr().err
    (tmp_path / "file.txt").write_text("x")
    assert report([str(tmp_path / "file.txt"), "--out", str(tmp_path / "out")]) == 65
    assert "is neither a folder nor an archive (.zip)" in capsys.readouterr().err


def test_wrong_commands_write_nothing(runs, packed, tmp_path, capsys, monkeypatch):
    before = packed.read_bytes()
    (tmp_path / "none").mkdir()
    for words, code, error in [
        ([str(runs), "--out", str(tmp_path / "study.tar")], 64, "its name ends with .zip"),
        ([str(tmp_path / "none")], 65, "holds no run"),
        ([str(tmp_path / "nothing")], 65, "no such folder"),
        ([str(runs), "--nothing"], 64, "see --help"),
    ]:
        assert main(words) == code
        assert error in capsys.readouterr().err
    (runs / "nano-digits" / "gelu" / "seed0" / schema.CONFIG).write_text("host: hunter2-secret-hunter2\n")
    (runs / "nano-digits" / "gelu" / "seed0" / schema.LOG).write_text("epoch of hunter2-secret-hunter2\n")
    monkeypatch.setenv("MY_TOKEN", "hunter2-secret-hunter2")
    assert main([str(runs), "--out", str(packed)]) == 65
    assert "config.yaml holds a secret" in capsys.readouterr().err
    assert packed.read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))


def test_the_labels_of_a_large_set_are_read_back(tmp_path):
    labels = np.repeat(np.arange(1000), 1500)
    write_run(tmp_path, "gelu", by_image=(labels, labels))
    pack(str(tmp_path / "roadmap"), tmp_path / "study.zip")
    (run,) = collect([tmp_path / "study.zip"]).runs
    assert run == collect([tmp_path / "roadmap"]).runs[0]


def test_a_log_goes_along_without_secrets(runs, monkeypatch):
    (runs / "nano-digits" / "gelu" / "seed0" / schema.LOG).write_text("epoch of hunter2-secret-hunter2\n")
    monkeypatch.setenv("MY_TOKEN", "hunter2-secret-hunter2")
    assert main([str(runs)]) == 0
    with zipfile.ZipFile(f"{runs}.zip") as file:
        assert file.read(f"{RUN}/{schema.LOG}") == b"epoch of ***\n"


def test_long_ledgers_of_an_archive_are_read_by_several_processes(packed, monkeypatch):
    from roadmap.report.analyse import collect as module

    alone = collect([packed])
    monkeypatch.setattr(module, "LONG", 0)
    monkeypatch.setattr(module, "num_cores", lambda: 2)
    assert collect([packed]) == alone


@pytest.mark.parametrize("name", ["run.log", "labels.npy", "status.json"])
def test_a_link_in_a_run_brings_no_other_file_into_the_archive(tmp_path, name):
    run = write_run(tmp_path / "runs", by_image=(np.arange(2), np.arange(2)))
    (tmp_path / "private").write_text("not of this run")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "private")
    with pytest.raises(DataError, match=rf"{name} is a link"):
        pack(str(tmp_path / "runs"), tmp_path / "runs.zip")
    assert not (tmp_path / "runs.zip").exists()


def test_where_the_folder_is_gone_its_archive_is_read(tmp_path):
    write_run(tmp_path / "runs", "gelu", study="mine")
    pack(str(tmp_path / "runs" / "mine"), tmp_path / "runs" / "mine.zip")
    shutil.rmtree(tmp_path / "runs" / "mine")
    (run,) = collect([tmp_path / "runs" / "mine"]).runs
    assert run.path == str(tmp_path / "runs" / "mine.zip" / "mine" / "nano-digits" / "gelu" / "seed0")
