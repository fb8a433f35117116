"""What a study costs, cell by cell, before anything is queued. What nobody measured is inferred, or empty."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from roadmap import catalog
from roadmap.config.choices import Device, Optimizer
from roadmap.config.schema import Config
from roadmap.errors import DataError
from roadmap.files import read_json
from roadmap.net import cost
from roadmap.runs.disk_use import size_text
from roadmap.runs.progress import hours_text
from roadmap.runs.provenance import hardware
from roadmap.runs.run_dir import run_path
from roadmap.runs.schema import STATUS, SUMMARY, Status, read_or_empty
from roadmap.sweep.cluster import FIRST
from roadmap.sweep.inferred_speed import Bench, infer, net_of
from roadmap.sweep.study import Cell, Study
from roadmap.text import plain_table

COLUMNS = ("cell", "GMACs", "params M", "images/s", "from", "hours", "checkpoints", "state")
SpeedKey = tuple[Any, ...]


@dataclass
class Row:
    """One cell's costs; None where nothing was measured."""

    key: str
    gmacs: float
    params_m: float
    images_per_s: float | None  # of one device
    source: str  # of the speed
    hours: float | None  # of one GPU (or CPU), training alone
    checkpoint_gb: float
    last_gb: float  # the last of them, which `prune` leaves
    state: str  # by the run's own record; nothing for a run that there is not


def plan(
    cells: Sequence[Cell],
    runs: Path,
    hardware: str | None,
    measure: Callable[[Config], float | None],
    given: Mapping[str, float] = MappingProxyType({}),
    bench: Bench = MappingProxyType({}),
) -> list[Row]:
    """Return a row a cell. `hardware` is (a part of) the name of the GPU that speeds are looked up for, or None.

    Speeds are those `given`, by row, then of earlier runs, then what `measure` gives of a config, then inferred from
    the other rows, by `bench`. Raises DataError for a set of unknown classes.
    """
    require_num_classes(cells)
    earlier = earlier_speeds(runs, hardware)
    if FIRST in given and cells:
        given = {cells[0].config.cell.split(",")[0]: given[FIRST], **given}
    costs: dict[str, Any] = {}
    speeds: dict[str, tuple[float | None, str]] = {}
    rows = []
    for cell in cells:
        config = cell.config
        net = repr((config.model.values(), num_classes(config), config.data.image_size))
        if net not in costs:
            costs[net] = cost(config.model, num_classes(config), config.data.image_size)
        work = repr((net, speed_key(config)))
        if work not in speeds:
            name = config.cell.split(",")[0]
            speeds[work] = (given[name], "given") if name in given else speed_of(config, earlier, measure)
        speed, source = speeds[work]
        rows.append(
            Row(
                key=cell.key,
                gmacs=costs[net].gmacs,
                params_m=costs[net].params_m,
                images_per_s=speed,
                source=source,
                hours=hours_of(config, speed),
                checkpoint_gb=checkpoint_gb(config, costs[net].params_m),
                last_gb=checkpoint_gb(config, costs[net].params_m) / (config.checkpoint.keep + 1),
                state=read_or_empty(Status, run_path(config) / STATUS).state or "",
            )
        )
    nets = [net_of(cell.config, row.gmacs) for cell, row in zip(cells, rows, strict=True)]
    known = [(net, row.images_per_s) for net, row in zip(nets, rows, strict=True) if row.images_per_s]
    for cell, of_cell, row in zip(cells, nets, rows, strict=True):
        if row.images_per_s is None:
            row.images_per_s, row.source = infer(of_cell, known, bench)
            row.hours = hours_of(cell.config, row.images_per_s)
    return rows


def hours_of(config: Config, images_per_s: float | None) -> float | None:
    """Return the hours that one device trains a cell; None where speed or number of images is not known."""
    known = catalog.find(config.data.name, config.data.kind).num_images
    images = (1 - config.data.holdout) * (config.data.train_images or known.get("train") or 0)
    return config.recipe.epochs * images / images_per_s / 3600 if images_per_s and images else None


def require_num_classes(cells: Iterable[Cell]) -> None:
    """Raise DataError for sets whose classes nobody has counted."""
    for cell in cells:
        num_classes(cell.config)


def num_classes(config: Config) -> int:
    """Return how many classes a set has, before it is read. Raises DataError where only its files know."""
    data = config.data
    known = data.num_classes or catalog.find(data.name, data.kind).num_classes
    if known is None:
        raise DataError(f"data={data.name}: a plan needs data.num_classes=N")
    return known


def checkpoint_gb(config: Config, params_m: float) -> float:
    """Return the GB of a run's checkpoints, the newest and the best: weights, optimizer, moving average."""
    recipe = config.recipe
    moments = 2 if recipe.optimizer == Optimizer.adamw else bool(recipe.momentum)
    copies = 1 + moments + bool(recipe.ema_decay)
    return params_m * 1e6 * 4 * copies * (config.checkpoint.keep + 1) / 1e9


def speed_of(
    config: Config, earlier: dict[SpeedKey, list[float]], measure: Callable[[Config], float | None]
) -> tuple[float | None, str]:
    """Return the images/s of one device, and where they are from."""
    if found := earlier.get(speed_key(config)):
        return statistics.median(found), "earlier runs"
    measured = measure(config)
    return measured, "measured now" if measured else ""


def speed_key(config: Config) -> SpeedKey:
    """Return what the speed of a cell depends on, as a summary records it."""
    names = (config.cell.split(",")[0], config.regime.name, str(config.data.name), config.data.image_size)
    return (*names, config.recipe.batch_size)


def earlier_speeds(runs: Path, hardware: str | None) -> dict[SpeedKey, list[float]]:
    """Return images/s of one device of all finished runs on this hardware, by what the speed depends on."""
    found: dict[SpeedKey, list[float]] = {}
    for path in runs.glob(f"*/*/*/seed*/{SUMMARY}") if hardware else ():
        if "." in path.parent.name:  # a run that was set aside
            continue
        try:
            summary = read_json(path)
            key = (summary["cell"].split(",")[0], *(summary[k] for k in ("regime", "data", "image_size", "batch_size")))
            if str(hardware).lower() in str(summary["hardware"]).lower():
                devices = int(summary.get("world_size") or 1) / int(summary.get("group_size") or 1)
                speed = float(summary["train_images_per_s"]) / devices
                found.setdefault(key, []).append(speed)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def this_hardware(cells: Sequence[Cell], gpu_type: str | None) -> str | None:
    """Return the hardware that cells will run on: the GPU type that was named, the GPU of this machine, or its CPU."""
    if gpu_type:
        return gpu_type
    on_gpu = any(cell.config.device != Device.cpu for cell in cells)
    if on_gpu and not torch.cuda.is_available():
        return None
    return str(hardware(torch.device("cuda" if on_gpu else "cpu"))["hardware"])


def as_text(study: Study, rows: Sequence[Row], unit: str = "GPU") -> str:
    """Return the table, its totals in hours of a `unit`, and what was left out."""
    head = [f"{unit}-hours" if name == "hours" else name for name in COLUMNS]
    todo = [row for row in rows if row.state != "done"]
    timed = [row.hours for row in todo if row.hours is not None]
    inferred = sum(row.source.startswith("inferred") for row in todo)
    hours = f"{hours_text(sum(timed))} {unit}-hours for {len(timed)} of them"
    hours += f" ({inferred} inferred from the others)" if inferred else ""
    lines = [
        plain_table([head, *map(table_row, rows)], right=(1, 2, 3, 5, 6)),
        f"{study.name}: {len(rows)} cells, {len(rows) - len(todo)} done; to do: {len(todo)}, "
        f"{hours if timed else 'no speed measured on this hardware'}, "
        f"{size_text(sum(row.checkpoint_gb for row in todo))} of checkpoints by estimate"
        + (f", {size_text(sum(row.last_gb for row in todo))} after make prune" if todo else ""),
    ]
    lines += study.generator.outlook(study, rows) if study.generator else ()
    return "\n".join([*lines, *(f"left out: {' '.join(left.overrides)}: {left.reason}" for left in study.left_out)])


def table_row(row: Row) -> list[str]:
    """Return a cell's costs as text."""
    speed = "" if row.images_per_s is None else f"{row.images_per_s:,.0f}"
    hours = "" if row.hours is None else hours_text(row.hours)
    size = size_text(row.checkpoint_gb)
    return [row.key, f"{row.gmacs:.4g}", f"{row.params_m:.4g}", speed, row.source, hours, size, row.state]
