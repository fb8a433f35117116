"""The file that somebody asks for with `out`: there must be a place for it, and none in its place."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from roadmap.errors import ConfigError, DiskError, Refused
from roadmap.files import expand, nearby
from roadmap.text import reason


def out_file(out: str | None, default: str, suffixes: Sequence[str]) -> Path:
    """Return the file that is to be written. Raises ConfigError for no such place, Refused for one that is there."""
    path = expand(out or default)
    if path.suffix not in suffixes:
        raise ConfigError(f"out={path}: must end with {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise ConfigError(f"out={path}: there is no folder {path.parent}{nearby(path.parent)}")
    require_new(path)
    return path


def require_new(path: Path) -> None:
    """Raise Refused where there is a file already."""
    if path.exists() or path.is_symlink():
        raise Refused(f"{path}: exists already and is not overwritten; out= chooses another file")


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors while a new file is written into ours."""
    try:
        yield
    except FileExistsError as error:
        raise Refused(f"{error.filename}: exists by now and is not overwritten; out= chooses another file") from None
    except OSError as error:
        raise DiskError(f"{path}: cannot be written ({reason(error)})") from None
