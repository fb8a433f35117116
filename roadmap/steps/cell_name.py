"""The name of a cell: the step, its variant, and what else changes the result."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from roadmap.config.schema import Config
from roadmap.errors import ConfigError

SAFE_CELL = re.compile(r"[A-Za-z0-9_.,=+\[\]-]{1,80}")
# What an override may change without changing the result, or what has a place of its own in the path.
NOT_IN_CELL = ("step", "variant", "scale", "regime", "data", "seed", "study", "mode", "weights", "device", "devices",
    "compile", "cuda_graph", "kernels", "start_timeout_s", "comm_timeout_s", "fresh", "allow_drift")  # fmt: skip
NOT_IN_CELL_BELOW = ("data.root", "data.download", "data.workers", "paths.", "wandb.", "checkpoint.", "hydra.")


def cell_name(config: Config, choices: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """Name the cell: the step, +variant, and what else changes the result, sorted."""
    changes = {} if choices.get("scale") == config.regime.scale else {"scale": choices.get("scale")}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element().lstrip("+~").split("@")[0]
        if override.is_delete():
            raise ConfigError(f"~{key}: a key cannot be taken out; set it to the value that turns it off")
        value = override.value()
        keys = _flat(key, value) if isinstance(value, dict) else {key: value}
        changes |= {
            k: _value(config, k, choices) for k in keys if not (k in NOT_IN_CELL or k.startswith(NOT_IN_CELL_BELOW))
        }
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
    """Return what a key came to: a group's choice, or the validate value (so that 1e-3 and 0.001 are one cell)."""
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
