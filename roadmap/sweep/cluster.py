"""A launcher's settings: `conf/cluster/NAME.yaml`, then `conf/local/cluster/NAME.yaml`, then `cluster.KEY=VALUE`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from roadmap.config import Affects
from roadmap.config.fields import Int, Section, key
from roadmap.errors import ConfigError
from roadmap.files import read_yaml
from roadmap.parsing import parse_yaml
from roadmap.steps.tree import CONF
from roadmap.text import one_line


class ClusterConfig(Section):
    """The settings that every launcher has."""

    prefix = "cluster."
    affects = Affects.place

    per_cell: Int = key(1, ge=1, le=1024, about="GPUs a cell, or CPU cores where there is no GPU")
    max_running: Int | None = key(None, ge=1, le=1024, about="cells at once; null: as many as fit")
    mixed_gpus: bool = key(False, about="let a study's cells run on different GPU types")


C = TypeVar("C", bound=ClusterConfig)


def is_cluster_key(override: str) -> bool:
    """Tell whether an override is one of the cluster (`cluster.KEY=VALUE`), and none of the cells."""
    return override.startswith("cluster.")


def load_cluster(kind: type[C], name: str, overrides: Sequence[str] = ()) -> C:
    """Read the settings of a launcher, the later ones winning. Raises ConfigError for what cannot be."""
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
            values[key] = parse_yaml(text)
        except ValueError:
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
