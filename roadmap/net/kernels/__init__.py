"""Faster forms of the net's operations, each with torch's own as its reference.

`use_kernels(net, device, Kernels.fast)` gives a net's modules the forms that a choice asks for, and returns which
those are; `Kernels.plain` takes them back. Names, parameters, state and initialisation stay as they are: `build_net`
makes the plain net, and a module with another form is of a subclass of what it was. Forms differ in rounding alone.

    net = build_net(cfg, 1000).to(device).to(memory_format=torch.channels_last)
    forms = use_kernels(net, device, Kernels.auto)          # what was measured to win on this device
    forms = use_kernels(net, device, Kernels.fast)          # every form that can run on it
    model = torch.compile(net)
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from roadmap.config.choices import Kernels
from roadmap.config.toggles import NetConfig
from roadmap.net.block import Block
from roadmap.net.kernels.depthwise import KERNELS, Depthwise, Forms
from roadmap.net.kernels.gelu import GeluPointwise, PassedGelu
from roadmap.net.kernels.measured import FORMS, OpSpec, base, best_form, notes
from roadmap.net.kernels.norm import FusedNorm
from roadmap.net.kernels.pointwise import LinearPointwise
from roadmap.net.kernels.residual import FusedJoin
from roadmap.net.kernels.triton_support import why_no_triton
from roadmap.net.layers import ChannelNorm, LayerScale
from roadmap.net.net import Downsample, build_net

__all__ = ["FORMS", "announcement", "base", "format_forms", "forms_of", "use_kernels"]

PASSES = tuple(FORMS)[:3]
STRIDES = {"columns": (1,), "triton": (2,)}  # of depthwise convolutions, of forms in Triton
CUT = "idle taps"  # of depthwise kernels larger than their map: `cut` on every device, unless all is plain


def use_kernels(net: nn.Module, device: torch.device, choice: Kernels) -> dict[str, str]:
    """Give the modules of a net the forms of a choice; return the form of every operation in the net, `plain` ones too.

    Call it before the net is compiled, copied or wrapped.
    """
    found: list[tuple[OpSpec, str]] = []
    gelus: list[Block] = []
    narrow = {id(norm) for module in net.modules() for norm in narrow_norms(module)}
    for module in net.modules():
        reset_to_plain(module)
        if isinstance(module, nn.Conv2d):
            found += use_for_conv(module, device, choice)
        elif isinstance(module, ChannelNorm):
            spec = OpSpec(device, "norm", channels=module.normalized_shape[0])
            found.append((spec, form := choose_form(spec, choice)))
            if form != "plain":
                fused = cast(FusedNorm, set_class(module, FusedNorm))
                fused.narrow, fused.form = id(module) in narrow, form
        if isinstance(module, Block) and applies_gelu(module):
            spec = OpSpec(device, "gelu", channels=module.conv2.out_channels)
            found.append((spec, form := choose_form(spec, choice)))
            if form == "triton":
                gelus.append(module)
        if isinstance(module, Block) and isinstance(module.scale, LayerScale):
            spec = OpSpec(device, "join", channels=len(module.scale.gamma))
            found.append((spec, form := choose_form(spec, choice)))
            if form == "triton":
                set_class(module, FusedJoin)
    for block in gelus:  # last: their convolutions have had a form of their own
        set_class(block.act2, PassedGelu)
        set_class(block.conv2, GeluPointwise)
    return forms_by_name(found)


def forms_by_name(found: list[tuple[OpSpec, str]]) -> dict[str, str]:
    """Return the form of each operation; if it has several forms in a net, by number of channels."""
    forms: dict[tuple[object, ...], set[str]] = {}
    for spec, form in found:
        forms.setdefault(spec[1:4], set()).add(form)
    named = {}
    for spec, form in found:
        name = spec.operation
        if name.startswith("depthwise"):
            name += f" {spec.kernel}x{spec.kernel}/{spec.stride}"
        named[f"{name} of {spec.channels}" if len(forms[spec[1:4]]) > 1 else name] = form
    return dict(sorted(named.items()))


def forms_of(cfg: NetConfig, device: torch.device, choice: Kernels) -> dict[str, str]:
    """Return the forms that a config's net would have, without building it."""
    with torch.device("meta"):
        return use_kernels(build_net(cfg, 2), device, choice)


def use_for_conv(conv: nn.Conv2d, device: torch.device, choice: Kernels) -> list[tuple[OpSpec, str]]:
    """Give a convolution its forms, if it is a depthwise or a pointwise one; return them."""
    kernel, stride, channels = conv.kernel_size[0], conv.stride[0], conv.in_channels
    if is_depthwise(conv):
        specs = [OpSpec(device, name, kernel, stride, channels) for name in PASSES]
        forms = Forms(*(choose_form(spec, choice) for spec in specs))
        cut = choice != Kernels.plain
        if cut:
            cast(Depthwise, set_class(conv, Depthwise)).forms = forms
        return [*zip(specs, forms, strict=True), (OpSpec(device, CUT, channels=channels), "cut" if cut else "plain")]
    if is_pointwise(conv):
        name = "pointwise" if conv.bias is not None else "pointwise without bias"
        spec = OpSpec(device, name, 1, 1, channels)
        form = choose_form(spec, choice)
        if form == "linear":
            set_class(conv, LinearPointwise)
        return [(spec, form)]
    return []


def choose_form(spec: OpSpec, choice: Kernels) -> str:
    """Return the form of an operation under a choice."""
    if choice == Kernels.plain:
        return "plain"
    possible = [form for form in FORMS[spec.operation] if can_run(form, spec)]
    if choice == Kernels.fast:
        return possible[0] if possible else "plain"
    best = best_form(spec)
    return best if base(best) in possible else "plain"


def can_run(form: str, spec: OpSpec) -> bool:
    """Tell whether a form exists for an operation on a device."""
    if form in STRIDES:
        known = spec.kernel is None or (spec.kernel in KERNELS and spec.stride in STRIDES[form])
        return known and why_no_triton(spec.device) is None
    return form != "flipped" or spec.stride == 1


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Tell whether a convolution is one of those that `Depthwise` can compute: square, odd, same size at stride 1."""
    k, s = conv.kernel_size[0], conv.stride[0]
    usual = conv.dilation == (1, 1) and conv.padding_mode == "zeros" and conv.padding == (k // 2, k // 2)
    square = conv.kernel_size == (k, k) and conv.stride == (s, s) and k % 2 == 1
    return conv.groups == conv.in_channels == conv.out_channels > 1 and square and usual


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Tell whether a convolution is a matrix product of each pixel."""
    return conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1 and conv.padding == (0, 0)


def applies_gelu(block: Block) -> bool:
    """Tell whether a block's second convolution is a pointwise one, with bias, whose output only GELU reads."""
    conv, gelu = block.conv2, isinstance(block.act2, nn.GELU) and block.act2.approximate == "none"
    return gelu and is_pointwise(conv) and conv.bias is not None and isinstance(block.norm2, nn.Identity)


def narrow_norms(module: nn.Module) -> list[nn.Module]:
    """Return the norms of a module whose output only convolutions read."""
    if isinstance(module, Downsample):
        return [module.norm]
    if isinstance(module, Block):
        pairs = [(module.norm1, module.act1), (module.norm2, module.act2)]
        return [norm for norm, act in pairs if isinstance(act, nn.Identity)]
    return []


def reset_to_plain(module: nn.Module) -> None:
    """Make a module plain again."""
    for changed, plain in (
        (Depthwise, nn.Conv2d),
        (LinearPointwise, nn.Conv2d),
        (PassedGelu, nn.GELU),
        (FusedNorm, ChannelNorm),
        (FusedJoin, Block),
    ):
        if isinstance(module, changed):
            set_class(module, plain)


def set_class(module: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """Change a module's class to a subclass, or back: only its computation changes."""
    module.__class__ = cls
    return module


def format_forms(forms: Mapping[str, str]) -> str:
    """Return the forms of a net that are not plain, for a record: `norm triton, pointwise linear`, or `plain`."""
    return ", ".join(f"{name} {form}" for name, form in forms.items() if form != "plain") or "plain"


def announcement(forms: Mapping[str, str], device: torch.device, choice: Kernels) -> str:
    """Return a line for the log: the forms of a net, and why none are in Triton where they could be expected."""
    if choice == Kernels.plain:
        return f"kernels={choice}: {format_forms(forms)}"
    of_triton = choice == Kernels.fast or device.type == "cuda"
    why = [f"{reason}: torch's own there"] if of_triton and (reason := why_no_triton(device)) else []
    remarks = [*why, *(notes(device) if choice == Kernels.auto else [])]
    return f"kernels={choice}: {format_forms(forms)}" + (f" ({'; '.join(remarks)})" if remarks else "")
