"""What a net costs: multiply-accumulates, activations and parameters, counted on a net without memory (the meta
device)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from roadmap.config.toggles import NetConfig
from roadmap.errors import ConfigError
from roadmap.net.net import build_net
from roadmap.text import one_line

aten = torch.ops.aten
# Reductions over dimensions, and the position of these among their arguments.
REDUCTIONS = {aten.mean.dim: 1, aten.linalg_vector_norm.default: 2}
PRODUCTS = {aten.mm: aten.mm, aten.addmm: aten.mm, aten.bmm: aten.bmm}  # and what each counts as


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates and activations of one image, and parameters, each by the name of its recorded number."""

    gmacs: float  # 1e9 multiply-accumulates: convolutions and all matrix products, attention's too
    macts: float  # 1e6 elements of the outputs of these, which is what pycls and fvcore call activations
    params_m: float  # 1e6 parameters


def cost(cfg: NetConfig, num_classes: int, image_size: int) -> Cost:
    """Return what a net costs, by the paper's counting rule (Tables 10 and 11 print GMACs as "GFLOPs").

    Raises ConfigError where the images are too small for it, or a layer of one's own does not fit.
    """
    try:
        net = _meta(cfg, num_classes)
        counted = _count(net, image_size)
    except TooSmall:
        small = f"too small for this net, which divides it by {cfg.reduction}"
        raise ConfigError(f"data.image_size={image_size}: {small}") from None
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        frames = [frame for frame in extract_tb(error.__traceback__) if frame.filename != __file__]
        frame = next((f for f in reversed(frames) if "-packages" not in f.filename), frames[-1])
        where = f"{Path(frame.filename).name}, line {frame.lineno}: {frame.line}"
        raise ConfigError(f"the net cannot be computed: {one_line(error)}\n  {where}") from None
    macs = counted.flop // 2  # a multiply-accumulate counts as two
    return Cost(macs / 1e9, counted.outputs / 1e6, count_params(net) / 1e6)


def count_params(net: nn.Module | NetConfig, num_classes: int = 1000) -> int:
    """Return the number of parameters of a net, or of a config's net with `num_classes`."""
    module = _meta(net, num_classes) if isinstance(net, NetConfig) else net
    return sum(parameter.numel() for parameter in module.parameters())


def describe(cfg: NetConfig, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by name."""
    return {name: tuple(p.shape) for name, p in _meta(cfg, num_classes).named_parameters()}


def _meta(cfg: NetConfig, num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return build_net(cfg, num_classes)


class TooSmall(RuntimeError):
    """A kernel does not fit into the map that is left."""


class FlopCounter(TorchDispatchMode):
    """Adds up torch's own formulas for the products of a forward pass on the meta device, and their outputs.

    As `FlopCounterMode` does, without torch's compiler: that mode, and most operations on the meta device, import it,
    which takes longer than all else before a small net's first step.
    """

    flop = outputs = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, kwargs = func.overloadpacket, kwargs or {}
        out: Any
        if torch.Tag.pointwise in func.tags:
            shapes = [arg.shape for arg in args if isinstance(arg, torch.Tensor)]
            return torch.empty(np.broadcast_shapes(*shapes), device="meta")
        if packet == aten.convolution and not args[6]:  # transposed
            x, weight = args[:2]
            if x.shape[1] != weight.shape[1] * args[8]:
                made = f"weights {tuple(weight.shape)} in {args[8]} groups"
                raise RuntimeError(f"a convolution with {made} gets {x.shape[1]} channels")
            out = torch.empty(window_shape(x, len(weight), weight.shape[2:], *args[3:6]), device="meta")
        elif packet == aten.max_pool2d_with_indices:
            x = args[0]
            out = [torch.empty(window_shape(x, x.shape[1], *args[1:]), device="meta")] * 2
        elif packet in PRODUCTS:
            packet, args = PRODUCTS[packet], args[-2:]  # without the bias of addmm
            if args[0].shape[-1] != args[1].shape[-2]:
                raise RuntimeError(f"a product of {tuple(args[0].shape)} and {tuple(args[1].shape)} is none")
            out = torch.empty(*args[0].shape[:-1], args[1].shape[-1], device="meta")
        elif func in REDUCTIONS:
            out = torch.empty(reduced_shape(args[0], *args[REDUCTIONS[func] :], **kwargs), device="meta")
        else:
            out = func(*args, **kwargs)
        if formula := flop_registry.get(packet):
            self.flop += formula(*args, **kwargs, out_val=out)
            self.outputs += out.numel()
        return out


def window_shape(
    x: torch.Tensor,
    channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> tuple[int, ...]:
    """Return the shape of what a convolution or a pooling makes of x. Raises TooSmall."""
    sizes = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
    if min(out) < 1:
        raise TooSmall(f"a kernel {tuple(kernel)} does not fit into a map {tuple(x.shape[2:])}")
    return x.shape[0], channels, *out


def reduced_shape(x: torch.Tensor, dims: list[int], keepdim: bool = False) -> list[int]:
    """Return the shape of a reduction of x over dims."""
    reduced = {dim % x.ndim for dim in dims}
    return [1 if dim in reduced else size for dim, size in enumerate(x.shape) if keepdim or dim not in reduced]


def _count(net: nn.Module, image_size: int) -> FlopCounter:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
            module.__class__ = nn.Identity  # type: ignore[assignment]
    with torch.device("meta"), torch.no_grad(), FlopCounter() as counter:
        net.eval()(torch.empty(1, 3, image_size, image_size))
    return counter
