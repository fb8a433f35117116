"""What a net costs: multiply-accumulates and parameters, counted on a net without memory (the meta device)."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from roadmap.config import NetConfig
from roadmap.net.net import build_net


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one image, and parameters, in the units of the paper's tables."""

    gmacs: float  # 1e9 multiply-accumulates: convolutions and all matrix products, attention's too
    params_m: float  # 1e6 parameters


def cost(cfg: NetConfig, num_classes: int, image_size: int) -> Cost:
    """Return what a net costs, by the paper's counting rule. Raises RuntimeError where the image is too small for the net."""
    net = _meta(cfg, num_classes).eval()
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, image_size, image_size))
    return Cost(gmacs=counter.get_total_flops() // 2 / 1e9, params_m=sum(p.numel() for p in net.parameters()) / 1e6)


def describe(cfg: NetConfig, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by name."""
    return {name: tuple(p.shape) for name, p in _meta(cfg, num_classes).named_parameters()}


def _meta(cfg: NetConfig, num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return build_net(cfg, num_classes)
