"""Score weights that are there already, a published file's or a run's of ours, on the validation images of a config.

`run.py mode=evaluate` uses it. Of a file only tensors are read, never code, and nothing is written anywhere.
"""

import math
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from roadmap import data
from roadmap.config.choices import DataName, Precision
from roadmap.config.schema import Config
from roadmap.data import datasets, sampling
from roadmap.distributed.device import autocast, choose_device, choose_precision
from roadmap.distributed.ranks import Ranks
from roadmap.errors import ConfigError, DataError
from roadmap.net import build_net, cost, load_weights, use_kernels
from roadmap.net.weights import SIGNS, unwrap
from roadmap.runs import checkpoint
from roadmap.runs.progress import Progress, SweepProgress
from roadmap.runs.run_dir import differences, identity
from roadmap.runs.schema import CONFIG
from roadmap.training.evaluation import Evaluation, eval_batch_size, evaluate
from roadmap.training.step import Batch

# What an evaluation depends on besides the net: where a run's own differs, its recorded accuracy is another one.
OF_EVALUATION = (
    *(f"data.{key}" for key in ("name", "image_size", "resize_size", "mean", "std", "pipeline", "val_images")),
    "recipe.interpolation",
    "recipe.precision",
)
# Settings of training alone, with the values that leave it as it is.
WITHOUT_EFFECT = {"fresh": False, "allow_drift": False, "compile": "auto", "cuda_graph": "auto", "devices": "auto"}


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

    Raises ConfigError for settings that do not go together, DataError for weights that are missing, broken, unsafe or of
    another net.
    """
    sweep = sweep or SweepProgress()
    data.check(config.data, config.recipe)
    device = choose_device(config.device)
    for key, idle in WITHOUT_EFFECT.items():
        if getattr(config, key) != idle:
            say(sweep, f"{key}={getattr(config, key)}: has no effect with mode=evaluate")
    weights = read_weights(config, sweep)
    images = datasets.load(config.data, config.paths.runs)
    net = net_with(weights, config, len(images.classes)).to(device)
    net.to(memory_format=torch.channels_last)  # as in training
    use_kernels(net, device, config.kernels)
    # A run is scored as it was in training; what is published for a file was as a rule measured in fp32.
    wanted = (
        Precision.fp32 if config.recipe.precision == Precision.auto and not weights.of_run else config.recipe.precision
    )
    precision = choose_precision(wanted, device)
    indices = sampling.eval_index_batches(len(images.val), eval_batch_size(config.data.image_size, device))
    progress = Progress(config.cell, len(indices), 0, sweep)
    try:
        batches = data.eval_batches(images.val, config.data, config.recipe, indices, device=device)
        with autocast(device, precision):
            result = evaluate(net, watched(batches, progress, len(images.val)), indices, len(images.val), Ranks())
    finally:
        progress.close()
    if not math.isfinite(result.loss):
        raise DataError(f"weights={config.weights}: the net's outputs are not finite with them")
    return ScoredWeights(result, weights.origin, precision)


def read_weights(config: Config, sweep: SweepProgress) -> Weights:
    """Read a file of weights, or the newest whole checkpoint of a run directory. Raises DataError."""
    path = Path(str(config.weights)).expanduser()
    if path.is_dir():
        return read_run(path, config, sweep)
    if not path.exists():
        raise DataError(f"weights={config.weights}: there is no such file or run directory")
    if not path.is_file():
        raise DataError(f"weights={config.weights}: is no regular file")
    loaded = read_file(path)
    try:
        tensors = unwrap(loaded)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    averages = [
        str(key) for key, value in loaded.items() if "ema" in str(key).split("_") and isinstance(value, Mapping)
    ]
    aside = f" ({', '.join(averages)} not scored)" if averages else ""
    return Weights(tensors, f"{format_of(tensors, config)} format{aside}", of_run=False)


def read_file(path: Path) -> Mapping[str, Any]:
    """Read tensors from a file of torch or safetensors, on the CPU. Raises DataError, also for a file that asks for anything else."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        if path.suffix.lower() == ".safetensors":
            loaded = load_file(path, device="cpu")
        else:
            with warnings.catch_warnings(action="ignore"):  # about old and odd pickles: they can be read, or not
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make both readers raise whatever their parsers come upon
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise DataError(
                f"{path}: refused: it asks for {asked[1]}, and a file of weights holds tensors only"
            ) from None
        raise DataError(f"{path}: cannot be read as weights: damaged, cut short, or a file of another kind") from None
    if not isinstance(loaded, Mapping):
        raise DataError(f"{path}: holds no weights by name, but a {type(loaded).__name__}")
    return loaded


def format_of(tensors: Mapping[str, torch.Tensor], config: Config) -> str:
    """Return whose names the tensors have."""
    known = next((name for name, sign in SIGNS.items() if sign in tensors), None)
    return known or ("our own" if config.model.reference is None else "torchvision")


def read_run(path: Path, config: Config, sweep: SweepProgress) -> Weights:
    """Read the newest whole checkpoint of a run whose net is the config's. Raises DataError."""
    try:
        theirs = identity(yaml.safe_load((path / CONFIG).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise DataError(
            f"weights={config.weights}: is no run directory (it holds no {CONFIG}); one ends with seed0 or the like"
        ) from None
    except OSError as error:
        raise DataError(f"{path / CONFIG}: cannot be read ({error.strerror})") from None
    except (ValueError, yaml.YAMLError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path / CONFIG}: holds no config that can be read ({' '.join(str(error).split())[:200]})"
        ) from None
    changes = differences(theirs, identity(config.values()))
    if of_net := [change for change in changes if change.startswith("model.")]:
        more = f" and {len(of_net) - 5} more" if len(of_net) > 5 else ""
        raise DataError(
            f"weights={config.weights}: a run of another net ({'; '.join(of_net[:5])}{more}); give its step and overrides"
        )
    if others := [change for change in changes if change.split(":")[0] in OF_EVALUATION]:
        say(sweep, f"not evaluated as the run itself was: {'; '.join(others)}")
    found = checkpoint.find_newest(path / "checkpoints")
    if found is None:
        raise DataError(f"weights={config.weights}: the run holds no checkpoint yet")
    for reason in found.skipped:
        say(sweep, f"passed over {reason}")
    state = checkpoint.load(found.path)
    if not isinstance(state, Mapping) or not isinstance(state.get("net"), Mapping):
        raise DataError(f"{path / 'checkpoints'}: the newest checkpoint holds no net")
    aside = ", its moving average not scored" if "ema" in state else ""
    return Weights(
        state["net"],
        f"our run after {state.get('epochs_evaluated')} of {theirs.get('recipe.epochs')} epochs{aside}",
        of_run=True,
    )


def net_with(weights: Weights, config: Config, num_classes: int) -> nn.Module:
    """Build the config's net and load weights into it. Raises DataError where they are another net's, ConfigError for too small images."""
    size = config.data.image_size
    try:
        cost(config.model, num_classes, size)
    except RuntimeError:
        raise ConfigError(
            f"data.image_size={size}: too small for this net, which divides it by {config.model.reduction}"
        ) from None
    net = build_net(config.model, num_classes)
    try:
        load_weights(net, weights.tensors)
    except DataError as error:
        raise DataError(f"weights={config.weights}: {error}") from None
    return net


def watched(batches: Iterator[Batch], progress: Progress, num_images: int) -> Iterator[Batch]:
    """Yield batches and show how many images are done."""
    began, seen = time.monotonic(), 0
    for images, labels in batches:
        yield images, labels
        seen += len(labels)
        progress.advance(f"{seen:,}/{num_images:,} images, {seen / (time.monotonic() - began):,.0f} images/s")


def say(sweep: SweepProgress, line: str) -> None:
    """Write a line to stderr, with the place in the sweep."""
    print(sweep.prefix() + line, file=sys.stderr, flush=True)


def result_line(config: Config, scored: ScoredWeights) -> str:
    """Return the line that a scoring ends with: step, top-1, top-5, images, whose weights, where they are."""
    result = scored.result
    meaning = " (synthetic images: the accuracy means nothing)" if config.data.name == DataName.synthetic else ""
    return (
        f"{config.cell}: top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %{meaning}, {int(result.correct.sum())}/{len(result.correct)} "
        f"images right, {scored.origin}, {scored.precision}, {config.weights}"
    )
