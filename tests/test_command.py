"""`python run.py` as a user types it: what it writes, what it ends with, and what it refuses."""

import functools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from contextlib import nullcontext
from unittest.mock import Mock

import pytest
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from roadmap.config import KEYS
from roadmap.errors import DataError, DiskError
from roadmap.steps.command_line import plain_kind
from roadmap.steps.compose import accept_lazy_help
from roadmap.steps.tree import CONF
from roadmap.text import RedactedStream, command_line

from . import drive
from .conftest import ROOT

SMALL = (
    "data.train_images=96", "data.val_images=40", "recipe.batch_size=32", "recipe.epochs=1", "recipe.warmup_epochs=0",
)  # fmt: skip


def nothing_written(tmp_path):
    return not list(tmp_path.iterdir())


def test_one_ablation_leaves_its_record_and_ends_with_one_line(command, tmp_path):
    done = drive.run(("+step=inverted_bottleneck", *SMALL, f"paths.runs={tmp_path / 'runs'}"))
    assert done.returncode == 0, done.stderr
    cell = f"inverted_bottleneck,{','.join(sorted(SMALL))}"
    (folder,) = (tmp_path / "runs" / "single" / "nano-digits").glob("*/seed0")
    assert folder.parent.name == cell or folder.parent.name.startswith("inverted_bottleneck,")
    summary = json.loads((folder / "summary.json").read_text())
    (line,) = done.stdout.splitlines()
    assert done.stderr.startswith("inverted_bottleneck,")  # something to see before the imports
    for part in ("inverted_bottleneck", f"{summary['top1']:.2f} %", "GMACs", "M parameters", str(folder)):
        assert part in line
    assert (summary["step"], summary["parent"], summary["state"]) == ("inverted_bottleneck", "increase_width", "done")
    record = {"config.yaml", "status.json", "metrics.jsonl", "summary.json", "correct.npy", "checkpoints", "run.log"}
    assert record <= {p.name for p in folder.iterdir()}
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["epoch"], status["step"]) == ("done", 0, 1, 3)
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["inverted"] is True
    assert "W&B: offline" in done.stderr
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))

    again = command("+step=inverted_bottleneck", *SMALL)
    assert again.returncode == 0
    assert again.stdout == done.stdout
    assert "epoch" not in again.stderr


@pytest.mark.parametrize(
    ("words", "code", "pieces"),
    [
        ((), 64, ["+step=NAME", "resnet"]),
        (("+step=inverted_botleneck",), 64, ["did you mean inverted_bottleneck?"]),
        (("step=gelu",), 64, ["+step=NAME"]),
        (("+step=gelu", "recipe.lr=nan"), 64, ["recipe.lr=nan"]),
        (("+step=gelu", "lr=0.1"), 64, ["lr: there is no such key; did you mean recipe.lr?"]),
        (("+step=gelu", "--lr=0.1"), 64, ["--lr=0.1: there is no such option; a key is set as NAME=VALUE"]),
        (("+step=gelu", "regime=tyni"), 64, ["did you mean tiny?"]),
        (("+step=gelu", "data=minst"), 64, ["data=minst", "fashion_mnist"]),
        (("+step=gelu", "recipe.lr=[1"), 64, ["recipe.lr"]),
        (("mode=data_check", "data.root=/a b/c=d"), 64, ["\"data.root='/a b/c=d'\""]),
        (("mode=data_check", "data.root=/a/[v1]"), 64, ["\"data.root='/a/[v1]'\""]),
        (("mode=data_check", "data.root=[v1]"), 64, ["\"data.root='[v1]'\""]),
        (("mode=data_check", "data.root=~/x"), 64, ["\"data.root='~/x'\""]),
        (("mode=data_check", "data.root=/a#b"), 64, ["\"data.root='/a#b'\""]),
        (("mode=data_check", "data.root=/a,b"), 64, ["\"data.root='/a,b'\""]),
        (("+stp=gelu",), 64, ["stp: there is no such key; did you mean +step?"]),
        (("-cn", "nope", "+step=gelu"), 64, ["-cn nope: there is no such file", "config"]),
        (("-cn", "demo"), 64, ["-cn demo: there is no such file; -cd sweeps -cn demo runs the study"]),
        (("-cd", "sweps", "+step=gelu"), 64, ["-cd sweps: no such folder", "did you mean sweeps?"]),
        (("mode=evaluate", "weights=tets"), 65, ["no such file or run directory", "did you mean tests?"]),
        (("mode=evaluate", "weights='~nobody-here/w.pth'"), 64, ["~nobody-here/w.pth", "no home folder"]),
        (("mode=evalute", "weights=RUN"), 64, ["mode=evalute: must be one of train, evaluate, predict, export, data"]),
        (("mode=null",), 64, ["mode=null: must be one of train,"]),
        (("mode=predict", "images=FOLDER"), 64, ["mode=predict: needs weights=FILE, or weights= one of our run"]),
        (("mode=export", "format=onnx"), 64, ["mode=export: needs weights="]),
        (("mode=evaluate", "weights=timm:resnet50.a1_in1k"), 64, ["no step: give +step=NAME"]),
        (("+step=gelu", "--nonsense"), 64, ["--nonsense"]),
        (("+step=[gelu,resnet]",), 64, ["step=[gelu,resnet]", "one name"]),
        (("+step=gelu", "+step=resnet"), 64, ["step: is given twice"]),
        (("+step=gelu", "seed=1,2"), 64, ["seed=1,2", "--multirun"]),
        (("gelu",), 64, ["gelu: cannot be read as KEY=VALUE; did you mean +step=gelu?"]),
        (("+step=gelu", "imagenet"), 64, ["did you mean scale=imagenet or data=imagenet?"]),
        (("+step=gelu", "nothing"), 64, ["nothing: cannot be read as KEY=VALUE (Error"]),
        (("+step=gelu", "data.root=/Ann's"), 64, [r"""quoted it is "data.root='/Ann\\'s'" """.strip()]),
        (("+step=gelu", "data.root='/Ann's'"), 64, [r"""quoted it is "data.root='/Ann\\'s'" """.strip()]),
        (("--help", "variants"), 64, ["--help variants: there is no such group", "did you mean variant?"]),
        (("--help", "model.kernel_sise"), 64, ["did you mean model.kernel_size?"]),
        (("--help", "nothing"), 64, ["there are: step, regime, scale, data, recipe, variant, debug, all, model,"]),
        (("-cd", "nowhere", "+step=gelu"), 64, ["nowhere"]),
        (("-m", "+step=gelu,kernel_5", "study=../evil"), 64, ["study=../evil"]),
        (("-m", "+step=gelu,nope"), 64, ["nope"]),
        (("--experimental-rerun=x.pkl",), 64, ["no such option"]),
        (("+step=gelu", "recipe.batch_size=5000"), 64, ["recipe.batch_size=5000", "1437"]),
        (("+step=gelu", "device=cuda"), 64, ["device=cuda", "no GPU"]),
        (("+step=separate_downsampling", "data.image_size=16"), 64, ["data.image_size=16"]),
        (("+step=gelu", "data=fashion_mnist"), 65, ["data.root", "ROADMAP_DATA", "data.download=true"]),
        (("+step=gelu", "data=imagefolder", "data.root=nowhere"), 65, ["nowhere"]),
    ],
)
def test_a_users_mistake_is_told_in_plain_words_and_nothing_is_written(command, tmp_path, words, code, pieces):
    if "device=cuda" in words:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("there is a GPU here")
    done = command(*words)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for piece in pieces:
        assert piece in done.stderr
    assert len(done.stderr.strip().splitlines()) <= (2 if "--nonsense" not in words else 20)
    assert nothing_written(tmp_path)


def test_a_key_that_only_a_file_has_comes_with_that_file(command, tmp_path):
    step = tmp_path / "mydir" / "step" / "mine.yaml"
    step.parent.mkdir(parents=True)
    step.write_text("# @package _global_\ndefaults:\n  - gelu\n  - _self_\nmodel:\n  kernel_sise: 13\n")
    step.with_name("._mine.yaml").write_bytes(b"\0\x05\x16\x07 a Mac's")
    done = command("-cd", str(tmp_path / "mydir"), "+step=mine", *SMALL)
    assert done.returncode == 64
    (line,) = done.stderr.splitlines()
    assert f"{step}: model.kernel_sise: there is no such key; did you mean model.kernel_size?" in line


def test_a_config_folder_given_one_level_too_deep_is_told_with_its_parent(command, tmp_path):
    step = tmp_path / "mydir" / "step" / "mine.yaml"
    step.parent.mkdir(parents=True)
    step.write_text("# @package _global_\ndefaults:\n  - gelu\n  - _self_\n")
    done = command("-cd", str(step.parent), "+step=mine")
    assert done.returncode == 64
    assert done.stderr == f"error: +step=mine: there is no such step; -cd {tmp_path / 'mydir'} finds {step}\n"


def test_a_user_without_a_name_or_a_home_can_train(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("becoming another user takes root")
    runs = tmp_path / "runs"
    runs.mkdir()
    os.chown(runs, 54321, 54321)
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 1:
            folder.chmod(folder.stat().st_mode | 0o11)
    env = {k: v for k, v in os.environ.items() if k not in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME")}
    become = ("setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups")
    words = ("+step=gelu", *SMALL, f"paths.runs={runs}", "wandb.mode=offline")
    command = [*become, sys.executable, "-B", "run.py", *words]
    done = subprocess.run(command, cwd=drive.ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    lines = [line for line in done.stderr.splitlines() if "no commit is recorded" not in line]
    assert [line.partition(":")[2].split(";")[0] for line in lines] == [" starting", " offline"]


def test_a_path_that_is_not_utf_8_is_refused_before_a_run_that_nothing_could_read_again(command, tmp_path):
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    done = command("+step=gelu", "data=imagefolder", f"data.root='{folder}'", *SMALL)
    assert done.returncode == 64
    assert "is not UTF-8, and config.yaml cannot hold it; a link can" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("variable", ["RUNS", "ROOT"])
def test_make_takes_no_path_with_an_apostrophe_and_says_so(variable):
    given = ["make", "-n", "data-check", f"{variable}=/home/o'brien/x"]
    done = subprocess.run(given, cwd=drive.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "take no apostrophe" in done.stderr


def test_an_unwritable_place_for_runs_is_a_disk_error(command, tmp_path):
    (tmp_path / "file").write_text("")
    done = command("+step=gelu", *SMALL, runs=tmp_path / "file" / "runs")
    assert done.returncode == 74
    assert "paths.runs" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_fits_a_screen_and_names_all_there_is(command):
    done = command("--help", runs=None)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) <= 40 and max(map(len, lines)) <= 100
    names = {path.stem for group in ("step", "variant", "data", "regime") for path in (CONF / group).glob("*.yaml")}
    assert names <= set(done.stdout.split())
    steps = command("--help", "step", runs=None).stdout
    assert "+step=gelu " in steps and "+variant=without_gelu " not in steps


def test_help_lists_what_there_is(command):
    done = command("--help", "all", runs=None)
    assert done.returncode == 0
    for word in (
        "+step=resnet", "+step=swin", "regime=xlarge", "scale=imagenet", "data=imagefolder", "+variant=without_gelu",
    ):  # fmt: skip
        (line,) = [line for line in done.stdout.splitlines() if line.split()[:1] == [word]]
        assert len(line.split()) > 3, f"{word} is not described"


def test_help_explains_the_keys_of_a_section_and_one_alone(command):
    (line,) = command("--help", "model.kernel_size", runs=None).stdout.splitlines()[1:]
    told = "at least 1 and at most 63; of the spatial conv, odd (Sec. 2.5)"
    assert line.split("  ")[1:] == ["model.kernel_size", "3", told]
    recipe = command("+step=gelu", "--help", "recipe", "seed", runs=None).stdout
    assert "recipe=enhanced" in recipe and "model." not in recipe and "step=gelu" not in recipe
    names = [line.split()[0] for line in recipe.splitlines() if line.strip()]
    assert {name for name in KEYS if name.startswith("recipe.")} | {"seed"} <= set(names)
    assert any("only with recipe.optimizer=sgd" in line for line in recipe.splitlines())


def test_a_step_of_ones_own_runs_from_its_folder(command, tmp_path):
    (tmp_path / "mydir" / "step").mkdir(parents=True)
    (tmp_path / "mydir" / "step" / "mine.yaml").write_text(
        "# @package _global_\n# My own.\ndefaults:\n  - gelu\n  - _self_\nmodel:\n  kernel_size: 13\n"
    )
    done = command("-cd", str(tmp_path / "mydir"), "+step=mine", *SMALL)
    assert done.returncode == 0, done.stderr
    (summary,) = (tmp_path / "runs").glob("single/*/*/seed0/summary.json")
    values = json.loads(summary.read_text())
    assert (values["step"], values["parent"], values["label"]) == ("mine", "gelu", "mine")
    listed = command("-cd", str(tmp_path / "mydir"), "--help", runs=None)
    assert "mine" in listed.stdout.split()


def test_a_recipe_of_ones_own_says_that_it_keeps_its_lengths_in_a_scale_that_shortens_ours(command, tmp_path):
    for group in ("recipe", "tune", "variant"):
        (tmp_path / group).mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("defaults: [enhanced, _self_]\nlabel_smoothing: 0.2\n")
    words = ("-cd", str(tmp_path), "+step=gelu", "recipe=mine", "dry=true")
    note = "note: recipe=mine: has recipe.epochs=300 recipe.batch_size=4096; tune/demo_mine.yaml would set its lengths"
    done = command(*words)
    assert (done.returncode, done.stderr) == (0, f"{note} in scale=demo\n")
    assert command(*words, "scale=imagenet", "data.root=x").stderr == ""
    (tmp_path / "tune" / "demo_mine.yaml").write_text("defaults: [demo_enhanced, _self_]\n")
    done = command(*words)
    assert done.stderr == ""
    assert "  epochs: 20\n" in done.stdout and "  label_smoothing: 0.2\n" in done.stdout


def test_a_variant_that_changes_nothing_of_its_step_is_told(command):
    note = "note: +variant=with_gelu: changes nothing of gelu\n"
    assert command("+step=gelu", "+variant=with_gelu", "dry=true").stderr == note
    for words in (("+step=kernel_7", "+variant=with_gelu"), ("+step=gelu", "+variant=[with_gelu,with_layer_norm]")):
        assert command(*words, "dry=true").stderr == ""


def test_a_file_that_lacks_a_key_says_how_to_inherit_it(command, tmp_path):
    for group, text in (("recipe", "name: enhanced\n"), ("regime", "name: mine\n")):
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text(text)
    for group, key, ours in (("recipe", "layer_scale", "enhanced"), ("regime", "drop_path", "tiny")):
        done = command("-cd", str(tmp_path), "+step=gelu", f"{group}=mine")
        assert done.returncode == 64
        assert f"{group}.{key}, which the file of this {group}= does not have; " in done.stderr
        assert f"defaults: [{ours}, _self_]" in done.stderr


def test_a_circle_of_defaults_is_a_line_and_any_other_recursion_is_none(command, tmp_path):
    for one, other in (("mine", "yours"), ("yours", "mine")):
        (tmp_path / f"{one}.yaml").write_text(f"defaults:\n  - {other}\n  - config\n  - _self_\n")
    done = command("-cd", str(tmp_path), "-cn", "mine", "+step=gelu")
    told = "error: defaults: a file in the list leads back to the one that names it\n"
    assert (done.returncode, done.stderr) == (64, told)
    assert plain_kind(RecursionError()) is None


def test_a_sweep_goes_on_past_a_cell_that_fails_and_ends_with_its_code(command, tmp_path):
    words = ("--multirun", "+step=gelu,kernel_5", "model.activations_per_block=2,1", *SMALL)
    done = command(*words, "wandb.mode=disabled")
    assert done.returncode == 64
    lines = done.stdout.splitlines()
    assert [line.split("]")[0] for line in lines] == ["[2/4", "[4/4"]
    assert len(list((tmp_path / "runs").glob("single/*/*/seed0/summary.json"))) == 2
    assert done.stderr.count("activations_per_block=2") == 2


def test_a_stop_ends_the_sweep_and_typed_again_it_goes_on(forks, tmp_path):
    words = ("-m", "+step=gelu,kernel_5,kernel_7", *SMALL, "wandb.mode=disabled", f"paths.runs={tmp_path}")
    stopped = forks.run(words, drive.accident("step", 3 + 2, what="INT"))  # the second run
    assert stopped.returncode == 75, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert [line.split(",")[0] for line in stopped.stdout.splitlines()] == ["[1/3] gelu"]
    again = forks.run(words)
    assert again.returncode == 0, again.stderr
    cells = [line.split(",")[0] for line in again.stdout.splitlines()]
    assert cells == ["[1/3] gelu", "[2/3] kernel_5", "[3/3] kernel_7"]
    assert again.stdout.splitlines()[0] == stopped.stdout.splitlines()[0]
    assert re.search(r"\[2/3\] kernel_5,.*: resuming at step 2,", again.stderr)


def test_synthetic_images_say_so(command):
    done = command("+step=gelu", "data=synthetic", "data.num_classes=10", *SMALL, "wandb.mode=disabled")
    assert done.returncode == 0, done.stderr
    assert "synthetic images: the accuracy means nothing" in done.stdout


LITTLE = 1_200_000 * 1024  # bytes of address space: Python starts, torch cannot be loaded


@pytest.mark.parametrize(
    "command", ["run.py +step=gelu dry=true", "-m roadmap.steps --regime nano", "-m roadmap.sweep plan demo"]
)
def test_memory_that_is_too_small_to_load_torch_is_a_line(command):
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_AS, (LITTLE, LITTLE))
    done = drive.python(*command.split(), preexec_fn=limit)
    assert done.returncode == 64, done.stderr
    assert "Traceback" not in done.stderr
    assert re.fullmatch(r"error: .*memory is too small.*`ulimit -v` may limit it.*", done.stderr.splitlines()[-1])


def test_every_command_ends_in_a_line_and_a_code(capfd, monkeypatch):
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])
    assert command_line(lambda: 3)() == 3
    assert command_line(Mock(side_effect=DataError("a\x1bb: is\nbroken")))() == 65
    assert command_line(Mock(side_effect=KeyboardInterrupt()))() == 75
    assert command_line(Mock(side_effect=MemoryError()))() == 64
    assert command_line(lambda: len(tempfile._get_default_tempdir()))() == 74
    assert command_line(Mock(side_effect=PermissionError(13, "Permission denied", "/a\x1bb/c")))() == 74
    told = capfd.readouterr().err.splitlines()
    assert told[:3] == ["error: a?b: is", "broken", "interrupted"]
    assert told[-1] == "error: /ab/c: cannot be used (Permission denied)"
    with pytest.raises(ImportError, match="no such name"):  # a bug, or another environment: its traceback helps
        command_line(Mock(side_effect=ImportError("no such name")))()


LONG = "/" + "x" * 300  # which no file system takes for a name


@pytest.mark.parametrize(
    "words",
    [
        f"+step=gelu paths.runs={LONG}",
        f"+step=gelu weights={LONG}",
        f"mode=evaluate weights={LONG}",
        f"+step=gelu mode=predict weights={LONG}/x images=.",
        f"+step=gelu -cd {LONG}",
        f"+step=gelu data=imagenet data.root={LONG}",
    ],
)
def test_a_name_that_the_system_refuses_is_told_in_a_line(command, words):
    done = command(*words.split(), runs=None)
    assert done.returncode in (64, 65, 74) and done.stdout == ""
    assert re.fullmatch(r"(gelu: starting\n)?error: .*xx.*: .*\n", done.stderr), done.stderr


def test_a_folder_that_is_gone_under_a_command_is_told(tmp_path):
    words = f"cd {tmp_path} && mkdir gone && cd gone && rmdir ../gone && exec {sys.executable} {ROOT}/run.py +step=gelu"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (74, "")
    assert done.stderr == "error: the folder in which this command was typed is gone; change to another one\n"


def test_every_command_of_the_package_goes_through_it():
    alone = {"roadmap/training/__main__.py", "roadmap/sweep/requeue.py"}  # not typed by people
    alone.add("roadmap/steps/__main__.py")  # its main is that of the table, which does
    for path in sorted(ROOT.glob("roadmap/**/*.py")):
        text = path.read_text()
        if '__name__ == "__main__"' in text and str(path.relative_to(ROOT)) not in alone:
            assert "command_line" in text, path


def unread() -> int:
    """Return the end of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return write


def test_lines_that_nobody_can_read_end_nothing_and_a_result_that_is_lost_is_told():
    for is_result, end, error in (
        (False, unread(), None),
        (True, unread(), BrokenPipeError),
        (True, "/dev/full", DiskError),
    ):
        with open(end, "w") as file:
            stream = RedactedStream(file, is_result=is_result)
            with pytest.raises(error) if error else nullcontext():
                print("a line", file=stream, flush=True)
            print("what comes after it", file=stream, flush=True)


def test_a_run_whose_screen_is_gone_goes_on_to_its_end(tmp_path):
    words = ("+step=gelu", *SMALL, "wandb.mode=disabled", f"paths.runs={tmp_path}")
    with open(unread(), "w") as out:
        done = subprocess.run([sys.executable, "run.py", *words], cwd=ROOT, stdout=out, stderr=out, check=False)
    assert done.returncode == 0
    (status,) = tmp_path.rglob("status.json")
    assert json.loads(status.read_text())["state"] == "done"
    with open("/dev/full", "w") as out:
        command = [sys.executable, "run.py", *words]
        done = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 74
    assert done.stderr.splitlines()[-1] == b"error: the output cannot be written (No space left on device)"


@pytest.mark.parametrize("command", ["run.py +step=gelu", "-m roadmap.report runs"])
def test_a_python_without_the_packages_is_a_plain_error(command):
    bare = ("-S", "-B", *command.split())  # -S: as if nothing were installed
    done = drive.python(*bare, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 64
    assert done.stderr == "error: this Python lacks the packages; `make setup` installs them into .venv\n"


def test_pythons_that_read_every_help_text_at_once_take_hydras(monkeypatch):
    """From 3.14 on argparse does, and one of Hydra's is no text; its check is as here."""
    add = ArgumentParser.add_argument

    def read_at_once(self, *args, **kwargs):
        action = add(self, *args, **kwargs)
        self._check_help(action)
        return action

    def check(self, action):
        assert action.help is None or "%" not in action.help or action.help % vars(action)

    monkeypatch.setattr(ArgumentParser, "_check_help", check, raising=False)
    monkeypatch.setattr(ArgumentParser, "add_argument", read_at_once)
    with pytest.raises(TypeError, match="LazyCompletionHelp"):
        get_args_parser()
    accept_lazy_help()
    assert get_args_parser().parse_args(["a=b"]).overrides == ["a=b"]


def test_an_environment_whose_making_was_interrupted_is_made_again(tmp_path):
    """Without pip, it could not be completed by the same command."""
    python, environment = tmp_path / "python", tmp_path / "env"
    python.write_text(f"#!/bin/sh\necho $2 >> {tmp_path}/told\n")
    python.chmod(0o755)
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to(python)

    def told(present: str) -> list[str]:
        (environment / present).touch()
        command = ["make", "setup", f"VENV={environment}", f"PYTHON={python}"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        (environment / ".roadmap-ready").unlink()
        lines = (tmp_path / "told").read_text().split()
        (tmp_path / "told").unlink()
        return lines

    assert told("conda-meta") == ["pip"]  # one of another kind
    assert told("pyvenv.cfg") == ["venv", "pip"]
    assert told("bin/activate") == ["pip"]


def test_an_environment_that_is_moved_from_another_checkout_says_from_which(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/bin/true")
    installed = tmp_path / "lib/python3.13/site-packages/convnext_roadmap-0.1.0.dist-info"
    installed.mkdir(parents=True)
    moved = f" ... It had the package of {tmp_path}.\n"
    for place, told in ((tmp_path, moved), (ROOT, " ...\n"), ("/not/there", " ...\n")):
        (installed / "direct_url.json").write_text(json.dumps({"dir_info": {}, "url": f"file://{place}"}))
        command = ["make", "setup", f"VENV={tmp_path}"]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        (tmp_path / ".roadmap-ready").unlink()
        assert done.stdout.endswith(told)


# Folders with a space or a letter beyond ASCII in their name


def test_make_takes_folders_with_spaces_and_umlauts(tmp_path):
    here, programs = tmp_path / "Prüf stand", tmp_path / "Prüf stand/env/bin"
    programs.mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, here)
    for name in ("python", "jupyter-execute"):
        (programs / name).write_text(
            f'#!/bin/sh\nprintf "%s\\n" {name} "$ROADMAP_RUNS" "$@"\n[ $# != 2 ] || touch "${{2#--output=}}"\n'
        )
        (programs / name).chmod(0o755)
    for name in ("ready", "notebook"):
        (here / f"env/.roadmap-{name}").touch()

    def words(target: str, *variables: str) -> list[str]:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("ROADMAP_")}
        given = ["make", target, "VENV=env", *variables]
        done = subprocess.run(given, cwd=here, env=environ, check=True, capture_output=True, text=True)
        return done.stdout.split("\n")

    root, runs = "data.root='Übung 1'", "paths.runs='a ö'"
    made = f"--output={here}/runs/.roadmap.ipynb"  # which has its name once it is whole
    assert words("notebook")[1:4] == [f"{here}/runs", "notebooks/roadmap.ipynb", made]
    assert [path.name for path in (here / "runs").iterdir()] == ["roadmap.ipynb"]
    assert words("report", "RUNS=a ö")[2:7] == ["-m", "roadmap.report", "a ö/demo", "--out", "a ö/demo/report"]
    assert words("report", "STUDY=sweeps/mine.v2.yaml")[4:7] == ["runs/mine.v2", "--out", "runs/mine.v2/report"]
    assert words("pack", "STUDY=/x/mine.yaml")[4] == words("compare", "STUDY=/x/mine.yaml")[7] == "runs/mine"
    assert words("report", "STUDY=group/v1.5")[4] == "runs/group/v1.5"
    checked = words("data-check", "ROOT=Übung 1", "RUNS=a ö")[2:7]
    assert checked == ["run.py", "mode=data_check", "data=imagenet", root, runs]
    assert words("mini", "ROOT=Übung 1")[10:12] == ["--", root]
    for study in ("a", "b"):
        (here / "a ö" / study / ".study").mkdir(parents=True)
    assert words("status", "RUNS=a ö")[4:8] == ["status", "a", "b", "--runs"]
    for word in (root, runs):
        assert OverridesParser.create().parse_override(word).value() == word.partition("=")[2].strip("'")
