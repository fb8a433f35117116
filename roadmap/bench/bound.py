"""The least time that a training step can take on a device, from what the net must compute and move.

The model counts a net's matrix products (convolutions, linear layers, attention), each `A x B -> C`:

- FLOP: two a multiply-accumulate, and backward costs twice the forward pass (the gradients of A and of B): 3 x MACs x 2.
- bytes: forward reads A and B and writes C; backward reads the gradient of C, A and B and writes the gradients of A and B: 3 (A + B) + 2 C
  values, in the format that the net computes in. A and B are activations or weights alike. Everything between two products (norms,
  activations, layer scale, the addition) is taken as fused into them, at no bytes at all: no program has to move less.
- The optimizer reads gradient, weight and states and writes weight and states, all float32.

Not taken off is the gradient of the images, which nobody needs: at most 1 % of a ResNet's FLOP. The device's two rates are measured, not
looked up, by a large matrix product and a large copy. Both bounds hold at once, so the larger time counts. Used by `bench net`, `mini`
and `train`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from roadmap.bench.measure import seconds
from roadmap.config.choices import Optimizer, Precision
from roadmap.config.schema import RecipeConfig

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}
STATES = {Optimizer.sgd: 1, Optimizer.adamw: 2}  # values that the optimizer keeps for each parameter
FLOAT32_BYTES = 4
aten = torch.ops.aten
PRODUCTS = {aten.convolution, aten.mm, aten.addmm, aten.bmm, aten.baddbmm}


@dataclass(frozen=True)
class Work:
    """What a training step must do."""

    flop: float
    moved_bytes: float


@dataclass(frozen=True)
class Rates:
    """What a device can do in a second, as measured."""

    flop_per_s: float  # of a matrix product in the step's format
    bytes_per_s: float  # of a copy, read and write counted


class Traffic(TorchDispatchMode):
    """Counts the values that the products of a forward pass and of its backward pass read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in PRODUCTS:
            factors = [arg for arg in args if isinstance(arg, Tensor) and arg.ndim > 1]  # a bias has one dimension
            self.values += 3 * sum(factor.numel() for factor in factors) + 2 * out.numel()
        return out


def step_work(net: nn.Module, batch: int, image_size: int, recipe: RecipeConfig, precision: Precision) -> Work:
    """Return the work of a training step of a net on the meta device, `(batch, 3, image_size, image_size)` images."""
    images = torch.empty(batch, 3, image_size, image_size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter, Traffic() as traffic:
        net.eval()(images)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    optimizer = parameters * FLOAT32_BYTES * (1 + 2 + 2 * STATES[recipe.optimizer])
    return Work(
        flop=3.0 * counter.get_total_flops(), moved_bytes=float(traffic.values * DTYPES[precision].itemsize + optimizer)
    )


def bounds(work: Work, rates: Rates, batch: int) -> dict[str, float]:
    """Return the images/s that matrix products alone, and memory alone, would allow."""
    return {"matrix": batch * rates.flop_per_s / work.flop, "memory": batch * rates.bytes_per_s / work.moved_bytes}


def measured_rates(device: torch.device, precision: Precision) -> Rates:
    """Measure what the device can do at its best: a matrix product in the step's format, and a copy larger than any cache."""
    on_gpu = device.type == "cuda"
    size, megabytes, repeats = (8192, 1024, 20) if on_gpu else (2048, 256, 3)
    a, b = torch.randn(2, size, size, device=device, dtype=DTYPES[precision])
    out = torch.empty_like(a)
    product_s = best_of(device, repeats, lambda: torch.mm(a, b, out=out))
    source = torch.ones(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    copy_s = best_of(device, repeats, lambda: target.copy_(source))
    return Rates(flop_per_s=2 * size**3 / product_s, bytes_per_s=2 * source.numel() / copy_s)


def best_of(device: torch.device, repeats: int, act: Callable[[], object]) -> float:
    """Return the least seconds of a few calls, after two to warm up."""

    def call() -> None:
        act()

    for _ in range(2):
        call()
    return min(seconds(device, call) for _ in range(repeats))
