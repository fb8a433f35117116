"""Where the cells of a study run: a module each, with its settings in `conf/cluster/NAME.yaml`.

A launcher has `Config`, the schema of its settings, a `ClusterConfig`; `require()`, which raises ConfigError where it
cannot be used; `ranks(cells, config)`, the processes of a cell; and `launch(selections, config, echo)`, which starts
the cells that are neither done nor at work, and returns an exit code.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any


def names() -> list[str]:
    """Return the launchers that there are."""
    return sorted(module.name for module in iter_modules(__path__))


def find(name: str) -> Any:
    """Return the module of a launcher."""
    return import_module(f"{__name__}.{name}")
