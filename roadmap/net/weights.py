"""Weights of other code in and out: torchvision's ResNets and ConvNeXts, timm's ConvNeXts, the ConvNeXt authors' files;
of timm and the authors those of ConvNeXt V2, too.

One table says what each part is called where; a format is found by its keys. Only tensors are handled here:
`weights_file` reads them from files.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from roadmap.config.choices import Activation, Norm, Stem, StrideOn, When
from roadmap.config.fields import shown
from roadmap.config.toggles import NetConfig
from roadmap.errors import DataError
from roadmap.net.find_weights import find_weights
from roadmap.net.net import Net

FORMATS = ("torchvision resnet", "torchvision convnext", "timm", "official")

# Ours, then the four formats. {s} is the stage from 0, {t} = s + 1, {d} = 2s and {f} = 2s + 1 (torchvision's features),
# {b} the block.
BLOCK = ("stages.{s}.block{b}.", "layer{t}.{b}.", "features.{f}.{b}.", "stages.{s}.blocks.{b}.", "stages.{s}.{b}.")
IN_BLOCK = [
    ("conv1", "conv1", "block.0", "conv_dw", "dwconv"),
    ("norm1", "bn1", "block.2", "norm", "norm"),
    ("conv2", "conv2", "block.3", "mlp.fc1", "pwconv1"),
    ("norm2", "bn2", None, None, None),
    ("grn.gamma", None, None, "mlp.grn.weight", "grn.gamma"),
    ("grn.beta", None, None, "mlp.grn.bias", "grn.beta"),
    ("conv3", "conv3", "block.5", "mlp.fc2", "pwconv2"),
    ("norm3", "bn3", None, None, None),
    ("scale.gamma", None, "layer_scale", "gamma", "gamma"),
    ("shortcut.conv", "downsample.0", None, None, None),
    ("shortcut.norm", "downsample.1", None, None, None),
]
TABLE = [
    ("stem.conv", "conv1", "features.0.0", "stem.0", "downsample_layers.0.0"),
    ("stem.norm", "bn1", "features.0.1", "stem.1", "downsample_layers.0.1"),
    ("stages.{s}.downsample.norm", None, "features.{d}.0", "stages.{s}.downsample.0", "downsample_layers.{s}.0"),
    ("stages.{s}.downsample.conv", None, "features.{d}.1", "stages.{s}.downsample.1", "downsample_layers.{s}.1"),
    *([part and prefix + part for prefix, part in zip(BLOCK, row, strict=True)] for row in IN_BLOCK),
    ("norm", None, "classifier.0", "head.norm", "norm"),
    ("head", "fc", "classifier.2", "head.fc", "head"),
]

# What the nets of the formats are, at the two ends of the roadmap; where two values make the same net, both stand here.
# Names and shapes alone would let through a net that computes something else: an activation, an eps or a stride has
# neither.
YES, NO = (When.auto, When.always), (When.auto, When.never)
RESNET: dict[str, tuple[Any, ...]] = {
    "stem": (Stem.resnet,), "depthwise": (False,), "inverted": (False,), "depthwise_first": (False,),
    "kernel_size": (3,), "activation": (Activation.relu,), "activations_per_block": (3,), "norm": (Norm.batch_norm,),
    "norms_per_block": (3,), "separate_downsampling": (False,), "layer_scale": (None,), "stem_norm": (True,),
    "stem_activation": YES, "projection_norm": (True,), "residual_activation": YES, "head_norm": NO,
    "stride_on": (StrideOn.spatial,), "conv_bias": NO, "batch_norm_eps": (1e-5,),
}  # fmt: skip
CONVNEXT: dict[str, tuple[Any, ...]] = {  # without strided blocks and projections: their readings do not matter
    "stem": (Stem.patchify,), "depthwise": (True,), "inverted": (True,), "depthwise_first": (True,),
    "kernel_size": (7,), "activation": (Activation.gelu,), "activations_per_block": (1,), "norm": (Norm.layer_norm,),
    "norms_per_block": (1,), "separate_downsampling": (True,), "stem_norm": (True,), "stem_activation": NO,
    "residual_activation": NO, "head_norm": YES, "conv_bias": YES, "layer_norm_eps": (1e-6,),
}  # fmt: skip
TIMM_CONVS = (40, 48, 64, 80)  # widths of timm's atto, femto, pico, nano, whose pointwise convs are no Linear
# Told by the shapes, or without a meaning at an end of the roadmap. Any other toggle must be at its default: what was
# added after these formats is in none of their nets.
FREE = {"depths", "width", "layer_scale", "drop_path", "init"}
FREE |= {"projection_norm", "stride_on", "batch_norm_eps", "layer_norm_eps"}
V2 = ("timm", "official")  # formats whose nets may have global response normalisation; timm's beside layer scale, too


def load_weights(net: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Load weights of any known format, found by their keys, wherever training code has put them (`find_weights`).

    Raises DataError, naming the first key or shape that does not fit; then the net is as before.
    """
    found = find_weights(state_dict)
    given, fmt = found.tensors, found.fmt
    own = net.state_dict()
    if fmt in FORMATS and isinstance(net, Net):
        check_toggles(net, fmt)
        check_grn(net, given, fmt)
        names = {foreign: key for key, foreign in renamed(own, fmt).items()}
    else:
        names = {key: key for key in own}
    what = f"weights in {fmt} format"
    loaded = {}
    for foreign, key in names.items():
        if foreign in given:
            loaded[key] = reshaped(given[foreign], own[key], f"{what}: {foreign}")
        elif key.endswith("num_batches_tracked"):  # files from before torch kept it
            loaded[key] = own[key]
        else:
            raise DataError(f"{what} do not fit this net: no {foreign}; {hint(net)}")
    if extra := [key for key, value in given.items() if key not in names and isinstance(value, torch.Tensor)]:
        extras = f"{extra[0]} has no place in it ({len(extra)} such keys)"
        raise DataError(f"{what} do not fit this net: {extras}; {hint(net)}")
    net.load_state_dict(loaded)


def export_weights(net: nn.Module, fmt: str) -> dict[str, torch.Tensor]:
    """Return the net's weights as `torchvision`, `timm` or `official` has them: other names and unit dimensions.

    They share memory with the net, as those of `state_dict` do. Raises DataError where the format knows no such net.
    """
    if fmt not in {"torchvision", "timm", "official"}:
        raise DataError(f"format {fmt}: must be one of torchvision, timm, official")
    own = net.state_dict()
    if not isinstance(net, Net):
        if fmt == "torchvision":
            return dict(own)
        raise DataError(f"format {fmt}: has no net like {type(net).__name__}")
    if fmt == "torchvision":
        fmt = "torchvision resnet" if net.cfg.stem == Stem.resnet else "torchvision convnext"
    check_toggles(net, fmt)
    return {foreign: shaped_for(net.cfg, fmt, key, own[key]) for key, foreign in renamed(own, fmt).items()}


def renamed(keys: Mapping[str, Any], fmt: str) -> dict[str, str]:
    """Return what each of our keys is called in a format. Raises DataError for a part that the format lacks."""
    return {key: foreign_name(key, fmt) for key in keys}


def foreign_name(key: str, fmt: str) -> str:
    """Return what one of our keys is called in a format."""
    column = 1 + FORMATS.index(fmt)
    for row in TABLE:
        ours = str(row[0])
        pattern = re.escape(ours).replace(r"\{s\}", r"(?P<s>\d+)").replace(r"\{b\}", r"(?P<b>\d+)")
        if found := re.fullmatch(pattern + r"(?P<rest>(?:\.[a-z_]+)?)", key):
            theirs = row[column]
            if theirs is None:
                break
            parts = found.groupdict()
            s = int(parts.get("s") or 0)
            return theirs.format(s=s, t=s + 1, d=2 * s, f=2 * s + 1, b=parts.get("b")) + parts["rest"]
    raise DataError(f"format {fmt}: has no place for {key}")


def reshaped(tensor: Any, like: torch.Tensor, what: str) -> torch.Tensor:
    """Give a tensor our shape where only dimensions of one differ.

    Raises DataError for what cannot be copied so, and for numbers that are not finite in our type.
    """
    if not isinstance(tensor, torch.Tensor):
        raise DataError(f"{what} is not a tensor, but of type {type(tensor).__name__}")
    if tensor.is_meta or tensor.is_nested or tensor.layout != torch.strided:
        kind = "nested" if tensor.is_nested else f"device {tensor.device.type}, layout {tensor.layout}"
        raise DataError(f"{what} is not a plain tensor with values: {kind}")
    if tensor.is_floating_point() != like.is_floating_point() or tensor.is_complex():
        raise DataError(f"{what} has type {tensor.dtype}, this net wants {like.dtype}")
    if [n for n in tensor.shape if n != 1] != [n for n in like.shape if n != 1]:
        raise DataError(f"{what} has shape {list(tensor.shape)}, this net wants {list(like.shape)}")
    if not bool(tensor.to(like.dtype).isfinite().all()):
        raise DataError(f"{what} holds numbers that are not finite")
    return tensor.reshape(like.shape)


def shaped_for(cfg: NetConfig, fmt: str, key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Give a tensor the shape that a format has: pointwise convs as Linear, torchvision's layer scale (C, 1, 1)."""
    if fmt == "torchvision resnet":
        return tensor
    if key.endswith(("conv2.weight", "conv3.weight")) and not (fmt == "timm" and cfg.width in TIMM_CONVS):
        return tensor.flatten(1)
    if key.endswith("gamma") and fmt == "torchvision convnext":
        return tensor.reshape(-1, 1, 1)
    if ".grn." in key and fmt == "official":
        return tensor.reshape(1, 1, 1, -1)
    return tensor


def check_toggles(net: Net, fmt: str) -> None:
    """Raise DataError unless the net is a ResNet or ConvNeXt, as the format's nets are."""
    known = RESNET if fmt == "torchvision resnet" else CONVNEXT | ({"grn": (False, True)} if fmt in V2 else {})
    others = {name: (field.default,) for name, field in NetConfig.model_fields.items() if name not in FREE}
    for toggle, allowed in (others | known).items():
        value = getattr(net.cfg, toggle)
        if value not in allowed:
            theirs = f"nets with model.{toggle}={allowed[0]}"
            raise DataError(f"weights in {fmt} format belong to {theirs}, this one has {value}")
    if fmt == "official" and net.cfg.layer_scale is not None and net.cfg.grn:
        raise DataError(f"weights in {fmt} format have layer scale or model.grn=true, this one has both")
    if fmt != "torchvision resnet" and net.cfg.layer_scale is None and not net.cfg.grn:
        raise DataError(f"weights in {fmt} format belong to nets with layer scale, this one has model.layer_scale=null")


def check_grn(net: Net, given: Mapping[str, Any], fmt: str) -> None:
    """Raise DataError if the weights are of ConvNeXt V2 and the net is not, or the other way round."""
    if net.cfg.grn != (theirs := any(".grn." in key for key in given)):
        have = "have global response normalisation (ConvNeXt V2)" if theirs else "are of ConvNeXt, not of ConvNeXt V2"
        raise DataError(f"weights in {fmt} format {have}, this net has model.grn={shown(net.cfg.grn)}")


def hint(net: nn.Module) -> str:
    """Describe the net, so that the right one can be chosen."""
    if not isinstance(net, Net):
        return f"this net is torchvision's {type(net).__name__}"
    return f"this net has model.depths={list(net.cfg.depths)} and model.width={net.cfg.width}"
