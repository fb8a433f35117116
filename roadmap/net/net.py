"""The net: a stem, four stages of blocks, a head; `build_net` makes it from a `NetConfig`.

Readings by number: docs/fidelity.md, "Seven open readings".
"""

from collections import OrderedDict

import torch
from torch import nn

from roadmap.config.choices import Init, Stem
from roadmap.config.toggles import NetConfig
from roadmap.net.block import Block
from roadmap.net.layers import activation, conv, norm, vector_norm, wanted


def build_net(cfg: NetConfig, num_classes: int) -> nn.Module:
    """Return the net of a config, with contiguous tensors, initialised from torch's global generator."""
    if cfg.reference is not None:
        return build_swin(cfg, num_classes)
    net = Net(cfg, num_classes)
    if not net.head.weight.is_meta:  # only counted otherwise, and drawing weights would import torch's compiler
        initialise(net, cfg.init)
    return net


def build_swin(cfg: NetConfig, num_classes: int) -> nn.Module:
    """Return torchvision's Swin of a reference config, with the recipe's stochastic depth."""
    from torchvision.models import SwinTransformer  # a second of imports that the rows of the roadmap need not pay for

    return SwinTransformer(
        patch_size=[4, 4],
        embed_dim=cfg.width,
        depths=list(cfg.depths),
        num_heads=[cfg.width // 32 * 2**stage for stage in range(4)],
        window_size=[7, 7],
        stochastic_depth_prob=cfg.drop_path,
        num_classes=num_classes,
    )


class Net(nn.Module):
    """Images (N, 3, H, W) -> logits (N, num_classes)."""

    def __init__(self, cfg: NetConfig, num_classes: int) -> None:
        super().__init__()
        self.cfg = cfg
        widths = [cfg.width * 2**stage * (1 if cfg.inverted else 4) for stage in range(4)]
        # The stem's output: the first stage's width if blocks are inverted, else the width inside its bottlenecks.
        c_in = cfg.width
        self.stem = stem(cfg, c_in)
        rates = torch.linspace(0, cfg.drop_path, sum(cfg.depths), device="cpu").tolist()
        stages = []
        for stage, (depth, c_out) in enumerate(zip(cfg.depths, widths, strict=True)):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            stride = 1 if stage == 0 else 2
            if cfg.separate_downsampling and stride == 2:
                layers["downsample"] = Downsample(cfg, c_in, c_out)
                c_in, stride = c_out, 1
            for index in range(depth):
                layers[f"block{index}"] = Block(cfg, c_in, c_out, stride, rates.pop(0))
                c_in, stride = c_out, 1
            stages.append(nn.Sequential(layers))
        self.stages = nn.ModuleList(stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        # Reading 4: the norm after the pooling enters where the paper lists it, with separate downsampling.
        self.norm = vector_norm(cfg, c_in) if wanted(cfg.head_norm, cfg.separate_downsampling) else nn.Identity()
        self.head = nn.Linear(c_in, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, num_classes)."""
        x = self.stem(x)  # (N, width, H / stem_stride, W / stem_stride)
        for stage in self.stages:
            x = stage(x)
        return self.head(self.norm(self.pool(x).flatten(1)))


class Downsample(nn.Module):
    """Sec. 2.6: a norm, then a 2x2 conv with stride 2: (N, c_in, H, W) -> (N, c_out, H / 2, W / 2)."""

    def __init__(self, cfg: NetConfig, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm = norm(cfg, c_in)
        self.conv = conv(cfg, c_in, c_out, 2, stride=2, pad=False, normed=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, c_in, H, W) -> (N, c_out, H / 2, W / 2)."""
        return self.conv(self.norm(x))


def stem(cfg: NetConfig, c_out: int) -> nn.Sequential:
    """Return the stem, (N, 3, H, W) -> (N, c_out, H / stem_stride, W / stem_stride).

    Reading 1: a norm and an activation also follow the patchify conv; `fewer_activations` removes that activation, too,
    and the norm stays.
    """
    patchify = cfg.stem == Stem.patchify
    # ResNet's stem: the conv has half of the stride, and the pool a stride of 2.
    kernel, stride = (cfg.stem_stride, cfg.stem_stride) if patchify else (7, cfg.stem_stride // 2)
    return nn.Sequential(
        OrderedDict(
            conv=conv(cfg, 3, c_out, kernel, stride=stride, pad=not patchify, normed=cfg.stem_norm),
            norm=norm(cfg, c_out) if cfg.stem_norm else nn.Identity(),
            act=activation(cfg) if wanted(cfg.stem_activation, cfg.activations_per_block == 3) else nn.Identity(),
            pool=nn.Identity() if patchify else nn.MaxPool2d(3, stride=2, padding=1),
        )
    )


def initialise(net: nn.Module, init: Init) -> None:
    """Fill the weights: kaiming-normal convs as in torchvision's ResNet, whose head keeps torch's default; or truncated
    normal of std 0.02 and biases 0, as in the authors' code.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and init == Init.trunc_normal:
            nn.init.trunc_normal_(module.weight, std=0.02)  # Table 5 prints 0.2
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
