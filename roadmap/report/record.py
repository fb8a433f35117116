"""Check the record of one run, wherever it lies. Everything read here is hostile text until it was checked.

`metrics.jsonl` and `summary.json` are the truth and must agree; `status.json` says whether the run is done. Used by
`roadmap.report.runs`.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from roadmap.report.folder import History, Suspect, flat
from roadmap.report.text import clean
from roadmap.runs.schema import CORRECT, METRICS, STATUS, SUMMARY

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+\[\]-]{0,79}")  # as `roadmap.steps` allows them
ADOPTED = ("yes", "no", "reference")
SAME = 0.005  # percentage points: summary and ledger may be rounded differently


class Source(Protocol):
    """Where the record of a run is read from: a run directory or W&B. Every method may raise Suspect and OSError."""

    @property
    def shown(self) -> str:
        """Return the name under which the user sees the run."""

    @property
    def named(self) -> tuple[str, str, str] | None:
        """Return what the place itself says (seed, cell, regime and data); None where it says nothing."""

    def status(self) -> dict[str, Any]:
        """Return `status.json`."""

    def summary(self) -> dict[str, Any] | None:
        """Return `summary.json`; None where there is none."""

    def config(self) -> dict[str, Any]:
        """Return the resolved config."""

    def history(self) -> History:
        """Return the evaluations of the ledger."""

    def bits(self) -> bytes | None:
        """Return the packed bits of the last evaluation; None where there are none."""


@dataclass(frozen=True)
class Run:
    """One finished run that passed every check. Accuracies in percent, `gmacs` at `image_size` pixels, batch 1."""

    path: str = field(compare=False)
    study: str
    regime: str
    data: str
    cell: str
    seed: int
    step: str
    variant: str | None
    parent: str | None
    label: str
    adopted: str  # yes | no | reference
    recipe: str
    epochs: int | None
    image_size: int | None
    top1: float  # of the last epoch
    top5: float | None
    gmacs: float | None
    params_m: float | None
    train_images_per_s: float | None
    gpu_hours: float | None
    peak_memory_gb: float | None
    batch_size: int | None
    images: str  # fingerprint of the data, where it is known
    code: str  # hash of the code that trains; the git commit where there is no hash
    drift: str  # what changed between two starts of the run, by an explicit override
    hardware: str
    versions: str
    commit: str  # with a mark where the checkout was changed since
    starts: int | None
    val_images: int | None
    config: dict[str, str] = field(repr=False)  # dotted key -> value as text
    curve: tuple[tuple[int, float], ...] = field(repr=False)  # epoch, top-1 of every evaluation
    bits: bytes | None = field(repr=False)  # which validation images were right, eight a byte
    marks: tuple[str, ...] = field(default=(), compare=False)  # why it counts only because the user allowed it

    @property
    def name(self) -> str:
        """Return the run's place below a folder of runs: the same wherever it was read from."""
        return f"{self.study}/{self.regime}-{self.data}/{self.cell}/seed{self.seed}"

    def correct(self) -> np.ndarray | None:
        """Return which images were right, `(val_images,)` of bool."""
        if self.bits is None or self.val_images is None:
            return None
        return np.unpackbits(np.frombuffer(self.bits, np.uint8), count=self.val_images).astype(bool)


class Unfinished(Exception):
    """This run gives no number yet."""


def read_run(source: Source) -> Run:
    """Read and check one run. Raises Unfinished, Suspect (with the reason) and OSError."""
    status = source.status()
    state = status.get("state")
    if not isinstance(state, str):
        raise Suspect(f"{STATUS}: has no state")
    if state != "done":
        raise Unfinished(_progress(source, status))
    summary = source.summary()
    if summary is None:
        raise Unfinished(f"done, but there is no {SUMMARY}")
    config = source.config()
    history = source.history()
    run = _checked(source, summary, status, config, history)
    for found, told in zip(source.named or (), (f"seed{run.seed}", run.cell, f"{run.regime}-{run.data}"), strict=False):
        if found != told:
            raise Suspect(f"{SUMMARY} belongs to {told}, the folder is named {found} (moved aside or copied?)")
    _check_history(history, summary, run)
    _check_bits(run)
    return run


def _checked(
    source: Source, summary: dict[str, Any], status: dict[str, Any], config: dict[str, Any], history: History
) -> Run:
    """Turn a summary into a Run. Raises Suspect."""
    if summary.get("state", "done") != "done":
        raise Suspect(f"{SUMMARY}: state={clean(summary['state'], 40)}, {STATUS} says done")
    seed = summary.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise Suspect(f"{SUMMARY}: seed={clean(seed, 40)} is not a whole number from 0")
    if summary.get("adopted") not in ADOPTED:
        raise Suspect(f"{SUMMARY}: adopted={clean(summary.get('adopted'), 40)} is none of {', '.join(ADOPTED)}")
    top1 = _percent(summary, "top1")
    top5 = _percent(summary, "top5") if summary.get("top5") is not None else None
    if top5 is not None and top5 < top1 - SAME:
        raise Suspect(f"{SUMMARY}: top5={top5:g} is below top1={top1:g}")
    step, label = _name(summary, "step"), summary.get("label")
    return Run(
        path=source.shown,
        study=_name(summary, "study"),
        regime=_name(summary, "regime"),
        data=_name(summary, "data"),
        cell=_name(summary, "cell"),
        seed=seed,
        step=step,
        variant=_name(summary, "variant") if summary.get("variant") is not None else None,
        parent=_name(summary, "parent") if summary.get("parent") is not None else None,
        label=(clean(label) if isinstance(label, str) else "") or step,
        adopted=summary["adopted"],
        recipe=_name(summary, "recipe"),
        epochs=_whole(summary.get("epochs", _inside(config, "recipe", "epochs"))),
        image_size=_whole(summary.get("image_size", _inside(config, "data", "image_size"))),
        top1=top1,
        top5=top5,
        gmacs=number(summary.get("gmacs")),
        params_m=number(summary.get("params_m")),
        train_images_per_s=number(summary.get("train_images_per_s")),
        gpu_hours=number(summary.get("gpu_hours")),
        peak_memory_gb=number(summary.get("peak_memory_gb")),
        batch_size=_whole(summary.get("batch_size", _inside(config, "recipe", "batch_size"))),
        images=_told(summary.get("data_fingerprint")),
        code=_told(summary.get("code_hash")) or _told(status.get("git_commit")),
        drift=_told(summary.get("drift")),
        hardware=_told(summary.get("hardware")),
        versions=_told(summary.get("versions")),
        commit=_told(status.get("git_commit")) + (" (changed since)" if status.get("git_dirty") is True else ""),
        starts=_whole(status.get("starts")),
        val_images=_whole(summary.get("val_images")),
        config=dict(flat(config)),
        curve=tuple(point for row in history.evaluations if (point := _point(row)) is not None),
        bits=source.bits(),
    )


def _point(row: dict[str, Any]) -> tuple[int, float] | None:
    epoch, top1 = _whole(row.get("epoch")), number(row.get("val/top1"))
    return None if epoch is None or top1 is None else (epoch, top1)


def _check_history(history: History, summary: dict[str, Any], run: Run) -> None:
    """Raise Suspect where the ledger is damaged or its last evaluation is not the summary's."""
    if history.problem:
        raise Suspect(history.problem)
    rows = history.evaluations
    if not rows:
        raise Suspect(f"{METRICS}: holds no evaluation")
    for row in rows:
        reached = number(row.get("val/top1"))
        if reached is None or reached > 100:
            _percent(row, "val/top1", f"{METRICS}, epoch {clean(row.get('epoch'), 20)}")
    last = rows[-1]
    for told in ("top1", "top5"):
        ours, theirs = number(summary.get(told)), number(last.get(f"val/{told}"))
        if ours is not None and theirs is not None and abs(ours - theirs) > SAME:
            raise Suspect(f"{SUMMARY}: {told}={ours:g}, the last evaluation in {METRICS} says {theirs:g}")
    epoch = last.get("epoch")
    if summary.get("epoch") != epoch:
        raise Suspect(
            f"{SUMMARY}: epoch={clean(summary.get('epoch'), 20)}, the last evaluation in {METRICS} is of epoch {clean(epoch, 20)}"
        )
    if run.epochs is not None and epoch != run.epochs:
        raise Suspect(f"done, but its last evaluation is of epoch {clean(epoch, 20)} of {run.epochs}")


def _check_bits(run: Run) -> None:
    """Raise Suspect where the bits of the last evaluation are not those of the summary's accuracy."""
    if run.bits is None or run.val_images is None:
        return
    if len(run.bits) != (run.val_images + 7) // 8:
        raise Suspect(f"{CORRECT}: holds {8 * len(run.bits)} bits for {run.val_images} images")
    correct = run.correct()
    assert correct is not None
    told = 100.0 * float(correct.mean())
    if abs(told - run.top1) > SAME:
        raise Suspect(f"{CORRECT}: says {told:g} % are right, {SUMMARY} says top1={run.top1:g}")


def _progress(source: Source, status: dict[str, Any]) -> str:
    """Return e.g. `epoch 7 of 20, stopped`."""
    try:
        epochs = _whole(status.get("epochs", _inside(source.config(), "recipe", "epochs")))
    except Suspect:
        epochs = None
    epoch = number(status.get("epoch"))
    where = "" if epoch is None else f"epoch {epoch:g}" + (f" of {epochs}" if epochs else "") + ", "
    reason = status.get("reason") if status["state"] == "failed" else None
    return (
        where + clean(status["state"], 40) + (f" ({clean(reason, 120)})" if isinstance(reason, str) and reason else "")
    )


def _inside(config: dict[str, Any], section: str, key: str) -> int | None:
    values = config.get(section)
    text = values.get(key) if isinstance(values, dict) else None
    return int(str(text)) if re.fullmatch(r"[0-9]{1,9}", str(text)) else None


def _name(values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise Suspect(f"{SUMMARY}: {key}={clean(value, 40)!r} is not a name")
    return value


def _percent(values: dict[str, Any], key: str, file: str = SUMMARY) -> float:
    value = number(values.get(key))
    if value is None or value > 100:
        raise Suspect(f"{file}: {key}={clean(values.get(key), 20)} is not a percentage")
    return value


def number(value: Any) -> float | None:
    """Return a finite number from 0 on as a float, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e300:
        return None
    return float(value)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**9 else None


def _told(value: Any) -> str:
    """Return a string, or the plain values of a dictionary or a list, as one line."""
    if isinstance(value, dict):
        value = ", ".join(f"{key} {item}" for key, item in sorted(value.items()) if isinstance(item, str | int | float))
    if isinstance(value, list):
        value = ", ".join(item for item in value if isinstance(item, str))
    return clean(value) if isinstance(value, str) else ""
