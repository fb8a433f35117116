"""One run, read from its directory or from W&B and checked. Everything read here is hostile text until it was checked.

`metrics.jsonl` and `summary.json` are the truth and must agree; `status.json` says whether the run is done.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from roadmap.report.read.foreign_values import config_texts, decimal, digits, line, number, whole
from roadmap.report.read.image_classes import ImageClasses, check_classes, read_classes
from roadmap.report.read.wandb import WandbRun
from roadmap.runs.metrics import Metrics, find_hole
from roadmap.runs.progress import hours_text
from roadmap.runs.recorded_run import RecordedRun, Suspect
from roadmap.runs.schema import CONFIG, CORRECT, METRICS, QUANTITIES, STATUS, SUMMARY, Split
from roadmap.text import clean

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+\[\]-]{0,79}")  # as `roadmap.steps` allows them
ADOPTED = ("yes", "no", "reference")
MOST = 1e12  # of a number in a line
SAME = 0.005  # percentage points: summary and ledger may be rounded differently
Values = dict[str, Any]


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
    precision: str  # of forward and backward
    versions: str
    commit: str  # with a mark where the checkout was changed since
    starts: int | None
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


def read_run(source: RecordedRun | WandbRun) -> Run:
    """Read and check one run. Raises Unfinished, Suspect (with the reason) and OSError."""
    status = source.status()
    if not isinstance(status.get("state"), str):
        raise Suspect(f"{STATUS}: has no state")
    if status["state"] != "done":
        raise Unfinished(_progress(source, status))
    summary = source.summary()
    if summary is None:
        raise Unfinished(f"done, but there is no {SUMMARY}")
    config = source.config()
    metrics = source.metrics()
    run = _run(source, summary, status, config, metrics)
    belongs = (f"seed{run.seed}", run.cell, f"{run.regime}-{run.data}")
    for found, right in zip(source.named or (), belongs, strict=False):
        if found != right:
            raise Suspect(f"{SUMMARY} belongs to {right}, the folder is named {found} (moved aside or copied?)")
    _check_metrics(metrics, summary, run)
    _check_steps(metrics, whole(summary.get("steps_per_epoch") or status.get("steps_per_epoch")), run)
    _check_bits(run)
    check_classes(run.classes, run.correct(), run.val_images)
    if changed := source.changed(summary):
        raise Suspect(f"{', '.join(changed)} changed after the run had ended")
    return run


def _run(source: RecordedRun | WandbRun, summary: Values, status: Values, config: Values, metrics: Metrics) -> Run:
    """Turn a record into a Run. Raises Suspect."""
    if summary.get("state", "done") != "done":
        raise Suspect(f"{SUMMARY}: state={clean(summary['state'], 40)}, {STATUS} says done")
    seed = summary.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise Suspect(f"{SUMMARY}: seed={clean(seed, 40)} is not a whole number from 0")
    if summary.get("adopted") not in ADOPTED:
        raise Suspect(f"{SUMMARY}: adopted={clean(summary.get('adopted'), 40)} is none of {', '.join(ADOPTED)}")
    label = summary.get("label")
    texts = config_texts(config)

    def size(key: str, section: str) -> int | None:
        return whole(summary[key]) if key in summary else digits(texts.get(f"{section}.{key}", ""))

    names: Values = {key: _name(summary, key) for key in ("study", "regime", "data", "cell", "step", "recipe")}
    others: Values = {key: None if summary.get(key) is None else _name(summary, key) for key in ("variant", "parent")}
    shown: Values = {key: line(summary.get(key)) for key in ("drift", "rounding", "hardware", "precision", "versions")}
    return Run(
        path=source.shown,
        seed=seed,
        **names,
        **others,
        **shown,
        label=(clean(label) if isinstance(label, str) else "") or names["step"],
        adopted=summary["adopted"],
        epochs=size("epochs", "recipe"),
        image_size=size("image_size", "data"),
        batch_size=size("batch_size", "recipe"),
        numbers=_numbers(summary),
        images=line(summary.get("data_fingerprint")),
        holdout=_holdout(summary, texts),
        code=line(summary.get("code_hash")) or line(status.get("git_commit")),
        commit=line(status.get("git_commit")) + (" (changed since)" if status.get("git_dirty") is True else ""),
        starts=whole(status.get("starts")),
        val_images=whole(summary.get("val_images")),
        config=texts,
        curve=tuple(point for row in metrics.rows if (point := _point(row)) is not None),
        bits=source.bits(),
        classes=read_classes(source, summary, status),
    )


def _holdout(summary: Values, texts: dict[str, str]) -> float:
    """Return the share of the training images that a run was evaluated on. Raises Suspect where its files disagree."""
    text = texts.get("data.holdout", "0")
    share = decimal(text) or 0.0
    expected = Split.holdout if share else Split.val
    split = summary.get("split", expected)  # older records do not say
    if decimal(text) is None or share >= 1 or split != expected:
        raise Suspect(f"{SUMMARY}: split={clean(split, 40)}, {CONFIG} says data.holdout={clean(text, 40)}")
    return share


def _numbers(summary: Values) -> dict[str, float]:
    numbers = {key: value for key in QUANTITIES if (value := number(summary.get(key))) is not None}
    numbers["top1"] = _percent(summary, "top1")
    if summary.get("top5") is not None:
        numbers["top5"] = _percent(summary, "top5")
        if numbers["top5"] < numbers["top1"] - SAME:
            raise Suspect(f"{SUMMARY}: top5={numbers['top5']:g} is below top1={numbers['top1']:g}")
    return numbers


def _point(row: Values) -> tuple[int, float] | None:
    epoch, top1 = whole(row.get("epoch")), number(row.get("val/top1"))
    return None if epoch is None or top1 is None else (epoch, top1)


def _check_metrics(metrics: Metrics, summary: Values, run: Run) -> None:
    """Raise Suspect where the ledger is damaged or its last evaluation is not the summary's."""
    if metrics.problem:
        raise Suspect(metrics.problem)
    if not metrics.rows:
        raise Suspect(f"{METRICS}: contains no evaluation")
    for row in metrics.rows:
        where = f"{METRICS}, epoch {clean(row.get('epoch'), 20)}"
        _percent(row, "val/top1", where)
        if number(row.get("val/loss")) is None or number(row.get("val/ema_top1", 0)) is None:
            raise Suspect(f"{where}: an evaluation that is not finite")
    last = metrics.rows[-1]
    for key in ("top1", "top5"):
        ours, theirs = run.numbers.get(key), number(last.get(f"val/{key}"))
        if ours is not None and theirs is not None and abs(ours - theirs) > SAME:
            raise Suspect(f"{SUMMARY}: {key}={ours:g}, the last evaluation in {METRICS} says {theirs:g}")
    epoch = clean(last.get("epoch"), 20)
    if summary.get("epoch") != last.get("epoch"):
        told = clean(summary.get("epoch"), 20)
        raise Suspect(f"{SUMMARY}: epoch={told}, the last evaluation in {METRICS} is of epoch {epoch}")
    if run.epochs is not None and last.get("epoch") != run.epochs:
        raise Suspect(f"done, but its last evaluation is of epoch {epoch} of {run.epochs}")


def _check_steps(metrics: Metrics, steps_per_epoch: int | None, run: Run) -> None:
    """Raise Suspect where the ledger lacks the line of an evaluation or, if it has any of training, of a step."""
    epochs = run.epochs or len(metrics.rows)
    hole = find_hole("evaluation", [whole(row.get("epoch")) or 0 for row in metrics.rows], epochs)
    if not hole and steps_per_epoch and metrics.steps["train"]:
        hole = find_hole("step", metrics.steps["train"], epochs * steps_per_epoch)
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


def _progress(source: RecordedRun | WandbRun, status: Values) -> str:
    """Return e.g. `epoch 7 of 20, stopped`."""
    epochs = whole(status.get("epochs"))
    if "epochs" not in status:
        try:
            epochs = digits(config_texts(source.config()).get("recipe.epochs", ""))
        except Suspect:
            epochs = None
    epoch, reason = number(status.get("epoch")), status.get("reason")
    where = "" if epoch is None else f"epoch {epoch:g}" + (f" of {epochs}" if epochs else "") + ", "
    failed = status["state"] == "failed" and isinstance(reason, str) and reason
    return where + clean(status["state"], 40) + (f" ({clean(reason, 120)})" if failed else "") + _hours(status, epochs)


def _hours(status: Values, epochs: int | None) -> str:
    """Return what a run that is not finished has used and lost, and what it needs still at its pace so far.

    As `, 1.2 GPU-hours used, 0.1 lost to restarts, about 3 left`; nothing where its status lacks it.
    """
    keys = ("time_s", "lost_s", "step", "world_size", "group_size", "steps_per_epoch")
    time_s, lost_s, step, ranks, group, steps = (min(number(status.get(key)) or 0.0, MOST) for key in keys)
    devices, total = ranks / max(group, 1.0), steps * (epochs or 0)
    if not time_s or not devices:
        return ""
    unit = "CPU" if str(status.get("hardware")).startswith("CPU") else "GPU"
    lost = f", {hours_text(lost_s * devices / 3600)} lost to restarts" if lost_s else ""
    left = f", about {hours_text(time_s * (total / step - 1) * devices / 3600)} left" if 0 < step <= total else ""
    return f", {hours_text(time_s * devices / 3600)} {unit}-hours used{lost}{left}"


def _name(values: Values, key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise Suspect(f"{SUMMARY}: {key}={clean(value, 40)!r} is not a name")
    return value


def _percent(values: Values, key: str, file: str = SUMMARY) -> float:
    value = number(values.get(key))
    if value is None or value > 100:
        raise Suspect(f"{file}: {key}={clean(values.get(key), 20)} is not a percentage")
    return value
