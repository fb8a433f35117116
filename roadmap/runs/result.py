"""The result of a run that is done: `summary.json` with hashes of the files that it rests on, read back and checked."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from roadmap.config.schema import Config
from roadmap.errors import DataError
from roadmap.files import disk_errors, finite_or_null
from roadmap.runs.run_dir import run_path
from roadmap.runs.schema import (
    CONFIG,
    CORRECT,
    LABELS,
    METRICS,
    PREDICTIONS,
    SUMMARY,
    Split,
    Summary,
    checksum,
    read_record,
    write_record,
)
from roadmap.text import one_line

HASHED = (CONFIG, METRICS, CORRECT, PREDICTIONS, LABELS)  # what a result rests on
NUMBERS = ("top1", "gmacs", "params_m")  # of the line that a run ends with


def config_summary(config: Config) -> dict[str, Any]:
    """Return what a summary says of its config."""
    names = ("study", "cell", "step", "variant", "parent", "label", "adopted", "seed")
    return {
        **{name: getattr(config, name) for name in names},
        "regime": config.regime.name,
        "data": str(config.data.name),
        "recipe": str(config.recipe.name),
        "epochs": config.recipe.epochs,
        "batch_size": config.recipe.batch_size,
        "image_size": config.data.image_size,
        "split": Split.holdout if config.data.holdout else Split.val,
    }


def write_result(path: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Write the summary of a run directory, with the hashes of its other files and its own; return it.

    Raises DiskError.
    """
    with disk_errors(path / SUMMARY):
        hashes = {name: hash_of((path / name).read_bytes()) for name in HASHED}
        summary = finite_or_null({**summary, "sha256": hashes})
        summary["checksum"] = checksum(summary)
        write_record(Summary, path / SUMMARY, summary)
    return summary


def load_result(path: Path) -> dict[str, Any]:
    """Return the summary of a run directory that is done.

    Raises DataError where it, or a file that it rests on, cannot be read or is not as the end of the run left it.
    """
    keep_aside = "fresh=true starts over and sets this aside"
    try:
        summary = read_record(Summary, path / SUMMARY)
        changed = changed_files(summary, lambda name: (path / name).read_bytes())
        summary |= {key: float(summary[key]) for key in NUMBERS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path / SUMMARY}: cannot be read ({one_line(error)}); {keep_aside}") from None
    if changed:
        raise DataError(f"{path}: {', '.join(changed)} changed after the run had ended; {keep_aside}")
    return summary


def changed_files(summary: dict[str, Any], read: Callable[[str], bytes]) -> list[str]:
    """Return which files of a record are not as its summary says, as far as that says it: older ones have no hashes."""
    hashes = summary.get("sha256") or {}
    whole = summary.get("checksum") in (None, checksum(summary))
    changed = [name for name in HASHED if name in hashes and hashes[name] != hash_of(read(name))]
    return changed if whole else [SUMMARY, *changed]


def hash_of(data: bytes) -> str:
    """Return the hash by which a summary knows a file."""
    return hashlib.sha256(data).hexdigest()


def result_line(config: Config, summary: dict[str, Any]) -> str:
    """Return the line that a run ends with: step, top-1, GMACs, parameters, where the run is."""
    path, cwd = run_path(config), Path.cwd()
    shown = path.relative_to(cwd) if path.is_relative_to(cwd) else path
    return (
        f"{config.cell}: top-1 {summary['top1']:.2f} %{caution_note(config)}, {summary['gmacs']:.4g} GMACs, "
        f"{summary['params_m']:.4g} M parameters, {shown}"
    )


def caution_note(config: Config) -> str:
    """Return what has to follow an accuracy on these images, in brackets; mostly nothing."""
    notes = ["held-out training images"] if config.data.holdout else []
    notes.append(config.data.known.caution)
    text = "; ".join(filter(None, notes))
    return f" ({text})" if text else ""
