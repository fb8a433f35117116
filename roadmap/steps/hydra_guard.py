"""What a command line or a folder of configs may not say: Hydra would act on it before our schema sees it.

Hydra makes its launcher, sweeper, logging and callbacks from whatever `hydra.*` names; only its mode and a sweep's
lists may be set. It reads words and files without any bound; so what is too long, too deep or endless is refused first.
"""

import math
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigSource
from omegaconf._utils import get_yaml_loader

from roadmap.config import KEYS
from roadmap.errors import ConfigError
from roadmap.files import MAX_YAML, check_yaml, nearby, read_regular
from roadmap.steps.hydra_errors import quote
from roadmap.text import SAFE_NAME, clean, flatten, nearest, shorten

GROUPS = ("step", "variant", "regime", "scale", "data", "recipe", "debug")
LOCAL = frozenset(name for name, key in KEYS.items() if key.local)

# Hydra's own options that may be typed, spelled in full, and whether a value follows. argparse would take
# abbreviations of all of them: one unpickles a file (--experimental-rerun). Not --config-path: what it names takes the
# place of conf/.
OPTIONS = {
    "--help": False, "-h": False, "--version": False, "--multirun": False, "-m": False, "--resolve": False,
    "--config-dir": True, "-cd": True, "--config-name": True, "-cn": True,
    "--cfg": True, "-c": True, "--package": True, "-p": True, "--info": True, "-i": True,
}  # fmt: skip

# Characters of a word, of one with brackets (whose parsing takes quadratic time), and of all words: Hydra's parser
# reads some ten thousand a second. A list of 1000 seeds fits.
MAX_WORD, MAX_BRACKETS, MAX_WORDS = 4000, 1000, 8000
MAX_DEPTH = 10  # of brackets within each other
MAX_REFERENCES = 4  # `${...}` in one value, and values of a file with several: each may double what it stands for
MAX_RUNS = 10_000  # of one sweep: Hydra makes them all before the first one starts
MAX_FOLDERS = 1000  # below a folder of configs
SETTABLE = "of Hydra's own settings only hydra.mode and hydra.sweeper.params may be set"
HYDRA_LOADER = get_yaml_loader()  # what Hydra reads files with: another parser might see another file


def check_options(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the options with their values, and all other words.

    Raises ConfigError for an option that is none of `OPTIONS`, or is abbreviated.
    """
    words, options, others = iter(argv), list[str](), list[str]()
    for word in words:
        option, equals, value = word.partition("=")
        if not word.startswith("-"):
            others.append(word)
            continue
        if option not in OPTIONS or (equals and not OPTIONS[option]):
            raise ConfigError(f"{shorten(word, 80)}: there is no such option; {nearest(option[:80], OPTIONS)}")
        options.append(option)
        if not OPTIONS[option]:
            continue
        value = value if equals else next(words, "")
        options.append(value)
        if value.startswith("-") or not value:
            raise ConfigError(f"{option}: a value must follow")
        if option in ("--config-name", "-cn") and not all(map(SAFE_NAME.fullmatch, value.split("/"))):
            raise ConfigError(f"{option} {shorten(value, 80)}: is no name of a config; its folder goes with -cd FOLDER")
        if option in ("--config-dir", "-cd") and not Path(value).is_dir():
            raise ConfigError(f"{option} {shorten(value, 80)}: no such folder{nearby(Path(value))}")
    return options, others


def check_overrides(words: Sequence[str], folders: Sequence[Path] = ()) -> None:
    """Raise ConfigError for a word of a command line that Hydra must not see; words that it cannot read are left to
    it. The names of subfolders of `folders` are names of groups too."""
    if (length := sum(map(len, words))) > MAX_WORDS:
        raise ConfigError(f"{shorten(max(words, key=len), 80)}: {length} characters in all, at most {MAX_WORDS}")
    numbers = [_check_override(word, folders) for word in words if not word.startswith("-")]
    if math.prod(numbers) > MAX_RUNS:
        raise ConfigError(f"{shorten(' '.join(words), 120)}: more than {MAX_RUNS} runs at once")


def _check_override(word: str, folders: Sequence[Path]) -> int:
    """Check `KEY=VALUE`; return how many values it lists. Raises ConfigError."""
    _check_length(word)
    if "=" not in word:
        return 1
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        return 1
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise ConfigError(f"{shorten(word, 80)}: cannot be read as KEY=VALUE ({clean(error, 80)})") from None
    key, value = override.get_key_element().lstrip("+~"), override.value()
    if re.split("[./@]", key)[0] == "hydra":
        _check_setting(key, value, folders)
    elif "@" in key or key == "local":
        raise ConfigError(f"{shorten(key, 80)}: a group goes where its file says; write GROUP=NAME")
    elif key in GROUPS or "/" in key or any((folder / key).is_dir() for folder in folders):
        _check_choice(key, override, word.partition("=")[2])
    elif KEYS.get(key) and KEYS[key].is_text and isinstance(value, list | dict):
        text = f"{key}={quote(word.partition('=')[2])}"
        raise ConfigError(f'{word}: brackets and braces are a list or a mapping; as text: "{text}"')
    return _num_values(word, value)


def _check_length(word: str) -> None:
    depth = deepest = 0
    for char in word[:MAX_WORD]:
        depth += (char in "[{(") - (char in ")}]")
        deepest = max(deepest, depth)
    limit = MAX_BRACKETS if deepest else MAX_WORD
    if len(word) > limit:
        raise ConfigError(f"{shorten(word, 80)}: has {len(word)} characters, at most {limit}")
    if word.count("${") > MAX_REFERENCES:
        raise ConfigError(f"{shorten(word, 80)}: refers to more than {MAX_REFERENCES} keys")
    if deepest > MAX_DEPTH:
        raise ConfigError(f"{shorten(word, 80)}: brackets more than {MAX_DEPTH} deep")


def _check_setting(key: str, value: Any, folders: Sequence[Path]) -> None:
    if not _may_be_set(key):
        raise ConfigError(f"{shorten(key, 80)}: {SETTABLE}")
    if key.startswith("hydra.sweeper.params"):
        inner = key.removeprefix("hydra.sweeper.params").lstrip(".")
        _check_params(value if isinstance(value, dict) else {inner: value}, folders)


def _check_params(params: dict[Any, Any], folders: Sequence[Path]) -> None:
    """Raise ConfigError for a list of a sweep that is no override as a command line may have it."""
    for key in params:
        if not re.fullmatch(r"\+{0,2}[\w.]+", str(key)):
            raise ConfigError(f"hydra.sweeper.params.{shorten(str(key), 80)}: is no key of a run")
    # Other kinds of values are told by whoever reads the file.
    check_overrides([f"{key}={value}" for key, value in params.items() if isinstance(value, str)], folders)


def _check_choice(key: str, override: Override, given: str) -> None:
    """Raise ConfigError for a choice of a group that is none: Hydra would open whatever file a path leads to."""
    value = override.value()
    if isinstance(value, Glob):
        return
    for choice in value.list if isinstance(value, ChoiceSweep) else [value]:
        name = choice.text if isinstance(choice, QuotedString) else choice
        if not isinstance(name, str) or not SAFE_NAME.fullmatch(name):
            raise ConfigError(f"{shorten(key, 80)}={shorten(given, 80)}: takes one name")


def _num_values(word: str, value: Any) -> int:
    if isinstance(value, ChoiceSweep):
        return max(1, len(value.list))
    if isinstance(value, IntervalSweep):
        raise ConfigError(f"{shorten(word, 80)}: names no values; a list does, or range(FIRST,END,STEP)")
    if not isinstance(value, RangeSweep):
        return 1
    try:
        return max(1, sum(1 for _ in islice(value.range(), MAX_RUNS + 1)))
    except (HydraException, ValueError, ArithmeticError) as error:
        raise ConfigError(f"{shorten(word, 80)}: cannot be counted ({clean(error, 80)})") from None


def check_config_dirs(folders: Sequence[Path], ours: Path) -> None:
    """Raise ConfigError for a config file that could run code or takes more than its share, or a local file that
    changes results."""
    for folder in folders:
        if folder.resolve() != ours:
            for path in config_files(folder):
                _check_file(path, folder)
    for path in config_files(ours):
        if not path.is_relative_to(ours / "local"):
            _read(path)
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
            raise ConfigError(
                f"{folder}: holds more than {MAX_FOLDERS} folders; a folder of configs holds configs only"
            )
        found += [Path(root, name) for name in files if name.endswith(".yaml")]
    return sorted(found)


def _check_file(path: Path, folder: Path) -> None:
    if path.relative_to(folder).parts[0] == "hydra":
        raise ConfigError(f"{path}: is one of Hydra's own settings; {SETTABLE}")
    body, package = _read(path), _header(path)
    if "hydra" in re.split(r"[^\w]+", package):
        raise ConfigError(f"{path}: sets Hydra's own settings (# @package {clean(package, 80)})")
    if "_target_" in _texts(body):
        raise ConfigError(f"{path}: holds a _target_; configs name choices, never code")
    numbers = [text.count("${") for text in _texts(body)]
    if len([number for number in numbers if number > 1]) > MAX_REFERENCES or max(numbers, default=0) > MAX_REFERENCES:
        raise ConfigError(f"{path}: values refer to several keys each, more than {MAX_REFERENCES}")
    for entry in _texts(body.get("defaults")):
        if ".." in entry or "hydra" in re.split(r"[\s/@.:]+", entry):
            raise ConfigError(f"{path}: its defaults name {clean(entry, 80)!r}, which is no config of a run")
    for key, value in body.items():
        name = str(key)
        inner = _dotted(value, name) if isinstance(value, dict) else [name]
        if name.split(".")[0] == "hydra" and (wrong := [k for k in inner if not _may_be_set(k)]):
            raise ConfigError(f"{path}: sets {clean(wrong[0], 80)}; {SETTABLE}")
    params: Any = body
    for key in ("hydra", "sweeper", "params"):
        params = params.get(key) if isinstance(params, dict) else None
    if isinstance(params, dict):
        try:
            _check_params(params, [folder])
        except ConfigError as error:
            raise ConfigError(f"{path}: hydra.sweeper.params: {error}") from None


def _texts(body: Any) -> Iterator[str]:
    """Yield all texts in containers, keys too."""
    if isinstance(body, dict):
        yield from map(str, body)
    for item in body.values() if isinstance(body, dict) else body if isinstance(body, list) else ():
        yield from _texts(item)
    if isinstance(body, str):
        yield body


def _dotted(body: dict[Any, Any], prefix: str) -> list[str]:
    keys: list[str] = []
    for key, value in body.items():
        keys += _dotted(value, f"{prefix}.{key}") if isinstance(value, dict) else [f"{prefix}.{key}"]
    return keys


def _may_be_set(key: str) -> bool:
    return key == "hydra.mode" or key == "hydra.sweeper.params" or key.startswith("hydra.sweeper.params.")


def _header(path: Path) -> str:
    """Return the package that a file names in its first lines, as Hydra reads them. Raises ConfigError."""
    text = _text(path)
    try:
        header: dict[str, str | None] = ConfigSource._get_header_dict(text[:512])
    except ValueError as error:
        raise ConfigError(f"{path}: its first lines cannot be read ({clean(error, 120)})") from None
    return header.get("package") or ""


def _read(path: Path) -> dict[Any, Any]:
    """Return a file's mapping; {} for one that is none or no YAML, which Hydra or the step tree will tell.

    Raises ConfigError for one that takes more than its share.
    """
    try:
        about = path.stat()
    except OSError:
        return {}
    return _parsed(path, (about.st_mtime_ns, about.st_size, about.st_ino, about.st_dev))


@lru_cache(1024)
def _parsed(path: Path, _: tuple[int, ...]) -> dict[Any, Any]:
    text = _text(path)
    try:
        check_yaml(text, HYDRA_LOADER)
        body = yaml.load(text, HYDRA_LOADER)
    except yaml.YAMLError:
        return {}
    except ValueError as error:
        raise ConfigError(f"{path}: {clean(error)}") from None
    return body if isinstance(body, dict) else {}


def _text(path: Path) -> str:
    try:
        return read_regular(path, MAX_YAML).decode()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None
