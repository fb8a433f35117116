"""Exact top-1 and top-5 of a net, over any number of ranks, and which images it got right, in the data set's order."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from roadmap.distributed.ranks import Ranks
from roadmap.errors import NonFiniteError


@dataclass
class Evaluation:
    """Accuracy in percent, mean cross-entropy, and one boolean an image in the data set's order."""

    top1: float
    top5: float
    loss: float
    correct: np.ndarray  # (N,) bool

    def packed(self) -> np.ndarray:
        """Return the bits as in `correct.npy`: eight images a byte, the first image in the highest bit."""
        return np.packbits(self.correct)

    def require_finite(self, whose: str) -> Self:
        """Return the evaluation. Raises NonFiniteError, on all ranks alike, where an image's loss is not finite."""
        if not math.isfinite(self.loss):
            raise NonFiniteError(f"{whose} gives outputs that are not finite for the validation images")
        return self


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
def evaluate(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    index_batches: Sequence[Tensor],
    num_images: int,
    ranks: Ranks,
) -> Evaluation:
    """Evaluate a net on this rank's batches of images (B, 3, H, W) and labels (B,), whose ids are in `index_batches`.

    Every rank returns the evaluation of all `num_images`; leaves the net in evaluation mode. With fewer than five
    classes `top5` counts all of them.
    """
    net.eval()
    scores = [score(net(images), labels) for images, labels in batches]
    # Rows: once, top-1, top-5, loss; each rank fills in its own images.
    table = torch.zeros(4, num_images, dtype=torch.float64)
    if scores:
        table[:, torch.cat(list(index_batches))] = torch.cat(scores, dim=1).cpu()
    once, first, five, losses = ranks.all_reduce_sum(table)
    assert bool((once == 1).all()), "an image was left out, or evaluated twice"
    return Evaluation(
        top1=100.0 * int(first.sum()) / num_images,
        top5=100.0 * int(five.sum()) / num_images,
        loss=float(losses.mean()),
        correct=first.bool().numpy(),
    )


def score(logits: Tensor, labels: Tensor) -> Tensor:
    """Return a column an image, `(4, B)`: 1, whether it is right, whether among the first five, its cross-entropy."""
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    losses = cross_entropy(logits.float(), labels, reduction="none")
    return torch.stack((torch.ones_like(losses), ranked[:, 0].float(), ranked.any(dim=1).float(), losses)).double()
