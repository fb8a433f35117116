"""Which images come when, and the seeds of their randomness: pure functions, so that resuming only needs an offset.

Ids are positions in a split.
"""

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from roadmap.errors import ConfigError


class Draw(IntEnum):
    """What a seed is for: two purposes never share a stream of random numbers."""

    order = 1
    sample = 2
    epoch = 3
    subset = 4
    synthetic = 5
    step = 6
    box = 7
    augment = 8
    erase = 9
    noise = 10
    holdout = 11


def derived_seed(draw: Draw, *numbers: int) -> int:
    """Return a 63-bit seed that depends only on the purpose and on numbers from 0 up."""
    return int(np.random.SeedSequence((int(draw), *numbers)).generate_state(1, np.uint64)[0]) >> 1


def generator(draw: Draw, *numbers: int) -> torch.Generator:
    """Return a CPU generator seeded with `derived_seed`; the global random state is not touched."""
    return torch.Generator().manual_seed(derived_seed(draw, *numbers))


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Return the seed of everything random about one image in one epoch."""
    return derived_seed(Draw.sample, seed, epoch, index)


def step_seed(seed: int, number: int) -> int:
    """Return the seed of what is random inside the net (stochastic depth) in the run's forward pass `number`."""
    return derived_seed(Draw.step, seed, number)


def epoch_order(num_images: int, seed: int, epoch: int) -> Tensor:
    """Return the order of the training images in one epoch: a permutation, int64 `(num_images,)`."""
    return torch.randperm(num_images, generator=generator(Draw.order, seed, epoch))


def train_index_batches(num_images: int, batch_size: int, seed: int, epoch: int, skip: int = 0) -> list[Tensor]:
    """Return the epoch's batches of ids, each int64 `(batch_size,)`, without the first `skip` of them.

    The last incomplete batch is dropped, as in the official code: `num_images % batch_size` images.
    Raises ConfigError if there is no complete batch.
    """
    if batch_size > num_images:
        raise ConfigError(f"recipe.batch_size={batch_size}: larger than the {num_images} training images")
    num_batches = num_images // batch_size
    assert 0 <= skip <= num_batches, f"skip={skip} of {num_batches} batches"
    order = epoch_order(num_images, seed, epoch)[skip * batch_size : num_batches * batch_size]
    return list(order.split(batch_size)) if len(order) else []


def eval_index_batches(num_images: int, batch_size: int) -> list[Tensor]:
    """Return batches of all ids in the set's order; the last one may be shorter."""
    return list(torch.arange(num_images).split(batch_size))
