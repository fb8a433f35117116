"""How fast the rows of a plan train, in images/s of one device: of earlier runs, of a benchmark, or inferred."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roadmap.config.schema import Config
from roadmap.errors import ConfigError
from roadmap.files import expand, nearby, read_json
from roadmap.runs.schema import SUMMARY
from roadmap.text import one_line

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
