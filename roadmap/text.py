"""Text for people: errors on one line, the nearest of several names, dotted keys, plain tables, command lines."""

import argparse
import difflib
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NoReturn

from roadmap.errors import ConfigError

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
MAX_READ = 10_000  # characters of a text that are read; what is longer is no name and no message


def check_name(key: str, name: str) -> str:
    """Return a name that becomes a folder. Raises ConfigError, as KEY=NAME, for one that is no plain folder name."""
    if not SAFE_NAME.fullmatch(name):
        raise ConfigError(f"{key}={name}: a name has letters, digits, '_', '-' and '.', and at most 80 of them")
    return name


def nearest(name: str, known: Iterable[str], limit: int | None = None) -> str:
    """Return `did you mean X? There are: ...`, the nearest names first, at most `limit` of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    close += [n for n in names if name and n not in close and (n in name or name in n)]
    in_order = [*close, *(n for n in names if n not in close)]
    listed = ", ".join(in_order[:limit])
    listed += f" and {len(in_order) - limit} more" if limit and len(in_order) > limit else ""
    return (f"did you mean {close[0]}? " if close else "") + f"There are: {listed}"


def unlike(name: str, other: str) -> str:
    """Return how two names differ that look alike: in their Unicode form, or in case; nothing for other names."""
    if name != other and unicodedata.normalize("NFKC", name) == unicodedata.normalize("NFKC", other):
        return f"the same letters in two Unicode forms, {name!a} and {other!a}"
    if name != other and name.casefold() == other.casefold():
        return f"{clean(name, 80)} and {clean(other, 80)} differ in case alone"
    return ""


def reason(error: BaseException) -> str:
    """Return what went wrong, on one line and without the path that a message names already."""
    return printable(one_line(error.strerror if isinstance(error, OSError) and error.strerror else error))


def printable(text: str) -> str:
    """Return one line without control characters: names of files may hold anything."""
    return "".join(char if char.isprintable() else "?" for char in text)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def plain_table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Return rows in aligned columns, those numbered in `right` flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(range(len(row)), row, widths, strict=True)
        lines.append("  ".join(text.rjust(width) if i in right else text.ljust(width) for i, text, width in cells))
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Return rows, the headings first, as a Markdown table; the columns numbered in `right` flush right."""
    rule = ["---:" if i in right else "---" for i in range(len(rows[0]))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))


class ArgumentParser(argparse.ArgumentParser):
    """argparse with the project's exit code for a wrong command; options are spelled in full."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError instead of ending the process with 2."""
        raise ConfigError(f"{message}; see --help")


def shorten(text: str, limit: int) -> str:
    """Return the text, its middle left out where it is longer than `limit`: names often differ at the end."""
    if len(text) <= limit:
        return text
    tail = max(1, limit // 4)
    return f"{text[: limit - tail - 1].rstrip()}…{text[-tail:].lstrip()}"


def one_line(error: object, limit: int = 200) -> str:
    """Return an error's text on one line, shortened; its type's name where it has none."""
    return shorten(" ".join(str(error).split()), limit) or type(error).__name__


def clean(text: object, limit: int = 200) -> str:
    """Return any text as one safe line: no control, direction or private characters, at most two marks on a letter."""
    read = str(text)[:MAX_READ]
    if read.isascii() and read.isprintable():
        return shorten(" ".join(read.split()), limit)  # by far the most, and nothing in it to take out
    safe: list[str] = []
    marks = 0
    for char in unicodedata.normalize("NFC", read):
        kind = unicodedata.category(char)
        marks = marks + 1 if kind in {"Mn", "Me"} else 0
        if kind[0] == "Z" or char in "\t\r\n":
            safe.append(" ")
        elif kind[0] != "C" and marks <= 2:
            safe.append(char)
    return shorten(" ".join("".join(safe).split()), limit)
