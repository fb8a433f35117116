"""Score weights that are there already, a published file's or a run's of ours, on the validation images of a config.

Of a file only tensors are read, never code, and nothing is written anywhere.
"""

import math
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from roadmap import data
from roadmap.config import KEYS, Config
from roadmap.config.choices import Precision
from roadmap.data import datasets, sampling
from roadmap.distributed.device import autocast, choose_device, choose_precision
from roadmap.distributed.ranks import Ranks
from roadmap.errors import DataError
from roadmap.files import read_yaml
from roadmap.net import build_net, load_weights, use_kernels
from roadmap.net.weights import SIGNS, unwrap
from roadmap.runs import checkpoint
from roadmap.runs.permissions import refuse_unsafe
from roadmap.runs.progress import Progress, SweepProgress
from roadmap.runs.run_dir import differences, identity
from roadmap.runs.schema import CHECKPOINTS, CONFIG
from roadmap.text import one_line
from roadmap.training.evaluation import Evaluation, caution_note, eval_batch_size, evaluate
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


def evaluate_weights(config: Config, sweep: SweepProgress | None = None) -> ScoredWeights:
    """Evaluate `config.weights` in the config's net on every validation image once.

    Raises ConfigError for settings that do not go together, DataError for weights that are missing, broken, unsafe or
    of another net.
    """
    sweep = sweep or SweepProgress()
    data.check_pipeline(config.data, config.recipe)
    device = choose_device(config.device)
    with errors_of_weights(config):
        weights = read_weights(config, sweep)
    images = datasets.load(config.data, config.paths.runs)
    net_cost(config, len(images.classes))
    net = build_net(config.model, len(images.classes))
    with errors_of_weights(config):
        load_weights(net, weights.tensors)
    net.to(device).to(memory_format=torch.channels_last)  # as in training
    use_kernels(net, device, config.kernels)
    # A run is scored as it was in training; what is published for a file was as a rule measured in fp32.
    published = config.recipe.precision == Precision.auto and not weights.of_run
    precision = choose_precision(Precision.fp32 if published else config.recipe.precision, device)
    indices = sampling.eval_index_batches(len(images.val), eval_batch_size(config.data.image_size, device))
    batches = data.eval_batches(images.val, config.data, config.recipe, indices, device=device)
    progress = Progress(config.cell, len(indices), 0, sweep)
    try:
        with autocast(device, precision):
            result = evaluate(net, watched(batches, progress, len(images.val)), indices, len(images.val), Ranks())
    finally:
        progress.close()
    if not math.isfinite(result.loss):
        raise DataError(f"weights={config.weights}: the net's outputs are not finite with them")
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
    path = Path(str(config.weights)).expanduser()
    if path.is_dir():
        return read_run(path, config, sweep)
    if not path.exists():
        raise DataError("there is no such file or run directory")
    if not path.is_file():
        raise DataError("is no regular file")
    loaded = read_file(path)
    tensors = unwrap(loaded)
    own = "our own" if config.model.reference is None else "torchvision"
    names = next((name for name, sign in SIGNS.items() if sign in tensors), own)
    averages = [
        str(key) for key, value in loaded.items() if "ema" in str(key).split("_") and isinstance(value, Mapping)
    ]
    aside = f" ({', '.join(averages)} not scored)" if averages else ""
    return Weights(tensors, f"{names} format{aside}", of_run=False)


def read_file(path: Path) -> Mapping[str, Any]:
    """Read tensors from a file of torch or safetensors, on the CPU. Raises DataError where it holds anything else."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})") from None
    try:
        if path.suffix.lower() == ".safetensors":
            loaded = load_file(path, device="cpu")
        else:
            with warnings.catch_warnings(action="ignore"):  # about old and odd pickles: they can be read, or not
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make both readers raise whatever their parsers come upon
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise DataError(f"refused: it asks for {asked[1]}, and a file of weights holds tensors only") from None
        raise DataError("cannot be read as weights: damaged, cut short, or a file of another kind") from None
    if not isinstance(loaded, Mapping):
        raise DataError(f"holds no weights by name, but a {type(loaded).__name__}")
    return loaded


def read_run(path: Path, config: Config, sweep: SweepProgress) -> Weights:
    """Read the newest whole checkpoint of a run whose net is the config's. Raises DataError, Refused."""
    refuse_unsafe(path, path, "weights")
    try:
        theirs = identity(read_yaml(path / CONFIG))
    except FileNotFoundError:
        raise DataError(f"is no run directory (it holds no {CONFIG}); one ends with seed0 or the like") from None
    except OSError as error:
        raise DataError(f"{CONFIG}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{CONFIG}: holds no config that can be read ({one_line(error)})") from None
    changes = differences(theirs, identity(config.values()))
    if of_net := [change for change in changes if change.startswith("model.")]:
        more = f" and {len(of_net) - 5} more" if len(of_net) > 5 else ""
        raise DataError(f"a run of another net ({'; '.join(of_net[:5])}{more}); give its step and overrides")
    if others := [change for change in changes if change.split(":")[0] in READ_IN_EVALUATION]:
        sweep.write(f"not evaluated as the run itself was: {'; '.join(others)}")
    found = checkpoint.find_newest(path / CHECKPOINTS)
    if found is None:
        raise DataError("the run holds no checkpoint yet")
    for reason in found.skipped:
        sweep.write(f"passed over {reason}")
    state = checkpoint.load(found.path)
    if not isinstance(state, Mapping) or not isinstance(state.get("net"), Mapping):
        raise DataError(f"{found.path.name}: holds no net")
    aside = ", its moving average not scored" if "ema" in state else ""
    origin = f"our run after {state.get('epochs_evaluated')} of {theirs.get('recipe.epochs')} epochs{aside}"
    return Weights(state["net"], origin, of_run=True)


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
