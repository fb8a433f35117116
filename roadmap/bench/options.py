"""The command line that the benchmarks share. Used by every benchmark of speed."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Never

import torch

from roadmap.bench.peers import LIBRARIES
from roadmap.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """argparse with the project's exit code for a wrong command."""

    def error(self, message: str) -> Never:
        """Raise ConfigError instead of ending the process with 2."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def parser(name: str, about: str | None, *, repeats: int = 20, warm_up: int = 3) -> Parser:
    """Return a parser with the options of every benchmark: device, peers, number of measurements, JSON."""
    found = Parser(
        prog=f"python -m roadmap.bench {name}", description=about, formatter_class=argparse.RawTextHelpFormatter
    )
    found.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    found.add_argument(
        "--peer", action="append", default=None, metavar="LIBRARY",
        help=f"beside whom: {', '.join(LIBRARIES)} or none; may be given several times; default: {' and '.join(LIBRARIES)}",
    )  # fmt: skip
    found.add_argument(
        "--repeats", type=count, default=repeats, help="measurements of each candidate; default: %(default)s"
    )
    found.add_argument(
        "--warm-up", type=count, default=warm_up, help="calls before the first measurement; default: %(default)s"
    )
    found.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything that was measured, every single time too"
    )
    return found


def count(text: str) -> int:
    """Read a whole number from 1 up."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


def known(key: str, given: Sequence[str], allowed: Sequence[str], what: str) -> list[str]:
    """Return names without doubles. Raises ConfigError for one that there is not, with what is allowed."""
    for name in given:
        if name not in allowed:
            raise ConfigError(f"{key}={name}: there is no such {what}; allowed: {', '.join(allowed)}")
    return list(dict.fromkeys(given))


def listed(text: str) -> list[str]:
    """Read names with commas between them."""
    return [name for name in text.split(",") if name]


def chosen_peers(args: argparse.Namespace) -> list[str]:
    """Return the libraries to measure beside; all of them by default. Raises ConfigError."""
    given = known("--peer", list(LIBRARIES) if args.peer is None else args.peer, [*LIBRARIES, "none"], "peer")
    if "none" in given and len(given) > 1:
        raise ConfigError("--peer=none: stands alone")
    return [name for name in given if name != "none"]


def on_gpu(args: argparse.Namespace) -> bool:
    """Tell whether the benchmark will run on a GPU, on which the defaults hang."""
    return args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())


def settings(args: argparse.Namespace) -> dict[str, object]:
    """Return the options as they were taken, for the logger."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in sorted(vars(args).items())}
