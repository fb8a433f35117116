"""What `weights` names: a file, a run directory or weights of a library; and by what name they are part of a run.

Nothing of the weights is read as tensors here.
"""

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from roadmap.config.fields import shown
from roadmap.errors import ConfigError, DataError
from roadmap.files import expand, nearby, sha256_of
from roadmap.runs.checkpoint_files import list_checkpoints
from roadmap.runs.schema import CHECKPOINTS, Manifest, read_record
from roadmap.text import reason

LIBRARY = re.compile(r"(torchvision|timm):(.*)", re.DOTALL)
LIBRARY_NAME = re.compile(r"(\w{1,80})(?:\.(\w{1,80}))?", re.ASCII)
INITIAL = re.compile(r"sha256:[0-9a-f]{64}(:.{1,200})?|(torchvision|timm):\w{1,80}\.\w{1,80}", re.ASCII)


@dataclass(frozen=True)
class LibraryWeights:
    """Weights that a library fetches: `torchvision:resnet50.IMAGENET1K_V2`, `timm:convnext_tiny.fb_in1k`."""

    library: str
    net: str
    tag: str | None  # of several weights of a net; None: the library's default, which its next version may change

    def __str__(self) -> str:
        return f"{self.library}:{self.net}" + (f".{self.tag}" if self.tag else "")


def library_weights(weights: str | None) -> LibraryWeights | None:
    """Return the library's weights that `weights` names, None for a file or a folder. Raises ConfigError."""
    if (found := LIBRARY.fullmatch(weights or "")) is None:
        if "://" in (weights or ""):
            raise ConfigError(f"weights={shown(weights)}: is an address; download the file and give its path")
        return None
    if (name := LIBRARY_NAME.fullmatch(found[2])) is None:
        raise ConfigError(f"weights={shown(weights)}: must be {found[1]}:NAME or {found[1]}:NAME.TAG")
    return LibraryWeights(found[1], name[1], name[2])


def name_initial_weights(weights: str, weights_key: str | None) -> str:
    """Return by what name weights belong to a run that starts from them.

    `sha256:HEX` of the file, of a run directory the newest whole checkpoint's, with `:KEY` where `weights_key` chooses;
    a library's name with its tag. Raises DataError where they cannot be read, ConfigError for a library's default.
    """
    if library := library_weights(weights):
        if library.tag is None:
            raise ConfigError(
                f"weights={weights}: names no tag, and the default may change; use for example "
                f"{library}.{'IMAGENET1K_V1' if library.library == 'torchvision' else 'fb_in1k'}"
            )
        return str(library)
    path = expand(weights)
    try:
        digest = newest_digest(path) if path.is_dir() else digest_of(path)
    except FileNotFoundError:
        raise DataError(
            f"weights={weights}: there is no such file or run directory{nearby(path)}; "
            "a run that has started does not need them: set initial_weights= as in its config.yaml to continue"
        ) from None
    except OSError as error:
        raise DataError(f"weights={weights}: cannot be read ({reason(error)})") from None
    return f"sha256:{digest}" + (f":{weights_key}" if weights_key else "")


def check_initial_weights(name: str) -> str:
    """Return a name as `name_initial_weights` gives it. Raises ConfigError for another text."""
    if not INITIAL.fullmatch(name):
        raise ConfigError(
            f"initial_weights={shown(name)}: must be sha256: and 64 digits, or a library's NAME.TAG, "
            "as a run's config.yaml has it"
        )
    return name


def short_name(initial_weights: str) -> str:
    """Return what the name of a cell has of such a name: `1a2b3c4d5e6f`, `timm.convnext_tiny.fb_in1k`."""
    kind, _, rest = initial_weights.partition(":")
    if kind != "sha256":
        return f"{kind}.{rest}"
    digest, _, weights_key = rest.partition(":")
    return digest[:12] + (f".{weights_key}" if weights_key else "")


def newest_digest(run: Path) -> str:
    """Return the sha256 of a run's newest checkpoint that is as its manifest says. Raises DataError, OSError."""
    for path in list_checkpoints(run / CHECKPOINTS):
        try:
            recorded = read_record(Manifest, path.with_suffix(".json")).get("sha256")
        except (OSError, ValueError):
            continue
        if digest_of(path) == recorded:
            return str(recorded)
    raise DataError(f"weights={run}: has no valid checkpoint; a run directory is named seed0 or similar")


def digest_of(path: Path) -> str:
    """Return the sha256 of a file. Raises OSError."""
    about = path.stat()
    return _digest_of(os.path.realpath(path), (about.st_ino, about.st_size, about.st_mtime_ns))


@lru_cache(64)
def _digest_of(path: str, _: tuple[int, int, int]) -> str:
    """The cells of a study start from the same file, which is read once."""
    return sha256_of(Path(path))
