"""The steps of the roadmap as a tree: each file names its parent and contains only its own change."""

import csv
import io
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from roadmap import paper
from roadmap.errors import ConfigError
from roadmap.files import MAX_YAML, read_regular
from roadmap.parsing import parse_yaml
from roadmap.text import clean, nearest, one_line, reason

CONF = Path(__file__).resolve().parent.parent.parent / "conf"
GROUPS = {  # that may be chosen, each with its heading
    "step": "Steps, in the roadmap's order",
    "regime": "Regimes: the sizes of the networks at both ends",
    "scale": "Scales: regime, data set and length of training together",
    "data": "Data sets",
    "recipe": "Recipes (chosen by the step, unless given)",
    "variant": "Variants: one change on top of a step",
    "debug": "Debugging",
}
ADDED = ("step", "variant")  # only these take a plus sign: no defaults list has them


@dataclass(frozen=True)
class Step:
    """One step of the tree: the contents of its file, and what the paper or a `labels.csv` adds."""

    name: str
    parent: str | None
    about: str  # the file's first sentence
    labels: Mapping[str, str]  # of a user's own `labels.csv`
    is_reference: bool

    def label(self, regime: str) -> str:
        """Return the paper's label, else the one in `labels.csv`, else the name."""
        return paper.label(self.name, regime) or self.labels.get("label") or self.name

    @property
    def adopted(self) -> str:
        """Return `yes`, `no` (tried and not kept) or `reference`."""
        row = paper.rows("tiny").get(self.name)
        return row.adopted if row else (self.labels.get("adopted") or "yes")


def about(path: Path) -> str:
    """Return the first comment of a config file that is not a package header, without the command."""
    for line in read_config(path).splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return clean(line.lstrip("# ").split("  ")[0])
    return ""


def read_config(path: Path) -> str:
    """Return a config file's text. Raises ConfigError if it is not a regular file in UTF-8, or too large."""
    try:
        text = read_regular(path, MAX_YAML).decode()
    except (OSError, UnicodeDecodeError) as error:
        why = reason(error) if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{clean(path)}: cannot be read ({why})") from None
    if text.startswith("\ufeff"):  # Hydra would not recognise the first line
        raise ConfigError(f"{clean(path)}: begins with a byte-order mark; save it as UTF-8 without one")
    return text


@lru_cache(maxsize=1000)
def _parse(text: str) -> Any:
    """Return what a file's text holds, not to be changed: the same text is parsed once a process. Raises ValueError."""
    return parse_yaml(text)


def step_tree(folders: Iterable[Path] = (CONF,)) -> dict[str, Step]:
    """Read the steps of config folders, in the roadmap's order. Raises ConfigError for a file that is not a step."""
    found: dict[str, Step] = {}
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        paths = {path.stem: path for path in sorted((folder / "step").glob("[!.]*.yaml"))}
        labels = _labels(folder / "step" / "labels.csv", paths)
        for name, path in paths.items():
            if name in found:
                raise ConfigError(f"{path}: there is another step {name}; give this one a name of its own")
            found[name] = _read_step(path, labels.get(name, {}))
    parents = {name: step.parent for name, step in found.items()}
    for name in found:
        _check_ancestors(name, parents)
    return {name: found[name] for name in sorted(found, key=lambda name: paper.position(name, parents))}


def _check_ancestors(name: str, parents: Mapping[str, str | None]) -> None:
    line, parent = [name], parents[name]
    while parent is not None:
        if parent not in parents:
            raise ConfigError(f"step {line[-1]}: its parent {parent} is not a step; {nearest(parent, parents)}")
        if parent in line:
            raise ConfigError(f"step {name}: is its own ancestor ({' <- '.join([*line, parent])})")
        line.append(parent)
        parent = parents[parent]


def _read_step(path: Path, labels: Mapping[str, str]) -> Step:
    text = read_config(path)
    if text.split("\n", 1)[0].split() != ["#", "@package", "_global_"]:
        raise ConfigError(f"{path}: the first line of a step must be: # @package _global_")
    try:
        body = _parse(text) or {}
        if not isinstance(body, dict) or not isinstance(body.get("defaults", []), list):
            raise ValueError("must hold KEY: VALUE, and a list below `defaults:`")
    except ValueError as error:
        raise ConfigError(f"{clean(path)}: not a step file ({one_line(error)})") from None
    defaults, model = body.get("defaults", []), body.get("model")
    for group, chosen in (pair for d in defaults if isinstance(d, dict) for pair in d.items()):
        if str(group).removeprefix("override ").lstrip("/") == "step":
            raise ConfigError(f"{path}: its defaults have `{group}: {chosen}`; a parent is written `- {chosen}`")
    parents = [d for d in defaults if isinstance(d, str) and d != "_self_"]
    if len(parents) > 1:
        raise ConfigError(f"{path}: a step has one parent in its defaults list, this one has {', '.join(parents)}")
    parent = parents[0].removeprefix("/step/") if parents else None
    return Step(path.stem, parent, about(path), labels, isinstance(model, dict) and "reference" in model)


def _labels(path: Path, steps: Collection[str]) -> dict[str, dict[str, str]]:
    if not path.exists():
        return {}
    try:
        text = read_regular(path, MAX_YAML).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
        rows, columns = list(reader), list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV in UTF-8 ({reason(error)})") from None
    if "step" not in columns or not {*columns} <= {"step", "label", "adopted"}:
        raise ConfigError(f"{path}: the first line must be step,label,adopted (found {clean(','.join(columns))})")
    for row in rows:
        if (name := row["step"] or "") not in steps:
            raise ConfigError(f"{path}: step {clean(name)} is not in this folder; {nearest(name, steps)}")
        if None in row or (row.get("adopted") or "yes") not in {"yes", "no", "reference"}:
            raise ConfigError(f"{path}: of step {name} adopted must be yes, no or reference, and the last column")
    return {row["step"]: {k: v for k, v in row.items() if v} for row in rows}


def regimes(folders: Iterable[Path] = (CONF,)) -> dict[str, str | None]:
    """Return the regimes of config folders by name, each with the scale that its file says it belongs to."""
    order = ("nano", "mini", "tiny", "small", "base", "large", "xlarge")
    paths = [path for folder in folders for path in (folder / "regime").glob("[!.]*.yaml")]
    found = {path.stem: _scale(path) for path in paths}
    return {name: found[name] for name in (*filter(found.__contains__, order), *sorted(found.keys() - {*order}))}


def _scale(path: Path) -> str | None:
    with suppress(ValueError):  # Hydra will say what is wrong with it
        body = _parse(read_config(path))
        return body.get("scale") if isinstance(body, dict) else None
    return None


def step_folders(config_dir: str | Path | None) -> list[Path]:
    """Return the config folders: one of the user's, if given, and ours. Raises ConfigError."""
    if not CONF.is_dir():
        raise ConfigError(
            f"{CONF}: is missing; steps are composed from a checkout (pip install -e .), "
            "a wheel has the nets and the report only"
        )
    if config_dir is None:
        return [CONF]
    folder = Path(config_dir).resolve()
    if not any((folder / group).is_dir() for group in GROUPS):
        raise ConfigError(f"{config_dir}: holds no folder of configs, which are called {', '.join(GROUPS)}")
    return [folder, CONF]
