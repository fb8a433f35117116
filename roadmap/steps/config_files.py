"""What is refused in a folder of configs, since Hydra would act on it, or read it endlessly, before our schema sees it.

Files are read as Hydra reads them: its parser, its header, links followed.
"""

import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra.plugins.config_source import ConfigSource
from omegaconf._utils import get_yaml_loader

from roadmap.config import KEYS
from roadmap.errors import ConfigError
from roadmap.parsing import C_LOADER, check_yaml
from roadmap.steps.hydra_guard import MAX_REFERENCES, SETTABLE, check_params, may_be_set
from roadmap.steps.tree import read_config
from roadmap.text import clean, flatten

LOCAL = frozenset(name for name, key in KEYS.items() if key.local)
MAX_FOLDERS = 1000  # below a folder of configs
HYDRA_LOADER = get_yaml_loader()  # what Hydra reads files with: another parser might see another file


def check_config_dirs(folders: Sequence[Path], ours: Path) -> None:
    """Raise ConfigError for a config file that could run code or takes too much time or memory, that would have no
    effect, or for a local file that changes results."""
    for folder in folders:
        if folder.resolve() != ours:
            for path in config_files(folder):
                _check_file(path, folder)
                if (twin := ours / path.relative_to(folder)).exists():
                    raise ConfigError(f"{path}: {twin} is read in its place; give this one a name of its own")
    for path in config_files(ours):
        if not path.is_relative_to(ours / "local"):
            _check_order(path, _read(path, C_LOADER))  # and what they cost
            continue
        _check_file(path, ours)
        body = {key: value for key, value in _read(path).items() if key != "defaults"}
        wrong = sorted(key for key in map(str, flatten(body)) if key not in LOCAL)
        if path.parent == ours / "local" and wrong:
            raise ConfigError(f"{path}: sets {wrong[0]}; a local file may set {', '.join(sorted(LOCAL))}")


def config_files(folder: Path) -> list[Path]:
    """Return the YAML files at any depth below a folder, as Hydra finds them: links are followed."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for root, names, files in os.walk(folder, followlinks=True):
        about = os.stat(root)
        if (about.st_dev, about.st_ino) in seen:
            names.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        if len(seen) > MAX_FOLDERS:
            raise ConfigError(f"{folder}: holds more than {MAX_FOLDERS} folders; it is for configs alone")
        found += [Path(root, name) for name in files if name.endswith(".yaml")]
    return sorted(found)


def _check_file(path: Path, folder: Path) -> None:
    if path.relative_to(folder).parts[0] == "hydra":
        raise ConfigError(f"{path}: is one of Hydra's own settings; {SETTABLE}")
    body, package = _read(path), _header(path)
    _check_order(path, body)
    if "hydra" in re.split(r"[^\w]+", package):
        raise ConfigError(f"{path}: sets Hydra's own settings (# @package {clean(package, 80)})")
    if package and path.parent.name in ("regime", "recipe", "data", "tune"):
        raise ConfigError(
            f"{path}: its first line must not be # @package {clean(package, 80)}: only steps, variants "
            "and scales set keys of several sections"
        )
    if "_target_" in _texts(body):
        raise ConfigError(f"{path}: holds a _target_; configs name choices, never code")
    numbers = [text.count("${") for text in _texts(body)]
    if len([number for number in numbers if number > 1]) > MAX_REFERENCES or max(numbers, default=0) > MAX_REFERENCES:
        raise ConfigError(f"{path}: values refer to several keys each, more than {MAX_REFERENCES}")
    for entry in _texts(body.get("defaults")):
        if ".." in entry or "hydra" in re.split(r"[\s/@.:]+", entry):
            raise ConfigError(f"{path}: its defaults name {clean(entry, 80)!r}, which is not a config of a run")
    for key, value in body.items():
        name = str(key)
        inner = flatten({name: value})
        if name.split(".")[0] == "hydra" and (wrong := [k for k in inner if not may_be_set(k)]):
            raise ConfigError(f"{path}: sets {clean(wrong[0], 80)}; {SETTABLE}")
    try:
        check_params(sweep_params(body), [folder])
    except ConfigError as error:
        raise ConfigError(f"{path}: hydra.sweeper.params: {error}") from None


def _check_order(path: Path, body: dict[Any, Any]) -> None:
    """Raise ConfigError for a file that what it begins with would undo: a later entry of `defaults` wins."""
    entries = body.get("defaults")
    if not isinstance(entries, list) or "_self_" not in entries:
        return
    for entry in entries[entries.index("_self_") + 1 :]:
        name = next(iter(entry), "") if isinstance(entry, dict) else entry
        if not str(name).startswith("override "):
            shown = clean(name, 80)
            raise ConfigError(f"{path}: _self_ must come after {shown}, which undoes what the file sets otherwise")


def sweep_params(body: Any) -> dict[Any, Any]:
    """Return the lists that a file sweeps over, by key; {} where it has none."""
    for key in ("hydra", "sweeper", "params"):
        body = body.get(key) if isinstance(body, dict) else None
    return body if isinstance(body, dict) else {}


def _texts(body: Any) -> Iterator[str]:
    """Yield all texts in containers, keys too."""
    if isinstance(body, dict):
        yield from map(str, body)
    for item in body.values() if isinstance(body, dict) else body if isinstance(body, list) else ():
        yield from _texts(item)
    if isinstance(body, str):
        yield body


def _header(path: Path) -> str:
    """Return the package that a file names in its first lines, as Hydra reads them. Raises ConfigError."""
    text = read_config(path)
    try:
        header: dict[str, str | None] = ConfigSource._get_header_dict(text[:512])
    except ValueError as error:
        raise ConfigError(f"{path}: its first lines cannot be read ({clean(error, 120)})") from None
    return header.get("package") or ""


def _read(path: Path, loader: Any = HYDRA_LOADER) -> dict[Any, Any]:
    """Return a file's mapping; {} for a file without one, or that is not YAML: Hydra or the step tree will report it.

    Raises ConfigError for a file that takes too much time or memory.
    """
    try:
        about = path.stat()
    except OSError:
        return {}
    return _parsed(path, loader, (about.st_mtime_ns, about.st_size, about.st_ino, about.st_dev))


@lru_cache(1024)
def _parsed(path: Path, loader: Any, _: tuple[int, ...]) -> dict[Any, Any]:
    text = read_config(path)
    try:
        check_yaml(text, loader)
        body = yaml.load(text, loader)
    except yaml.YAMLError:
        return {}
    except ValueError as error:
        raise ConfigError(f"{path}: {clean(error)}") from None
    return body if isinstance(body, dict) else {}
