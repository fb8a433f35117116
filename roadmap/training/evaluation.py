"""Exact top-1 and top-5 of a net, over any number of ranks, and what it made of each image, in the data set's order."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from roadmap.distributed.ranks import Ranks
from roadmap.errors import NonFiniteError
from roadmap.runs.schema import CORRECT, LABELS, PREDICTIONS


@dataclass
class Evaluation:
    """Accuracy in percent, mean cross-entropy, and an entry an image in the data set's order."""

    top1: float
    top5: float
    loss: float
    correct: np.ndarray  # (N,) bool
    predicted: np.ndarray  # (N,) int64: the class that came first

    def packed(self) -> np.ndarray:
        """Return the bits as in `correct.npy`: eight images a byte, the first image in the highest bit."""
        return np.packbits(self.correct)

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
    arrays = {CORRECT: result.packed()} | {name: array.astype(dtype) for name, array in classes.items()}
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
