"""The options that the benchmarks share."""

import argparse
from collections.abc import Callable, Collection
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from roadmap.errors import ConfigError
from roadmap.files import nearby
from roadmap.text import ArgumentParser, nearest

LIBRARIES = ("timm", "torchvision")
MOST = 1_000_000  # of minutes, seconds


def parser(name: str, about: str | None, *, warm_up: int) -> ArgumentParser:
    """Return a parser with the options of every comparison: device, peers, number of measurements, JSON."""
    made = plain_parser(name, about)
    peers = f"libraries to compare with: {', '.join(LIBRARIES)} or none; may be given several times; default: all"
    made.add_argument("--peer", action="extend", type=names((*LIBRARIES, "none")), metavar="LIBRARY", help=peers)
    made.add_argument("--repeats", type=count, default=20, help="of each candidate; default: %(default)s")
    made.add_argument("--warm-up", type=count, default=warm_up, help="calls before the first; default: %(default)s")
    return made


def empty_parser(name: str, about: str | None) -> ArgumentParser:
    """Return a benchmark's parser without options."""
    return ArgumentParser(
        prog=f"python -m roadmap.bench {name}", description=about, formatter_class=argparse.RawTextHelpFormatter
    )


def plain_parser(name: str, about: str | None) -> ArgumentParser:
    """Return a parser with the options of every measurement: device, JSON."""
    made = empty_parser(name, about)
    made.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    made.add_argument("--json", type=Path, metavar="FILE", help="write every single time and all about it")
    return made


def count(text: str) -> int:
    """Read a whole number from 1 up."""
    with suppress(ValueError):
        if (value := int(text)) >= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 1")


def above_zero(text: str) -> float:
    """Read a number above 0 and below MOST."""
    with suppress(ValueError):
        if 0 < (value := float(text)) < MOST:
            return value
    raise argparse.ArgumentTypeError(f"{text}: must be a number above 0 and below {MOST}")


def folder(text: str) -> Path:
    """Read the name of a folder that is there."""
    if not (path := Path(text)).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: is not a folder{nearby(path)}")
    return path


def names(allowed: Collection[str]) -> Callable[[str], list[str]]:
    """Return a reader of comma-separated names, each of which must be allowed."""

    def read(text: str) -> list[str]:
        found = [name for name in dict.fromkeys(text.split(",")) if name]
        for name in found:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name}: unknown; {nearest(name, allowed)}")
        if not found:
            raise argparse.ArgumentTypeError(f"{text!r}: names none; {nearest('', allowed)}")
        return found

    return read


def chosen_peers(args: argparse.Namespace) -> list[str]:
    """Return the libraries to compare with; by default all that are installed, the others are named.

    Raises ConfigError, also for one that was asked for and is not installed.
    """
    given = list(dict.fromkeys(args.peer or LIBRARIES))
    if "none" in given and len(given) > 1:
        raise ConfigError("--peer=none: excludes every other --peer")
    chosen = [name for name in given if name != "none"]
    if missing := [name for name in chosen if find_spec(name) is None]:
        if args.peer:
            raise ConfigError(f"--peer={missing[0]}: is not installed")
        print(f"not installed, and left out: {', '.join(missing)}")
    return [name for name in chosen if name not in missing]
