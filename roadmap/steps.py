"""The steps: their tree, and how a step of a regime becomes a checked `Config`.

`compose` is for Python, tests and the table; `run.py` lets Hydra compose and calls `checked` on the result.
"""

import csv
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from roadmap import paper
from roadmap.choices import Mode
from roadmap.config import Config
from roadmap.errors import ConfigError
from roadmap.explain import DERIVED, explain, nearest
from roadmap.guard import check_folders, check_words

CONF = Path(__file__).resolve().parent.parent / "conf"

HYDRA_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)  # what composing raises for a user's mistake
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
SAFE_CELL = re.compile(r"[A-Za-z0-9_.,=+\[\]-]{1,80}")
# What an override may change without changing the result, or what has a place of its own in the path.
NOT_IN_CELL = ("step", "variant", "scale", "regime", "data", "seed", "study", "mode", "weights", "device", "devices",
    "compile", "cuda_graph", "kernels", "start_timeout_s", "comm_timeout_s", "fresh", "allow_drift")  # fmt: skip
NOT_IN_CELL_BELOW = ("data.root", "data.download", "data.workers", "paths.", "wandb.", "checkpoint.", "hydra.")


@dataclass(frozen=True)
class Step:
    """One step of the tree: what its file says, and what the paper or a `labels.csv` adds."""

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
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.lstrip("# ").split("  ")[0].strip()
    return ""


def step_tree(folders: Iterable[Path] = (CONF,)) -> dict[str, Step]:
    """Read the steps of some config folders, in the roadmap's order. Raises ConfigError for a file that is no step."""
    found: dict[str, Step] = {}
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        labels = _labels(folder / "step" / "labels.csv")
        for path in sorted((folder / "step").glob("*.yaml")):
            if path.stem in found:
                raise ConfigError(f"{path}: there is another step {path.stem}; give this one a name of its own")
            found[path.stem] = _read_step(path, labels.get(path.stem, {}))
    parents = {name: step.parent for name, step in found.items()}
    for name in found:
        _check_ancestors(name, parents)
    return {name: found[name] for name in sorted(found, key=lambda name: paper.place(name, parents))}


def _check_ancestors(name: str, parents: Mapping[str, str | None]) -> None:
    line, parent = [name], parents[name]
    while parent is not None:
        if parent not in parents:
            raise ConfigError(f"step {line[-1]}: its parent {parent} is no step; {nearest(parent, parents)}")
        if parent in line:
            raise ConfigError(f"step {name}: is its own ancestor ({' <- '.join([*line, parent])})")
        line.append(parent)
        parent = parents[parent]


def _read_step(path: Path, labels: Mapping[str, str]) -> Step:
    try:
        if path.read_text(encoding="utf-8").split("\n", 1)[0].split() != ["#", "@package", "_global_"]:
            raise ConfigError(f"{path}: the first line of a step must be: # @package _global_")
        body = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        parents = [d for d in body.get("defaults", []) if isinstance(d, str) and d != "_self_"]
        reference = "reference" in (body.get("model") or {})
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a step file ({' '.join(str(error).split())})") from None
    if len(parents) > 1:
        raise ConfigError(f"{path}: a step has one parent in its defaults list, this one has {', '.join(parents)}")
    parent = parents[0].removeprefix("/step/").removeprefix("step/") if parents else None
    return Step(path.stem, parent, about(path), labels, reference)


def _labels(path: Path) -> dict[str, dict[str, str]]:
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from None
    for row in rows:
        if not row.get("step") or (row.get("adopted") or "yes") not in {"yes", "no", "reference"}:
            raise ConfigError(f"{path}: columns are step,label,adopted, and adopted is yes, no or reference (found {row})")
    return {row["step"]: {k: v for k, v in row.items() if v and k} for row in rows}


def regimes() -> dict[str, str]:
    """Return the regimes by name, each with the scale that it belongs to."""
    order = ("nano", "mini", "tiny", "small", "base", "large", "xlarge")
    found = {p.stem: yaml.safe_load(p.read_text(encoding="utf-8"))["scale"] for p in (CONF / "regime").glob("*.yaml")}
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0]) if item[0] in order else len(order), item[0])))


def compose(step: str, regime: str = "nano", overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Config:
    """Compose one step of one regime, at the regime's own scale unless an override chooses another.

    `config_dir` is a folder with steps, variants or data sets of one's own. Raises ConfigError.
    """
    folders = step_folders(config_dir)
    check_words([f"+step={step}", *overrides])
    check_folders(folders, CONF)
    known = regimes()
    if regime not in known:
        raise ConfigError(f"regime={regime}: there is no such regime; {nearest(regime, known)}")
    given = {o.split("=")[0].lstrip("+~") for o in overrides}
    lines = [f"+step={step}", f"regime={regime}"]
    lines += [] if "scale" in given else [f"scale={known[regime]}"]
    lines += [f"hydra.searchpath=[file://{folders[0]}]"] if config_dir else []
    lines += overrides
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra_compose("config", lines, return_hydra_config=True)
        choices = dict(cfg.hydra.runtime.choices)
        return checked(cfg, choices, list(overrides), folders)
    except HYDRA_ERRORS as error:
        raise ConfigError(explain(error, folders)) from None


def step_folders(config_dir: str | Path | None) -> list[Path]:
    """Return the config folders: one of the user's, if given, and ours. Raises ConfigError."""
    if not CONF.is_dir():
        raise ConfigError(
            f"{CONF}: is missing; steps are composed from a checkout (pip install -e .), a wheel has the nets and the report only"
        )
    if config_dir is None:
        return [CONF]
    folder = Path(config_dir).resolve()
    if not (folder / "step").is_dir() and not (folder / "variant").is_dir():
        raise ConfigError(f"{config_dir}: holds no folder `step` or `variant`")
    return [folder, CONF]


def checked(cfg: DictConfig, choices: Mapping[str, Any], overrides: Sequence[str], folders: Sequence[Path]) -> Config:
    """Turn what Hydra composed into a `Config` that can be run, and name it.

    `choices` are Hydra's (`hydra.runtime.choices`), `overrides` those of the command line. `mode=data_check` needs no step, and
    stays without a name. Raises ConfigError and OmegaConf's errors (for `explain`).
    """
    tree, debug = step_tree(folders), choices.get("debug")
    known = [path.stem for folder in folders for path in (folder / "debug").glob("*.yaml")]
    if debug is not None and debug not in known:
        raise ConfigError(f"debug={debug}: there is no such debug; {nearest(str(debug), known)}")
    name = choices.get("step")
    if name is None and cfg.get("mode") != Mode.data_check:
        raise ConfigError(f"no step: say +step=NAME; {nearest('', tree)}")
    if name is not None and name not in tree:
        raise ConfigError(f"+step={name}: one step at a time; {nearest(str(name), tree)}")
    values = OmegaConf.to_container(_without_hydra(cfg), resolve=True)
    assert isinstance(values, dict)
    for key in DERIVED:
        if key in values:
            why = "its file must begin with: # @package _global_" if isinstance(values[key], dict) else "is derived, and cannot be set"
            raise ConfigError(f"{key}={values[key]}: {why}")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), values))
    assert isinstance(config, Config)
    if name is None:  # a data check concerns the images only, and leaves no run directory
        return config
    step, variant = tree[str(name)], choices.get("variant")
    config.step, config.variant = step.name, variant
    config.parent, config.label, config.adopted = step.parent, step.label(config.regime.name), step.adopted
    config.cell = _cell(config, choices, overrides)
    for key, value in (("step", config.step), ("variant", config.variant), ("study", config.study), ("regime", config.regime.name)):
        if value is not None and not SAFE_NAME.fullmatch(value):
            raise ConfigError(f"{key}={value}: a name has letters, digits, '_', '-' and '.', and at most 80 of them")
    return config


def _without_hydra(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def _cell(config: Config, choices: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """Name the cell: the step, +variant, and what else changes the result, sorted."""
    changes = {} if choices.get("scale") == config.regime.scale else {"scale": choices.get("scale")}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element().lstrip("+~").split("@")[0]
        if override.is_delete():
            raise ConfigError(f"~{key}: a key cannot be taken out; set it to the value that turns it off")
        value = override.value()
        keys = _flat(key, value) if isinstance(value, dict) else {key: value}
        changes |= {k: _value(config, k, choices) for k in keys if not (k in NOT_IN_CELL or k.startswith(NOT_IN_CELL_BELOW))}
    head = config.step + (f"+{config.variant}" if config.variant else "")
    cell = ",".join([head, *(f"{key}={_text(changes[key])}" for key in sorted(changes))])
    if SAFE_CELL.fullmatch(cell):
        return cell
    return f"{head[:60]},{hashlib.sha256(cell.encode()).hexdigest()[:12]}"


def _flat(key: str, value: dict[Any, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(f"{key}.{name}", item) if isinstance(item, dict) else {f"{key}.{name}": item}
    return flat


def _value(config: Config, key: str, choices: Mapping[str, Any]) -> Any:
    """Return what a key came to: a group's choice, or the checked value (so that 1e-3 and 0.001 are one cell)."""
    if key in choices:
        return choices[key]
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(_text, value)) + "]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


if __name__ == "__main__":
    from roadmap.table import main

    sys.exit(main())
