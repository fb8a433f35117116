"""What runs have cost: hours of all their devices together, used, done again after restarts, and left."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from roadmap.runs.progress import hours_text

if TYPE_CHECKING:
    from roadmap.report.read.run import Run


def hours_of(status: dict[str, Any], epochs: int | None) -> str:
    """Return what a run that is not finished has used and lost, and what it needs still at its pace so far.

    As `, 1.2 GPU-hours used, 0.1 lost to restarts, about 3 left`; nothing where its status, anybody's text, lacks it.
    """
    time_s, lost_s, step = (_number(status.get(key)) for key in ("time_s", "lost_s", "step"))
    devices = _number(status.get("world_size")) / max(_number(status.get("group_size")), 1.0)
    total = _number(status.get("steps_per_epoch")) * (epochs or 0)
    if not time_s or not devices:
        return ""
    unit = "CPU" if str(status.get("hardware")).startswith("CPU") else "GPU"
    lost = f", {hours_text(lost_s * devices / 3600)} lost to restarts" if lost_s else ""
    left = f", about {hours_text(time_s * (total / step - 1) * devices / 3600)} left" if 0 < step <= total else ""
    return f", {hours_text(time_s * devices / 3600)} {unit}-hours used{lost}{left}"


def hours_notes(runs: Sequence["Run"]) -> list[str]:
    """Return a line about the GPU-hours of finished runs; none where they are not recorded."""
    known = [run.numbers for run in runs if "gpu_hours" in run.numbers]
    if not known:
        return []
    used, lost = (sum(numbers.get(key, 0.0) for numbers in known) for key in ("gpu_hours", "lost_gpu_hours"))
    more = f", and {hours_text(lost)} lost to restarts" if lost else ""
    return [f"{hours_text(used)} GPU-hours for {len(known)} finished run{'s' * (len(known) > 1)}{more}"]


def _number(value: Any) -> float:
    """Return a number from 0 on of anybody's, 0 for anything else."""
    sound = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12
    return float(value) if sound else 0.0
