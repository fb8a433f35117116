"""`python -m roadmap.bench gpu`: parts that are bounded in time, what it says of those left out, and bare machines."""

import argparse
import json
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from roadmap.bench import gpu
from roadmap.bench.__main__ import main
from roadmap.bench.gpu import Part, end_group, environment, run_parts, unpack
from roadmap.files import last_error

from .conftest import ROOT
from .drive import python

DEVICE = Part("device", ("-c", "print('a GPU')"), 60, 0)
FOREVER = "import signal; print('begun', flush=True); signal.pause()"


@pytest.fixture
def env(tmp_path):
    return environment(tmp_path)


def report(out):
    return json.loads((out / "report.json").read_text())["parts"]


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_plan_fits_into_the_time_and_says_what_it_leaves_out(capsys):
    assert main(["gpu", "--plan", "--minutes", "8"]) == 0
    whole = capsys.readouterr().out
    assert "DIR/kernels.json" in whole and "--results DIR/tests.jsonl" in whole
    for name in ("device", "tests", "nets", "one_seed", "kernels", "input"):
        assert f"s  {name}: python " in whole
    assert whole.count("left out") == 1 and "left out        runs: needs 40 s" in whole
    assert float(whole.splitlines()[-1].split()[0]) <= 8 * 60 - gpu.STOP_S
    assert main(["gpu", "--plan", "--minutes", "2"]) == 0
    short = capsys.readouterr().out
    assert "s  tests: " in short and "left out        input: needs 40 s" in short
    assert float(short.splitlines()[-1].split()[0]) <= 2 * 60 - gpu.STOP_S


def test_parts_are_chosen_and_the_device_is_asked_first(capsys):
    assert main(["gpu", "--plan", "--minutes", "8", "--parts", "runs,nets"]) == 0
    assert [line.split(": python")[0].split("  ")[-1] for line in capsys.readouterr().out.splitlines()[:-1]] == [
        "device", "runs", "nets: needs 100 s",
    ]  # fmt: skip
    assert gpu.NAMES == tuple(part.name for part in gpu.parts(argparse.Namespace(out=Path(), root=None, parts=None)))


def test_it_needs_none_of_the_packages_that_it_brings():
    absent = ("pydantic", "annotated_types", "hydra", "omegaconf", "submitit", "wandb", "torch", "numpy")
    code = f"""
import sys
sys.modules |= dict.fromkeys({absent})
sys.argv = ["-m", "gpu", "--plan"]  # as in `python -m roadmap.bench gpu --plan`, when its package is imported
from roadmap.bench.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
    done = python("-c", code)
    assert done.returncode == 0 and "s  tests: " in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--out=DIR"),
        (["--minutes", "0", "--plan"], "--minutes=0: must be"),
        (["--parts", "x"], "x: unknown"),
        (["--plan", "--root", "nowhere"], "argument --root: nowhere: is not a folder"),
    ],
)
def test_a_wrong_command_is_refused(capsys, words, told):
    assert main(["gpu", *words]) == 64
    assert told in capsys.readouterr().err


def test_each_part_is_reported_when_it_has_ended_and_a_failure_ends_no_other(tmp_path, env, capsys):
    fails = Part("fails", ("-c", "print('first'); raise SystemExit('no luck')"), 60, 0)
    reads = Part("reads", ("-c", f"import json; print(json.load(open({str(tmp_path / 'report.json')!r})))"), 60, 0)
    found = run_parts([DEVICE, fails, reads], time.monotonic() + 120, tmp_path, env)
    assert found == report(tmp_path)
    assert [part["state"] for part in found.values()] == ["done", "failed", "done"]
    assert found["fails"]["reason"] == "exit code 1: no luck"
    assert "'fails'" in (tmp_path / "reads.log").read_text() and (tmp_path / "device.log").read_text() == "a GPU\n"
    assert "fails: failed, exit code 1: no luck" in capsys.readouterr().out


def test_a_part_that_goes_on_is_told_to_end_and_may_save(tmp_path, env):
    saves = "import signal, sys; signal.signal(15, lambda *_: (print('saved'), sys.exit(75))); " + FOREVER
    part = Part("runs", ("-c", saves), 3.0, 0)
    found = run_parts([DEVICE, part], time.monotonic() + 120, tmp_path, env)
    assert found["runs"]["state"] == "out of time" and found["runs"]["exit_code"] == 75
    assert (tmp_path / "runs.log").read_text() == "begun\nsaved\n"


def test_what_runs_beside_a_part_ends_with_it(tmp_path, env):
    beside = ("-c", "import os; print(os.getpid());" + FOREVER)
    log = tmp_path / "beside_some_1.log"
    waits = (
        f"import pathlib, time\nwhile not pathlib.Path({str(log)!r}).read_text().endswith('begun\\n'): time.sleep(0.02)"
    )
    found = run_parts(
        [DEVICE, Part("some", ("-c", waits), 60, 0, beside=(beside,))], time.monotonic() + 120, tmp_path, env
    )
    assert found["some"]["state"] == "done"
    assert not runs(int(log.read_text().split()[0]))


def test_results_are_packed_without_what_is_large(tmp_path, env):
    made = ("one_seed/mini/seed0/checkpoints/a.pt", "one_seed/mini/seed0/status.json", "packages/tqdm/__init__.py")
    for name in made:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    for _ in range(2):
        run_parts([DEVICE], time.monotonic() + 120, tmp_path, env)
    with tarfile.open(tmp_path / gpu.ARCHIVE) as archive:
        files = {info.name for info in archive.getmembers() if info.isfile()}
    assert files == {"device.log", "report.json", made[1]}


def test_what_a_part_has_started_ends_with_it():
    code = f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {FOREVER!r}]); print(child.pid)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    child = int(process.stdout.readline())
    process.wait()
    end_group(process)
    while runs(child):  # until its new parent has taken note
        time.sleep(0.02)
    process.stdout.close()


def test_what_there_is_no_time_for_or_no_device_is_left_out(tmp_path, env):
    later = Part("later", DEVICE.words, 60, 50)
    found = run_parts([DEVICE, later], time.monotonic() + gpu.STOP_S + 30, tmp_path, env)
    assert found["later"]["state"] == "left out" and found["later"]["reason"].endswith(" s were left")
    broken = Part("device", ("-c", "raise SystemExit('no GPU')"), 60, 0)
    found = run_parts([broken, later._replace(least_s=0)], time.monotonic() + 120, tmp_path, env)
    assert found["later"] == {"state": "left out", "reason": "device failed"}


@pytest.mark.parametrize("name", ["INT", "TERM", "KILL"])
def test_a_command_that_is_interrupted_leaves_no_part_behind(tmp_path, name):
    code = f"""
import time
from pathlib import Path
from roadmap.bench.gpu import Part, environment, run_parts
out = Path({str(tmp_path)!r})
run_parts([Part("device", ("-c", {"import os; print(os.getpid());" + FOREVER!r}), 60, 0)],
          time.monotonic() + 120, out, environment(out))
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    log = tmp_path / "device.log"
    while not (log.exists() and log.read_text().endswith("begun\n")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert process.wait() != 0
    while runs(int(log.read_text().split()[0])):  # until it has taken note
        time.sleep(0.02)


def test_the_tests_part_has_a_line_for_each_test_when_it_has_ended(tmp_path):
    file = tmp_path / "test_some.py"
    file.write_text("def test_a():\n    pass\n\n\ndef test_b():\n    assert 'this' == 'that'\n")
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    words = ["-q", "-p", "no:cacheprovider", "--results", str(tmp_path / "tests.jsonl"), str(file)]
    python("-m", "pytest", *words)
    found = [json.loads(line) for line in (tmp_path / "tests.jsonl").read_text().splitlines()]
    assert [(line["test"].rpartition("::")[2], line["outcome"]) for line in found] == [
        ("test_a", "passed"), ("test_b", "failed"),
    ]  # fmt: skip
    assert "assert 'this' == 'that'" in found[1]["error"]


def test_nets_compile_side_by_side_and_are_timed_one_at_a_time(tmp_path, capsys):
    nets = "gelu/ours/eager,separate_downsampling/timm/eager,gelu/ours/none"
    small = ("--", "--regime", "nano", "--device", "cpu", "--batch", "2", "--image-size", "32", "--repeats", "2")
    assert main(["nets", "--out", str(tmp_path), "--nets", nets, *small]) == 1
    ours, timm, none = capsys.readouterr().out.splitlines()
    assert ours.startswith("gelu/ours/eager: ") and " images/s, " in ours
    assert timm.startswith("separate_downsampling/timm/eager: ") and " images/s, " in timm
    assert none.startswith("gelu/ours/none: not measured (")
    (only,) = json.loads((tmp_path / "net-separate_downsampling-timm-eager.json").read_text())["rows"][0]["candidates"]
    assert only["peer"] == "timm" and len(only["times_s"]) == 2
    assert main(["nets", "--out", str(tmp_path), "--nets", "gelu/ours/eager", "--limit", "5.1", *small]) == 1
    assert capsys.readouterr().out.startswith("gelu/ours/eager: not measured (not compiled in time; ")
    assert main(["nets", "--out", str(tmp_path), "--nets", "gelu"]) == 64
    assert "--nets=gelu: must be ROW/WHO/FORM" in capsys.readouterr().err
    assert main(["nets", "--out", str(tmp_path / "new"), "--nets", "gel/ours/eager"]) == 64
    assert "--nets=gel/ours/eager: gel: unknown; did you mean gelu" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main(["nets", "--out", str(tmp_path), "--nets", "gelu/ours/eager/x", "--limit", "20", *small]) == 1
    assert capsys.readouterr().out.startswith("gelu/ours/eager/x: not measured (")


def test_the_reason_of_a_failure_is_the_error_whatever_a_library_prints_after_it(tmp_path):
    log = tmp_path / "log"
    for text, told in (
        ("torch.OutOfMemoryError: 2 GiB\n\nSet TORCHDYNAMO_VERBOSE=1\n", "torch.OutOfMemoryError: 2 GiB"),
        ("error: no GPU\nerror: none at all\nterminate called\n", "error: none at all"),
        ("an error: or so\n", "an error: or so"),
        ("error: too early\n" + "x" * 2**16 + "\nthe end\n", "the end"),  # no more is read than may be in memory
        ("", ""),
    ):
        log.write_text(text)
        assert last_error(log) == told


def test_wheels_beside_the_checkout_come_before_what_is_installed(tmp_path, env):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "tqdm-99-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tqdm/__init__.py", "unpacked = True")
        wheel.writestr("tqdm-99.dist-info/METADATA", "Name: tqdm\nVersion: 99\n")
    unpack(wheels, tmp_path / gpu.PACKAGES)
    code = "import tqdm, importlib.metadata as m, roadmap; print(tqdm.unpacked, m.version('tqdm'), roadmap.__file__)"
    done = python("-c", code, env=env, cwd=tmp_path)
    assert done.stdout.split() == ["True", "99", str(ROOT / "roadmap" / "__init__.py")], done.stderr
    (wheels / "broken.whl").write_text("no archive")
    assert main(["gpu", "--out", str(tmp_path / "out"), "--wheels", str(wheels)]) == 65


def test_a_run_without_wandb_and_without_any_packages_metadata(tmp_path):
    code = """
import sys
import importlib.metadata as metadata

def none(name):
    raise metadata.PackageNotFoundError(name)

metadata.version = none
sys.modules["wandb"] = None
import run
sys.exit(run.CommandLine(run.run, sys.argv[1:]).main())
"""
    words = ["+step=gelu", "recipe.epochs=1", "recipe.warmup_epochs=0", "data.train_images=64", "wandb.mode=disabled"]
    done = python("-c", code, *words, f"paths.runs={tmp_path}")
    assert done.returncode == 0, done.stderr
    (summary,) = tmp_path.rglob("summary.json")
    assert list(json.loads(summary.read_text())["versions"]) == ["python"]
