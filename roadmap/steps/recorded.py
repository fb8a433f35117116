"""`weights=RUN` where a run's net is used unchanged: the run's config, with what the command line may change in it."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser

from roadmap.config import KEYS, Affects, Config
from roadmap.config.choices import Mode
from roadmap.config.fields import shown
from roadmap.config.schema import DERIVED
from roadmap.errors import ConfigError, DataError
from roadmap.files import expand
from roadmap.runs.recorded_config import from_record, read_config
from roadmap.steps.cell_name import SAFE_CELL, check_variant, variant_name
from roadmap.steps.tree import ADDED
from roadmap.text import check_name, clean, flatten

# Keys of this machine; the images' folder and the number of workers stay as the run had them.
HERE = {k for k, key in KEYS.items() if key.affects == Affects.place and not k.startswith("data.")}
HERE -= {*DERIVED, "study"}
OF_GROUP = {"step": "step", "variant": "variant", "regime": "regime.name", "recipe": "recipe.name"}


def takes_a_net(mode: Any) -> bool:
    """Tell whether a mode, as it was typed, uses a net that is trained already."""
    return mode in list(Mode) and Mode(mode).takes_a_net


def takes_a_run(mode: Any, weights: Any) -> bool:
    """Tell whether a command uses the net of one of our run directories, whose record says everything."""
    return takes_a_net(mode) and bool(weights) and expand(str(weights)).is_dir()


def config_of_run(composed: Mapping[str, Any], hydra: HydraConf) -> Config:
    """Return the config of the run in `weights`, with what the command line says of an evaluation or a place.

    `composed` is the command line's own config, by dotted key. Raises DataError for a record that cannot be
    read, ConfigError for a typed key that would make another net or another run of it.
    """
    path, choices = expand(str(composed["weights"])), hydra.runtime.choices
    run = read_run_config(path)
    now = {**composed, "step": choices.get("step"), "variant": variant_name(hydra)}
    same_data = now["data.name"] == run["data.name"]
    typed = [key for key in typed_keys(hydra.overrides.task, same_data=same_data) if key in now]
    for key in typed:
        same = run[key] == now[key] or str(run[key]) == str(now[key])  # seed='0' is text
        if not same and KEYS[key].affects == Affects.result and not may_differ(key):
            sign = "+" * (key in ADDED)
            raise ConfigError(
                f"{sign}{key}={shown(now[key])}: the run in weights={path} has {shown(run[key])}, "
                f"and mode={composed['mode']} takes it as it is; leave this out"
            )
    root = run["data.root"]
    if root and not expand(root).is_dir():  # the run was made elsewhere
        run["data.root"] = os.environ.get("ROADMAP_DATA") or root
    return from_record(run | {key: now[key] for key in (*HERE, *typed) if key in now})


def read_run_config(path: Path) -> dict[str, Any]:
    """Return a run's config by dotted key, checked like every config. Raises DataError."""
    try:
        config = from_record(read_config(path))
        for name in ("step", "study"):
            if getattr(config, name) is not None:
                check_name(name, getattr(config, name))
        if config.variant is not None:
            check_variant(config.variant)
        check_name("regime.name", config.regime.name)
        if not SAFE_CELL.fullmatch(config.cell):
            raise ConfigError(f"cell={config.cell}: is not the name of a cell")
    except (ConfigError, DataError) as error:
        raise DataError(clean(f"weights={path}: {error}", 500)) from None
    return flatten(config.values())


def typed_keys(overrides: Iterable[str], *, same_data: bool) -> Iterable[str]:
    """Yield the keys that a command line sets; `data=NAME` sets its whole section unless the run has the same set."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        name = override.get_key_element().lstrip("+~")
        if name == "data" and isinstance(override.value(), str):
            yield from () if same_data else (key for key in KEYS if key.startswith("data."))
        elif name in OF_GROUP and not isinstance(override.value(), dict):
            yield OF_GROUP[name]
        else:
            yield from (key for key in KEYS if key == name or key.startswith(f"{name}."))


def may_differ(key: str) -> bool:
    """Tell whether an evaluation may differ from the run's own in a key: other images, but not another net."""
    return key.startswith("data.") or (KEYS[key].evaluation and not key.startswith("model."))
