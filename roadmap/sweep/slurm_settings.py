"""The settings of Slurm: of all cells, of single rows, and any option of `sbatch` and `srun` by its name."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationInfo, field_validator, model_validator

from roadmap.config.fields import MAX_TEXT, Float, Int, Text, key, shown
from roadmap.errors import ConfigError
from roadmap.sweep.cluster import ClusterConfig
from roadmap.text import nearest, secrets_here

SECRET = re.compile(r"(?i)\w*(key|token|secret|passw)\w*=")
OPTION = re.compile(r"[a-z][a-z0-9]+(-[a-z0-9]+)*")
# Options that the launcher sets, or that would take its answer from it, with the setting that means the same.
_OWN = {
    **dict.fromkeys(("job-name", "output", "error", "dependency", "clusters"), ""),
    **dict.fromkeys(("help", "usage", "version", "quiet", "test-only", "wait"), ""),
    **dict.fromkeys(("ntasks", "ntasks-per-node", "ntasks-per-gpu"), "per_cell"),
    **dict.fromkeys(("gres", "gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task"), "per_cell and gpu_type"),
    **{name: name for name in ("partition", "account", "qos", "constraint", "nodes")},
    "cpus-per-task": "cpus_per_rank", "mem": "mem_gb", "time": "time_h", "signal": "notice_s",
}  # fmt: skip
OWN = {
    "sbatch": _OWN | {"array": "max_running"} | dict.fromkeys(("open-mode", "wrap", "parsable", "requeue"), "")
    | {"no-requeue": ""},
    "srun": _OWN | dict.fromkeys(("unbuffered", "kill-on-bad-exit", "multi-prog", "pty", "jobid", "input"), ""),
}  # fmt: skip
# What a row may have of its own. GPUs are the same for all: a study compares like with like.
OF_ROWS = ("partition", "account", "qos", "constraint", "nodes", "cpus_per_rank", "mem_gb", "time_h", "notice_s")
OPTIONS = ("sbatch", "srun")


class Config(ClusterConfig):
    """How Slurm runs a cell: one task per rank, one GPU per task."""

    literal = OPTIONS

    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    gpu_type: Text | None = key(None, about="as Slurm calls it (`gpu:TYPE:N`); null: any type of the partition")
    per_cell: Int = key(8, ge=1, le=65536, about="ranks per cell; on CPUs processes")
    nodes: Int = key(1, ge=1, le=4096, about="that a cell's ranks are spread over")
    cpus_per_rank: Int = key(8, ge=1, le=1024)
    mem_gb: Float | None = key(None, gt=0, le=1e6, about="memory per node; null: the partition's default")
    time_h: Float = key(24.0, gt=0, le=10_000, about="of a job; a longer run continues in the next job")
    notice_s: Int = key(120, ge=10, le=3600, about="seconds before the limit at which a run is asked to save")
    max_running: Int | None = key(None, ge=1, le=1_000_000, about="cells at once; null: as many as Slurm gives")
    setup: tuple[Text, ...] = key(
        (), max_length=100, about="a list of shell lines before the run, such as [module load cuda]"
    )
    report: bool = key(True, about="draw the chart when the last cell has ended")
    sbatch: dict[str, Any] = key({}, about="any option of sbatch: {reservation: NAME}, true for one without a value")
    srun: dict[str, Any] = key({}, about="any option of srun: {container-image: NAME}")
    rows: dict[str, dict[str, Any]] = key({}, about="other resources of a step or a cell: {kernel_11: {time_h: 30}}")

    @field_validator(*OPTIONS, "rows", mode="before")
    @classmethod
    def _check_mapping(cls, value: Any, info: ValidationInfo) -> Any:
        value = {} if value is None else value
        wrong = not isinstance(value, dict) or len(value) > 1000
        if wrong or (info.field_name == "rows" and not all(isinstance(row, dict) for row in value.values())):
            form = "{STEP: {KEY: VALUE}}" if info.field_name == "rows" else "{OPTION: VALUE}"
            raise ConfigError(f"cluster.{info.field_name}={shown(value)}: must be {form}")
        return {str(name): each for name, each in value.items()}

    @field_validator(*OPTIONS)
    @classmethod
    def _check_options(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return dict(checked_option(str(info.field_name), name, given) for name, given in value.items())

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if any(SECRET.search(line) for line in self.setup):
            raise ConfigError(
                "cluster.setup: a line sets what looks like a secret, and these lines are kept in files; "
                "set it in your shell"
            )
        if self.per_cell % self.nodes:
            raise ConfigError(f"cluster.per_cell={self.per_cell}: must be a multiple of cluster.nodes={self.nodes}")
        if self.notice_s >= 60 * self.minutes:
            raise ConfigError(
                f"cluster.time_h={self.time_h:g}: is no longer than the cluster.notice_s={self.notice_s} seconds "
                "before its end at which a run is asked to save"
            )
        for name in self.rows:
            self.of_row(name)
        return self

    @property
    def minutes(self) -> int:
        """Return the time of a job as Slurm takes it."""
        return max(1, round(self.time_h * 60))

    def of_row(self, name: str) -> "Config":
        """Return the settings of a row that has some of its own. Raises ConfigError."""
        row = self.rows[name]
        allowed = (*OF_ROWS, *OPTIONS)
        if wrong := [key for key in row if key not in allowed]:
            raise ConfigError(
                f"cluster.rows.{shown(name)}.{shown(wrong[0])}: a row has no such setting of its own; "
                f"{nearest(str(wrong[0]), allowed)}"
            )
        both = {each: getattr(self, each) | row[each] for each in OPTIONS if isinstance(row.get(each), dict)}
        try:
            return Config(**{**dict(self), "rows": {}, **row, **both})
        except ConfigError as error:
            raise ConfigError(str(error).replace("cluster.", f"cluster.rows.{shown(name)}.")) from None

    def of_cell(self, key: str) -> "Config":
        """Return the settings of a cell by its key, `tiny-imagenet/gelu/seed0`: those of its own name, else its
        step's."""
        cell = key.split("/")[-2]
        name = next((name for name in (cell, re.split("[+,]", cell)[0]) if name in self.rows), None)
        return self.replace(rows={}) if name is None else self.of_row(name)

    def check_rows(self, known: Iterable[str]) -> None:
        """Raise ConfigError for settings of a row that is none of the `known` steps and cells."""
        names = list(known)
        super().check_rows(names)
        for name in self.rows:
            if name not in names:
                raise ConfigError(f"cluster.rows.{shown(name)}: there is no such row; {nearest(name, names, 20)}")

    def flags(self, command: str) -> dict[str, str | bool]:
        """Return the options of sbatch or srun that were named; True for one without a value."""
        options: Mapping[str, Any] = getattr(self, command)
        return {name: value for name, value in options.items() if value is not None}


def checked_option(command: str, name: str, value: Any) -> tuple[str, str | bool | None]:
    """Return an option as Slurm has it, and its value: a text, True for none, None where it is taken out again.

    Raises ConfigError for one that the launcher owns, and for what is no single line.
    """
    option, text = name.replace("_", "-"), value if isinstance(value, str) else shown(value)
    head = f"cluster.{command}.{shown(name)}"
    if not OPTION.fullmatch(option):
        raise ConfigError(f"{head}: is not the name of an option: letters, digits and dashes, as in {command} --help")
    # Slurm takes an option's first letters for it.
    if owned := next((own for own in OWN[command] if own.startswith(option)), None):
        setting = OWN[command][owned]
        instead = "; set " + " and ".join(f"cluster.{each}" for each in setting.split(" and ")) if setting else ""
        abbreviates = "" if owned == option else f"may be read as --{owned}, which "
        raise ConfigError(f"{head}: {abbreviates}is set by the launcher{instead}")
    if value is None or text in ("null", "false"):
        return option, None
    if text == "true":
        return option, True
    if isinstance(value, dict | list | tuple) or not text:
        raise ConfigError(f"{head}={shown(value)}: must be text, or true for an option without a value")
    if len(text) > MAX_TEXT or not text.isprintable():
        raise ConfigError(f"{head}={shown(ascii(text)[1:-1])}: must be one line of at most {MAX_TEXT} characters")
    if SECRET.search(text) or any(secret in text for secret in secrets_here()):
        raise ConfigError(f"{head}: holds what looks like a secret; options are kept in files, so set it in your shell")
    return option, text
