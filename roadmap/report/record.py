"""Read and check the record of one run directory. Everything read here is hostile text until it was checked.

`metrics.jsonl` and `summary.json` are the truth and must agree; `status.json` says whether the run is done. Used by
`roadmap.report.runs`.
"""

import itertools
import re
import stat
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from roadmap.report.find import Place
from roadmap.report.text import clean
from roadmap.runtime.ledger import CONFIG, METRICS, STATUS, SUMMARY, Ledger, read_json, read_metrics

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+\[\]-]{0,79}")  # as `roadmap.steps` allows them
ADOPTED = ("yes", "no", "reference")
SAME = 0.005  # percentage points: summary and ledger may be rounded differently
MAX_CONFIG, MAX_RECORD, MAX_LEDGER = 2**18, 2**22, 2**30  # bytes; a larger file was not written by a run


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


class Suspect(Exception):
    """This run gives no number: its record is broken or contradicts itself."""


class Unfinished(Exception):
    """This run gives no number yet."""


def read_run(place: Place) -> Run:
    """Read and check one run directory. Raises Unfinished, Suspect (with the reason) and OSError."""
    folder = place.folder
    status = _record(folder / STATUS)
    state = status.get("state")
    if not isinstance(state, str):
        raise Suspect(f"{STATUS}: has no state")
    if state != "done":
        raise Unfinished(_progress(folder, status))
    if not (folder / SUMMARY).exists():
        raise Unfinished(f"done, but there is no {SUMMARY}")
    summary = _record(folder / SUMMARY)
    config = _config(folder / CONFIG)
    run = _checked(place.shown, summary, status, config)
    for found, told in (
        (folder.name, f"seed{run.seed}"),
        (folder.parent.name, run.cell),
        (folder.parent.parent.name, f"{run.regime}-{run.data}"),
    ):
        if found != told:
            raise Suspect(f"{SUMMARY} belongs to {told}, the folder is named {found} (moved aside or copied?)")
    _check_ledger(_ledger(folder / METRICS), summary, run)
    return run


def _checked(shown: str, summary: dict[str, Any], status: dict[str, Any], config: dict[str, Any]) -> Run:
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
        path=shown,
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
    )


def _check_ledger(ledger: Ledger, summary: dict[str, Any], run: Run) -> None:
    """Raise Suspect where the ledger is damaged or its last evaluation is not the summary's."""
    if ledger.bad_lines or ledger.torn:
        lines = ", ".join(map(str, ledger.bad_lines[:5])) or "last"
        raise Suspect(f"{METRICS}: {len(ledger.bad_lines) + ledger.torn} corrupt line(s) ({lines})")
    steps: dict[str, list[int]] = defaultdict(list)
    for row in ledger.rows:
        steps[row["kind"]].append(row["global_step"])
    for kind, found in steps.items():
        if any(later <= earlier for earlier, later in itertools.pairwise(found)):
            raise Suspect(f"{METRICS}: {kind} rows are not in the order of their steps, or are there twice")
    rows = [row for row in ledger.rows if row["kind"] == "val"]
    if not rows:
        raise Suspect(f"{METRICS}: holds no evaluation")
    for row in rows:
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


def _progress(folder: Path, status: dict[str, Any]) -> str:
    """Return e.g. `epoch 7 of 20, stopped`."""
    try:
        epochs = _whole(status.get("epochs", _inside(_config(folder / CONFIG), "recipe", "epochs")))
    except Suspect:
        epochs = None
    epoch = number(status.get("epoch"))
    where = "" if epoch is None else f"epoch {epoch:g}" + (f" of {epochs}" if epochs else "") + ", "
    reason = status.get("reason") if status["state"] == "failed" else None
    return where + clean(status["state"], 40) + (f" ({clean(reason, 120)})" if isinstance(reason, str) and reason else "")


def _readable(path: Path, limit: int) -> None:
    """Raise Suspect unless the path is a regular file of at most `limit` bytes (a pipe would block for ever)."""
    try:
        about = path.stat()
    except FileNotFoundError:
        raise Suspect(f"{path.name} is missing") from None
    if not stat.S_ISREG(about.st_mode):
        raise Suspect(f"{path.name} is not a file")
    if about.st_size > limit:
        raise Suspect(f"{path.name} is too large to be a run's ({about.st_size} bytes)")


def _record(path: Path) -> dict[str, Any]:
    _readable(path, MAX_RECORD)
    try:
        return read_json(path)
    except ValueError as error:
        raise Suspect(str(error).replace(str(path), path.name)) from None


def _ledger(path: Path) -> Ledger:
    _readable(path, MAX_LEDGER)
    return read_metrics(path)


def _config(path: Path) -> dict[str, Any]:
    """Read a resolved config as dictionaries, lists and strings; nothing in it is ever made into an object."""
    _readable(path, MAX_CONFIG)
    try:
        values = yaml.load(path.read_bytes(), Loader=yaml.BaseLoader)  # strings only, and no merge keys that grow without end
    except (yaml.YAMLError, ValueError, RecursionError):
        raise Suspect(f"{path.name}: not YAML") from None
    if not isinstance(values, dict):
        raise Suspect(f"{path.name}: holds no keys")
    return values


def _inside(config: dict[str, Any], section: str, key: str) -> int | None:
    values = config.get(section)
    text = values.get(key) if isinstance(values, dict) else None
    return int(text) if isinstance(text, str) and re.fullmatch(r"[0-9]{1,9}", text) else None


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
        value = ", ".join(f"{key} {item}" for key, item in value.items() if isinstance(item, str | int | float))
    if isinstance(value, list):
        value = ", ".join(item for item in value if isinstance(item, str))
    return clean(value) if isinstance(value, str) else ""
