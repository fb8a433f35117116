"""Reading a file of weights of torch or safetensors: tensors and plain containers, never code.

What else lies in it, such as the arguments of a training run, becomes an empty placeholder: its class is never looked
up.
"""

import re
import sys
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING as PYTHON_2_NAMES
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Self

import torch
from safetensors.torch import load_file

from roadmap.errors import DataError, OutOfMemory
from roadmap.text import printable, shorten

# Of the standard library, modules whose classes merely hold values. Anything else that a file asks for is there
# to be called, as in a file that runs a command when it is read carelessly.
VALUES = {
    "argparse", "collections", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "pathlib",
    "types", "typing", "uuid",
}  # fmt: skip
STANDARD = sys.stdlib_module_names | {name.partition(".")[0] for name in PYTHON_2_NAMES}  # as pickles of torch have it
ASKED = re.compile(r"GLOBAL (\S+) was not an allowed global")
NO_MAPPING = re.compile(r"Can only SETITEMS? for .* but got <class '(.+)'>")


PLAIN = (bool, dict, float, frozenset, int, list, object, str, tuple)  # types that are named, and may be called
NAMES = 100  # that get a placeholder: the file is read once for each


class Placeholder(list[Any]):
    """Stands in for an object other than a tensor or a plain container: accepts whatever it is given, and forgets it.

    A list, since torch's reader lets nothing else be appended to.
    """

    def __new__(cls, *_: Any, **__: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    __hash__ = object.__hash__  # type: ignore[assignment]


class DictPlaceholder:
    """The same for a dictionary of another class, whose entries are read."""

    def __new__(cls, *_: Any, **__: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def read_weights_file(path: Path) -> Mapping[Any, Any]:
    """Read what a file holds by name, on the CPU.

    Raises DataError for one that is damaged, unsafe or of another kind, OutOfMemory.
    """
    try:
        path.open("rb").close()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})") from None
    try:
        loaded = load_file(path, device="cpu") if path.suffix.lower() == ".safetensors" else load_torch(path)
    except DataError:
        raise
    except MemoryError:
        raise OutOfMemory(f"{path}: memory is too small to read it") from None
    except Exception as error:  # on a damaged file both readers raise whatever their parsers run into
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise DataError(f"refused: it asks for {asked[1]}, and a file of weights holds tensors only") from None
        raise DataError("cannot be read as weights: damaged, cut short, or a file of another kind") from None
    if not isinstance(loaded, Mapping):
        raise DataError(f"holds no weights by name, but a {type(loaded).__name__}")
    return loaded


def load_torch(path: Path) -> Any:
    """Load a file of `torch.save` with `weights_only`; each name that it does not allow becomes a placeholder.

    Raises torch's errors for a damaged file, and for one that asks for something callable.
    """
    placeholders: dict[str, type] = {}
    if mapped := zipfile.is_zipfile(path):  # read where it lies, so that reading again costs nothing
        refuse_compressed(path)
    while True:
        allowed: list[Any] = [*PLAIN, *((kind, name) for name, kind in placeholders.items())]
        try:
            with torch.serialization.safe_globals(allowed), warnings.catch_warnings(action="ignore"):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except UnpicklingError as error:
            asked, given = ASKED.search(str(error)), NO_MAPPING.search(str(error))
            if asked and asked[1] not in placeholders and len(placeholders) < NAMES and holds_values(asked[1]):
                placeholders[asked[1]] = placeholder(asked[1], Placeholder)
            elif given and given[1] in placeholders:
                placeholders[given[1]] = placeholder(given[1], DictPlaceholder)
            else:
                raise


def refuse_compressed(path: Path) -> None:
    """Raise DataError for an archive that holds more than its size: `torch.save` compresses nothing."""
    with zipfile.ZipFile(path) as archive:
        if compressed := [each.filename for each in archive.infolist() if each.compress_type != zipfile.ZIP_STORED]:
            name = shorten(printable(compressed[0]), 80)
            raise DataError(f"refused: {name} in it is compressed, and torch compresses nothing")


def holds_values(name: str) -> bool:
    """Tell whether a name in a file may be that of a class of values, and not a callable of the standard library.

    torch itself refuses `os` and `sys`, and names builtins without a module.
    """
    module = name.partition(".")[0]
    return "." in name and (module in VALUES or module not in STANDARD)


def placeholder(name: str, kind: type) -> type:
    """Return a placeholder class for a name, which it bears in messages."""
    module, _, own = name.rpartition(".")
    return type(own, (kind,), {"__module__": module})
