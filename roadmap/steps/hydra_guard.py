"""What a command line or a folder of configs may not say: Hydra would act on it before our schema sees it.

Hydra makes its launcher, sweeper and callbacks from whatever `hydra.*` names; only its mode and a sweep's lists may
be set.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from roadmap.config import KEYS
from roadmap.errors import ConfigError
from roadmap.steps.tree import cached_yaml
from roadmap.text import flatten, nearest, shorten

GROUPS = ("step", "variant", "regime", "scale", "data", "recipe", "debug")
LOCAL = frozenset(name for name, key in KEYS.items() if key.local)


# Hydra's own options that may be typed, spelled in full, and whether a value follows. argparse would take
# abbreviations of all of them: one unpickles a file (--experimental-rerun).
OPTIONS = {
    "--help": False, "-h": False, "--version": False, "--multirun": False, "-m": False, "--resolve": False,
    "--config-dir": True, "-cd": True, "--config-name": True, "-cn": True, "--config-path": True, "-cp": True,
    "--cfg": True, "-c": True, "--package": True, "-p": True, "--info": True, "-i": True,
}  # fmt: skip


def check_options(argv: Sequence[str]) -> None:
    """Raise ConfigError for an option that is none of `OPTIONS`, or is abbreviated."""
    words = iter(argv)
    for word in words:
        option, equals, _ = word.partition("=")
        if not word.startswith("-"):
            continue
        if option not in OPTIONS or (equals and not OPTIONS[option]):
            raise ConfigError(f"{shorten(word, 80)}: there is no such option; {nearest(option, OPTIONS)}")
        if OPTIONS[option] and not equals:
            next(words, None)


def check_overrides(words: Iterable[str]) -> None:
    """Raise ConfigError for a word of a command line that Hydra must not see; words that it cannot read are left to
    it."""
    for word in words:
        if word.startswith("-") or "=" not in word:
            continue
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException:
            continue
        key = override.get_key_element().lstrip("+~")
        if key.split(".")[0].split("/")[0].split("@")[0] == "hydra" and not _may_be_set(key):
            raise ConfigError(f"{key}: of Hydra's own settings only hydra.mode and hydra.sweeper.params may be set")
        if "@" in key or key == "local":
            raise ConfigError(f"{key}: a group goes where its file says; write GROUP=NAME")
        one_name = override.is_sweep_override() or isinstance(override.value(), str | int | float)
        if key in GROUPS and not one_name and not (key == "debug" and override.value() is None):
            raise ConfigError(f"{key}={word.partition('=')[2]}: takes one name")


def check_config_dirs(folders: Sequence[Path], ours: Path) -> None:
    """Raise ConfigError for a config file that could run code, or a local file that changes results."""
    for folder in folders:
        where = folder if folder.resolve() != ours else folder / "local"
        for path in sorted(where.rglob("*.yaml")):
            _check_file(path)
    for path in (ours / "local").glob("*.yaml"):
        body = {key: value for key, value in _read(path).items() if key != "defaults"}
        if wrong := sorted(key for key in map(str, flatten(body)) if key not in LOCAL):
            raise ConfigError(f"{path}: sets {wrong[0]}; a local file may set {', '.join(sorted(LOCAL))}")


def _check_file(path: Path) -> None:
    head = [
        line
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.startswith("# @package")
    ]
    if any("hydra" in line for line in head):
        raise ConfigError(f"{path}: sets Hydra's own settings ({head[0]})")
    body = _read(path)
    if "_target_" in _keys(body):
        raise ConfigError(f"{path}: holds a _target_; configs name choices, never code")
    for key, value in body.items():
        name = str(key)
        inner = _dotted(value, name) if isinstance(value, dict) else [name]
        if name.split(".")[0] == "hydra" and (wrong := [k for k in inner if not _may_be_set(k)]):
            raise ConfigError(
                f"{path}: sets {wrong[0]}; of Hydra's own settings only hydra.mode and hydra.sweeper.params may be set"
            )


def _may_be_set(key: str) -> bool:
    return key == "hydra.mode" or key == "hydra.sweeper.params" or key.startswith("hydra.sweeper.params.")


def _read(path: Path) -> dict[Any, Any]:
    """Return a file's mapping; {} for one that is none, which Hydra or the step tree will tell."""
    try:
        body = cached_yaml(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return body if isinstance(body, dict) else {}


def _keys(body: Any) -> Iterator[str]:
    for item in body.values() if isinstance(body, dict) else body if isinstance(body, list) else ():
        yield from _keys(item)
    if isinstance(body, dict):
        yield from map(str, body)


def _dotted(body: dict[Any, Any], prefix: str) -> list[str]:
    keys: list[str] = []
    for key, value in body.items():
        keys += _dotted(value, f"{prefix}.{key}") if isinstance(value, dict) else [f"{prefix}.{key}"]
    return keys
