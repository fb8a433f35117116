"""Hydra's and OmegaConf's errors in plain words: the key, its value, what is allowed, the nearest name first."""

import re
import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from traceback import walk_tb
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import (
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

from roadmap.config import KEYS
from roadmap.config.schema import DERIVED
from roadmap.errors import ConfigError
from roadmap.files import read_yaml
from roadmap.steps.tree import ADDED, CONF, GROUPS, step_tree
from roadmap.text import flatten, nearest

# What composing raises for a user's mistake; the last where files name each other in a circle.
HYDRA_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, RecursionError)
HYDRA_RESOLVERS = ("now", "hydra", "python_version")  # what Hydra adds to OmegaConf's own


def of_defaults(error: RecursionError) -> bool:
    """Tell whether it is Hydra that has followed a circle of `defaults`, and nothing else."""
    return any("defaults_list" in frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__))


def plain_error(error: Exception, folders: Sequence[Path]) -> str:
    """Return one or two plain lines for an error of Hydra or OmegaConf.

    `folders` are the config folders: what there is to choose from is read there.
    """
    try:
        steps = list(step_tree(folders))
    except ConfigError as broken:  # a step file that cannot be read is the cause of any error of Hydra's
        return str(broken)
    if isinstance(error, RecursionError):
        if not of_defaults(error):
            raise error
        return "defaults: a file in the list leads back to the one that names it"
    if isinstance(error, OmegaConfBaseException):
        return _explain_value(error)
    text = str(error)
    if found := re.search(r"Ambiguous value for argument '(.*)'", text):
        return f"{found[1]}: takes one value; several need --multirun{_hint(found[1], ', and text with a comma is')}"
    if found := re.search(r"Cannot find primary config '([^']+)'", text):
        known = sorted({path.stem for folder in folders for path in folder.glob("[!.]*.yaml")})
        is_study = (CONF.parent / "sweeps" / f"{found[1]}.yaml").is_file()
        told = f"-cd sweeps -cn {found[1]} runs the study" if is_study else nearest(found[1], known)
        return f"-cn {found[1]}: there is no such file; {told}"
    if found := re.search(r"(?:Could not find|Could not load|In '.*?': Could not find) '([^']+)'", text):
        return _explain_choice(found[1], steps, folders)
    if found := re.search(r"Could not append to config. An item is already at '([^']+)'", text):
        return f"+{found[1]}: is in the config already; {found[1]}=VALUE, without the plus sign, sets it"
    if found := re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^']+)'", text):
        return _unknown_key(found[1].split("@")[0])
    if isinstance(error, OverrideParseException):
        word = str(error.override)
        if "=" not in word and (groups := [group for group in GROUPS if word in _files(group, folders)]):
            meant = " or ".join(f"{'+' * (group in ADDED)}{group}={word}" for group in groups)
            return f"{word}: cannot be read as KEY=VALUE; did you mean {meant}?"
        return f"{word}: cannot be read as KEY=VALUE{_hint(word, ' as it stands; quoted it is') or _cause(text)}"
    if found := re.search(r"Multiple values for (\w+)", text):
        how = "" if found[1] in ADDED else f"; a file replaces another's choice by `- override /{found[1]}: NAME`"
        return f"{found[1]}: is given twice{how}"
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OmegaConfBaseException):
        return _explain_value(cause)
    return " ".join(text.split())


def quote(value: str) -> str:
    """Return a value as Hydra's grammar takes it."""
    return value if re.fullmatch(r"[\w/.-]+", value, re.ASCII) else "'" + re.sub(r"([\\'])", r"\\\1", value) + "'"


def _hint(word: str, before: str) -> str:
    """Return how to type a word whose value is text, for Hydra and for a shell; nothing if quoting would not help."""
    key, equals, value = word.partition("=")
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]  # quoted, but as text with such a quote in it is not
    quoted = f"{key}={quote(value)}"
    try:
        OverridesParser.create().parse_override(quoted)
    except HydraException:
        return ""
    in_shell = shlex.quote(quoted) if set(quoted) & set('"$`!') else '"' + quoted.replace("\\", "\\\\") + '"'
    known = KEYS.get(key.lstrip("+"))
    return f"{before} {in_shell}" if equals and value and known and known.is_text else ""


def _cause(text: str) -> str:
    return next((f" ({line.strip()})" for line in text.splitlines() if line.strip()), "")


def _files(group: str, folders: Sequence[Path]) -> set[str]:
    return {path.stem for folder in folders for path in (folder / group).glob("[!.]*.yaml")}


def _explain_choice(missing: str, steps: list[str], folders: Sequence[Path]) -> str:
    group, _, name = missing.rpartition("/")
    known = steps if group == "step" else sorted(_files(group, folders))
    if (inner := group.removeprefix("step/")) in GROUPS and name in _files(inner, folders):
        return f"{missing}: there is no such config; a step chooses it by `- override /{inner}: {name}`"
    if not group or not known:
        return f"{missing}: there is no such config; see --help"
    sign = "+" * (group in ADDED)
    for folder in set(folders) - {CONF}:
        for path in [*folder.glob("*.y*ml"), *folder.glob("*/*.y*ml")]:
            if path.stem == name and path.parent.name not in GROUPS.keys() - {group} and not _is_study(path):
                found = path == folder.parent / group / f"{name}.yaml"
                mend = f"-cd {folder.parent} finds {path}" if found else f"{path} must be {folder / group / name}.yaml"
                return f"{sign}{group}={name}: there is no such {group}; {mend}"
    return f"{sign}{group}={name}: there is no such {group}; {nearest(name, known)}"


def _is_study(path: Path) -> bool:
    """Tell whether a file sets something of Hydra's, as no choice of a group does."""
    with suppress(OSError, ValueError):
        return "hydra" in read_yaml(path)
    return False


def _unknown_key(key: str) -> str:
    if key in ADDED:
        return f"{key}=...: write +{key}=NAME, with a plus sign"
    section, known = key.split(".")[0], [name for name in KEYS if name not in DERIVED]
    if key in known:
        file = f"the file of this {section}= in conf/{section}" if (CONF / section).is_dir() else "conf/config.yaml"
        return f"{key}: {file} does not have it, the schema has; +{key}=VALUE sets it"
    beside = [name for name in known if name.startswith(f"{section}.")]
    if not beside and "." in key and (CONF.parent / "sweeps" / f"{section}.yaml").is_file():
        return f"{key}: a rule makes this study's cells, which Hydra cannot: make roadmap STUDY={section} CLUSTER=local"
    if inner := [name for name in known if name.endswith(f".{key}")]:
        return f"{key}: there is no such key; did you mean {' or '.join(inner)}?"
    top = [*(f"+{name}" for name in ADDED), *dict.fromkeys(name.split(".")[0] for name in known)]
    return f"{key}: there is no such key; {nearest(key, beside or top)}"


def file_of_unknown_key(values: dict[str, Any], overrides: Iterable[str], folders: Sequence[Path]) -> Path | None:
    """Return the file that sets a key which the schema lacks and the user has not typed."""
    typed = {word.partition("=")[0].lstrip("+") for word in overrides}
    for key in flatten(values):
        if key in KEYS or key in DERIVED or key in typed:
            continue
        for path in (path for folder in folders for path in sorted(folder.rglob("[!.]*.yaml"))):
            with suppress(OSError, ValueError):
                names = flatten(read_yaml(path))
                if key in names or key in {f"{path.parent.name}.{name}" for name in names}:
                    return path
    return None


def _explain_value(error: OmegaConfBaseException) -> str:
    key = getattr(error, "full_key", None) or getattr(error, "key", None) or "config"
    first = str(error).splitlines()[0].strip()
    if isinstance(error, UnsupportedInterpolationType):
        known = "other keys and ${oc.env:VARIABLE}, and a run's path depends on no clock and no job"
        return f"{key}: refers to `{first.rpartition(' ')[2]}:`; a value may refer to {known}"
    if isinstance(error, InterpolationResolutionError):
        needed = re.search(r"Interpolation key '([^']+)' not found", first)
        if needed is None:
            return f"{key}: {first}"
        if needed[1].startswith("regime.reference"):
            return "+step=swin: this regime has no reference net; regime=tiny and regime=base have"
        section = needed[1].partition(".")[0]
        if needed[1] in KEYS and (whole := {"regime": "tiny", "recipe": "enhanced"}.get(section)):
            how = f"a file of your own begins with defaults: [{whole}, _self_]"
            return f"{key}: needs {needed[1]}, which the file of this {section}= does not have; {how}"
        return f"{key}: needs {needed[1]}, which this config does not have"
    if isinstance(error, ConfigKeyError):
        return _unknown_key(str(key))
    return f"{key}: {first}"
