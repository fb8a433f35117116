"""The file that somebody asks for with `out`: its folder must exist, the file must not.

Free of torch: this is known before torch is imported.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from roadmap.config import Config
from roadmap.config.choices import ExportFormat
from roadmap.errors import ConfigError, DiskError, Refused
from roadmap.files import expand, nearby
from roadmap.text import reason

SUFFIXES = {ExportFormat.onnx: ".onnx", ExportFormat.torch_export: ".pt2"}


def predictions_files(config: Config) -> tuple[Path, Path | None]:
    """Return the table of mode=predict and, if asked for, the file of features. Raises as `out_file`."""
    out = out_file(config.out, "predictions.csv", (".csv",))
    features = out.with_suffix(".npz") if config.features else None
    if features is not None and not was_killed(out):
        require_new(features)
    return out, features


def was_killed(path: Path) -> bool:
    """Tell whether an earlier try to write this table was killed: its features may have their name already, and are
    written again. Others than those are refused in the end."""
    return any(path.parent.glob(f".{escape(path.name)}.*.tmp"))


def exported_file(config: Config) -> Path:
    """Return the file of mode=export. Raises as `out_file`."""
    suffix = SUFFIXES[ExportFormat(str(config.format))]
    return out_file(config.out, f"model{suffix}", (suffix,))


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
