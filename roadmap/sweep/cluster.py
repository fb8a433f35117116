"""Where a study runs: `conf/cluster/slurm.yaml` or `local.yaml`, then the git-ignored `conf/local/cluster/`, then `cluster.KEY=VALUE`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from roadmap.config.schema import between, check_ranges
from roadmap.errors import ConfigError
from roadmap.steps.tree import CONF
from roadmap.text import nearest

SECRET = re.compile(r"(?i)\w*(key|token|secret|passw)\w*=")


@dataclass
class SlurmConfig:
    """How Slurm runs a cell: one task a rank, one GPU a task."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpu_type: str | None = None  # as Slurm calls it (`gpu:TYPE:N`); null: whatever the partition has
    mixed_gpus: bool = False  # let a study's cells run on different GPU types
    per_cell: int = between(8, 1, 65536)  # ranks a cell; on CPUs processes
    nodes: int = between(1, 1, 4096)  # that a cell's ranks are spread over
    cpus_per_rank: int = between(8, 1, 1024)
    mem_gb: float | None = between(None, 0, 1e6, above=True)  # memory a node; null: the partition's default
    time_h: float = between(
        24.0, 0, 10_000, above=True
    )  # time limit of a job; a run that needs longer goes on in the next
    notice_s: int = between(120, 10, 3600)  # seconds before the time limit at which a run is asked to save
    max_running: int | None = between(None, 1, 1_000_000)  # cells at once; null: as many as Slurm gives
    setup: list[str] = field(default_factory=list)  # shell lines before the run, such as `module load cuda`
    report: bool = True  # draw the chart when the last cell has ended

    def __post_init__(self) -> None:
        check_ranges("cluster", self)
        if any(SECRET.search(line) for line in self.setup):
            raise ConfigError(
                "cluster.setup: a line sets what looks like a secret, and these lines are kept in files; set it in your shell"
            )
        if self.per_cell % self.nodes:
            raise ConfigError(f"cluster.per_cell={self.per_cell}: must be a multiple of cluster.nodes={self.nodes}")


@dataclass
class LocalConfig:
    """How one machine runs cells beside each other."""

    per_cell: int = between(1, 1, 1024)  # GPUs a cell, or CPU cores where there is no GPU
    max_running: int | None = between(None, 1, 1024)  # cells at once; null: as many as fit
    mixed_gpus: bool = False

    def __post_init__(self) -> None:
        check_ranges("cluster", self)


def is_cluster_key(override: str) -> bool:
    """Tell whether an override is one of the cluster (`cluster.KEY=VALUE`), and none of the cells."""
    return override.startswith("cluster.")


def load_cluster(name: str, overrides: Sequence[str] = ()) -> SlurmConfig | LocalConfig:
    """Read the settings of `slurm` or `local`, the later ones winning. Raises ConfigError for a key or value that cannot be."""
    kind: type[SlurmConfig | LocalConfig] = SlurmConfig if name == "slurm" else LocalConfig
    values: dict[str, Any] = {}
    for path in (CONF / "cluster" / f"{name}.yaml", CONF / "local" / "cluster" / f"{name}.yaml"):
        if path.exists():
            values |= _read(kind, path)
    for override in filter(is_cluster_key, overrides):
        key, equals, text = override.removeprefix("cluster.").partition("=")
        if not equals:
            raise ConfigError(f"{override}: cannot be read as cluster.KEY=VALUE")
        values |= _known(kind, "", {key: yaml.safe_load(text)})
    try:
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), values))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        raise ConfigError(f"cluster.{key}={values.get(key)}: {str(error).splitlines()[0]}") from None
    assert isinstance(made, kind)
    return made


def _read(kind: type[Any], path: Any) -> dict[str, Any]:
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(body, dict):
        raise ConfigError(f"{path}: must hold KEY: VALUE lines")
    return _known(kind, f"{path}: ", body)


def _known(kind: type[Any], where: str, values: dict[str, Any]) -> dict[str, Any]:
    known = [item.name for item in fields(kind)]
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}cluster.{key}: there is no such key; {nearest(str(key), known)}")
    return values
