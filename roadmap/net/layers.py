"""The layers that the block is made of, and which one a config asks for. Maps are (N, C, H, W).

Readings by number: docs/fidelity.md, "Seven open readings".
"""

import torch
from torch import nn

from roadmap.config.choices import Activation, Norm, When
from roadmap.config.toggles import NetConfig


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel: (N, C, H, W) -> (N, C, H, W). Channels-last maps are not copied."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise every pixel's channel vector."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LayerScale(nn.Module):
    """Multiply each channel by a learned number; `gamma` is (C,), so that rules on 1-d parameters hold for it.

    Belongs to the enhanced recipe (Table 5), with stochastic depth: both hold from its step on (reading 5).
    """

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), initial))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return x * self.gamma.view(-1, 1, 1)


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a sample's whole branch with probability `rate`, and scale up the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return x * self.draw(x) if self.training else x

    def draw(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, 1, 1, 1) in the type of `x`: 0 for a sample whose branch is dropped, else 1 / (1 - rate)."""
        keep = 1.0 - self.rate
        return x.new_empty((len(x), 1, 1, 1)).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        """Show the rate when the net is printed."""
        return f"rate={self.rate:.3g}"


class GlobalResponseNorm(nn.Module):
    """Scale each channel by its share of an image's response, as learned: x (1 + gamma N(x)) + beta, both (C,), from 0.

    N(x) is the channel's L2 norm over the map, divided by the mean of all channels' (ConvNeXt V2, arXiv 2301.00808,
    Sec. 3.2).
    """

    eps = 1e-6

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        response = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
        share = response / (response.mean(1, keepdim=True) + self.eps)
        return x * (1 + self.gamma.view(-1, 1, 1) * share) + self.beta.view(-1, 1, 1)


def norm(cfg: NetConfig, channels: int) -> nn.Module:
    """Return the config's norm for a map (N, C, H, W). Reading 7: BatchNorm eps 1e-5, LayerNorm eps 1e-6."""
    if cfg.norm == Norm.layer_norm:
        return ChannelNorm(channels, eps=cfg.layer_norm_eps)
    return nn.BatchNorm2d(channels, eps=cfg.batch_norm_eps)


def vector_norm(cfg: NetConfig, channels: int) -> nn.Module:
    """Return the config's norm for pooled features (N, C)."""
    if cfg.norm == Norm.layer_norm:
        return nn.LayerNorm(channels, eps=cfg.layer_norm_eps)
    return nn.BatchNorm1d(channels, eps=cfg.batch_norm_eps)


def activation(cfg: NetConfig) -> nn.Module:
    """Return the config's activation."""
    return nn.GELU() if cfg.activation == Activation.gelu else nn.ReLU(inplace=True)


def conv(
    cfg: NetConfig,
    c_in: int,
    c_out: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    pad: bool = True,
    normed: bool,
) -> nn.Conv2d:
    """Return a convolution; with `pad` it keeps the map's size at stride 1.

    It has a bias unless a BatchNorm follows, whose shift would undo it (reading 7): one rule for ResNet and ConvNeXt.
    """
    bias = not (normed and cfg.norm == Norm.batch_norm) if cfg.conv_bias == When.auto else cfg.conv_bias == When.always
    return nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2 if pad else 0, groups=groups, bias=bias)


def wanted(when: When, auto: bool) -> bool:
    """Return whether an optional part is present: as the config says, or for `auto` by our reading."""
    return auto if when == When.auto else when == When.always
