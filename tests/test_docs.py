"""README and docs are true: every command is accepted, links and files are there, numbers are what the code counts."""

import argparse
import json
import os
import re
import runpy
import select
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
import yaml

from roadmap.net import cost, count_params
from roadmap.steps.compose import compose, compose_primary, hydra_initialized, validate
from roadmap.steps.config_files import check_config_dirs
from roadmap.steps.help import config_dirs, help_text
from roadmap.steps.hydra_guard import check_options, check_overrides
from roadmap.steps.tree import CONF
from roadmap.sweep import launchers
from roadmap.sweep.cluster import is_cluster_key, load_cluster
from roadmap.sweep.generators import Generator
from roadmap.sweep.study import find_generator, is_setting, study_file

from .conftest import ROOT
from .drive import python
from .fabricate import write_run

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = ("Makefile", "pyproject.toml", "requirements.lock", "run.py", "roadmap", "conf", "sweeps", "notebooks")
OTHERS = {".", "apt-get", "git", "patch"}  # commands that are not ours to check


class Block(NamedTuple):
    """A fenced block of a page: its language, the file it is (if it is one), and its text."""

    page: str
    language: str
    title: str | None
    text: str


class Parsed(BaseException):
    """The arguments of a command line were accepted."""


@cache
def blocks() -> tuple[Block, ...]:
    found = []
    for page in PAGES:
        for info, text in re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
            title = re.search(r'title="([^"]+)"', info)
            found.append(Block(page.name, info.split(" ")[0], title[1] if title else None, text))
    return tuple(found)


def titled(prefix: str = "") -> dict[str, str]:
    return {block.title: block.text for block in blocks() if block.title and block.title.startswith(prefix)}


def commands() -> list[str]:
    shown = [line for block in blocks() if not block.language for line in block.text.splitlines()]
    known = re.compile(r"(?:python|make|torchrun|srun|git|patch|apt-get|\.) ")
    return list(dict.fromkeys(re.split(r"\s#", line)[0].strip() for line in shown if known.match(line)))


@cache
def record(step: str) -> str:
    """Return what a run of a step has as its `config.yaml`."""
    return yaml.safe_dump(compose(step, "nano").values())


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """Return a folder that looks like a checkout, with the files that the pages show, where commands may be typed."""
    for name in LINKED:
        (tmp_path / name).symlink_to(ROOT / name)
    for title, text in titled().items():
        if not title.startswith(LINKED):
            (tmp_path / title).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / title).write_text(text, encoding="utf-8")
    for step in ("gelu", "inverted_bottleneck"):
        run = tmp_path / "runs" / "single" / "nano-digits" / step / "seed0"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(record(step))
    (tmp_path / "pretrained.pth").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_run(words: list[str]) -> None:
    """Compose and check what `python run.py WORDS` would run, without running it."""
    folders = config_dirs(words)
    if "--help" in words:
        assert help_text(folders)
        return
    check_options(words)
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    options = [word for word in words if word not in overrides]
    if "-cn" in options:
        check_config(folders[0] / f"{options[options.index('-cn') + 1]}.yaml", overrides)
        return
    assert set(options) <= {"-cd", *map(str, folders)}, options
    check_config(folders[0] / "config.yaml", overrides)


def check_config(primary: Path, overrides: list[str]) -> None:
    """Compose a primary file under some overrides, and check what comes out; of a grid the first cell."""
    folders = list(dict.fromkeys((primary.parent.resolve(), CONF)))
    check_overrides(overrides)
    check_config_dirs(folders, CONF)
    grid = yaml.safe_load(primary.read_text())["hydra"]["sweeper"]["params"] if primary.stem != "config" else {}
    generator = find_generator(primary, grid, overrides)
    overrides = [word for word in overrides if not is_setting(word)]
    grid = {key: value for key, value in grid.items() if not is_setting(key)}
    if type(generator) is not Generator and "+step" not in grid:  # its rule chooses the steps
        grid["+step"] = "resnet"
    first = [re.sub(r"^(\+step=|seed=)([^,]+),.*", r"\1\2", word) for word in overrides]
    given = {word.split("=")[0] for word in overrides}
    first += [f"{key}={str(value).split(',')[0]}" for key, value in grid.items() if key not in given]
    with hydra_initialized(folders[0]):
        cfg = compose_primary(primary.stem, first)
        validate(cfg, cfg.hydra, folders)


def check_module(words: list[str], monkeypatch) -> None:
    """Let `python -m MODULE ARGS` read its arguments, and go no further."""
    parse = argparse.ArgumentParser.parse_args

    def accepted(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", accepted)
        patch.setattr(sys, "argv", [words[0], *words[1:]])
        with pytest.raises(Parsed):
            runpy.run_module(words[0], run_name="__main__", alter_sys=False)
    if words[0] == "roadmap.sweep" and words[1] in ("plan", "submit"):
        check_sweep(words[2:])


def check_sweep(words: list[str]) -> None:
    cut = words.index("--")
    studies = words[: next(i for i, word in enumerate(words) if word.startswith("-"))]
    overrides = words[cut + 1 :]
    name = words[words.index("--cluster") + 1]
    load_cluster(launchers.find(name).Config, name, overrides)
    for study in studies:
        check_config(study_file(study), [word for word in overrides if not is_cluster_key(word)])


def check_make(words: list[str], monkeypatch) -> None:
    """Let make say what it would do, and check the commands that it would run."""
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, equals, _ = word.partition("=")
        assert not equals or re.search(rf"^{name} *\??=", makefile, re.M), f"make knows no {name}="
    done = subprocess.run(["make", "-n", *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        if "run.py" in line or "-m roadmap" in line:
            check(" ".join(["python", *line.split(" >")[0].split(" ")[1:]]), monkeypatch)


def check(command: str, monkeypatch) -> None:
    words = shlex.split(command)
    if "run.py" in words:
        check_run(words[words.index("run.py") + 1 :])
    elif words[:2] == ["python", "-m"]:
        check_module(words[2:], monkeypatch)
    elif words[0] == "make":
        check_make(words[1:], monkeypatch)
    else:
        assert words[0] in OTHERS, f"nobody checks {command}"


@pytest.mark.parametrize("command", commands())
def test_every_command_is_accepted(command, place, monkeypatch):
    check(command, monkeypatch)


def test_wrong_commands_are_not(place, monkeypatch):
    """The checks above can fail."""
    wrong = (
        "python run.py +step=gelo",
        "python run.py +step=gelu recipe.rate=1",
        "python -m roadmap.steps --colour",
        "make plan STUDY=roadmap_tiny ARGS=data.roots=FOLDER",
        "make roadmaps",
        "make plan STUDIES2=demo",
        "curl http://example.org",
    )
    for command in wrong:
        with pytest.raises((Exception, SystemExit)):
            check(command, monkeypatch)


def test_readme_fits_its_limits():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120


def test_readme_has_a_word_for_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    built_on = (ROOT / "README.md").read_text(encoding="utf-8").split("built on")[1].lower()
    for dependency in project["dependencies"]:
        assert re.split(r"[<>=~! ]", dependency)[0].lower() in built_on, dependency


def links(page: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            yield target


def anchors(page: Path) -> list[str]:
    """Return the names by which GitHub links to a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in links(page):
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists() and (not heading or heading in anchors(file)), target


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_a_page_has_no_section_twice(page):
    assert len(set(anchors(page))) == len(anchors(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_modules_that_a_page_names_are_there(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for name in re.findall(r"`((?:roadmap|conf|sweeps|tests|docs|notebooks)/[\w./-]+)`", text):
        assert (ROOT / name).exists() or name.startswith("conf/local/") or name in titled() or in_a_diff(name), name
    for name in re.findall(r"`(roadmap(?:\.\w+)+)`", text):
        path = ROOT.joinpath(*name.split("."))
        is_there = path.is_dir() or path.with_suffix(".py").exists() or path.parent.with_suffix(".py").exists()
        assert is_there or (path.parent / "__init__.py").exists(), name


def in_a_diff(name: str) -> bool:
    return any(f"+++ b/{name}\n" in block.text for block in blocks() if block.language == "diff")


def test_every_page_is_linked_from_the_readme():
    targets = set(links(ROOT / "README.md"))
    assert {str(page.relative_to(ROOT)) for page in PAGES[1:]} <= targets


def test_a_local_file_of_the_pages_has_keys_that_there_are():
    for title, text in titled("conf/local/cluster/").items():
        name = Path(title).stem
        words = [f"cluster.{key}={json.dumps(value)}" for key, value in yaml.safe_load(text).items()]
        load_cluster(launchers.find(name).Config, name, words)


def test_json_and_yaml_of_the_pages_can_be_read():
    for block in blocks():
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            yaml.safe_load(block.text)


def test_use_in_python_is_as_the_page_shows_it(tmp_path, monkeypatch):
    theirs = timm.create_model("convnext_tiny").eval()
    torch.save(theirs.state_dict(), tmp_path / "convnext_tiny_1k_224_ema.pth")
    monkeypatch.chdir(tmp_path)
    (text,) = [block.text for block in blocks() if block.language == "python" and "load_weights" in block.text]
    names = {}
    exec(text, names)
    images = torch.rand(2, 3, 64, 64)
    assert torch.allclose(names["net"].eval()(images), theirs(images), atol=1e-4)
    assert round(names["found"].gmacs, 1) == 4.5
    theirs.load_state_dict(names["state_dict"])


def table(page: str, key: str) -> dict[str, list[str]]:
    """Return the rows of a page's tables that begin with a word in backquotes, by that word; `key` heads the table."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    body = text[text.index(f"| {key} |") :].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()[2:]]
    return {row[0].strip("`"): row[1:] for row in rows}


@pytest.mark.parametrize(("recipe", "column"), [("original", 0), ("enhanced", 2)])
def test_fidelity_has_every_value_of_the_recipes(recipe, column):
    values = yaml.safe_load((CONF / "recipe" / f"{recipe}.yaml").read_text())
    values.pop("name")
    shown = {key: yaml.safe_load(row[column]) for key, row in table("fidelity.md", "`recipe.`").items()}
    assert shown == values


def test_fidelity_has_what_swins_recipe_does_otherwise():
    enhanced, swin = (yaml.safe_load((CONF / "recipe" / f"{name}.yaml").read_text()) for name in ("enhanced", "swin"))
    shown = {key: yaml.safe_load(row[0]) for key, row in table("fidelity.md", "`recipe=swin`").items()}
    assert shown == {key: value for key, value in swin.items() if key != "name" and value != enhanced[key]}


def test_fidelity_shows_the_gmacs_that_the_code_counts():
    rows = table("fidelity.md", "row | printed | `spatial`")
    assert len(rows) > 5
    for step, (printed, *shown) in rows.items():
        net = compose(step, "tiny").model
        counted = [cost(net.replace(stride_on=reading), 1000, 224).gmacs for reading in ("spatial", "pointwise")]
        assert [f"{gmacs:.3f}" for gmacs in counted] == shown, step
        assert f"{counted[0]:.2f}" == printed, step


def test_fidelity_shows_the_parameters_that_the_norm_of_the_shortcut_adds():
    reason = table("fidelity.md", "| setting under `model.` | our reading | reason")["2"][-1]
    nets = [compose(step, "tiny").model for step in ("resnet", "increase_width", "gelu", "fewer_norms", "layer_norm")]
    added = [(count_params(net) - count_params(net.replace(projection_norm=False))) / 1e6 for net in nets]
    assert f"by row {min(added):.3f} to {max(added):.3f} M parameters in tiny" in reason


# The diffs of CONTRIBUTING.md, applied to a copy of the checkout.


def sections() -> dict[str, list[str]]:
    """Return the files that the diffs of each section touch, by its heading."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^## ", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.M)[1:]:
        found[part.splitlines()[0]] = re.findall(r"^\+\+\+ b/(\S+)$", part, re.M)
    return found


def test_extending_touches_as_many_files_as_the_table_says():
    files = {heading: sorted(touched) for heading, touched in sections().items() if touched}
    assert {heading: len([f for f in touched if f.endswith(".py")]) for heading, touched in files.items()} == {
        "A step": 0, "A toggle": 3, "A data set that needs a loader": 2, "A recorded number": 2, "A figure": 2,
        "A launcher": 1,
    }  # fmt: skip
    configs = {heading: len([f for f in touched if f.endswith(".yaml")]) for heading, touched in files.items()}
    assert configs == {**dict.fromkeys(files, 1), "A recorded number": 0, "A figure": 0}


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """Return a copy of the checkout with every diff of CONTRIBUTING.md applied."""
    copy = tmp_path_factory.mktemp("extended")
    for name in ("run.py", "Makefile", "roadmap", "conf", "sweeps"):
        source, ignored = ROOT / name, shutil.ignore_patterns("__pycache__", "local")
        shutil.copytree(source, copy / name, ignore=ignored) if source.is_dir() else shutil.copy(source, copy / name)
    for block in blocks():
        if block.language == "diff":
            subprocess.run(["git", "apply", "-"], input=block.text, text=True, cwd=copy, check=True, timeout=60)
    return copy


def run_in(checkout: Path, *words: str) -> str:
    """Run a command of a checkout to its good end; return what it printed."""
    done = python(*words, cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


TINY = ("recipe.batch_size=32", "recipe.epochs=1", "recipe.warmup_epochs=0", "data.train_images=64")


def test_an_added_toggle_trains_on_an_added_data_set(extended, tmp_path):
    words = ("+step=gather_excite", "data=stripes", *TINY, "wandb.mode=disabled", f"paths.runs={tmp_path}")
    assert "gather_excite" in run_in(extended, "run.py", *words)
    (run,) = tmp_path.glob("single/nano-stripes/*/seed0")
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["gather_excite"] is True
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["num_classes"], summary["parent"]) == (4, "separate_downsampling")
    assert summary["best_top1"] >= summary["top1"]


def test_an_added_figure_is_drawn_and_an_added_number_is_a_column(extended, tmp_path):
    """Also where no run has recorded the number yet."""
    for seed, top1 in enumerate((50.0, 52.5)):
        write_run(tmp_path / "runs", "gelu", seed, top1=top1)
    write_run(tmp_path / "runs", "gelu", 2, top1=51.0, best_top1=53.0)
    out = tmp_path / "report"
    run_in(extended, "-m", "roadmap.report", str(tmp_path / "runs"), "--out", str(out))
    assert (out / "seeds.svg").stat().st_size > 1000
    assert "seeds" in (out / "index.html").read_text(encoding="utf-8")
    assert "best_top1" in (out / "table.csv").read_text().splitlines()[0]


def test_an_added_launcher_runs_cells(extended, tmp_path):
    """Its process holds the pipe's other end until the last cell has ended."""
    reading, writing = os.pipe()
    words = ("submit", "demo", "--runs", str(tmp_path), "--cluster", "detached", "--steps", "resnet", "--")
    words += ("recipe.epochs=1", "recipe.warmup_epochs=0", "wandb.mode=disabled", "device=cpu")
    env = {**os.environ, "PYTHONPATH": str(extended)}
    done = python("-m", "roadmap.sweep", *words, cwd=extended, env=env, pass_fds=[writing], timeout=120)
    os.close(writing)
    assert done.returncode == 0, done.stderr
    assert select.select([reading], [], [], 120)[0] and os.read(reading, 1) == b""
    os.close(reading)
    (status,) = tmp_path.glob("demo/nano-digits/*/seed0/status.json")
    assert json.loads(status.read_text())["state"] == "done"
