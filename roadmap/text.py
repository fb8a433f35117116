"""Text for people: errors on one line, the nearest of several names, dotted keys, plain tables, command lines; and
what no text may hold, the values of secrets."""

import argparse
import difflib
import json
import netrc
import os
import re
import signal
import sys
import time
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, Self, TextIO
from urllib.parse import quote

from roadmap import interrupted
from roadmap.errors import DONE, ConfigError, DiskError, RoadmapError, StoppedEarly, is_refused

P = ParamSpec("P")
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
SECRET_NAME = re.compile(r"(?i)key|token|secret|passw|passphrase|credential")  # of a variable of the environment
NO_SECRETS = ("TORCH_COMPILE_CACHE_KEY_TAG",)  # named like one, and read by torch: in ours is the hash of our code
SECRET_WORD = re.compile(r"[a-z]{,11}|\S{,7}")  # a value that is none: `disabled`, `1`
URL_PASSWORD = re.compile(r"(?<=://)[^\s/@:]*:([^\s/@]+)(?=@)")
MAX_READ = 10_000  # characters of a text that are read; anything longer is neither a name nor a message


def secrets_here() -> dict[str, str]:
    """Return the secrets that this process knows of, value -> where it is from: variables of the environment that are
    named like one, passwords in addresses, and the keys of a .netrc."""
    found = {}
    for name, value in os.environ.items():
        named = SECRET_NAME.search(name) and name not in NO_SECRETS
        if named and not SECRET_WORD.fullmatch(value) and not os.path.exists(value):
            found[value] = name
        if "://" in value and (password := URL_PASSWORD.search(value)):
            found[password[1]] = name
    for file in netrc_files():
        path = os.path.expanduser(file)
        try:
            keys = netrc_keys(path, os.stat(path).st_mtime_ns)
        except OSError:
            continue
        found |= dict.fromkeys(keys, file)
    return found


def netrc_files() -> list[str]:
    """Return where keys of servers are kept: in the file that NETRC names, else in one of the home folder."""
    return [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]


@lru_cache(8)
def netrc_keys(path: str, _: int) -> tuple[str, ...]:
    """Return the passwords in a .netrc as it was at a time; none where it cannot be read."""
    try:
        hosts = netrc.netrc(path).hosts.values() if Path(path).is_file() else ()
    except (OSError, ValueError, netrc.NetrcParseError):
        return ()
    return tuple(key for _, _, key in hosts if key and not SECRET_WORD.fullmatch(key))


def redact(text: str) -> str:
    """Return the text with `***` for every secret, also where it is quoted, escaped, or broken into lines."""
    for value in sorted(secrets_here(), key=len, reverse=True):
        for form in _forms(value):
            text = text.replace(form, "***")
    return URL_PASSWORD.sub("***", text) if "://" in text else text


def _forms(value: str) -> Iterator[str]:
    yield from (value, quote(value, safe=""), json.dumps(value)[1:-1], repr(value)[1:-1], " ".join(value.split()))
    yield from (line for line in value.splitlines() if len(line) >= 16)


class RedactedStream:
    """A stream of text without secrets. Output that is not a result (stderr) may be lost, which ends nothing."""

    def __init__(self, stream: TextIO, *, is_result: bool) -> None:
        self._stream, self._is_result = stream, is_result

    def write(self, text: str) -> int:
        """Write the text without its secrets. Raises as `flush`."""
        with self._errors():
            self._stream.write(redact(text))
        return len(text)

    def flush(self) -> None:
        """Write what waits. Raises BrokenPipeError where nobody reads a result, DiskError where it cannot go out."""
        with self._errors():
            self._stream.flush()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # what waits in it can be let go
            if self._is_result and isinstance(error, BrokenPipeError):
                raise
            if self._is_result:
                raise DiskError(f"the output cannot be written ({error.strerror})") from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def redact_output() -> None:
    """Keep secrets out of this process's stdout and stderr from now on: prints, tracebacks, output of libraries."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115 - closed when the process was started
        if not isinstance(stream, RedactedStream):
            setattr(sys, name, RedactedStream(stream, is_result=name == "stdout"))


def check_name(key: str, name: str) -> str:
    """Return a name that becomes a folder. Raises ConfigError, as KEY=NAME, if it is not a plain folder name."""
    if not SAFE_NAME.fullmatch(name):
        raise ConfigError(f"{key}={name}: a name consists of letters, digits, '_', '-' and '.', and at most 80 of them")
    return name


def nearest(
    name: str, known: Iterable[str], limit: int | None = None, listing: str = "there are", cutoff: float = 0.5
) -> str:
    """Return `did you mean X? There are: ...` or, where none is near, `there are: ...`; the nearest names first, at
    most `limit` of them. Names count as near from a similarity of `cutoff` on, from 0 to 1."""
    names = list(known)
    at = name.rfind(".") + 1  # a section that all share makes no two names alike
    at = at if all(n.startswith(name[:at]) for n in names) else 0
    close = [name[:at] + n for n in difflib.get_close_matches(name[at:], [n[at:] for n in names], n=3, cutoff=cutoff)]
    close += [n for n in names if name and n not in close and (n in name or name in n)]
    in_order = [*close, *(n for n in names if n not in close)]
    begin = f"did you mean {close[0]}? {listing[0].upper()}{listing[1:]}" if close else listing
    return f"{begin}: {first_few(in_order, limit or len(in_order))}"


def first_few(texts: Sequence[str], most: int = 3, separator: str = ", ") -> str:
    """Return at most `most` texts, and how many more there are: `a, b and 3 more`, or `a; b; and 3 more`."""
    more = f"{separator.strip(',')}and {len(texts) - most} more" if len(texts) > most else ""
    return separator.join(texts[:most]) + more


def utc(seconds: float | None = None) -> str:
    """Return a time, by default now, as records have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


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


def printable_lines(text: str) -> str:
    """Return lines as they may be shown: no secret, and no control character, whoever thought of a name in them."""
    return "\n".join(map(printable, redact(text).split("\n")))


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


def command_line(main: Callable[P, int]) -> Callable[P, int]:
    """Let a command's function, whose value is its exit code, end as all of ours do: no secret is printed, an error of
    ours and a lack of memory are one line, Ctrl-C is a stop, and a reader that has seen enough (`| head`) is none."""

    @wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        redact_output()
        with Interrupt() as interrupt:
            try:
                code = main(*args, **kwargs)
                sys.stdout.flush()
            except BrokenPipeError:
                return DONE
            except (KeyboardInterrupt, Exception) as found:
                if interrupt.came or isinstance(found, KeyboardInterrupt):
                    print("interrupted", file=sys.stderr, flush=True)
                    return StoppedEarly.code
                if (plain := found if isinstance(found, RoadmapError) else machine_error(found)) is None:
                    raise
                print(printable_lines(f"error: {plain}"), file=sys.stderr, flush=True)
                return plain.code
        return code

    return run


class Interrupt:
    """Lets Ctrl-C raise KeyboardInterrupt within, in a command that it ends at once before and after.

    `came` tells of it where a library has made another error of it.
    """

    came = False

    def __enter__(self) -> Self:
        self._in_command = signal.getsignal(signal.SIGINT) is interrupted
        if self._in_command:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._in_command:
            signal.signal(signal.SIGINT, interrupted)

    def _note(self, *_: object) -> None:
        self.came = True
        raise KeyboardInterrupt


def machine_error(error: Exception) -> RoadmapError | None:
    """Return what this machine lacks where a command cannot even begin, memory or a folder (for temporary files, or
    the current one), or the path that it refuses; None for any other error."""
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
        return DiskError("TMPDIR: no folder for temporary files can be written; name one that can be")
    if isinstance(error, FileNotFoundError) and not has_current_folder():
        return DiskError("the folder in which this command was typed is gone; change to another one")
    if isinstance(error, OSError) and is_refused(error):
        return DiskError(f"{clean(error.filename)}: cannot be used ({reason(error)})")
    if isinstance(error, MemoryError):
        return ConfigError("memory is too small to begin; `ulimit -v` may limit it")
    if isinstance(error, ImportError) and ("failed to map segment" in str(error) or "annot allocate" in str(error)):
        why = "memory is too small to load it; `ulimit -v` may limit it, or its folder is mounted noexec"
        return ConfigError(f"{one_line(error)}: {why}")
    return None


def has_current_folder() -> bool:
    """Tell whether the current folder is still there."""
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def shorten(text: str, limit: int) -> str:
    """Return the text, its middle left out where it is longer than `limit`: names often differ at the end."""
    if len(text) <= limit:
        return text
    text = redact(text)  # a part of a secret could not be told any more
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
