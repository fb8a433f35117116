"""Weights that are there already: a published file's, a library's, or a run's of ours; what their classes are called.

Of a file only tensors are read, never code.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from roadmap.catalog import DataKind
from roadmap.config import KEYS, Config
from roadmap.config.choices import Mode, Precision
from roadmap.config.fields import shown
from roadmap.data import datasets, folders, in_memory
from roadmap.distributed.device import choose_precision
from roadmap.errors import DataError, DiskError
from roadmap.files import expand, nearby
from roadmap.net import build_net, cost, load_weights, use_kernels
from roadmap.net.find_weights import find_weights
from roadmap.net.library_weights import default_tag, fetch_weights, published_evaluation
from roadmap.net.weights import FORMATS, foreign_name
from roadmap.net.weights_file import read_weights_file
from roadmap.runs import checkpoint
from roadmap.runs.permissions import refuse_unsafe
from roadmap.runs.progress import SweepProgress
from roadmap.runs.recorded_config import differences, identity, lost_keys, read_config
from roadmap.runs.schema import CHECKPOINTS, CONFIG, STATUS, SUMMARY, Status, Summary, read_or_empty
from roadmap.runs.weights_source import LibraryWeights, library_weights
from roadmap.text import clean, first_few, flatten, printable

READ_IN_EVALUATION = {name for name, key in KEYS.items() if key.evaluation}


@dataclass(frozen=True)
class Weights:
    """Tensors by key, in what format, and whose they are: of a file or a library, or from where in a run's training."""

    tensors: Mapping[str, torch.Tensor]
    fmt: str
    origin: str
    of_run: bool
    classes: tuple[str, ...] | None = None  # names that the run has recorded; older ones have none

    @property
    def head(self) -> str:
        """Return what the last layer is called, without `.weight` and `.bias`."""
        return foreign_name("head", self.fmt) if self.fmt in FORMATS else "head"

    @property
    def num_classes(self) -> int:
        """Return for how many classes the last layer is. Raises DataError for weights without one."""
        bias = self.tensors.get(f"{self.head}.bias")
        if not isinstance(bias, torch.Tensor) or bias.ndim != 1 or not bias.numel():
            raise DataError(f"weights in {self.fmt} format do not fit any net: no {self.head}.bias of a number a class")
        return bias.numel()

    def other_class(self, classes: Sequence[str]) -> str:
        """Return the first of a set's classes that the run calls otherwise, `ant instead of cat`; else nothing."""
        pairs = zip(map(printable, classes), self.classes or (), strict=False)
        return next((f"{ours} instead of {theirs}" for ours, theirs in pairs if ours != theirs), "")


@contextmanager
def errors_of_weights(config: Config) -> Iterator[None]:
    """Let an error say which weights it is about."""
    try:
        yield
    except (DataError, DiskError) as error:
        raise type(error)(f"weights={config.weights}: {error}") from None


def read_weights(config: Config, sweep: SweepProgress, *, any_net: bool = False) -> Weights:
    """Read `config.weights`: a run's must be of the config's net, unless they are loaded where they fit (`any_net`).

    Raises DataError, Refused.
    """
    path = expand(str(config.weights))
    if library_weights(config.weights) is not None or not path.is_dir():
        return read_file(config, sweep)
    refuse_unsafe(path, path, "weights")
    recorded = read_config(path)
    if not any_net:
        require_same_net(recorded, config, sweep)
    return read_run(path, recorded, config, sweep)


def require_same_net(recorded: dict[str, Any], config: Config, sweep: SweepProgress) -> None:
    """Raise DataError where a run is of another net; what else differs from its own evaluation is told."""
    if lost := lost_keys(recorded):
        sweep.write(clean(f"{CONFIG} has keys that this version does not know and ignores: {', '.join(lost)}", 500))
    changes = differences(identity(recorded), identity(config.values()))
    changes = [change for change in changes if change.split(":")[0] in READ_IN_EVALUATION]
    if of_net := [change for change in changes if change.startswith("model.")]:
        raise DataError(f"a run of another net ({first_few(of_net, 5, '; ')}); give its step and overrides")
    if changes:
        sweep.write(f"not evaluated as the run itself was: {'; '.join(changes)}")


def read_file(config: Config, sweep: SweepProgress) -> Weights:
    """Read a file of weights, or a library's. Raises DataError."""
    if library := library_weights(config.weights):
        library = replace(library, tag=library.tag or default_tag(library.library, library.net))
        sweep.write(f"{library}: as {library.library} has it in its cache, or else fetched")
        if config.mode != Mode.train and (note := evaluation_note(config, library)):
            sweep.write(note)
        found = find_weights(fetch_weights(library.library, library.net, str(library.tag)), config.weights_key)
        return Weights(found.tensors, found.fmt, f"{library}, {found.origin}", of_run=False)
    path = expand(str(config.weights))
    if not path.exists():
        raise DataError(f"there is no such file or run directory{nearby(path)}")
    if not path.is_file():
        raise DataError("is no regular file")
    found = find_weights(read_weights_file(path), config.weights_key)
    return Weights(found.tensors, found.fmt, found.origin, of_run=False)


def evaluation_note(config: Config, library: LibraryWeights) -> str:
    """Return by which settings a library evaluates its weights otherwise than this config does; nothing where none."""
    published = published_evaluation(library.library, library.net, str(library.tag))
    here = flatten(config.values())
    other = [f"{key}={shown(value)}" for key, value in published.items() if here[key] != value]
    return f"{library}: published with {' '.join(other)}" if other else ""


def read_run(path: Path, recorded: dict[str, Any], config: Config, sweep: SweepProgress) -> Weights:
    """Read the newest whole checkpoint of a run directory. Raises DataError."""
    found = checkpoint.find_newest(path / CHECKPOINTS)
    if found is None:
        raise DataError("the run holds no checkpoint yet")
    for reason in found.skipped:
        sweep.write(f"skipped {reason}")
    state = checkpoint.load(found.path)
    if not isinstance(state, Mapping) or not isinstance(state.get("net"), Mapping):
        raise DataError(f"{found.path.name}: holds no net")
    weights = find_weights({name: state[name] for name in ("net", "ema") if name in state}, config.weights_key)
    epochs = identity(recorded).get("recipe.epochs")
    origin = f"our run after {state.get('epochs_evaluated')} of {epochs} epochs"
    if weights.others:
        origin += f", {weights.name} and not {', '.join(weights.others)} (weights_key=NAME chooses)"
    return Weights(weights.tensors, weights.fmt, origin, of_run=True, classes=recorded_classes(path))


def recorded_classes(run: Path) -> tuple[str, ...] | None:
    """Return the names of the classes that a run has recorded, in the order of the labels; None for an older one."""
    classes = read_or_empty(Summary, run / SUMMARY).classes or read_or_empty(Status, run / STATUS).classes
    return tuple(map(printable, classes)) if classes else None


def build_loaded(config: Config, weights: Weights, num_classes: int) -> nn.Module:
    """Return the config's net with weights in it, on the CPU.

    Raises DataError where they do not fit, ConfigError where the images are too small for the net.
    """
    cost(config.model, num_classes, config.data.image_size)
    net = build_net(config.model, num_classes)
    with errors_of_weights(config):
        load_weights(net, weights.tensors)
    return net.eval()


def load_net(config: Config, weights: Weights, num_classes: int, device: torch.device) -> tuple[nn.Module, Precision]:
    """Return the config's net with weights in it, as it computes on a device, and the precision for it.

    That of a run's training; what is published for a file was as a rule measured in fp32. Errors as `build_loaded`.
    """
    net = build_loaded(config, weights, num_classes)
    net.to(device).to(memory_format=torch.channels_last)  # as in training
    use_kernels(net, device, config.kernels)
    published = config.recipe.precision == Precision.auto and not weights.of_run
    return net, choose_precision(Precision.fp32 if published else config.recipe.precision, device)


def class_names(config: Config, weights: Weights, sweep: SweepProgress) -> tuple[str, ...]:
    """Return the names of the net's classes: those of the run, else those of the set, else numbers.

    Raises DataError where the set has another number of classes.
    """
    known = config.data.num_classes or config.data.known.num_classes
    names = weights.classes or set_classes(config, weights, sweep)
    for number in (known, names and len(names)):
        if number and number != weights.num_classes:
            raise DataError(f"are for {weights.num_classes} classes, data={config.data.name} has {number}")
    return names or in_memory.class_numbers(weights.num_classes)


def set_classes(config: Config, weights: Weights, sweep: SweepProgress) -> tuple[str, ...] | None:
    """Return the names of a set's classes, None where its images, which may be elsewhere, are needed for them."""
    row = config.data.known
    if row.classes or not row.needs_root or row.kind == DataKind.npz:  # whose classes have numbers only
        return row.classes or None
    if not config.data.root:
        sweep.write(f"classes are named by number: data.root=FOLDER, where {row.title} is, has their names")
        return None
    try:
        found = datasets.find(config.data, ("val",), lenient=True)
    except DataError as error:
        sweep.write(clean(f"classes are named by number: {error}", 500))
        return None
    in_folders = isinstance(found, folders.Files)
    if not weights.of_run and in_folders and (note := folders.label_note(found.classes, config.data.class_order)):
        sweep.write(note)
    return tuple(map(printable, found.classes))
