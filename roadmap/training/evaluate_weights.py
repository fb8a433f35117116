"""Score weights that are there already, a published file's or a run's of ours, on the validation images of a config.

Of a file only tensors are read, never code, and nothing is written anywhere.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from roadmap import data
from roadmap.config import KEYS, Config
from roadmap.config.choices import Precision
from roadmap.data import datasets, sampling
from roadmap.data.image_folder import label_note
from roadmap.distributed.device import autocast, choose_device, choose_precision
from roadmap.distributed.ranks import Ranks
from roadmap.errors import DataError
from roadmap.files import expand, nearby
from roadmap.net import build_net, load_weights, use_kernels
from roadmap.net.find_weights import find_weights
from roadmap.net.weights_file import read_weights_file
from roadmap.runs import checkpoint
from roadmap.runs.permissions import refuse_unsafe
from roadmap.runs.progress import Progress, SweepProgress
from roadmap.runs.recorded_config import differences, identity, lost_keys, read_config
from roadmap.runs.result import caution_note
from roadmap.runs.schema import CHECKPOINTS, CONFIG
from roadmap.text import clean
from roadmap.training.device_errors import memory_errors
from roadmap.training.evaluation import Evaluation, eval_batch_size, evaluate
from roadmap.training.setup import net_cost
from roadmap.training.step import Batch

READ_IN_EVALUATION = {name for name, key in KEYS.items() if key.evaluation}


@dataclass(frozen=True)
class Weights:
    """Tensors by key, and whose they are: the format of a file, or the place in training of a run."""

    tensors: Mapping[str, torch.Tensor]
    origin: str
    of_run: bool


@dataclass(frozen=True)
class ScoredWeights:
    """An evaluation, of what weights and in which precision."""

    result: Evaluation
    origin: str
    precision: Precision


@memory_errors()
def evaluate_weights(config: Config, sweep: SweepProgress | None = None) -> ScoredWeights:
    """Evaluate `config.weights` in the config's net on every validation image once.

    Raises ConfigError for settings that do not go together, DataError for weights that are missing, broken, unsafe or
    of another net, NonFiniteError for those with which the net's outputs are not finite.
    """
    sweep = sweep or SweepProgress()
    data.check_pipeline(config.data, config.recipe)
    device = choose_device(config.device)
    with errors_of_weights(config):
        weights = read_weights(config, sweep)
    val, classes = datasets.load_val(config.data, config.paths.runs)
    if not weights.of_run and val.files is not None and (note := label_note(classes, config.data.class_order)):
        sweep.write(note)
    net_cost(config, len(classes))
    net = build_net(config.model, len(classes))
    with errors_of_weights(config):
        load_weights(net, weights.tensors)
    net.to(device).to(memory_format=torch.channels_last)  # as in training
    use_kernels(net, device, config.kernels)
    # A run is scored as it was in training; what is published for a file was as a rule measured in fp32.
    published = config.recipe.precision == Precision.auto and not weights.of_run
    precision = choose_precision(Precision.fp32 if published else config.recipe.precision, device)
    indices = sampling.eval_index_batches(len(val), eval_batch_size(config.data.image_size, device))
    batches = data.eval_batches(val, config.data, config.recipe, indices, device=device)
    progress = Progress(config.cell, len(indices), 0, sweep)
    try:
        with autocast(device, precision):
            result = evaluate(net, watched(batches, progress, len(val)), indices, len(val), Ranks())
    finally:
        progress.close()
    result.require_finite(f"weights={config.weights}: the net")
    return ScoredWeights(result, weights.origin, precision)


@contextmanager
def errors_of_weights(config: Config) -> Iterator[None]:
    """Let an error say which weights it is about."""
    try:
        yield
    except DataError as error:
        raise DataError(f"weights={config.weights}: {error}") from None


def read_weights(config: Config, sweep: SweepProgress) -> Weights:
    """Read a file of weights, or the newest whole checkpoint of a run directory. Raises DataError."""
    path = expand(str(config.weights))
    if path.is_dir():
        return read_run(path, config, sweep)
    if not path.exists():
        raise DataError(f"there is no such file or run directory{nearby(path)}")
    if not path.is_file():
        raise DataError("is no regular file")
    found = find_weights(read_weights_file(path), config.weights_key)
    return Weights(found.tensors, found.origin, of_run=False)


def read_run(path: Path, config: Config, sweep: SweepProgress) -> Weights:
    """Read the newest whole checkpoint of a run whose net is the config's. Raises DataError, Refused."""
    refuse_unsafe(path, path, "weights")
    recorded = read_config(path)
    if lost := lost_keys(recorded):
        sweep.write(clean(f"{CONFIG} holds what this version does not know, and passes over: {', '.join(lost)}", 500))
    theirs = identity(recorded)
    changes = differences(theirs, identity(config.values()))
    changes = [change for change in changes if change.split(":")[0] in READ_IN_EVALUATION]
    if of_net := [change for change in changes if change.startswith("model.")]:
        more = f" and {len(of_net) - 5} more" if len(of_net) > 5 else ""
        raise DataError(f"a run of another net ({'; '.join(of_net[:5])}{more}); give its step and overrides")
    if changes:
        sweep.write(f"not evaluated as the run itself was: {'; '.join(changes)}")
    found = checkpoint.find_newest(path / CHECKPOINTS)
    if found is None:
        raise DataError("the run holds no checkpoint yet")
    for reason in found.skipped:
        sweep.write(f"passed over {reason}")
    state = checkpoint.load(found.path)
    if not isinstance(state, Mapping) or not isinstance(state.get("net"), Mapping):
        raise DataError(f"{found.path.name}: holds no net")
    weights = find_weights({name: state[name] for name in ("net", "ema") if name in state}, config.weights_key)
    taken = f", {weights.name} and not {', '.join(weights.others)} (weights_key=NAME chooses)" if weights.others else ""
    origin = f"our run after {state.get('epochs_evaluated')} of {theirs.get('recipe.epochs')} epochs{taken}"
    return Weights(weights.tensors, origin, of_run=True)


def watched(batches: Iterator[Batch], progress: Progress, num_images: int) -> Iterator[Batch]:
    """Yield batches and show how many images are done."""
    began, seen = time.monotonic(), 0
    for images, labels in batches:
        yield images, labels
        seen += len(labels)
        progress.advance(f"{seen:,}/{num_images:,} images, {seen / (time.monotonic() - began):,.0f} images/s")


def result_line(config: Config, scored: ScoredWeights) -> str:
    """Return the line that a scoring ends with: step, top-1, top-5, images, whose weights, where they are."""
    result = scored.result
    return (
        f"{config.cell}: top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %{caution_note(config)}, "
        f"{int(result.correct.sum())}/{len(result.correct)} images right, "
        f"{scored.origin}, {scored.precision}, {config.weights}"
    )
