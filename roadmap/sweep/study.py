"""A study's file becomes its cells: composed, validate and named as plain Hydra would do it, before anything is queued.

`python run.py -cd FOLDER -cn STUDY` on one machine and `make roadmap` on a cluster read the same file and make the same runs.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from roadmap.config.choices import Mode
from roadmap.config.schema import Config
from roadmap.errors import ConfigError
from roadmap.runs.run_dir import run_path
from roadmap.steps.compose import compose_primary, hydra_at, validate
from roadmap.steps.hydra_errors import HYDRA_ERRORS, plain_error
from roadmap.steps.hydra_guard import check_config_dirs, check_overrides
from roadmap.steps.tree import CONF, step_tree
from roadmap.sweep.folder import check_name
from roadmap.text import nearest

SWEEPS = CONF.parent / "sweeps"
SEED_IN_FILE = re.compile(r"\$\{[^}]*\bseed\b")
SETTING = re.compile(r"\b(?:model|recipe|data|regime)\.\w+")
OURS = ("study", "mode", "fresh", "weights")  # a study's cells train, each in its place


@dataclass(frozen=True)
class Cell:
    """One run of a study: the words that make it of the study's file, and what they come to."""

    words: tuple[str, ...]
    config: Config

    @property
    def key(self) -> str:
        """Return where the run is below the study's folder, such as `tiny-imagenet/gelu/seed0`: its name in every file."""
        return "/".join(run_path(self.config).parts[-3:])


@dataclass(frozen=True)
class LeftOut:
    """A combination of the grid that has no meaning, and why."""

    words: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Study:
    """A study's file, read: its cells in the file's order, and what was left out of the grid."""

    name: str
    file: Path
    cells: tuple[Cell, ...]
    left_out: tuple[LeftOut, ...]


def study_file(name: str) -> Path:
    """Return the file of a study: `NAME` is one of `sweeps/`, `FOLDER/NAME.yaml` one of the user's own. Raises ConfigError."""
    if name.endswith(".yaml"):
        path = Path(name).expanduser().absolute()
        if not path.is_file():
            raise ConfigError(f"STUDY={name}: no such file")
    else:
        path = SWEEPS / f"{check_name(name)}.yaml"
        if not path.is_file():
            known = sorted(p.stem for p in SWEEPS.glob("*.yaml"))
            raise ConfigError(
                f"STUDY={name}: there is no such study; {nearest(name, known)}; a file of your own: STUDY=FOLDER/NAME.yaml"
            )
    check_name(path.stem)
    return path


def read_study(name: str, words: Sequence[str] = (), runs: str | Path = "runs") -> Study:
    """Compose and check every cell of a study, to run below `runs`; `words` are overrides for all, as on the command line of `run.py`.

    Raises ConfigError for whatever is wrong in the file or the words, and where no combination of the grid is legal.
    """
    file = study_file(name)
    folders = [file.parent, CONF]
    check_overrides(words)
    check_config_dirs(folders, CONF)
    if file.parent != SWEEPS and Path(runs).expanduser().absolute().is_relative_to(file.parent):
        raise ConfigError(
            f"RUNS={runs}: lies in the study's folder {file.parent}, which is for configs; keep the runs beside it"
        )
    for word in words:
        if "=" not in word or word.startswith("-"):
            raise ConfigError(f"{word}: cannot be read as KEY=VALUE")
        if word.lstrip("+~").split("=")[0] in OURS:
            raise ConfigError(f"{word}: is the study's own, and cannot be set for its cells")
    try:
        step_tree(folders)
        check_lists(file)
        with hydra_at(file.parent):
            place = f"paths.runs={quoted(str(Path(runs).expanduser().absolute()))}"
            grid = list(combinations(file.stem, [*words, place]))
            return _checked_study(file, grid, folders)
    except HYDRA_ERRORS as error:
        raise ConfigError(f"{file}: {plain_error(error, folders)}") from None


def combinations(primary: str, words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the words of every cell, in Hydra's order; lists among `words` replace those of the file. Raises ConfigError."""
    hydra = compose_primary(primary, [w for w in words if not _is_list(w)]).hydra
    params: dict[str, Any] = dict(hydra.sweeper.params or {})
    if hydra.mode != RunMode.MULTIRUN or not params:
        raise ConfigError(
            f"{primary}.yaml: is no study: it needs hydra.mode: MULTIRUN and lists in hydra.sweeper.params"
        )
    overrides = OverridesParser.create().parse_overrides([*(f"{key}={value}" for key, value in params.items()), *words])
    yield from map(tuple, BasicSweeper.split_arguments(overrides, None)[0])


def check_lists(file: Path) -> None:
    """Raise ConfigError for a list of the grid that Hydra would read otherwise than it looks."""
    body = yaml.safe_load(file.read_text(encoding="utf-8"))
    for key in ("hydra", "sweeper", "params"):
        body = body.get(key) if isinstance(body, dict) else None
    for key, value in (body if isinstance(body, dict) else {}).items():
        if value is None or value in ("", []):
            raise ConfigError(f"{file}: hydra.sweeper.params.{key} is empty: the grid has no cell")
        if isinstance(value, list | dict):
            raise ConfigError(f"{file}: hydra.sweeper.params.{key}={value}: write its values with commas, 0,1,2")


def quoted(value: str) -> str:
    """Return a value as Hydra's grammar takes it."""
    return value if re.fullmatch(r"[\w/.-]+", value) else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _is_list(word: str) -> bool:
    return OverridesParser.create().parse_overrides([word])[0].is_sweep_override()


def _checked_study(file: Path, grid: Sequence[tuple[str, ...]], folders: Sequence[Path]) -> Study:
    compose = composer(file.stem, folders)
    cells: dict[str, Cell] = {}
    left_out: list[LeftOut] = []
    for words in grid:
        try:
            config = compose(words)
        except (ConfigError, *HYDRA_ERRORS) as error:
            reason = str(error) if isinstance(error, ConfigError) else plain_error(error, folders)
            if not is_combination(reason):
                raise ConfigError(f"{file}: {' '.join(words)}: {reason}") from None
            left_out.append(LeftOut(words, reason))
            continue
        cell = Cell(words, config)
        _check_cell(file, cell, cells.get(cell.key))
        cells[cell.key] = cell
    if not cells:
        raise ConfigError(f"{file}: no combination of its grid is legal; the first: {left_out[0].reason}")
    return Study(file.stem, file, tuple(cells.values()), tuple(left_out))


def _check_cell(file: Path, cell: Cell, same: Cell | None) -> None:
    if cell.config.study != file.stem:
        raise ConfigError(f"{file}: study={cell.config.study}: a study is named like its file, study: {file.stem}")
    if cell.config.mode != Mode.train:
        raise ConfigError(f"{file}: mode={cell.config.mode}: the cells of a study train")
    if same is not None:
        raise ConfigError(f"{file}: two cells are the same run: {' '.join(same.words)} and {' '.join(cell.words)}")


def composer(primary: str, folders: Sequence[Path]) -> Callable[[Sequence[str]], Config]:
    """Return a function from a cell's words to its config; where only the seed differs, a config is composed once.

    Composing takes a tenth of a second a cell; where a file refers to the seed, every cell is composed for itself.
    """
    by_seed = not any(
        SEED_IN_FILE.search(p.read_text(errors="replace")) for folder in folders for p in folder.rglob("*.yaml")
    )
    known: dict[tuple[str, ...], Config] = {}

    def compose(words: Sequence[str]) -> Config:
        """Return the config of a cell."""
        seeds = [int(m[1]) for word in words if (m := re.fullmatch(r"seed=(\d+)", word))]
        others = tuple(word for word in words if not re.fullmatch(r"seed=\d+", word))
        if by_seed and len(seeds) == 1 and others in known:
            return known[others].replace(seed=seeds[0])
        cfg = compose_primary(primary, words)
        known[others] = validate(cfg, cfg.hydra, folders)
        return known[others]

    return compose


def is_combination(reason: str) -> bool:
    """Tell whether an error is about settings that do not go together (it names two), not about one that is wrong in itself."""
    return len(set(SETTING.findall(reason))) > 1 or "this regime has no" in reason


def narrowed(study: Study, steps: Iterable[str], seeds: Iterable[str]) -> tuple[Cell, ...]:
    """Return the cells of some steps and seeds; none given means all. Raises ConfigError for one that the study does not have."""
    chosen = study.cells
    for name, wanted, value in (
        ("STEPS", list(steps), lambda c: c.step),
        ("SEEDS", list(seeds), lambda c: str(c.seed)),
    ):
        known = list(dict.fromkeys(value(cell.config) for cell in study.cells))
        for word in wanted:
            if word not in known:
                raise ConfigError(f"{name}={word}: is not in {study.name}; {nearest(word, known)}")
        chosen = tuple(cell for cell in chosen if not wanted or value(cell.config) in wanted)
    if not chosen:
        raise ConfigError(f"{study.name}: has no cell with these STEPS and SEEDS")
    return chosen
