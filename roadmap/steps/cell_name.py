"""The name of a cell: its step, its variant, and the settings that make its result differ from the plain step's."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from roadmap.config import KEYS, Affects, Config, is_read
from roadmap.errors import ConfigError
from roadmap.paper.toggle_orders import join_variants
from roadmap.runs.weights_source import short_name
from roadmap.text import check_name, flatten

MAX_VARIANT = 80
SAFE_CELL = re.compile(r"[A-Za-z0-9_.,=+\[\]-]{1,80}")
IN_PATH = ("step", "variant", "regime", "data", "scale")  # groups that are in the path or the name already
APART = ("step", "variant", "seed", "initial_weights")
NAMED = [k for k, key in KEYS.items() if key.affects == Affects.result and k not in APART]


def cell_name(config: Config, cfg: DictConfig, hydra: HydraConf, compose: Callable[[Sequence[str]], DictConfig]) -> str:
    """Name the cell of a checked config, which Hydra composed as `cfg` from a primary file and overrides.

    The plain step is what `compose` makes of the same file with the same step, variant, regime, data and scale alone.
    A group that was chosen is named by its choice (`recipe=enhanced`), every other key by its value; what follows
    from another key (`model.drop_path: ${recipe.drop_path}`) is not repeated. Initial weights are named by their hash.
    Past 80 characters a hash. Raises ConfigError.
    """
    choices = hydra.runtime.choices
    changes = {} if choices.get("scale") == config.regime.scale else {"scale": choices.get("scale")}
    in_path, groups, values = _sorted_overrides(list(hydra.overrides.task), choices)
    if groups or values:
        plain = compose(in_path)
        chosen = [o for o in groups if choices.get(_group(o)) != plain.hydra.runtime.choices.get(_group(o))]
        changes |= {_group(o): choices.get(_group(o)) for o in chosen}
        changes |= dict(_differences(config, cfg, compose([*in_path, *chosen]) if chosen else plain)) if values else {}
    if config.initial_weights:
        changes["weights"] = short_name(config.initial_weights)
    head = config.step + (f"+{config.variant}" if config.variant else "")
    cell = ",".join([head, *(f"{key}={_text(changes[key])}" for key in sorted(changes))])
    if SAFE_CELL.fullmatch(cell):
        return cell
    return f"{head[:60]},{hashlib.sha256(cell.encode()).hexdigest()[:12]}"


def variant_name(hydra: HydraConf) -> str | None:
    """Return the variant that was chosen, or one name for several (`+variant=[A,B]`). Raises ConfigError."""
    for override in OverridesParser.create().parse_overrides(list(hydra.overrides.task)):
        if override.get_key_element().lstrip("+") == "variant" and isinstance(names := override.value(), list):
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ConfigError(f"+variant=[...]: {twice} is given twice")
            return check_variant(join_variants([check_name("+variant", str(name)) for name in names]))
    chosen = hydra.runtime.choices.get("variant")
    return None if chosen is None else check_variant(str(chosen))


def check_variant(name: str) -> str:
    """Return the name of a variant, or of several. Raises ConfigError for one that no folder can be named by."""
    for part in name.split("+"):
        check_name("variant", part)
    if len(name) > MAX_VARIANT:
        raise ConfigError(f"variant={name}: takes names of at most {MAX_VARIANT} characters together")
    return name


def _sorted_overrides(overrides: Sequence[str], choices: Any) -> tuple[list[str], list[str], list[str]]:
    """Return the overrides that are in the path, those that choose another group, and those that set what a result
    depends on."""
    in_path, groups, values = [], [], []
    for text, override in zip(overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True):
        key = override.get_key_element().lstrip("+~")
        if override.is_delete():
            raise ConfigError(f"~{key}: a key cannot be taken out; set it to the value that turns it off")
        if key in IN_PATH and not isinstance(override.value(), dict):
            in_path.append(text)
        elif key in choices and not isinstance(override.value(), dict):
            groups.append(text)
        elif any(name in NAMED for name in _keys(key, override)):
            values.append(text)
    return in_path, groups, values


def _keys(key: str, override: Override) -> Iterator[str]:
    value = override.value()
    yield from (f"{key}.{inner}" for inner in flatten(value)) if isinstance(value, dict) else (key,)


def _group(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def _differences(config: Config, cfg: DictConfig, plain: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yield keys and values by which a result may differ from the plain step's, unless they follow from another key."""
    written, written_before = (flatten(plain_values(c, resolve=False)) for c in (cfg, plain))
    before, now = flatten(plain_values(plain)), flatten(config.values())
    with suppress(ConfigError):  # the plain step may not be runnable: its values are then compared as they are written
        before |= flatten(Config(**plain_values(plain)).values())
    for key in NAMED:
        if now[key] != before.get(key) and written.get(key) != written_before.get(key) and is_read(key, now):
            yield key, now[key]


def plain_values(cfg: DictConfig, *, resolve: bool = True) -> dict[str, Any]:
    """Return a composed config as plain containers, without Hydra's own settings."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    values = OmegaConf.to_container(own, resolve=resolve)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(_text, value)) + "]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
