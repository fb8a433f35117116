"""Faster forms of the net's operations, each with torch's own as its reference.

`use_kernels(net, device, Kernels.fast)` gives a net's modules the forms that a choice asks for, and returns which
those are; `Kernels.plain` takes them back. Names, parameters, state and initialisation stay as they are: `build_net`
makes the plain net, and a module with another form is of a subclass of what it was. Forms differ in rounding alone.

    net = build_net(cfg, 1000).to(device).to(memory_format=torch.channels_last)
    forms = use_kernels(net, device, Kernels.auto)          # what was measured to win on this device
    forms = use_kernels(net, device, Kernels.fast)          # every form that can run on it
    forms = use_kernels(net, device, {"norm": "triton"})    # these alone
    model = torch.compile(net)
"""

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import nn

from roadmap.config.choices import Kernels
from roadmap.config.schema import NetConfig
from roadmap.net.block import Block
from roadmap.net.kernels.depthwise import KERNELS, Depthwise, Forms
from roadmap.net.kernels.measured import MEASURED
from roadmap.net.kernels.norm import FusedNorm
from roadmap.net.kernels.pointwise import LinearPointwise
from roadmap.net.kernels.residual import FusedJoin
from roadmap.net.kernels.triton_support import why_no_triton
from roadmap.net.layers import ChannelNorm, LayerScale
from roadmap.net.net import Downsample, build_net

__all__ = ["FORMS", "announcement", "format_forms", "forms_of", "use_kernels"]

# Of each operation its forms beside `plain`, from the one that `fast` would rather have.
FORMS = {
    "depthwise forward": ("triton", "columns"),
    "depthwise input gradient": ("triton", "columns", "flipped"),
    "depthwise weight gradient": ("triton", "columns", "bias_apart"),
    "norm": ("triton",),
    "join": ("triton",),  # layer scale, stochastic depth, shortcut
    "pointwise": ("linear",),
    "pointwise without bias": ("linear",),
}
PASSES = tuple(FORMS)[:3]
Choice = Kernels | Mapping[str, str]


class OpSpec(NamedTuple):
    """An operation of a net on a device; kernel and stride of a depthwise or pointwise convolution."""

    device: torch.device
    operation: str
    kernel: int | None = None
    stride: int | None = None


def use_kernels(net: nn.Module, device: torch.device, choice: Choice) -> dict[str, str]:
    """Give the modules of a net the forms of a choice; return the form of every operation in the net, `plain` ones too.

    A choice is one of `Kernels`, or a form by operation, `plain` for those it leaves out; a form that cannot run is not
    taken, and the result says so. Call it before the net is compiled, copied or wrapped.
    """
    forms: dict[str, str] = {}
    narrow = {id(norm) for module in net.modules() for norm in narrow_norms(module)}
    for module in net.modules():
        reset_to_plain(module)
        if isinstance(module, nn.Conv2d):
            forms |= use_for_conv(module, device, choice)
        elif isinstance(module, ChannelNorm):
            forms["norm"] = form = choose_form(OpSpec(device, "norm"), choice)
            if form == "triton":
                cast(FusedNorm, set_class(module, FusedNorm)).narrow = id(module) in narrow
        elif isinstance(module, Block) and isinstance(module.scale, LayerScale):
            forms["join"] = form = choose_form(OpSpec(device, "join"), choice)
            if form == "triton":
                set_class(module, FusedJoin)
    return dict(sorted(forms.items()))


def forms_of(cfg: NetConfig, device: torch.device, choice: Choice) -> dict[str, str]:
    """Return the forms that a config's net would have, without building it."""
    with torch.device("meta"):
        return use_kernels(build_net(cfg, 2), device, choice)


def use_for_conv(conv: nn.Conv2d, device: torch.device, choice: Choice) -> dict[str, str]:
    """Give a convolution its forms, if it is a depthwise or a pointwise one; return them by name."""
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    if is_depthwise(conv):
        forms = Forms(*(choose_form(OpSpec(device, name, kernel, stride), choice) for name in PASSES))
        if forms != Forms():
            cast(Depthwise, set_class(conv, Depthwise)).forms = forms
        return {form_name(name, kernel, stride): form for name, form in zip(PASSES, forms, strict=True)}
    if conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1 and conv.padding == (0, 0):
        name = "pointwise" if conv.bias is not None else "pointwise without bias"
        form = choose_form(OpSpec(device, name, 1, 1), choice)
        if form == "linear":
            set_class(conv, LinearPointwise)
        return {name: form}
    return {}


def choose_form(spec: OpSpec, choice: Choice) -> str:
    """Return the form of an operation that a choice comes to."""
    if choice == Kernels.plain:
        return "plain"
    possible = [form for form in FORMS[spec.operation] if can_run(form, spec)]
    if isinstance(choice, Kernels):
        if choice == Kernels.fast:
            return possible[0] if possible else "plain"
        wanted = next((m.form for m in MEASURED if m[:4] == (device_name(spec.device), *spec[1:])), "plain")
    else:
        wanted = choice.get(spec.operation, "plain")
    return wanted if wanted in possible else "plain"


def can_run(form: str, spec: OpSpec) -> bool:
    """Tell whether a form is there for an operation on a device."""
    if form in ("triton", "columns"):
        known = spec.kernel is None or (spec.kernel in KERNELS and spec.stride in ((1, 2) if form == "triton" else (1,)))
        return known and why_no_triton(spec.device) is None
    return form != "flipped" or spec.stride == 1


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Tell whether a convolution is one of those that `Depthwise` can compute: square, odd, same size at stride 1."""
    k, s = conv.kernel_size[0], conv.stride[0]
    usual = conv.dilation == (1, 1) and conv.padding_mode == "zeros" and conv.padding == (k // 2, k // 2)
    square = conv.kernel_size == (k, k) and conv.stride == (s, s) and k % 2 == 1
    return conv.groups == conv.in_channels == conv.out_channels > 1 and square and usual


def narrow_norms(module: nn.Module) -> list[nn.Module]:
    """Return the norms of a module whose output convolutions alone read."""
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
        (FusedNorm, ChannelNorm),
        (FusedJoin, Block),
    ):
        if isinstance(module, changed):
            set_class(module, plain)


def set_class(module: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """Make a module one of a subclass, or of the class that it was of: all stays but what it computes with."""
    module.__class__ = cls
    return module


def form_name(operation: str, kernel: int, stride: int) -> str:
    """Return what an operation of a convolution is called in a record."""
    return f"{operation} {kernel}x{kernel}/{stride}"


def device_name(device: torch.device) -> str:
    """Return a device as the table of measurements has it."""
    if device.type != "cuda":
        return device.type
    return "cuda {}.{}".format(*torch.cuda.get_device_capability(device))


def format_forms(forms: Mapping[str, str]) -> str:
    """Return the forms of a net that are not plain, for a record: `norm triton, pointwise linear`, or `plain`."""
    return ", ".join(f"{name} {form}" for name, form in forms.items() if form != "plain") or "plain"


def announcement(forms: Mapping[str, str], device: torch.device, choice: Kernels) -> str:
    """Return a line for the log: the forms of a net, and why there are none of Triton where one could expect them."""
    why = (
        why_no_triton(device) if choice == Kernels.fast or (choice == Kernels.auto and device.type == "cuda") else None
    )
    return f"kernels={choice}: {format_forms(forms)}" + (f" ({why}: torch's own there)" if why else "")
