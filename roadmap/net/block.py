"""The one block of every net of the roadmap: three slots `conv -> norm? -> act?`, and a shortcut.

"Reading 1" to "reading 7": what the paper leaves open, in docs/fidelity.md, "Seven open readings".
"""

from typing import NamedTuple

import torch
from torch import nn

from roadmap.config.choices import StrideOn
from roadmap.config.toggles import NetConfig
from roadmap.net.layers import DropPath, GlobalResponseNorm, LayerScale, activation, conv, norm, wanted


class ConvShape(NamedTuple):
    """A convolution of a block."""

    c_in: int
    c_out: int
    kernel: int
    stride: int
    groups: int


def block_convs(cfg: NetConfig, c_in: int, c_out: int, stride: int) -> tuple[ConvShape, ConvShape, ConvShape]:
    """Return the shapes of a block's three convolutions, as the toggles determine them."""
    # Reading 6: the spatial conv carries the stride (ResNet "v1.5"); the first ResNet had it on the first 1x1 conv.
    on_spatial = stride if cfg.stride_on == StrideOn.spatial else 1
    on_pointwise = 1 if cfg.stride_on == StrideOn.spatial else stride
    k = cfg.kernel_size
    if cfg.depthwise_first:
        # Sec. 2.5, on the block's input channels. Row kernel_7 decides where the stride is (reading 6): Table 10
        # prints 4.15 GMACs; this reading gives 4.146, and the stride on the 1x1 conv 4.165.
        return (
            ConvShape(c_in, c_in, k, on_spatial, c_in),
            ConvShape(c_in, 4 * c_out, 1, on_pointwise, 1),
            ConvShape(4 * c_out, c_out, 1, 1, 1),
        )
    mid = 4 * c_out if cfg.inverted else c_out // 4  # Sec. 2.4
    return (
        ConvShape(c_in, mid, 1, on_pointwise, 1),
        ConvShape(mid, mid, k, on_spatial, mid if cfg.depthwise else 1),  # Sec. 2.3
        ConvShape(mid, c_out, 1, 1, 1),
    )


class Block(nn.Module):
    """A residual block, (N, c_in, H, W) -> (N, c_out, H / stride, W / stride)."""

    def __init__(self, cfg: NetConfig, c_in: int, c_out: int, stride: int, drop_path: float) -> None:
        super().__init__()
        spatial = 0 if cfg.depthwise_first else 1
        # Sec. 2.6: one norm, after the spatial conv; one activation, after the second conv (between the 1x1 convs).
        normed = [cfg.norms_per_block == 3 or slot == spatial for slot in range(3)]
        acts = [cfg.activations_per_block == 3 or slot == 1 for slot in range(2)]
        shapes = block_convs(cfg, c_in, c_out, stride)
        convs = [
            conv(cfg, s.c_in, s.c_out, s.kernel, stride=s.stride, groups=s.groups, normed=n)
            for s, n in zip(shapes, normed, strict=True)
        ]
        norms = [norm(cfg, s.c_out) if n else nn.Identity() for s, n in zip(shapes, normed, strict=True)]
        self.conv1, self.norm1, self.act1 = convs[0], norms[0], activation(cfg) if acts[0] else nn.Identity()
        self.conv2, self.norm2, self.act2 = convs[1], norms[1], activation(cfg) if acts[1] else nn.Identity()
        self.grn = GlobalResponseNorm(shapes[2].c_in) if cfg.grn else nn.Identity()
        self.conv3, self.norm3 = convs[2], norms[2]
        self.scale = LayerScale(c_out, cfg.layer_scale) if cfg.layer_scale is not None else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.shortcut = Projection(cfg, c_in, c_out, stride) if stride != 1 or c_in != c_out else nn.Identity()
        # Reading 3: the activation after the addition is one of the three that fewer_activations reduces to one.
        has_act3 = wanted(cfg.residual_activation, cfg.activations_per_block == 3)
        self.act3 = activation(cfg) if has_act3 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, c_in, H, W) -> (N, c_out, H', W')."""
        y = self.act1(self.norm1(self.conv1(x)))
        y = self.grn(self.act2(self.norm2(self.conv2(y))))
        return self.act3(self.join(self.norm3(self.conv3(y)), self.shortcut(x)))

    def join(self, y: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """Add the shortcut to the branch, both (N, c_out, H', W')."""
        return self.drop_path(self.scale(y)) + shortcut


class Projection(nn.Module):
    """The shortcut where the map changes its shape: a 1x1 conv with a norm of the current kind (reading 2)."""

    def __init__(self, cfg: NetConfig, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv = conv(cfg, c_in, c_out, 1, stride=stride, normed=cfg.projection_norm)
        self.norm = norm(cfg, c_out) if cfg.projection_norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, c_in, H, W) -> (N, c_out, H / stride, W / stride)."""
        return self.norm(self.conv(x))
