"""The forms that were measured to win: what `kernels=auto` takes. A form that is not in a table is not taken.

Tables are JSON, in one format: `measured.json` here has those of the repository, and `python -m roadmap.bench kernels
--record` writes a user's own, whose path is ROADMAP_KERNELS, else `~/.config/convnext-roadmap/kernels.json`. Nothing is
timed when a run starts: which form an operation has is a function of the config, the device and these files.

A user's table counts on the GPU and torch that it was recorded with, before all others. A table of the repository
counts for its compute capability; what won there by LEAST or more is taken on newer and older GPUs, too, unmeasured.
"""

import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from roadmap.files import disk_errors, read_json, write_json
from roadmap.net.kernels.triton_support import why_no_triton
from roadmap.text import clean, one_line, reason

FILE = Path(__file__).with_name("measured.json")
LEAST = 1.5  # times as fast as torch's own, for a form to be taken on a GPU that it was not measured on
REFERENCE = "cuda 9.0"  # whose table stands in there
Count = Annotated[int, Ge(1)]
# Of each operation its forms beside `plain`, from the one that `fast` would rather have.
FORMS = {
    "depthwise forward": ("columns", "triton"),
    "depthwise input gradient": ("columns", "triton", "flipped"),
    "depthwise weight gradient": ("columns", "triton", "bias_apart"),
    "norm": ("triton",),
    "join": ("triton",),  # layer scale, stochastic depth, shortcut
    "pointwise": ("linear",),
    "pointwise without bias": ("linear",),
    "gelu": ("triton",),  # after a pointwise convolution that has a bias
}


class OpSpec(NamedTuple):
    """An operation of a net on a device; kernel and stride of a convolution, channels of the map that it works on."""

    device: torch.device
    operation: str
    kernel: int | None = None
    stride: int | None = None
    channels: int | None = None


class Plain(BaseModel):
    """A part of a table's file: unknown keys, wrong types and numbers that are not finite are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Row(Plain):
    """The best form of an operation at a shape, None where the shape does not matter; `gain` times torch's own."""

    operation: str
    kernel: Count | None = None
    stride: Count | None = None
    channels: Count | None = None
    height: Count | None = None  # of the map
    form: Annotated[str, Field(pattern=r"^[a-z_]+(/[0-9]{1,4}){0,4}$")]
    gain: Annotated[float, Gt(0)]
    ms: dict[str, float] = {}  # of the forms, and what bounds them

    @property
    def is_known(self) -> bool:
        """Tell whether there is such a form: a table may be older or newer than this code."""
        return base(self.form) in ("plain", *FORMS.get(self.operation, ()))

    @property
    def shape(self) -> tuple[str, int | None, int | None, int | None, int | None]:
        """Return what was measured."""
        return self.operation, self.kernel, self.stride, self.channels, self.height


class Table(Plain):
    """What was measured on one device: `cpu`, or `cuda` and the compute capability."""

    device: str
    hardware: str
    torch: str
    about: str  # how it was measured
    rows: list[Row]

    @property
    def origin(self) -> tuple[str, str, str]:
        """Return where it was measured, as `origin_here` does."""
        return self.device, self.hardware, self.torch


class Tables(Plain):
    """A file of tables."""

    schema_version: Literal[1]
    tables: list[Table]


def base(form: str) -> str:
    """Return a form without its tile: `columns` of `columns/4/32/1`."""
    return form.partition("/")[0]


def best_form(spec: OpSpec) -> str:
    """Return the form that was measured to win for an operation, at the shape nearest to it; else `plain`.

    Of several maps with as many channels the largest counts, where the operation takes longest.
    """
    for table, least in tables_for(spec.device):
        rows = [row for row in table.rows if row.shape[:3] == spec[1:4] and row.is_known]
        if rows:
            row = min(rows, key=lambda row: (distance(row, spec), -(row.height or 0)))
            return row.form if row.gain >= least else "plain"
    return "plain"


def distance(row: Row, spec: OpSpec) -> float:
    """Return how far a row's number of channels is from that of an operation."""
    return abs(math.log(row.channels / spec.channels)) if row.channels and spec.channels else 0.0


def tables_for(device: torch.device) -> list[tuple[Table, float]]:
    """Return the tables that count on a device, first the most relevant; with each the least gain that counts."""
    found = [(table, 0.0) for table in user_tables()[0] if table.origin == origin_here(device)]
    repository = {table.device: table for table in read_tables(FILE)}
    if device_name(device) in repository:
        found.append((repository[device_name(device)], 0.0))
    elif device.type == "cuda" and why_no_triton(device) is None:
        found.append((repository[REFERENCE], LEAST))
    return found


def notes(device: torch.device) -> Iterator[str]:
    """Yield remarks about the tables on a device: which are ignored, and that it was not measured."""
    own, problem = user_tables()
    if problem:
        yield f"{problem}: ignored"
    elif own and not any(table.origin == origin_here(device) for table in own):
        known = ", ".join(f"{table.hardware} with torch {table.torch}" for table in own)
        _, hardware, version = origin_here(device)
        yield f"{user_file()} is of {known}, not of {hardware} with torch {version}: ignored"
    here = [row for table in own if table.origin == origin_here(device) for row in table.rows]
    if gone := sorted({f"{row.operation} {row.form}" for row in here if not row.is_known}):
        yield f"{user_file()} names forms that do not exist ({', '.join(gone)}): ignored"
    if any(least for _, least in tables_for(device)[:1]):
        yield "not measured on this GPU; python -m roadmap.bench kernels --record does"


def user_file() -> Path | None:
    """Return where a user's own tables are; None where ROADMAP_KERNELS is empty, or nobody knows the home folder."""
    given = os.environ.get("ROADMAP_KERNELS")
    if given is not None:
        return Path(given) if given else None
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return None if config.startswith("~") else Path(config) / "convnext-roadmap" / "kernels.json"


def user_tables() -> tuple[list[Table], str | None]:
    """Return a user's own tables, and what is wrong with their file."""
    path = user_file()
    try:
        return (read_tables(path) if path else []), None
    except (FileNotFoundError, NotADirectoryError):
        return [], None
    except OSError as error:
        return [], f"{clean(path)}: cannot be read ({reason(error)})"
    except ValueError as error:
        return [], one_line(error)


def record(table: Table) -> Path:
    """Write a table into the user's file: its rows take the place of those of the same device, torch and shape.

    Returns the file; `user_file` must name one. Raises DiskError.
    """
    path = user_file()
    assert path is not None
    tables, _ = user_tables()  # a damaged file is replaced
    same = [old for old in tables if old.origin == table.origin]
    others = [old for old in tables if old.origin != table.origin]
    shapes = {row.shape for row in table.rows}
    earlier = [row for old in same for row in old.rows if row.shape not in shapes]
    merged = table.model_copy(update={"rows": [*table.rows, *earlier]})
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, Tables(schema_version=1, tables=[merged, *others]).model_dump(exclude_defaults=True))
    read_tables.cache_clear()
    return path


@cache
def read_tables(path: Path) -> list[Table]:
    """Read a file of tables, once. Raises OSError, ValueError with the file's name."""
    try:
        return Tables.model_validate(read_json(path)).tables
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: no table of kernels ({place}: {first['msg']})") from None


def device_name(device: torch.device) -> str:
    """Return a device's name in the tables."""
    if device.type != "cuda":
        return device.type
    return "cuda {}.{}".format(*torch.cuda.get_device_capability(device))


def origin_here(device: torch.device) -> tuple[str, str, str]:
    """Return what identifies a table recorded here: device, the GPU's name, torch's version."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return device_name(device), hardware, torch_name()


def torch_name() -> str:
    """Return torch's version without its build."""
    return torch.__version__.split("+")[0]
