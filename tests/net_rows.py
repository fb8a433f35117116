"""The roadmap once more, written by hand from the paper's Section 2 and Appendix C: what the config files must come to."""

from dataclasses import replace

from roadmap.config import NetConfig

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
        at = replace(at, **change)
        out[step] = at
    for size in (5, 7, 9, 11):
        out[f"kernel_{size}"] = replace(at, kernel_size=size)
    at = out["kernel_7"]
    for step, change in (
        ("gelu", {"activation": "gelu"}),
        ("fewer_activations", {"activations_per_block": 1}),
        ("fewer_norms", {"norms_per_block": 1}),
        ("layer_norm", {"norm": "layer_norm"}),
        ("separate_downsampling", {"separate_downsampling": True}),
    ):
        at = replace(at, **change)
        out[step] = at
    return out
