"""Counter-based random numbers: the k-th of an image in an epoch is a hash of (purpose, seed, epoch, id, k) alone.

No generator's state is carried from image to image, so any batch, worker, rank or resumed run computes only its own
numbers. The hash is SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
"""

import math

import numpy as np
import torch
from torch import Tensor

from roadmap.data.sampling import Draw, derived_seed

STEP, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
SHIFTS = (30, 27, 31)
ALL_BITS = 0xFFFF_FFFF_FFFF_FFFF


def states(draw: Draw, seed: int, epoch: int, ids: np.ndarray) -> np.ndarray:
    """Return where each image's numbers start for a purpose: ids `(N,)` -> uint64 `(N,)`."""
    base = np.uint64(derived_seed(draw, seed, epoch))
    return splitmix64(base + (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(STEP))


def uniforms(draw: Draw, seed: int, epoch: int, ids: np.ndarray, count: int) -> np.ndarray:
    """Return the first `count` numbers of each image for a purpose, from [0, 1): float64 `(N, count)`."""
    counters = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(STEP)
    bits = splitmix64(states(draw, seed, epoch, ids)[:, None] + counters)
    return (bits >> np.uint64(11)) * 2.0**-53


def splitmix64(bits: np.ndarray) -> np.ndarray:
    """Hash 64-bit numbers, uint64 of any shape."""
    bits = (bits ^ (bits >> np.uint64(SHIFTS[0]))) * np.uint64(FIRST)
    bits = (bits ^ (bits >> np.uint64(SHIFTS[1]))) * np.uint64(SECOND)
    return bits ^ (bits >> np.uint64(SHIFTS[2]))


def between(limits: tuple[float, float] | np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Scale numbers from [0, 1) to a range."""
    return limits[0] + (limits[1] - limits[0]) * uniform


def signed(number: int) -> int:
    """Return the int64 that has the bits of a uint64: torch multiplies no uint64."""
    return number - (1 << 64) if number >> 63 else number


def splitmix64_tensor(bits: Tensor) -> Tensor:
    """Hash int64 numbers on their device: the same bits as `splitmix64`."""
    for shift, factor in zip(SHIFTS, (FIRST, SECOND, None), strict=True):
        bits = bits ^ ((bits >> shift) & (ALL_BITS >> shift))  # torch's shift fills up with the sign
        if factor is not None:
            bits = bits * signed(factor)
    return bits


def normals(starts: Tensor, counters: Tensor) -> Tensor:
    """Return standard normal numbers, float32, by `counters` (int64) of the images that start at `starts` (int64).

    From 23 bits each, the centres of as many equal parts of [0, 1]: the largest is 5.3.
    """
    bits = splitmix64_tensor(starts + (counters + 1) * signed(STEP))
    middle = ((bits >> 41) & 0x7F_FFFF) * 2 + (1 - 2**23)  # odd, from -(2**23 - 1) to 2**23 - 1
    return torch.erfinv(middle.float() * 2.0**-23) * math.sqrt(2)
