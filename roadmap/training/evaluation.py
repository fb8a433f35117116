"""Exact top-1 and top-5 of a net, over any number of ranks, and what it made of each image, in the data set's order.

`mode=evaluate` scores weights that are there already, a published file's or a run's of ours, and writes nothing.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from roadmap import data
from roadmap.catalog import DataKind
from roadmap.config import Config
from roadmap.config.choices import Precision
from roadmap.data import datasets, sampling
from roadmap.data.folders import label_note
from roadmap.distributed.device import autocast, choose_device
from roadmap.distributed.ranks import Ranks
from roadmap.errors import NonFiniteError
from roadmap.runs.progress import ImageProgress, SweepProgress
from roadmap.runs.result import caution_note
from roadmap.runs.schema import CORRECT, LABELS, PREDICTIONS
from roadmap.training.device_errors import memory_errors
from roadmap.training.saved_weights import errors_of_weights, load_net, read_weights
from roadmap.training.step import Batch


@dataclass
class Evaluation:
    """Accuracy in percent, mean cross-entropy, and an entry an image in the data set's order."""

    top1: float
    top5: float
    loss: float
    correct: np.ndarray  # (N,) bool
    predicted: np.ndarray  # (N,) int64: the class that came first

    def require_finite(self, whose: str) -> Self:
        """Return the evaluation. Raises NonFiniteError, on all ranks alike, where an image's loss is not finite."""
        if not math.isfinite(self.loss):
            raise NonFiniteError(f"{whose} gives outputs that are not finite for the validation images")
        return self


def evaluation_files(result: Evaluation, labels: Tensor, num_classes: int) -> dict[str, bytes]:
    """Return the bytes of `correct.npy`, `predictions.npy` and `labels.npy` `(N,)` by name.

    Classes are in the smallest unsigned type that holds them all.
    """
    dtype = np.min_scalar_type(num_classes - 1).newbyteorder("<")
    classes = {PREDICTIONS: result.predicted, LABELS: labels.numpy()}
    bits = np.packbits(result.correct)  # eight images a byte, the first image in the highest bit
    arrays = {CORRECT: bits} | {name: array.astype(dtype) for name, array in classes.items()}
    return {name: npy(array) for name, array in arrays.items()}


def npy(array: np.ndarray) -> bytes:
    """Return the bytes of an array's `.npy` file."""
    out = BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def eval_batch_size(image_size: int, device: torch.device) -> int:
    """Return how many images are evaluated at once: 256, on a GPU as many pixels as those have at 224.

    Any number gives the same counts.
    """
    return min(4096, 256 * max(1, (224 // image_size) ** 2)) if device.type == "cuda" else 256


def shard_batches(index_batches: Sequence[Tensor], ranks: Ranks) -> tuple[list[Tensor], int]:
    """Return the batches that this rank evaluates, and how many those ranks have that have the most.

    The batches are those of one process, whatever the number of ranks: not an image is evaluated beside other ones.
    """
    return list(index_batches[ranks.rank :: ranks.world_size]), -(-len(index_batches) // ranks.world_size)


@torch.inference_mode()
def score_batches(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Score a net on batches of images (B, 3, H, W) and labels (B,), `(5, B)` each; the host does not wait for them.

    Leaves the net in evaluation mode.
    """
    net.eval()
    return [score(net(images), labels) for images, labels in batches]


def collect_scores(scores: list[Tensor], index_batches: Sequence[Tensor], num_images: int, ranks: Ranks) -> Evaluation:
    """Wait for the scores of this rank's batches, whose ids are in `index_batches`, and return what they come to.

    Every rank returns the evaluation of all `num_images`. With fewer than five classes `top5` counts all of them.
    """
    # Rows: once, top-1, top-5, loss, class; each rank fills in its own images.
    table = torch.zeros(5, num_images, dtype=torch.float64)
    if scores:
        table[:, torch.cat(list(index_batches))] = torch.cat(scores, dim=1).cpu()
    once, first, five, losses, predicted = ranks.all_reduce_sum(table)
    assert bool((once == 1).all()), "an image was left out, or evaluated twice"
    return Evaluation(
        top1=100.0 * int(first.sum()) / num_images,
        top5=100.0 * int(five.sum()) / num_images,
        loss=float(losses.mean()),
        correct=first.bool().numpy(),
        predicted=predicted.long().numpy(),
    )


def score(logits: Tensor, labels: Tensor) -> Tensor:
    """Return a column an image, `(5, B)`.

    1, whether it is right, whether its class is among the first five, its cross-entropy, the class that came first.
    """
    classes = logits.topk(min(5, logits.shape[1]), dim=1).indices
    ranked = classes == labels[:, None]
    losses = cross_entropy(logits.float(), labels, reduction="none")
    columns = (torch.ones_like(losses), ranked[:, 0], ranked.any(dim=1), losses, classes[:, 0])
    return torch.stack([column.double() for column in columns])


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
        images = config.data
        if images.known.kind == DataKind.npz and images.num_classes is None:  # the last class may have no image here
            images = images.replace(num_classes=weights.num_classes)
    val, classes = datasets.load_val(images)
    if not weights.of_run and val.files is not None and (note := label_note(classes, config.data.class_order)):
        sweep.write(note)
    if other := weights.other_class(classes):
        sweep.write(f"classes are not called as in the run's training ({other}, the first): labels are taken by number")
    net, precision = load_net(config, weights, len(classes), device)
    indices = sampling.eval_index_batches(len(val), eval_batch_size(config.data.image_size, device))
    batches = data.eval_batches(val, config.data, config.recipe, indices, device=device)
    progress = ImageProgress(config.cell, len(val), 0, sweep, "done")
    try:
        with autocast(device, precision):
            scores = score_batches(net, counted(batches, progress))
    finally:
        progress.close()
    result = collect_scores(scores, indices, len(val), Ranks()).require_finite(f"weights={config.weights}: the net")
    return ScoredWeights(result, weights.origin, precision)


def counted(batches: Iterator[Batch], progress: ImageProgress) -> Iterator[Batch]:
    """Yield batches and show how many images are done."""
    for images, labels in batches:
        yield images, labels
        progress.count(len(labels))


def result_line(config: Config, scored: ScoredWeights) -> str:
    """Return the line that a scoring ends with: step, top-1, top-5, images, whose weights, where they are."""
    result = scored.result
    return (
        f"{config.cell}: top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %{caution_note(config)}, "
        f"{int(result.correct.sum())}/{len(result.correct)} images right, "
        f"{scored.origin}, {scored.precision}, {config.weights}"
    )
