"""The nets of four rows as other libraries have them: timm's and torchvision's ResNet, ConvNeXt and Swin, timm's
ConvNeXt V2.

A library is imported where it is measured: the other benchmarks run without it.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from roadmap.config.toggles import NetConfig
from roadmap.errors import ConfigError
from roadmap.net import count_params

# The rows that other libraries have, too.
RESNET, CONVNEXT, CONVNEXT_V2, SWIN = "resnet", "separate_downsampling", "grn", "swin"
RESNET_STEM = (64, 4)  # width and stride of both libraries' stems, whatever the width of the stages


def timm_resnet(cfg: NetConfig, num_classes: int, image_size: int) -> nn.Module:
    """Return timm's ResNet."""
    from timm.models import resnet

    bottleneck: Any = resnet.Bottleneck  # annotated as an instance there
    return resnet.ResNet(bottleneck, cfg.depths, num_classes, drop_path_rate=cfg.drop_path)


def timm_convnext(cfg: NetConfig, num_classes: int, image_size: int) -> nn.Module:
    """Return timm's ConvNeXt; its pointwise convolutions are linear layers, which is its faster form."""
    from timm.models import convnext

    dims = tuple(cfg.width * 2**stage for stage in range(4))
    net = convnext.ConvNeXt(
        num_classes=num_classes, depths=cfg.depths, dims=dims, kernel_sizes=cfg.kernel_size,
        ls_init_value=cfg.layer_scale, drop_path_rate=cfg.drop_path, use_grn=cfg.grn,
    )  # fmt: skip
    net.stem[0] = patchify(cfg)
    return net


def timm_swin(cfg: NetConfig, num_classes: int, image_size: int) -> nn.Module:
    """Return timm's Swin."""
    from timm.models import swin_transformer

    heads = tuple(cfg.width // 32 * 2**stage for stage in range(4))
    return swin_transformer.SwinTransformer(
        image_size, num_classes=num_classes, embed_dim=cfg.width, depths=cfg.depths, num_heads=heads,
        drop_path_rate=cfg.drop_path,
    )  # fmt: skip


def torchvision_resnet(cfg: NetConfig, num_classes: int, image_size: int) -> nn.Module:
    """Return torchvision's ResNet."""
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, list(cfg.depths), num_classes)


def torchvision_convnext(cfg: NetConfig, num_classes: int, image_size: int) -> nn.Module:
    """Return torchvision's ConvNeXt."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    widths = [cfg.width * 2**stage for stage in range(4)]
    stages = zip(widths, [*widths[1:], None], cfg.depths, strict=True)
    settings = [CNBlockConfig(c, after, depth) for c, after, depth in stages]
    scale = {} if cfg.layer_scale is None else {"layer_scale": cfg.layer_scale}
    net = ConvNeXt(settings, stochastic_depth_prob=cfg.drop_path, num_classes=num_classes, **scale)
    net.features[0][0] = patchify(cfg)
    return net


def patchify(cfg: NetConfig) -> nn.Module:
    """Return the stem's convolution: both libraries only have the paper's stride of 4, small images need 2."""
    return nn.Conv2d(3, cfg.width, cfg.stem_stride, cfg.stem_stride)


NETS: dict[tuple[str, str], Callable[[NetConfig, int, int], nn.Module]] = {
    ("timm", RESNET): timm_resnet,
    ("timm", CONVNEXT): timm_convnext,
    ("timm", CONVNEXT_V2): timm_convnext,
    ("timm", SWIN): timm_swin,
    ("torchvision", RESNET): torchvision_resnet,
    ("torchvision", CONVNEXT): torchvision_convnext,
}


def has_net(library: str, step: str, cfg: NetConfig) -> bool:
    """Tell whether a library has the net of a row. Our row `swin` is torchvision's own net, so no peer of itself."""
    return (library, step) in NETS and (step != RESNET or (cfg.width, cfg.stem_stride) == RESNET_STEM)


def peer_net(library: str, step: str, cfg: NetConfig, num_classes: int, image_size: int) -> nn.Module:
    """Return a library's net of a row. Raises ConfigError if it has another number of parameters than ours."""
    net = NETS[library, step](cfg, num_classes, image_size)
    theirs, ours = count_params(net), count_params(cfg, num_classes)
    if theirs != ours:
        raise ConfigError(f"{library} has another net for {step}: {theirs:,} parameters, ours has {ours:,}")
    return net
