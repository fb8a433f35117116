"""What a run directory holds: the names of its files, the schema of each, and how its numbers are shown.

Older records lack keys, and newer ones have more: what is missing is None, what is not known is kept.
`MANIFEST_SCHEMA` counts the forms of a manifest.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from roadmap.config import Affects
from roadmap.files import MAX_JSON, MAX_YAML, finite_or_null, read_json, write_json
from roadmap.text import clean, redact

METRICS, SUMMARY, STATUS, CONFIG, LOG = "metrics.jsonl", "summary.json", "status.json", "config.yaml", "run.log"
# Of the last evaluation, one entry per image in the set's order: whether it was right, the class that came first, the
# image's own class. Older runs have the first alone.
CORRECT, PREDICTIONS, LABELS = "correct.npy", "predictions.npy", "labels.npy"
# The files of a record, each with the bytes that it may have: a larger one was not written by a run.
RECORD = {STATUS: MAX_JSON, SUMMARY: MAX_JSON, CONFIG: MAX_YAML, METRICS: 2**30, LOG: 2**26}
RECORD |= {CORRECT: 2**22, PREDICTIONS: 2**25, LABELS: 2**25}
CHECKPOINTS = "checkpoints"
MANIFEST_SCHEMA = 2


class Split(StrEnum):
    """Which images a run evaluated; older records do not say, and are of `val`."""

    val = "val"  # the validation images
    holdout = "holdout"  # training images that were held out: no accuracy of the roadmap


class Record(BaseModel):
    """A JSON object that a run writes: numbers are numbers, and finite."""

    model_config = ConfigDict(extra="allow", protected_namespaces=(), strict=True, allow_inf_nan=False)


R = TypeVar("R", bound=Record)
Line = Annotated[str, AfterValidator(partial(clean, limit=500))]  # a text that is shown; it may be hostile
Count = Annotated[int, Field(ge=0, lt=10**12)]
Whole = Annotated[int, Field(gt=0, lt=10**9)]
Number = Annotated[float, Field(ge=0, lt=1e12)]
Percent = Annotated[float, Field(ge=0, le=100)]


class RunInfo(Record):
    """What is known of a run before its first step, and where it computes."""

    gmacs: Number | None = None
    macts: Number | None = None
    params_m: Number | None = None
    num_classes: Whole | None = None
    classes: list[str] | None = None  # their names in the order of the labels
    steps_per_epoch: Count | None = None
    data_fingerprint: Annotated[Line | None, Affects.result] = None
    precision: Annotated[Line | None, Affects.result] = None
    world_size: Annotated[Count | None, Affects.result] = None  # devices
    code_hash: Annotated[Line | None, Affects.rounding] = None
    compile: Annotated[bool | None, Affects.rounding] = None
    cuda_graph: Annotated[bool | None, Affects.rounding] = None
    kernels: Annotated[str | None, Affects.rounding] = None
    hardware: Annotated[Line | None, Affects.rounding] = None
    threads: Annotated[int | None, Field(ge=1, le=4096), Affects.rounding] = None
    versions: Annotated[dict[str, str] | None, Affects.rounding] = None
    group_size: Annotated[int | None, Field(ge=1, le=4096)] = None  # runs side by side in one process; None: one
    git_commit: Line | None = None
    git_dirty: bool | None = None
    host: Line | None = None
    job_id: str | None = None


class Status(RunInfo):
    """`status.json`: how a run stands."""

    state: Literal["begun", "running", "stopped", "failed", "done"] | None = None
    epoch: Count | None = None  # evaluated, at the newest checkpoint
    step: Count | None = None
    exit_code: int | None = None
    reason: Line | None = None
    starts: Count | None = None
    start_counted: bool | None = None  # the newest is among them, and has not begun to train
    started: str | None = None
    updated: str | None = None
    deaths: Count | None = None  # in a row, without a new checkpoint
    began_at: list[int] | None = None  # step and epochs of the checkpoint that this start began at
    drift: list[str] | None = None  # what had changed when it went on by allow_drift=true
    rounding: list[str] | None = None  # what had changed that differs in rounding alone
    pid: int | None = None
    pid_start: int | None = None  # in the kernel's ticks: a later process may have the same number
    wandb_id: str | None = None
    wandb_rows: Count | None = None  # lines of the ledger that W&B's client was given
    time_s: Number | None = None  # of training, at the newest checkpoint
    lost_s: Number | None = None  # of training after a checkpoint that a later start did again, at least


class Summary(RunInfo):
    """`summary.json`: the result of a run that is done, accuracies in percent."""

    state: Literal["done"] | None = None
    study: str | None = None
    cell: str | None = None
    step: str | None = None
    variant: str | None = None
    parent: str | None = None
    label: Line | None = None
    adopted: Literal["yes", "no", "reference"] | None = None
    seed: Count | None = None
    regime: str | None = None
    data: str | None = None
    recipe: str | None = None
    epochs: Whole | None = None
    batch_size: Whole | None = None
    image_size: Whole | None = None
    split: Annotated[Split, Field(strict=False)] | None = None
    epoch: Count | None = None
    top1: Percent | None = None
    top5: Percent | None = None
    ema_top1: Percent | None = None
    ema_top5: Percent | None = None
    val_images: Whole | None = None
    train_images_per_s: Number | None = None
    gpu_hours: Number | None = None
    lost_gpu_hours: Number | None = None
    lost_s: Number | None = None
    time_s: Number | None = None
    peak_memory_gb: Number | None = None
    drift: list[str] | None = None
    rounding: list[str] | None = None
    sha256: dict[str, str] | None = None  # of the other files of the record
    checksum: str | None = None  # of all the other keys


class Manifest(RunInfo):
    """What lies beside a checkpoint; without it, it does not count."""

    form: int = Field(alias="schema")
    bytes: int
    sha256: str
    identity: dict[str, Any]
    global_step: int
    epochs_evaluated: int
    best_top1: float | None = None
    best_step: int | None = None
    time: float | None = None
    rows: int  # lines of the ledger up to this checkpoint
    rows_sha256: str
    checksum: str  # of all the other keys


def write_record(kind: type[Record], path: Path, values: dict[str, Any]) -> None:
    """Write a record as a whole; a number that is not finite becomes null, a secret `***`. Raises OSError."""
    kind.model_validate(finite_or_null(values))  # what a run writes, every reader takes
    write_json(path, {key: redact(value) if isinstance(value, str) else value for key, value in values.items()})


def read_record(kind: type[Record], path: Path) -> dict[str, Any]:
    """Read a record, checked by its schema. Raises OSError, and ValueError naming the file, the key and its value."""
    values = read_json(path)
    check_record(kind, values, str(path))
    return values


def check_record(kind: type[R], values: dict[str, Any], name: str) -> R:
    """Return a record, checked by its schema. Raises ValueError naming the file, the key and its value."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        where, value = ".".join(map(str, found["loc"])), None if found["type"] == "missing" else found["input"]
        why = "not a name" if found["type"] == "string_pattern_mismatch" else found["msg"].lower()
        told = f"{where}={clean(value, 40)} is not what a run writes ({why})"
        raise ValueError(f"{name}: {told}") from None


def read_or_empty(kind: type[R], path: Path) -> R:
    """Return a record, one without values where there is none that can be read."""
    try:
        return kind.model_validate(read_json(path))
    except (OSError, ValueError):
        return kind()


def checksum(record: dict[str, Any]) -> str:
    """Return a hash of all of a record but its checksum."""
    rest = {key: value for key, value in record.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def info_keys(kind: Affects) -> list[str]:
    """Return the keys of `RunInfo` that affect a result, or its rounding."""
    return [name for name, field in RunInfo.model_fields.items() if kind in field.metadata]


@dataclass(frozen=True)
class Quantity:
    """A number in `summary.json`, and how it is shown wherever it is shown."""

    key: str
    title: str
    unit: str
    about: str  # one line under a table
    better: Literal["higher", "lower"] = "lower"
    digits: int = 2  # decimals; a number below 1 has as many as three digits need
    measured: bool = False  # while a run trained, so that a busy machine shows in it
    scale: float = 1.0  # of the recorded number, to have it in this unit

    @property
    def heading(self) -> str:
        """Return e.g. `top-1 (%)`."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, value: float | None) -> str:
        """Return a recorded value in its unit and digits, without the unit; nothing for nothing."""
        if value is None:
            return ""
        value *= self.scale
        return f"{value:.{self.digits}f}" if value >= 1 or value == 0 else f"{value:#.3g}"


OF_SPEED = "of one run, beside the others where several train side by side; mean over seeds"
OF_HOURS = "of all GPUs of a run together, its share where several train side by side; mean over seeds"
OF_MEMORY = "of one process, a run's share where several train side by side; mean over seeds"
OF_RESTARTS = "training repeated after restarts, at least; not part of GPU-hours; mean over seeds"
QUANTITIES = {
    quantity.key: quantity
    for quantity in (
        Quantity("top1", "top-1", "%", "accuracy after the last epoch, mean over n seeds", "higher"),
        Quantity("top5", "top-5", "%", "accuracy after the last epoch, mean over n seeds", "higher"),
        Quantity("gmacs", "MACs", "G", "multiply-accumulates of one image"),
        Quantity("macts", "activations", "M", "outputs of convolutions and matrix products, of one image"),
        Quantity("params_m", "parameters", "M", "of the network"),
        Quantity("train_images_per_s", "training speed", "images/s", OF_SPEED, "higher", 0, measured=True),
        Quantity("gpu_hours", "GPU-hours", "h", OF_HOURS, measured=True),
        Quantity("lost_gpu_hours", "GPU-hours lost", "h", OF_RESTARTS, measured=True),
        Quantity("peak_memory_gb", "peak memory", "GiB", OF_MEMORY, measured=True),
    )
}
MEGA_MACS = replace(QUANTITIES["gmacs"], unit="M", scale=1000.0)  # of nets too small for G
