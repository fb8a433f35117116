"""Exact top-1 and top-5 of a net over batches, and which images it got right, in the order they come."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy


@dataclass
class Evaluation:
    """Accuracy in percent, mean cross-entropy, and one boolean an image in the data set's order."""

    top1: float
    top5: float
    loss: float
    correct: np.ndarray  # (N,) bool

    def packed(self) -> np.ndarray:
        """Return the bits as they are stored in `correct.npy`: eight images a byte, the first image in the highest bit."""
        return np.packbits(self.correct)


@torch.inference_mode()
def evaluate(net: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Evaluation:
    """Evaluate a net on batches of images (N, 3, H, W) and labels (N,); leaves the net in evaluation mode.

    With fewer than five classes `top5` counts all of them.
    """
    net.eval()
    first, five, losses = [], [], []
    for images, labels in batches:
        logits = net(images)
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        first.append(ranked[:, 0])
        five.append(ranked.any(dim=1))
        losses.append(cross_entropy(logits.float(), labels, reduction="none"))
    correct, in_five = torch.cat(first).cpu().numpy(), torch.cat(five).cpu().numpy()
    return Evaluation(
        top1=100.0 * int(correct.sum()) / len(correct),
        top5=100.0 * int(in_five.sum()) / len(in_five),
        loss=float(torch.cat(losses).double().mean()),
        correct=correct,
    )
