"""What W&B shows of a run beside its numbers: the last evaluation by class, a checkpoint, and the state of the code."""

from pathlib import Path
from typing import Any

import numpy as np

from roadmap.config.choices import WandbCheckpoints
from roadmap.runs import provenance
from roadmap.runs.checkpoint_files import list_checkpoints, parse_checkpoint
from roadmap.runs.recorded_run import RecordedRun
from roadmap.runs.schema import CHECKPOINTS, LABELS, PREDICTIONS, STATUS, Manifest, Status, read_or_empty, read_record
from roadmap.text import clean, redact

MAX_CLASS = 2**25
MOST_CLASSES = 100  # of a confusion matrix: it has a row for every pair
MAX_DIFF = 2**20  # characters of a diff
DIFF = "diff.patch"
TABLE, MATRIX = "evaluation/classes", "evaluation/confusion"


def evaluation_media(wandb: Any, path: Path) -> dict[str, Any]:
    """Return the last evaluation of a run directory as a table by class and a confusion matrix; {} where the record
    has no predictions. Raises Suspect, OSError, ValueError."""
    labels, predicted = (RecordedRun(path, str(path)).classes(name) for name in (LABELS, PREDICTIONS))
    if labels is None or predicted is None:
        return {}
    names = [clean(name, 80) for name in read_or_empty(Status, path / STATUS).classes or []]
    return class_media(wandb, labels.astype(np.int64), predicted.astype(np.int64), names)


def class_media(wandb: Any, labels: np.ndarray, predicted: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Return the table by class, and the confusion matrix where there are not too many: `labels` and `predicted` are
    `(N,)`. Classes without a name are called by their number. Raises ValueError for arrays that do not fit."""
    if labels.shape != predicted.shape or labels.ndim != 1 or not labels.size or min(labels.min(), predicted.min()) < 0:
        raise ValueError(f"labels {labels.shape} and predictions {predicted.shape} do not go together")
    size = max(int(labels.max()), int(predicted.max()), len(names) - 1) + 1
    if size > MAX_CLASS:
        raise ValueError(f"class {size - 1} is none")
    names = [*names, *map(str, range(len(names), size))]
    counts = np.bincount(labels, minlength=size)
    right = np.bincount(labels[labels == predicted], minlength=size)
    wrong = labels != predicted
    pairs, times = np.unique(np.stack((labels[wrong], predicted[wrong])), axis=1, return_counts=True)
    most: dict[int, tuple[int, int]] = {}  # class -> times, for which other
    for (own, other), number in zip(pairs.T.tolist(), times.tolist(), strict=True):
        most[own] = max(most.get(own, (0, 0)), (number, other))
    table = wandb.Table(columns=["class", "images", "right", "top-1 (%)", "most often taken for", "times"])
    for number in np.flatnonzero(counts).tolist():
        taken = (names[most[number][1]], most[number][0]) if number in most else ("", 0)
        share = round(100.0 * int(right[number]) / int(counts[number]), 2)
        table.add_data(names[number], int(counts[number]), int(right[number]), share, *taken)
    media = {TABLE: table}
    if size <= MOST_CLASSES:
        media[MATRIX] = wandb.plot.confusion_matrix(
            y_true=labels.tolist(), preds=predicted.tolist(), class_names=names, title="Last evaluation"
        )
    return media


def checkpoint_artifact(wandb: Any, path: Path, which: WandbCheckpoints, run_id: str) -> Any:
    """Return the last or the best checkpoint of a run directory with its manifest, as `checkpoint-RUN_ID`.

    The client reads the file where it lies, and copies it nowhere. Raises OSError, and ValueError where there is none.
    """
    found = list_checkpoints(path / CHECKPOINTS)
    manifest = read_record(Manifest, found[0].with_suffix(".json")) if found else {}
    if which == WandbCheckpoints.best:
        steps = {file: parse_checkpoint(file.name) for file in found}
        found = [file for file in found if (steps[file] or (None,))[0] == manifest.get("best_step")]
    if not found:
        raise ValueError(f"there is none in {CHECKPOINTS}/")
    manifest = read_record(Manifest, found[0].with_suffix(".json"))
    metadata = {key: manifest[key] for key in ("global_step", "epochs_evaluated", "sha256")}
    artifact = wandb.Artifact(f"checkpoint-{run_id}", type="model", metadata=metadata)
    for file in (found[0], found[0].with_suffix(".json")):
        artifact.add_file(str(file), policy="immutable", skip_cache=True)
    return artifact


def git_settings() -> dict[str, str]:
    """Return commit and address of the checkout, as W&B's settings have them; a password in the address is left out."""
    commit, remote = provenance.git_state()["git_commit"], provenance.git("remote", "get-url", "origin")
    found = {"git_commit": commit, "git_remote_url": redact(remote.strip()) if remote else None}
    return {key: value for key, value in found.items() if isinstance(value, str) and value}


def write_diff(folder: Path) -> Path | None:
    """Write what the checkout has changed since its commit, as W&B's own code saving does, without secrets; return the
    file, None where nothing has changed. Raises OSError."""
    if not provenance.git_state()["git_dirty"] or not (provenance.PACKAGE.parent / ".git").exists():
        return None
    diff = provenance.git("diff", "--no-color", "--no-ext-diff", "--no-textconv", "HEAD")
    if not diff:
        return None
    cut = f"\n(cut: {len(diff)} characters)\n" if len(diff) > MAX_DIFF else ""
    path = folder / DIFF
    path.write_text(redact(diff[:MAX_DIFF]) + cut, encoding="utf-8", errors="replace")
    return path
