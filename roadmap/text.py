"""Text for people: the nearest of several names, nested values by dotted key, command lines with the project's exit code."""

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


def shorten(text: str, limit: int) -> str:
    """Return the text, its middle left out where it is longer than `limit` characters: names often differ at the end."""
    if len(text) <= limit:
        return text
    tail = max(1, limit // 4)
    return f"{text[: limit - tail - 1].rstrip()}…{text[-tail:].lstrip()}"


def one_line(error: object, limit: int = 200) -> str:
    """Return an error's text on one line, shortened; its type's name where it has none."""
    return shorten(" ".join(str(error).split()), limit) or type(error).__name__
