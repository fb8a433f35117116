"""What a study costs, cell by cell, before anything is queued. What was not measured is inferred, or empty."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from roadmap.config.choices import Device, Optimizer
from roadmap.config.images import DataConfig
from roadmap.config.schema import Config
from roadmap.data.datasets import find, splits_read
from roadmap.errors import ConfigError
from roadmap.files import expand, nearby, read_json
from roadmap.net import Cost, cost
from roadmap.runs.progress import hours_text, size_text
from roadmap.runs.provenance import hardware
from roadmap.runs.run_dir import run_path
from roadmap.runs.schema import STATUS, SUMMARY, Status, Summary, read_or_empty
from roadmap.sweep.cluster import FIRST
from roadmap.sweep.study import Cell, Study
from roadmap.text import one_line, plain_table

COLUMNS = ("cell", "GMACs", "params M", "images/s", "from", "hours", "checkpoints", "state")
BenchKey = tuple[str, int, str]  # regime, image size, step
Bench = Mapping[BenchKey, Mapping[str, float]]  # images/s by candidate
SpeedKey = tuple[Any, ...]
Speed = tuple[float | None, str]  # and where it is from


@dataclass(frozen=True)
class Net:
    """What of a cell its speed is inferred by."""

    regime: str
    image_size: int
    cell: str  # its name, without the overrides that leave the net as it is
    gmacs: float

    @property
    def key(self) -> BenchKey:
        """Return by what a benchmark knows it."""
        return (self.regime, self.image_size, self.cell)


def row_name(config: Config) -> str:
    """Return the name of a cell without the overrides that leave the net as it is."""
    return config.cell.split(",")[0]


def speed_key(config: Config) -> SpeedKey:
    """Return what the speed of a cell depends on, as a summary records it."""
    names = (row_name(config), config.regime.name, str(config.data.name), config.data.image_size)
    return (*names, config.recipe.batch_size)


def earlier_speeds(runs: Path, hardware: str | None) -> dict[SpeedKey, list[float]]:
    """Return images/s of one device of all finished runs on this hardware, by what the speed depends on."""
    found: dict[SpeedKey, list[float]] = {}
    for path in runs.glob(f"*/*/*/seed*/{SUMMARY}") if hardware else ():
        if "." in path.parent.name:  # a run that was set aside
            continue
        summary = read_or_empty(Summary, path)
        if summary.train_images_per_s and str(hardware).lower() in (summary.hardware or "").lower():
            row = (summary.cell or "").split(",")[0]
            key = (row, summary.regime, summary.data, summary.image_size, summary.batch_size)
            devices = (summary.world_size or 1) / (summary.group_size or 1)
            found.setdefault(key, []).append(summary.train_images_per_s / devices)
    return found


def with_inferred(nets: Sequence[Net], speeds: Sequence[Speed], bench: Bench) -> list[Speed]:
    """Return the speeds of nets; unknown ones are those of a benchmark, or inferred from the others.

    Where no speed is known at all, what the benchmark measured counts as it is.
    """
    if not any(speed for speed, _ in speeds):
        measured = [max(bench.get(net.key, {}).values(), default=None) for net in nets]
        speeds = [(speed, "bench" if speed else "") for speed in measured]
    known = [(net, speed) for net, (speed, _) in zip(nets, speeds, strict=True) if speed]
    return [found if found[0] else infer(net, known, bench) for net, found in zip(nets, speeds, strict=True)]


def infer(net: Net, known: Sequence[tuple[Net, float]], bench: Bench) -> Speed:
    """Return the images/s of a net by the nets of the same size whose speed is known, and by what; None without one.

    The ratio of two rows is that of the fastest form which a benchmark recorded of both, else of their MACs.
    """
    like = [(other, speed) for other, speed in known if other.key[:2] == net.key[:2]]
    ours = bench.get(net.key, {})
    by_bench = []
    for other, speed in like:
        theirs = bench.get(other.key, {})
        if both := ours.keys() & theirs.keys():
            form = max(both, key=theirs.__getitem__)
            by_bench.append(speed * ours[form] / theirs[form])
    if by_bench:
        return statistics.median(by_bench), "inferred, bench"
    if like:
        return statistics.median(speed * other.gmacs / net.gmacs for other, speed in like), "inferred, MACs"
    return None, ""


def read_bench(file: str | None) -> Bench:
    """Return what `bench net --json` recorded of our nets; {} without a file. Raises ConfigError where it is none."""
    if file is None:
        return {}
    path = expand(file)
    try:
        record = read_json(path)
    except FileNotFoundError:
        raise ConfigError(f"cluster.bench={file}: no such file{nearby(path)}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cluster.bench={file}: cannot be read ({one_line(error)})") from None
    found: dict[BenchKey, dict[str, float]] = {}
    try:
        for row in record["rows"] if record["benchmark"] == "net" else ():
            key = (record["settings"]["regime"], record["settings"]["image_size"], row["row"])
            for entry in row["candidates"]:
                if not entry["peer"] and 0 < (entry.get("images_per_s") or 0) < 1e9:
                    found.setdefault(key, {})[entry["candidate"]] = float(entry["images_per_s"])
    except (KeyError, TypeError, AttributeError):  # a record of another benchmark, or none
        found = {}
    if not found:
        raise ConfigError(f"cluster.bench={file}: is not a record of python -m roadmap.bench net --json FILE")
    return found


@dataclass
class Row:
    """One cell's costs; None where nothing was measured."""

    key: str
    gmacs: float
    params_m: float
    images: float  # that it trains on, over all epochs; 0 where that is not known
    checkpoint_gb: float
    last_gb: float  # the last of them, which `prune` leaves
    state: str  # by the run's own record; nothing for a run that there is not
    images_per_s: float | None = None  # of one device
    source: str = ""  # of the speed
    hours: float | None = None  # of one GPU (or CPU), training alone


def plan(
    cells: Sequence[Cell], runs: Path, hardware: str | None, given: Mapping[str, float], bench: Bench
) -> list[Row]:
    """Return one row per cell. `hardware` is (a part of) the name of the GPU whose earlier runs count, or None.

    Speeds are those `given`, by row, then of earlier runs, then of `bench`, or inferred from the other rows. Raises
    DataError for a set of the user's own that cannot be listed.
    """
    if FIRST in given and cells:
        given = {row_name(cells[0].config): given[FIRST], **given}
    earlier = earlier_speeds(runs, hardware)
    costs: dict[str, Cost] = {}
    sizes: dict[str, tuple[int, int | None]] = {}
    nets: list[Net] = []
    speeds: list[Speed] = []
    rows: list[Row] = []
    for cell in cells:
        config, name = cell.config, row_name(cell.config)
        size = sizes.get(repr(config.data)) or sizes.setdefault(repr(config.data), set_size(config.data))
        what = (config.model, size[0], config.data.image_size)
        net = costs.get(repr(what)) or costs.setdefault(repr(what), cost(*what))
        nets.append(Net(config.regime.name, config.data.image_size, name, net.gmacs))
        if name in given:
            speeds.append((given[name], "given"))
        elif found := earlier.get(speed_key(config)):
            speeds.append((statistics.median(found), "earlier runs"))
        else:
            speeds.append((None, ""))
        images = (1 - config.data.holdout) * (config.data.train_images or size[1] or 0)
        checkpoints = checkpoint_gb(config, net.params_m)
        row = Row(
            key=cell.key,
            gmacs=net.gmacs,
            params_m=net.params_m,
            images=config.recipe.epochs * images,
            checkpoint_gb=checkpoints,
            last_gb=checkpoints / (config.checkpoint.keep + 1),
            state=read_or_empty(Status, run_path(config) / STATUS).state or "",
        )
        rows.append(row)
    for row, speed in zip(rows, with_inferred(nets, speeds, bench), strict=True):
        row.images_per_s, row.source = speed
        row.hours = row.images / row.images_per_s / 3600 if row.images_per_s and row.images else None
    return rows


def set_size(data: DataConfig) -> tuple[int, int | None]:
    """Return how many classes a set has and, if it is known, how many images to train on.

    A set of the user's own is listed, as a run does it, unless `num_classes` is set. Raises DataError.
    """
    if num_classes := data.num_classes or data.known.num_classes:
        return num_classes, data.known.num_images.get("train")
    found = find(data, splits_read(data))
    return len(found.classes), len(found.labels["train"])


def checkpoint_gb(config: Config, params_m: float) -> float:
    """Return the GB of a run's checkpoints, the newest and the best: weights, optimizer, moving average."""
    recipe = config.recipe
    moments = 2 if recipe.optimizer == Optimizer.adamw else bool(recipe.momentum)
    copies = 1 + moments + bool(recipe.ema_decay)
    return params_m * 1e6 * 4 * copies * (config.checkpoint.keep + 1) / 1e9


def this_hardware(cells: Sequence[Cell], gpu_type: str | None, *, here: bool = False) -> str | None:
    """Return the hardware that cells will run on: the GPU type that was named, the GPU of this machine, or its CPU.

    None where it is not known: without a GPU, cells for one run elsewhere, unless they run `here`.
    """
    if gpu_type:
        return gpu_type
    on_gpu = any(cell.config.device != Device.cpu for cell in cells)
    if on_gpu and not torch.cuda.is_available():
        if not here:
            return None
        on_gpu = False
    return str(hardware(torch.device("cuda" if on_gpu else "cpu"))["hardware"])


def as_text(study: Study, rows: Sequence[Row], unit: str = "GPU") -> str:
    """Return the table, its totals in hours of a `unit`, and what was left out."""
    head = [f"{unit}-hours" if name == "hours" else name for name in COLUMNS]
    todo = [row for row in rows if row.state != "done"]
    timed = [row.hours for row in todo if row.hours is not None]
    inferred = sum(row.source.startswith("inferred") for row in todo)
    hours = f"{hours_text(sum(timed))} {unit}-hours for {len(timed)} of them"
    hours += f" ({inferred} inferred from the others)" if inferred else ""
    rest = (
        f"to do: {len(todo)}, {hours if timed else 'hours unknown without a speed (cluster.images_per_s=)'}, "
        f"{size_text(sum(row.checkpoint_gb for row in todo))} of checkpoints by estimate, "
        f"{size_text(sum(row.last_gb for row in todo))} after make prune"
    )
    lines = [
        plain_table([head, *map(table_row, rows)], right=(1, 2, 3, 5, 6)),
        f"{study.name}: {len(rows)} cells, {len(rows) - len(todo)} done" + (f"; {rest}" if todo else ""),
    ]
    lines += study.generator.outlook(study, rows)
    return "\n".join([*lines, *(f"left out: {' '.join(left.overrides)}: {left.reason}" for left in study.left_out)])


def table_row(row: Row) -> list[str]:
    """Return a cell's costs as text."""
    speed = "" if row.images_per_s is None else f"{row.images_per_s:,.0f}"
    hours = "" if row.hours is None else hours_text(row.hours)
    size = size_text(row.checkpoint_gb)
    return [row.key, f"{row.gmacs:.4g}", f"{row.params_m:.4g}", speed, row.source, hours, size, row.state]
