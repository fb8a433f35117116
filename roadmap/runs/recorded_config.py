"""The config that a run directory records, and what of it makes the run what it is: its identity."""

import hashlib
import json
from pathlib import Path
from typing import Any

from roadmap.config import KEYS, Affects, Config, is_read
from roadmap.errors import DataError
from roadmap.files import nearby, read_yaml
from roadmap.runs.schema import CONFIG
from roadmap.text import flatten, one_line, shorten


def identity(values: dict[str, Any]) -> dict[str, Any]:
    """Return what a result depends on, of a config as it was recorded: dotted key -> value.

    `values` are nested or by dotted key. A key that the record lacks counts as its default: with it the record was
    made. So does one that nothing read.
    """
    recorded = {name: value for name, value in flatten(values).items() if name in KEYS}
    recorded = {name: value for name, value in recorded.items() if is_read(name, recorded)}
    return {name: recorded.get(name, key.default) for name, key in KEYS.items() if key.affects == Affects.result}


def identity_hash(values: dict[str, Any]) -> str:
    """Return a short hash of a recorded config's identity, for people."""
    return hashlib.sha256(json.dumps(identity(values), sort_keys=True).encode()).hexdigest()[:16]


def lost_keys(values: dict[str, Any]) -> list[str]:
    """Return the recorded keys that the schema does not know any more, as `key=value`."""
    return [f"{name}={shorten(str(value), 40)}" for name, value in flatten(values).items() if name not in KEYS]


def read_config(path: Path) -> dict[str, Any]:
    """Return the config that a run directory records. Raises DataError where it is none, or holds none."""
    try:
        return read_yaml(path / CONFIG)
    except FileNotFoundError:
        if not path.exists():
            raise DataError(f"there is no such file or run directory{nearby(path)}") from None
        there = f"; its name is seed0 or similar{nearby(path / CONFIG)}"
        raise DataError(f"is not a run directory (it has no {CONFIG}){there}") from None
    except OSError as error:
        raise DataError(f"{CONFIG}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{CONFIG}: holds no config that can be read ({one_line(error)})") from None


def from_record(values: dict[str, Any]) -> Config:
    """Return a recorded config: the default for a key that is missing, keys unknown by now left out.

    `values` are nested or by dotted key. Raises ConfigError.
    """
    flat, nested = flatten(values), dict[str, Any]()
    for name in flat.keys() & (KEYS.keys() | Config.model_fields.keys()):  # a section that is none is refused
        section, _, inner = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[inner] = flat[name]
    return Config(**nested)


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return `field: old -> new` for every field in which two flat records differ."""
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return [f"{key}: {str(before.get(key))[:80]} -> {str(now.get(key))[:80]}" for key in keys]
