"""Where a study runs: `conf/cluster/NAME.yaml`, then `conf/local/cluster/NAME.yaml`, then `cluster.KEY=VALUE`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import model_validator

from roadmap.config import Affects
from roadmap.config.fields import Float, Int, Section, Text, key
from roadmap.errors import ConfigError
from roadmap.files import read_yaml
from roadmap.steps.tree import CONF
from roadmap.text import one_line

S = TypeVar("S", bound=Section)
SECRET = re.compile(r"(?i)\w*(key|token|secret|passw)\w*=")


class SlurmConfig(Section):
    """How Slurm runs a cell: one task a rank, one GPU a task."""

    prefix = "cluster."
    affects = Affects.place

    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    gpu_type: Text | None = key(None, about="as Slurm calls it (`gpu:TYPE:N`); null: whatever the partition has")
    mixed_gpus: bool = key(False, about="let a study's cells run on different GPU types")
    per_cell: Int = key(8, ge=1, le=65536, about="ranks a cell; on CPUs processes")
    nodes: Int = key(1, ge=1, le=4096, about="that a cell's ranks are spread over")
    cpus_per_rank: Int = key(8, ge=1, le=1024)
    mem_gb: Float | None = key(None, gt=0, le=1e6, about="memory a node; null: the partition's default")
    time_h: Float = key(24.0, gt=0, le=10_000, about="of a job; a run that needs longer goes on in the next")
    notice_s: Int = key(120, ge=10, le=3600, about="seconds before the limit at which a run is asked to save")
    max_running: Int | None = key(None, ge=1, le=1_000_000, about="cells at once; null: as many as Slurm gives")
    setup: tuple[Text, ...] = key(
        (), max_length=100, about="a list of shell lines before the run, such as [module load cuda]"
    )
    report: bool = key(True, about="draw the chart when the last cell has ended")

    @model_validator(mode="after")
    def _check(self) -> "SlurmConfig":
        if any(SECRET.search(line) for line in self.setup):
            raise ConfigError(
                "cluster.setup: a line sets what looks like a secret, and these lines are kept in files; "
                "set it in your shell"
            )
        if self.per_cell % self.nodes:
            raise ConfigError(f"cluster.per_cell={self.per_cell}: must be a multiple of cluster.nodes={self.nodes}")
        return self


class LocalConfig(Section):
    """How one machine runs cells beside each other."""

    prefix = "cluster."
    affects = Affects.place

    per_cell: Int = key(1, ge=1, le=1024, about="GPUs a cell, or CPU cores where there is no GPU")
    max_running: Int | None = key(None, ge=1, le=1024, about="cells at once; null: as many as fit")
    mixed_gpus: bool = False


def is_cluster_key(override: str) -> bool:
    """Tell whether an override is one of the cluster (`cluster.KEY=VALUE`), and none of the cells."""
    return override.startswith("cluster.")


def load_cluster(kind: type[S], name: str, overrides: Sequence[str] = ()) -> S:
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
