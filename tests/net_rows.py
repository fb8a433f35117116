"""The roadmap once more, written by hand from the paper's Section 2 and Appendix C: what the config files must come to.

With helpers that make nets and images cheaply.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from roadmap.config.toggles import NetConfig

SIZES = {  # ResNet depths, Swin depths, widths: ResNet, after the stage ratio, as Swin
    "tiny": ((3, 4, 6, 3), (3, 3, 9, 3), (64, 64, 96)),
    "base": ((3, 24, 36, 3), (3, 3, 27, 3), (64, 84, 128)),
    "toy": ((1, 1, 2, 1), (1, 1, 3, 1), (8, 8, 12)),
}


def rows(regime: str) -> dict[str, NetConfig]:
    """Return the net of every row, cumulatively."""
    resnet_depths, swin_depths, (first, second, third) = SIZES[regime]
    at = NetConfig(depths=resnet_depths, width=first)
    out = {"resnet": at, "enhanced_recipe": at}
    for step, change in (
        ("stage_ratio", {"depths": swin_depths, "width": second}),
        ("patchify_stem", {"stem": "patchify"}),
        ("depthwise", {"depthwise": True}),
        ("increase_width", {"width": third}),
        ("inverted_bottleneck", {"inverted": True}),
        ("move_up_depthwise", {"depthwise_first": True}),
    ):
        at = at.replace(**change)
        out[step] = at
    for size in (5, 7, 9, 11):
        out[f"kernel_{size}"] = at.replace(kernel_size=size)
    at = out["kernel_7"]
    for step, change in (
        ("gelu", {"activation": "gelu"}),
        ("fewer_activations", {"activations_per_block": 1}),
        ("fewer_norms", {"norms_per_block": 1}),
        ("layer_norm", {"norm": "layer_norm"}),
        ("separate_downsampling", {"separate_downsampling": True}),
    ):
        at = at.replace(**change)
        out[step] = at
    return out


SWIN = {
    "tiny": NetConfig(reference="swin_t", depths=(2, 2, 6, 2), width=96),
    "base": NetConfig(reference="swin_b", depths=(2, 2, 18, 2), width=128),
}
CONVNEXTS = {  # blocks per stage, width, parameters (Table 9 and the authors' code)
    "tiny": ((3, 3, 9, 3), 96, 28_589_128),
    "small": ((3, 3, 27, 3), 96, 50_223_688),
    "base": ((3, 3, 27, 3), 128, 88_591_464),
    "large": ((3, 3, 27, 3), 192, 197_767_336),
    "xlarge": ((3, 3, 27, 3), 256, 350_196_968),
}


def convnext(size: str) -> NetConfig:
    """Return a ConvNeXt of the paper."""
    depths, width, _ = CONVNEXTS[size]
    return rows("tiny")["separate_downsampling"].replace(depths=depths, width=width, layer_scale=1e-6)


CONVNEXTS_V2 = {  # blocks per stage, width (ConvNeXt V2, Table 12)
    "atto": ((2, 2, 6, 2), 40),
    "femto": ((2, 2, 6, 2), 48),
    "pico": ((2, 2, 6, 2), 64),
    "nano": ((2, 2, 8, 2), 80),
    "tiny": ((3, 3, 9, 3), 96),
    "base": ((3, 3, 27, 3), 128),
    "large": ((3, 3, 27, 3), 192),
    "huge": ((3, 3, 27, 3), 352),
}


def convnext_v2(size: str) -> NetConfig:
    """Return a ConvNeXt V2."""
    depths, width = CONVNEXTS_V2[size]
    return rows("tiny")["separate_downsampling"].replace(depths=depths, width=width, grn=True)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Compute the tests of a module that imports this with one thread.

    The nets are small; on a busy machine, threads that wait for each other make them up to fifty times as slow.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(n: int = 4, size: int = 32, seed: int = 1) -> torch.Tensor:
    """Return seeded noise, (n, 3, size, size)."""
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def blank(build: Callable[[], nn.Module]) -> nn.Module:
    """Return a net, in evaluation mode, full of threes: to be loaded into."""
    with torch.device("meta"):  # large nets spend seconds on their own initialisation
        net = build()
    net.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.fill_(3)
    return net.eval()


def drawn(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Return a net whose every tensor matters; fresh nets hide layer scale (1e-6), biases and running statistics."""
    net = blank(build)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if not tensor.is_floating_point():
                tensor.fill_(7)
            elif tensor.squeeze().ndim > 1:
                tensor.uniform_(-1, 1, generator=generator).mul_(
                    (3 / tensor[0].numel()) ** 0.5
                )  # keeps the signal's variance
            else:
                low = 0.0 if name.endswith(("bias", "mean")) else 0.5
                tensor.uniform_(low, low + 0.5, generator=generator)
    return net
