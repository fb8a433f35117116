"""Text for people: nearest names, one-line errors, nested values by dotted key, command lines with our exit code."""

import argparse
import difflib
from collections.abc import Iterable
from typing import Any, NoReturn

from roadmap.errors import ConfigError


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `did you mean X? there are: ...`, the nearest names first."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    close += [n for n in names if name and n not in close and (n in name or name in n)]
    listed = ", ".join([*close, *(n for n in names if n not in close)])
    return (f"did you mean {close[0]}? " if close else "") + f"There are: {listed}"


def reason(error: BaseException) -> str:
    """Return what went wrong, on one line and without the path that a message names already."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return printable(text.splitlines()[0])


def printable(text: str) -> str:
    """Return one line without control characters: names of files may hold anything."""
    return "".join(char if char.isprintable() else "?" for char in text)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


class ArgumentParser(argparse.ArgumentParser):
    """argparse with the project's exit code for a wrong command."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError instead of ending the process with 2."""
        raise ConfigError(f"{message}; see --help")
