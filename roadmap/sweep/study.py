"""A study's file becomes its cells: composed, checked and named as plain Hydra would do it, before anything is queued.

`python run.py -cd FOLDER -cn STUDY` on one machine and `make roadmap` on a cluster make the same runs of the same file.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from roadmap.config.fields import shown
from roadmap.config.schema import KEYS, Config
from roadmap.errors import ConfigError
from roadmap.files import expand, nearby, read_yaml
from roadmap.parsing import parse_yaml
from roadmap.runs.run_dir import run_path
from roadmap.steps.compose import compose_primary, hydra_initialized, validate
from roadmap.steps.config_files import check_config_dirs, sweep_params
from roadmap.steps.hydra_errors import HYDRA_ERRORS, plain_error, quote
from roadmap.steps.hydra_guard import check_overrides
from roadmap.steps.tree import CONF, step_tree
from roadmap.sweep.generators import Generator, Words
from roadmap.sweep.sampled_orders import SampledOrders
from roadmap.sweep.tuned_rates import TunedRates
from roadmap.text import check_name, nearest

RULES: dict[str, type[Generator]] = {"attribution": SampledOrders, "tuned": TunedRates}  # that choose cells
SWEEPS = CONF.parent / "sweeps"
SEED_REFERENCE = re.compile(r"\$\\?\{[^}]*\bseed\b")  # in a file, or in an override as Hydra's sweeper quotes it
SEED_WORD = re.compile(r"seed=(\d+)")
TOGGLE = re.compile(r"\bmodel\.\w+")
# A study's cells train, each in its own directory.
NOT_FOR_CELLS = {name: key.default for name, key in KEYS.items() if not key.cells}


@dataclass(frozen=True)
class Cell:
    """One run of a study: the overrides that make it of the study's file, and its config."""

    overrides: Words
    config: Config

    @property
    def key(self) -> str:
        """Return where the run is below the study's folder, `tiny-imagenet/gelu/seed0`: its name in every file."""
        return "/".join(run_path(self.config).parts[-3:])


@dataclass(frozen=True)
class LeftOut:
    """A combination of the grid that has no meaning, and why."""

    overrides: Words
    reason: str


@dataclass(frozen=True)
class Study:
    """A study's file, read: its cells in the file's order, and what was left out of the grid."""

    name: str
    file: Path
    cells: tuple[Cell, ...]
    left_out: tuple[LeftOut, ...]
    generator: Generator


def study_file(name: str) -> Path:
    """Return the file of a study: `NAME` is one of `sweeps/`, `FOLDER/NAME.yaml` the user's own. Raises ConfigError."""
    if name.endswith(".yaml"):
        path = expand(name).absolute()
        check_name("STUDY", path.stem)
        if not path.is_file():
            raise ConfigError(f"STUDY={name}: no such file{nearby(path)}")
        if path.parent.name == "step":
            raise ConfigError(f"STUDY={name}: is a step and no study; run.py +step={path.stem} trains it")
        return path
    if name.endswith(".yml") or "/" in name:
        raise ConfigError(f"STUDY={name}: a study's file is FOLDER/NAME.yaml")
    path = SWEEPS / f"{check_name('STUDY', name)}.yaml"
    if not path.is_file():
        known = nearest(name, sorted(p.stem for p in SWEEPS.glob("*.yaml")))
        raise ConfigError(f"STUDY={name}: there is no such study; {known}; your own: STUDY=FOLDER/NAME.yaml")
    return path


def read_study(
    name: str, overrides: Sequence[str] = (), runs: str | Path = "runs", check: Callable[[Config], None] | None = None
) -> Study:
    """Compose and check every cell of a study, to run below `runs`; the overrides are for all, as `run.py` takes them.

    What `check` raises ends it with the first cell. Raises ConfigError for whatever is wrong in the file or the
    overrides, and where no combination is legal.
    """
    file, runs = study_file(name), expand(runs).absolute()
    folders = [file.parent, CONF]
    check_overrides(overrides, folders)
    check_config_dirs(folders, CONF)
    if file.parent != SWEEPS and runs.is_relative_to(file.parent):
        where = f"lies in the study's folder {file.parent}, which is for configs"
        raise ConfigError(f"RUNS={runs}: {where}; keep the runs beside it")
    for word in overrides:
        if "=" not in word or word.startswith("-"):
            raise ConfigError(f"{word}: cannot be read as KEY=VALUE")
        key = word.lstrip("+~").split("=")[0]
        if key in NOT_FOR_CELLS:
            raise ConfigError(f"{word}: is the study's own, and cannot be set for its cells")
        if key in ("paths", "paths.runs"):
            raise ConfigError(f"{word}: RUNS= (--runs) says where a study's runs are kept")
    check_lists(file)
    try:
        step_tree(folders)
        with hydra_initialized(file.parent):
            grid, generator = combinations(file, [*overrides, f"paths.runs={quote(str(runs))}"])
            return compose_cells(file, grid, generator, folders, check)
    except HYDRA_ERRORS as error:
        raise ConfigError(f"{file}: {plain_error(error, folders)}") from None


def combinations(file: Path, overrides: Sequence[str]) -> tuple[Sequence[Words], Generator]:
    """Return the overrides of every combination in Hydra's order, given lists replacing the file's, and what makes
    cells of them. Raises ConfigError."""
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # which knows what glob(*) stands for
    words = [word for word in overrides if not is_setting(word)]
    parsed = zip(words, parser.parse_overrides(words), strict=True)
    single = [word for word, override in parsed if not override.is_sweep_override()]
    hydra = compose_primary(file.stem, single).hydra
    params: dict[str, Any] = dict(hydra.sweeper.params or {})
    if hydra.mode != RunMode.MULTIRUN or not params:
        needs = "hydra.mode: MULTIRUN and lists in hydra.sweeper.params"
        raise ConfigError(f"{file.stem}.yaml: is not a study: it needs {needs}")
    generator = find_generator(file, params, overrides)
    listed = [f"{key}={value}" for key, value in params.items() if not is_setting(key)]
    grid = tuple(map(tuple, BasicSweeper.split_arguments(parser.parse_overrides([*listed, *words]), None)[0]))
    return grid, generator


def is_setting(word: str) -> bool:
    """Tell whether a key, or a word `KEY=VALUE`, is for the rule that chooses the cells and for none of them."""
    name, dot, _ = word.partition("=")[0].partition(".")
    return bool(dot) and name in RULES


def find_generator(file: Path, params: Mapping[str, Any], overrides: Iterable[str]) -> Generator:
    """Return what makes the cells of a study, by the settings among its lists. Raises ConfigError for a wrong one."""
    names = {key.split(".")[0] for key in params if is_setting(key)}
    if len(names) > 1:
        raise ConfigError(f"{file}: its cells are chosen by {' and '.join(sorted(names))}; one at a time")
    values: dict[str, Any] = {key.partition(".")[2]: value for key, value in params.items() if is_setting(key)}
    for word in filter(is_setting, overrides):
        key, _, text = word.partition("=")
        name, _, setting = key.partition(".")
        if name not in names:
            raise ConfigError(f"{word}: is for the study {name}, and this is {file.stem}")
        try:
            values[setting] = parse_yaml(text)
        except ValueError:
            raise ConfigError(f"{word}: cannot be read as KEY=VALUE") from None
    return RULES[names.pop()](**values) if names else Generator()


def check_lists(file: Path) -> None:
    """Raise ConfigError for a list of the grid that Hydra would read otherwise than it looks."""
    try:
        params = sweep_params(read_yaml(file))
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from None
    for key, value in params.items():
        if value is None or value in ("", []):
            raise ConfigError(f"{file}: hydra.sweeper.params.{key} is empty: the grid has no cell")
        if isinstance(value, list | dict):
            raise ConfigError(f"{file}: hydra.sweeper.params.{key}={value}: write its values with commas, 0,1,2")


def compose_cells(
    file: Path,
    grid: Sequence[Words],
    generator: Generator,
    folders: Sequence[Path],
    check: Callable[[Config], None] | None,
) -> Study:
    """Compose and check the cells that a generator makes of a grid. Raises ConfigError."""
    compose = composer(file.stem, folders)
    cells: dict[str, Cell] = {}
    left_out: list[LeftOut] = []
    for words in generator.cells(grid, compose):
        try:
            cell = Cell(words, compose(words))
        except (ConfigError, *HYDRA_ERRORS) as error:
            reason = str(error) if isinstance(error, ConfigError) else plain_error(error, folders)
            if not is_combination(reason):
                raise ConfigError(f"{file}: {' '.join(words)}: {reason}") from None
            left_out.append(LeftOut(words, reason))
            continue
        if check is not None:
            check(cell.config)
        check_cell(file, cell, cells.get(cell.key))
        cells[cell.key] = cell
    if not cells:
        raise ConfigError(f"{file}: no combination of its grid is legal; the first: {left_out[0].reason}")
    return Study(file.stem, file, tuple(cells.values()), tuple(left_out), generator)


def check_cell(file: Path, cell: Cell, same: Cell | None) -> None:
    """Raise ConfigError for a cell that is none of this study, or that is the run of another one."""
    if cell.config.study != file.stem:
        raise ConfigError(f"{file}: study={cell.config.study}: a study is named like its file, study: {file.stem}")
    for name, default in NOT_FOR_CELLS.items():
        if name != "study" and getattr(cell.config, name) != default:
            raise ConfigError(f"{file}: {name}={shown(getattr(cell.config, name))}: cannot be set for a study's cells")
    if same is not None:
        both = f"{' '.join(same.overrides)} and {' '.join(cell.overrides)}"
        raise ConfigError(f"{file}: two cells are the same run: {both}")


def composer(primary: str, folders: Sequence[Path]) -> Callable[[Sequence[str]], Config]:
    """Return a function from a cell's overrides to its config; where only the seed differs, a config is composed once,
    and so is the plain step of several cells.

    Composing takes a tenth of a second; where a file or an override refers to the seed, each cell is composed.
    """
    files = (path for folder in folders for path in folder.rglob("*.yaml"))
    share_seeds = not any(SEED_REFERENCE.search(path.read_text(errors="replace")) for path in files)
    known: dict[Words, Config] = {}
    compose_once = cache(compose_primary)

    def compose(words: Sequence[str]) -> Config:
        """Return the config of a cell."""
        seeds = [int(found[1]) for word in words if (found := SEED_WORD.fullmatch(word))]
        others = tuple(word for word in words if not SEED_WORD.fullmatch(word))
        if share_seeds and len(seeds) == 1 and others in known and not any(map(SEED_REFERENCE.search, others)):
            return known[others].replace(seed=seeds[0])
        cfg = compose_primary(primary, words)
        known[others] = validate(cfg, cfg.hydra, folders, lambda file, plain: compose_once(file, tuple(plain)))
        return known[others]

    return compose


def is_combination(reason: str) -> bool:
    """Tell whether an error is about toggles that do not go together (it names two), not about a value that is wrong.

    A value that breaks rows, such as an epoch under a warm-up of three, is no combination of the grid.
    """
    return "there is no such key" not in reason and all(
        len(set(TOGGLE.findall(line))) > 1 or "this regime has no" in line for line in reason.splitlines()
    )


def select_cells(study: Study, steps: Sequence[str], seeds: Sequence[str]) -> tuple[Cell, ...]:
    """Return the cells of some steps and seeds; none given means all. Raises ConfigError for one that is not there."""
    chosen = study.cells
    for name, wanted, value in (("STEPS", steps, lambda c: c.step), ("SEEDS", seeds, lambda c: str(c.seed))):
        known = list(dict.fromkeys(value(cell.config) for cell in study.cells))
        for word in wanted:
            if word not in known:
                raise ConfigError(f"{name}={word}: is not in {study.name}; {nearest(word, known)}")
        chosen = tuple(cell for cell in chosen if not wanted or value(cell.config) in wanted)
    if not chosen:
        raise ConfigError(f"{study.name}: has no cell with these STEPS and SEEDS")
    return chosen
