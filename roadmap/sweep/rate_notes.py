"""What a study of own learning rates keeps in its notes, and how far its two phases are. Composes nothing."""

from collections.abc import Sequence
from typing import Any

from roadmap.files import read_json
from roadmap.sweep.cell_states import CellState
from roadmap.sweep.study_dir import StudyDir

NOTES, SCHEMA = "tuning.json", 1


def phase_line(study: StudyDir, cells: Sequence[CellState]) -> str:
    """Return how far the phases of a study are, in one line; nothing for a study that has none."""
    try:
        noted = read_json(study.notes / NOTES)
        rows = [row for row in noted["rows"] if isinstance(row, dict)]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    first = {record["key"] for record in study.cells() if holdout_of(record)}
    phases = [[cell for cell in cells if (cell.key in first) is one] for one in (True, False)]
    done = [sum(cell.state == "done" for cell in phase) for phase in phases]
    have = sum(row.get("rate") is not None for row in rows)
    text = (
        f"phase 1, rates on held-out images: {done[0]} of {len(phases[0])} done; "
        f"phase 2, all training images: {done[1]} of {len(phases[1])} done, of the {have} of {len(rows)} rows "
        "whose rate is known"
    )
    more = any(not row.get("ended") for row in rows) and all(cell.state in ("done", "failed") for cell in phases[0])
    return text + (f"; make roadmap STUDY={study.name} goes on with the others" if more else "")


def holdout_of(record: dict[str, Any]) -> float:
    """Return the share that a recorded cell holds out."""
    return float(record["config"].get("data", {}).get("holdout") or 0.0)
