"""Where a study runs: the launchers, and their settings.

Settings are read from `conf/cluster/NAME.yaml`, then `conf/local/cluster/NAME.yaml`, then `cluster.KEY=VALUE`. A
launcher is such a file and a module of its name in this room, with what `Launcher` says.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import yaml

from roadmap.config import Affects
from roadmap.config.fields import Int, Section, key
from roadmap.errors import ConfigError
from roadmap.files import read_yaml
from roadmap.steps.tree import CONF
from roadmap.text import nearest, one_line

if TYPE_CHECKING:
    from roadmap.sweep.study import Cell
    from roadmap.sweep.submit import Selection


class ClusterConfig(Section):
    """The settings that every launcher has."""

    prefix = "cluster."
    affects = Affects.place

    per_cell: Int = key(1, ge=1, le=1024, about="GPUs a cell, or CPU cores where there is no GPU")
    max_running: Int | None = key(None, ge=1, le=1024, about="cells at once; null: as many as fit")
    mixed_gpus: bool = key(False, about="let a study's cells run on different GPU types")


class Launcher(Protocol):
    """What a launcher's module has. One that stays in the foreground records its cells with `local.claim_cells`."""

    Settings: type[ClusterConfig]

    def require(self) -> None:
        """Raise ConfigError where this launcher cannot be used."""

    def ranks(self, settings: Any, cells: "Sequence[Cell]") -> int:
        """Return the processes of one cell."""

    def launch(self, selections: "Sequence[Selection]", settings: Any, echo: Callable[[str], None]) -> int:
        """Start what is neither done nor at work; return the exit code."""


def launchers() -> list[str]:
    """Return the names of the launchers."""
    return sorted(path.stem for path in (CONF / "cluster").glob("*.yaml"))


def launcher(name: str) -> Launcher:
    """Return a launcher. Raises ConfigError for one that there is not."""
    if name not in launchers():
        raise ConfigError(f"CLUSTER={name}: there is no such launcher; {nearest(name, launchers())}")
    return cast(Launcher, import_module(f"roadmap.sweep.{name}"))


def is_cluster_key(override: str) -> bool:
    """Tell whether an override is one of the cluster (`cluster.KEY=VALUE`), and none of the cells."""
    return override.startswith("cluster.")


def load_cluster(name: str, overrides: Sequence[str] = ()) -> ClusterConfig:
    """Read the settings of a launcher, the later ones winning. Raises ConfigError for what cannot be."""
    kind = launcher(name).Settings
    values: dict[str, Any] = {}
    for path in (CONF / "cluster" / f"{name}.yaml", CONF / "local" / "cluster" / f"{name}.yaml"):
        if path.exists():
            values |= read_settings(path)
            try:
                kind(**values)
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None
    for override in filter(is_cluster_key, overrides):
        key, equals, text = override.removeprefix("cluster.").partition("=")
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            equals = ""
        if not equals:
            raise ConfigError(f"{override}: cannot be read as cluster.KEY=VALUE")
    return kind(**values)


def read_settings(path: Path) -> dict[str, Any]:
    """Return a file's `KEY: VALUE` lines. Raises ConfigError."""
    try:
        body = read_yaml(path) or {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({one_line(error)})") from None
    if not isinstance(body, dict):
        raise ConfigError(f"{path}: must hold KEY: VALUE lines")
    return {str(key): value for key, value in body.items()}
