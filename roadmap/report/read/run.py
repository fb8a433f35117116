"""One run, read from its directory or from W&B and checked. Everything read here is hostile text until it was checked.

`metrics.jsonl` and `summary.json` are the truth and must agree; `status.json` says whether the run is done.
"""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from roadmap.report.read.image_classes import ImageClasses, check_classes, read_classes
from roadmap.report.read.wandb import WandbRun
from roadmap.runs.metrics import Metrics, find_hole
from roadmap.runs.progress import hours_text
from roadmap.runs.recorded_run import RecordedRun, Suspect
from roadmap.runs.schema import (
    CONFIG,
    CORRECT,
    METRICS,
    QUANTITIES,
    STATUS,
    SUMMARY,
    Count,
    Number,
    Percent,
    Record,
    Split,
    Status,
    Summary,
    Whole,
    check_record,
)
from roadmap.text import clean, flatten

SAME = 0.005  # percentage points: summary and ledger may be rounded differently
SHARED = ("study", "regime", "data", "cell", "step", "variant", "parent", "adopted", "recipe", "seed", "val_images")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,=+\[\]-]{0,79}$")]  # as `roadmap.steps` allows them


class Finished(Summary):
    """The summary of a run that counts."""

    study: Name
    regime: Name
    data: Name
    cell: Name
    step: Name
    variant: Name | None = None
    parent: Name | None = None
    recipe: Name
    adopted: Literal["yes", "no", "reference"]
    seed: Count
    top1: Percent


class Evaluated(Record):
    """A line of the ledger about an evaluation."""

    epoch: Whole
    loss: Number = Field(alias="val/loss")
    top1: Percent = Field(alias="val/top1")
    top5: Percent | None = Field(None, alias="val/top5")
    ema_top1: Percent = Field(0.0, alias="val/ema_top1")


@dataclass(frozen=True, kw_only=True)
class CellInfo:
    """What all seeds of a cell share."""

    study: str
    regime: str
    data: str
    cell: str
    step: str
    variant: str | None
    parent: str | None
    label: str
    adopted: str  # yes | no | reference
    recipe: str
    epochs: int | None
    image_size: int | None
    images: str  # fingerprint of the data, where it is known
    holdout: float = 0.0  # share of the training images that was evaluated; 0: the validation images were

    @property
    def plain(self) -> bool:
        """Tell whether this is a step as it is, without variant or override, on the validation images."""
        return self.cell == self.step and self.variant is None and not self.holdout


@dataclass(frozen=True, kw_only=True)
class Run(CellInfo):
    """One finished run that passed every check. Accuracies in percent, `gmacs` at `image_size` pixels, batch 1."""

    path: str = field(compare=False)
    seed: int
    numbers: dict[str, float]  # the summary's, by the keys of QUANTITIES; what it lacks is not there
    batch_size: int | None
    code: str  # hash of the code that trains; the git commit where there is no hash
    drift: str  # what changed between two starts of the run, by an explicit override
    rounding: str  # what changed that differs in rounding alone
    hardware: str
    group_size: int  # runs side by side in one process
    precision: str  # of forward and backward
    versions: str
    commit: str  # with a mark where the checkout was changed since
    starts: int | None
    time_s: float | None = field(compare=False)  # of training, over all starts
    val_images: int | None
    config: dict[str, str] = field(repr=False)  # dotted key -> value as text
    curve: tuple[tuple[int, float], ...] = field(repr=False)  # epoch, top-1 of every evaluation
    bits: bytes | None = field(repr=False)  # which validation images were right, eight a byte
    classes: ImageClasses | None = None  # which class the net chose for each; None in older records
    marks: tuple[str, ...] = field(default=(), compare=False)  # in which ways it differs from its study and yet counts

    @property
    def name(self) -> str:
        """Return the run's directory below a folder of runs: the same wherever it was read from."""
        return f"{self.study}/{self.regime}-{self.data}/{self.cell}/seed{self.seed}"

    @property
    def top1(self) -> float:
        """Return the accuracy after the last epoch, in percent."""
        return self.numbers["top1"]

    def correct(self) -> np.ndarray | None:
        """Return which images were right, `(val_images,)` of bool."""
        if self.bits is None or self.val_images is None:
            return None
        return np.unpackbits(np.frombuffer(self.bits, np.uint8), count=self.val_images).astype(bool)


class Unfinished(Exception):
    """This run gives no number yet."""


Curve = list[Evaluated]


def read_run(source: RecordedRun | WandbRun) -> Run:
    """Read and check one run. Raises Unfinished, ValueError (with the reason) and OSError."""
    status = check_record(Status, source.status(), STATUS)
    if status.state is None:
        raise Suspect(f"{STATUS}: has no state")
    if status.state != "done":
        raise Unfinished(_progress(source, status))
    if (values := source.summary()) is None:
        raise Unfinished(f"done, but there is no {SUMMARY}")
    summary = check_record(Finished, values, SUMMARY)
    metrics = source.metrics()
    curve = _read_curve(metrics, summary)
    run = _run(source, summary, status, curve)
    belongs = (f"seed{run.seed}", run.cell, f"{run.regime}-{run.data}")
    for found, right in zip(source.named or (), belongs, strict=False):
        if found != right:
            raise Suspect(f"{SUMMARY} belongs to {right}, the folder is named {found} (moved aside or copied?)")
    _check_steps(metrics, curve, summary.steps_per_epoch or status.steps_per_epoch, run.epochs)
    _check_bits(run)
    check_classes(run.classes, run.correct(), run.val_images)
    if changed := source.changed(values):
        raise Suspect(f"{', '.join(changed)} changed after the run had ended")
    return run


def _run(source: RecordedRun | WandbRun, summary: Finished, status: Status, curve: Curve) -> Run:
    """Turn a record into a Run. Raises Suspect."""
    texts = config_texts(source.config())
    numbers = {key: value for key in QUANTITIES if (value := getattr(summary, key, None)) is not None}
    shared = {name: getattr(summary, name) for name in SHARED}
    shared["parent"] = None if summary.parent == summary.step else summary.parent  # no step follows itself
    versions = [f"{name} {version}" for name, version in sorted((summary.versions or {}).items())]
    return Run(
        path=source.shown,
        **shared,
        label=summary.label or summary.step,
        epochs=summary.epochs or digits(texts.get("recipe.epochs", "")),
        image_size=summary.image_size or digits(texts.get("data.image_size", "")),
        batch_size=summary.batch_size or digits(texts.get("recipe.batch_size", "")),
        numbers=numbers,
        images=summary.data_fingerprint or "",
        holdout=_holdout(summary, texts),
        drift=clean(", ".join(summary.drift or ())),
        rounding=clean(", ".join(summary.rounding or ())),
        hardware=summary.hardware or "",
        group_size=summary.group_size or 1,
        precision=summary.precision or "",
        versions=clean(", ".join(versions)),
        code=summary.code_hash or status.git_commit or "",
        commit=(status.git_commit or "") + " (changed since)" * (status.git_dirty is True),
        starts=status.starts,
        time_s=summary.time_s,
        config=texts,
        curve=tuple((row.epoch, row.top1) for row in curve),
        bits=source.bits(),
        classes=read_classes(source, summary.num_classes, summary.classes or status.classes or ()),
    )


def _holdout(summary: Finished, texts: dict[str, str]) -> float:
    """Return the share of the training images that a run was evaluated on. Raises Suspect where its files disagree."""
    text = texts.get("data.holdout", "0")
    share = decimal(text) or 0.0
    expected = Split.holdout if share else Split.val
    if decimal(text) is None or share >= 1 or summary.split not in (None, expected):  # older records do not say
        raise Suspect(f"{SUMMARY}: split={summary.split}, {CONFIG} says data.holdout={clean(text, 40)}")
    return share


def _read_curve(metrics: Metrics, summary: Finished) -> Curve:
    """Return the evaluations. Raises ValueError where the ledger is damaged or its last one is not the summary's."""
    if metrics.problem:
        raise Suspect(metrics.problem)
    if not metrics.rows:
        raise Suspect(f"{METRICS}: contains no evaluation")
    curve = [check_record(Evaluated, row, f"{METRICS}, epoch {clean(row['epoch'], 20)}") for row in metrics.rows]
    if summary.top5 is not None and summary.top5 < summary.top1 - SAME:
        raise Suspect(f"{SUMMARY}: top5={summary.top5:g} is below top1={summary.top1:g}")
    for key in ("top1", "top5"):
        ours, theirs = getattr(summary, key), getattr(curve[-1], key)
        if ours is not None and theirs is not None and abs(ours - theirs) > SAME:
            raise Suspect(f"{SUMMARY}: {key}={ours:g}, the last evaluation in {METRICS} says {theirs:g}")
    if summary.epoch != (last := curve[-1].epoch):
        raise Suspect(f"{SUMMARY}: epoch={summary.epoch}, the last evaluation in {METRICS} is of epoch {last}")
    return curve


def _check_steps(metrics: Metrics, curve: Curve, steps_per_epoch: int | None, epochs: int | None) -> None:
    """Raise Suspect where the ledger lacks the line of an evaluation or, if it has any of training, of a step."""
    if epochs is not None and curve[-1].epoch != epochs:
        raise Suspect(f"done, but its last evaluation is of epoch {curve[-1].epoch} of {epochs}")
    hole = find_hole("evaluation", [row.epoch for row in curve], curve[-1].epoch)
    if not hole and steps_per_epoch and metrics.steps["train"]:
        hole = find_hole("step", metrics.steps["train"], curve[-1].epoch * steps_per_epoch)
    if hole:
        raise Suspect(f"{METRICS}: {hole}")


def _check_bits(run: Run) -> None:
    """Raise Suspect where the bits of the last evaluation are not those of the summary's accuracy."""
    if run.bits is None or run.val_images is None:
        return
    if len(run.bits) != (run.val_images + 7) // 8:
        raise Suspect(f"{CORRECT}: holds {8 * len(run.bits)} bits for {run.val_images} images")
    correct = run.correct()
    assert correct is not None
    top1 = 100.0 * float(correct.mean())
    if abs(top1 - run.top1) > SAME:
        raise Suspect(f"{CORRECT}: says {top1:g} % are right, {SUMMARY} says top1={run.top1:g}")


def _progress(source: RecordedRun | WandbRun, status: Status) -> str:
    """Return e.g. `epoch 7 of 20, stopped`."""
    try:
        epochs = digits(config_texts(source.config()).get("recipe.epochs", ""))
    except Suspect:
        epochs = None
    where = "" if status.epoch is None else f"epoch {status.epoch}" + (f" of {epochs}" if epochs else "") + ", "
    why = f" ({clean(status.reason, 120)})" if status.state == "failed" and status.reason else ""
    return f"{where}{status.state}{why}{_hours(status, epochs or 0)}"


def _hours(status: Status, epochs: int) -> str:
    """Return what a run that is not finished has used and lost, and what it needs still at its pace so far.

    As `, 1.2 GPU-hours used, 0.1 lost to restarts, about 3 left`; nothing where its status lacks it.
    """
    if not status.time_s or not status.world_size:
        return ""
    hours = status.time_s * status.world_size / (status.group_size or 1) / 3600
    step, total = status.step or 0, (status.steps_per_epoch or 0) * epochs
    unit = "CPU" if (status.hardware or "").startswith("CPU") else "GPU"
    lost = f", {hours_text(hours * status.lost_s / status.time_s)} lost to restarts" if status.lost_s else ""
    left = f", about {hours_text(hours * (total / step - 1))} left" if 0 < step <= total else ""
    return f", {hours_text(hours)} {unit}-hours used{lost}{left}"


def config_texts(config: dict[str, Any]) -> dict[str, str]:
    """Return every value of a config by its dotted key, as text. Raises Suspect."""
    try:
        return {key: config_text(value) for key, value in flatten(config).items()}
    except RecursionError:
        raise Suspect(f"{CONFIG}: is nested without end") from None


def config_text(value: Any) -> str:
    """Return a config's value as text, the same from YAML and from JSON: `0.002`, `true`, `null`, `[1, 1, 3, 1]`."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(config_text, value))}]"
    if value is None or isinstance(value, bool):
        return str({None: "null", True: "true", False: "false"}[value])
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def decimal(text: str) -> float | None:
    """Return the finite number from 0 on that a config's text stands for, else None."""
    try:
        return value if 0 <= (value := float(text)) < 1e300 else None
    except ValueError:
        return None


def digits(text: str) -> int | None:
    """Return the whole number of up to nine digits that a text is, else None."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None
