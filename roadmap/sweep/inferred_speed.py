"""Speeds that nobody measured, inferred from those of other rows: by the ratio of two rows that `bench net` recorded on
this hardware, else by their multiply-accumulates."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roadmap.config.schema import Config
from roadmap.errors import ConfigError
from roadmap.files import expand, nearby, read_json
from roadmap.steps.tree import CONF
from roadmap.text import clean, one_line

MEASURED = CONF.parent / "docs" / "measured"  # what we have measured ourselves
BenchKey = tuple[str, int, str]  # regime, image size, step
Bench = Mapping[BenchKey, Mapping[str, float]]  # images/s by candidate


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


def net_of(config: Config, gmacs: float) -> Net:
    """Return a cell's net."""
    return Net(config.regime.name, config.data.image_size, config.cell.split(",")[0], gmacs)


def infer(net: Net, known: Sequence[tuple[Net, float]], bench: Bench) -> tuple[float | None, str]:
    """Return the images/s of a net by the nets of the same size whose speed is known, and by what; None without one.

    The ratio of two rows is that of the fastest form which was recorded of both.
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


def read_bench(hardware: str | None, file: str | None) -> Bench:
    """Return what `bench net --json` recorded of our nets: in the file that was named, and in those of this hardware
    that we measured ourselves. Raises ConfigError for a file that was named and is none."""
    found: dict[BenchKey, dict[str, float]] = {}
    for path in sorted(MEASURED.glob("*.json")) if hardware else ():
        try:
            record = read_json(path)
        except (OSError, ValueError):
            continue
        if str(hardware).lower() in str(_part(record.get("hardware")).get("hardware")).lower():
            found |= _speeds(record)
    if file is not None:
        path = expand(file)
        try:
            record = read_json(path)
        except FileNotFoundError:
            raise ConfigError(f"cluster.bench={file}: no such file{nearby(path)}") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"cluster.bench={file}: cannot be read ({one_line(error)})") from None
        if not (theirs := _speeds(record)):
            raise ConfigError(f"cluster.bench={file}: is no record of python -m roadmap.bench net --json FILE")
        found |= theirs
    return found


def _speeds(record: dict[str, Any]) -> dict[BenchKey, dict[str, float]]:
    """Return images/s of our own nets by row and candidate; {} for a record of another benchmark, or none."""
    settings, rows = _part(record.get("settings")), record.get("rows")
    regime, size = settings.get("regime"), settings.get("image_size")
    if record.get("benchmark") != "net" or not isinstance(rows, list) or not isinstance(size, int):
        return {}
    found: dict[BenchKey, dict[str, float]] = {}
    for row in map(_part, rows):
        entries = row.get("candidates")
        for entry in map(_part, entries if isinstance(entries, list) else []):
            speed = entry.get("images_per_s")
            if isinstance(speed, int | float) and 0 < speed < 1e9 and entry.get("peer") is False:
                key = (clean(regime, 80), size, clean(row.get("row"), 80))
                found.setdefault(key, {})[clean(entry.get("candidate"), 80)] = float(speed)
    return found


def _part(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
