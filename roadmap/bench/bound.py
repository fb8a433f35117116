"""The least time that a training step can take on a device, from what the net must compute and move.

The model counts a net's matrix products (convolutions, linear layers, attention), each `A x B -> C`:

- FLOP: two a multiply-accumulate; backward costs twice the forward pass (the gradients of A and of B): 6 x MACs.
- bytes: forward reads A and B and writes C; backward reads the gradient of C, A and B and writes the gradients of A and
  B: 3 (A + B) + 2 C values, in the format that the net computes in. Everything between two products (norms,
  activations, layer scale, the addition) counts as fused into them, without bytes of its own: a lower bound.
- The optimizer reads gradient, weight and states and writes weight and states, all float32.

The gradient of the images, which nobody needs, is not taken off: at most 1 % of a ResNet's FLOP. The device's rates are
measured, by a large matrix product and a large copy. Both bounds hold at once, so the larger time counts.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from roadmap.bench.measure import Call, seconds
from roadmap.config.choices import Optimizer, Precision
from roadmap.config.recipe import RecipeConfig

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}
STATES = {Optimizer.sgd: 1, Optimizer.adamw: 2}  # values that the optimizer keeps for each parameter
FLOAT32_BYTES = 4
aten = torch.ops.aten
PRODUCTS = {aten.convolution, aten.mm, aten.addmm, aten.bmm, aten.baddbmm}


class Work(NamedTuple):
    """What a training step must do."""

    flop: float
    moved_bytes: float


class Rates(NamedTuple):
    """What a device can do in a second, as measured."""

    flop_per_s: float  # of a matrix product in the step's format
    bytes_per_s: float  # of a copy, read and write counted


class Traffic(TorchDispatchMode):
    """Counts the values that the products of a forward pass and of its backward pass read and write."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in PRODUCTS:
            factors = [arg for arg in args if isinstance(arg, Tensor) and arg.ndim > 1]  # a bias has one dimension
            self.values += 3 * sum(factor.numel() for factor in factors) + 2 * out.numel()
        return out


def step_work(net: nn.Module, batch: int, image_size: int, recipe: RecipeConfig, precision: Precision) -> Work:
    """Return the work of a training step of a net on the meta device, images `(batch, 3, image_size, image_size)`."""
    images = torch.empty(batch, 3, image_size, image_size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter, Traffic() as traffic:
        net.eval()(images)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    optimizer_bytes = parameters * FLOAT32_BYTES * (1 + 2 + 2 * STATES[recipe.optimizer])
    moved_bytes = traffic.values * DTYPES[precision].itemsize + optimizer_bytes
    return Work(flop=3.0 * counter.get_total_flops(), moved_bytes=float(moved_bytes))


def bounds(work: Work, rates: Rates, batch: int) -> dict[str, float]:
    """Return the images/s that matrix products alone, and memory alone, would allow."""
    return {"matrix": batch * rates.flop_per_s / work.flop, "memory": batch * rates.bytes_per_s / work.moved_bytes}


def measured_rates(device: torch.device, precision: Precision) -> Rates:
    """Measure the device at its best: a matrix product in the step's format, and a copy larger than any cache."""
    size, megabytes, repeats = (8192, 1024, 20) if device.type == "cuda" else (2048, 256, 3)
    a, b = torch.randn(2, size, size, device=device, dtype=DTYPES[precision])
    out = torch.empty_like(a)
    source = torch.ones(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)

    def best_s(call: Call) -> float:
        return min([seconds(device, call) for _ in range(2 + repeats)][2:])  # the first two warm up

    product_s = best_s(lambda: torch.mm(a, b, out=out))
    return Rates(2 * size**3 / product_s, 2 * source.numel() / best_s(lambda: target.copy_(source)))
