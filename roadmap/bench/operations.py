"""The operations of a regime's nets at the shapes that they have there, in every form, on random data."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from roadmap.config.schema import Config
from roadmap.net import build_net
from roadmap.net.block import Block
from roadmap.net.kernels import FORMS, PASSES, OpSpec, applies_gelu, base, can_run, is_depthwise, is_pointwise
from roadmap.net.kernels.depthwise import input_gradient, output, weight_gradient
from roadmap.net.kernels.depthwise_columns import MAP_TILES
from roadmap.net.kernels.depthwise_columns import WEIGHT_TILES as COLUMN_WEIGHT_TILES
from roadmap.net.kernels.gelu import GeluFunction
from roadmap.net.kernels.norm import TILES, FusedNorm
from roadmap.net.kernels.pointwise import LinearPointwise
from roadmap.net.kernels.residual import JoinFunction
from roadmap.net.layers import ChannelNorm, LayerScale
from roadmap.net.net import Net

warnings.filterwarnings("ignore", message="Attempting to run cuBLAS")  # in a thread of autograd's, which goes on
NHWC = torch.channels_last
CHECKED = 4  # images that are compared with float64
Tensors = tuple[Tensor, ...]


class OpShape(NamedTuple):
    """An operation on a map (N, channels, height, height); kernel and stride of a convolution, channels out."""

    operation: str
    kernel: int | None
    stride: int | None
    channels: int
    height: int
    c_out: int

    @property
    def out_height(self) -> int:
        """Return the height of what comes out."""
        return (self.height - 1) // (self.stride or 1) + 1

    @property
    def cut(self) -> "OpShape":
        """Return it as it is computed, without the taps that no map reaches."""
        return self._replace(kernel=self.kernel and min(self.kernel, 2 * self.height - 1))

    def spec(self, device: torch.device) -> OpSpec:
        """Return what a form is chosen for."""
        return OpSpec(device, self.operation, self.kernel, self.stride, self.channels)

    def moved(self, batch: int) -> int:
        """Return how many values it must read and write at least: maps, and weights of a matrix product."""
        into, out = self.channels * self.height**2, self.c_out * self.out_height**2
        if self.operation in PASSES:
            return batch * (into + out)
        if self.operation in ("norm", "join", "gelu"):
            # Forward reads one map or two and writes one, backward reads two and writes one or two.
            return batch * into * 5
        return batch * (into + out) * 3 + 3 * self.channels * self.c_out

    def flop(self, batch: int) -> int:
        """Return the floating-point operations of a convolution, two a multiply-add; 0 of other operations."""
        outputs = batch * self.c_out * self.out_height**2
        if self.operation in PASSES:
            return 2 * outputs * (self.kernel or 0) ** 2
        return 6 * outputs * self.channels if self.has_products else 0

    @property
    def has_products(self) -> bool:
        """Tell whether it is made of matrix products."""
        return self.operation.startswith("pointwise")

    @property
    def family(self) -> tuple[object, ...]:
        """Return what it shares with shapes that are likely to have the same best tiles."""
        return self[:3]


def shapes_of(configs: Iterable[Config], image_size: int) -> list[OpShape]:
    """Return every operation at every shape that a net of these rows has, large kernels first."""
    found: dict[OpShape, None] = {}
    for config in configs:
        with torch.device("meta"):
            net = build_net(config.model, 2)
        if isinstance(net, Net):
            for module in net.modules():
                module.register_forward_hook(partial(note_shapes, found))
            net(torch.empty(2, 3, image_size, image_size, device="meta"))
    return sorted(found, key=lambda s: (list(FORMS).index(s.operation), s.kernel or 0, s.stride or 0, -s.height, s))


def note_shapes(found: dict[OpShape, None], module: nn.Module, args: Tensors, out: Tensor) -> None:
    """Add the operations of a module that was called: a forward hook."""
    x, c_out = args[0], out.shape[1]
    if isinstance(module, nn.Conv2d) and is_depthwise(module):
        for name in PASSES:
            found[OpShape(name, module.kernel_size[0], module.stride[0], c_out, x.shape[2], c_out)] = None
    elif isinstance(module, nn.Conv2d) and is_pointwise(module):
        name = "pointwise" if module.bias is not None else "pointwise without bias"
        found[OpShape(name, 1, 1, x.shape[1], x.shape[2], c_out)] = None
    elif isinstance(module, ChannelNorm):
        found[OpShape("norm", None, None, c_out, x.shape[2], c_out)] = None
    elif isinstance(module, Block):
        if isinstance(module.scale, LayerScale):
            found[OpShape("join", None, None, c_out, out.shape[2], c_out)] = None
        if applies_gelu(module):
            hidden = module.conv2.out_channels
            found[OpShape("gelu", None, None, hidden, out.shape[2], hidden)] = None


def forms_at(shape: OpShape, device: torch.device) -> Iterator[str]:
    """Yield the forms to try: torch's own, the others, and each tile of those with several."""
    yield "plain"
    for form in FORMS[shape.operation]:
        if not can_run(form, shape.spec(device)):
            continue
        tried = COLUMN_WEIGHT_TILES if shape.operation == PASSES[2] else MAP_TILES
        tiles = tried[shape.kernel or 0] if form == "columns" else TILES if shape.operation == "norm" else ""
        if form != "columns":
            yield form
        yield from (f"{form}/{tile}" for tile in tiles.split())


def operation_at(
    shape: OpShape, batch: int, kind: torch.dtype, device: torch.device, *, exact: bool = False
) -> "partial[Tensors]":
    """Return an operation on random maps of a batch, as a function of the form, which returns all results.

    `exact` computes the same values in float64.
    """
    generator = torch.Generator(device).manual_seed(0)
    to = torch.float64 if exact else kind

    def drawn(*size: int, dtype: torch.dtype = to) -> Tensor:
        values = torch.randn(size, generator=generator, device=device).to(kind).to(dtype)
        return values.contiguous(memory_format=NHWC) if len(size) == 4 else values

    c, c_out, k = shape.channels, shape.c_out, shape.kernel or 1
    x = drawn(batch, c, shape.height, shape.height)
    g = drawn(batch, c_out, shape.out_height, shape.out_height)
    if shape.operation in PASSES:
        return partial(depthwise, shape, x, g, drawn(c, 1, k, k) / k, drawn(c))
    x.requires_grad_()
    wide = torch.float64 if exact else torch.float32
    if shape.operation == "gelu":
        return partial(gelu_after_bias, x, g, drawn(c, dtype=wide).requires_grad_())
    if shape.operation == "join":
        shortcut = drawn(*x.shape, dtype=wide)
        return partial(join, x, shortcut, g.to(wide), drawn(c, dtype=wide).requires_grad_())
    torch.manual_seed(0)
    made: dict[str, nn.Module]
    if shape.operation == "norm":
        made = {"plain": ChannelNorm(c, eps=1e-6), "triton": FusedNorm(c, eps=1e-6)}
        made["triton"].narrow = True  # type: ignore[assignment]
    else:
        made = {"plain": nn.Conv2d(c, c_out, 1), "linear": LinearPointwise(c, c_out, 1)}
        made["linear"].load_state_dict(made["plain"].state_dict())
    modules = {form: module.to(device, wide).to(memory_format=NHWC) for form, module in made.items()}
    return partial(of_module, modules, x, g)


def depthwise(shape: OpShape, x: Tensor, g: Tensor, weight: Tensor, bias: Tensor | None, form: str) -> Tensors:
    """Return what a pass of a depthwise convolution gives."""
    stride = shape.stride or 1
    if shape.operation == PASSES[0]:
        return (output(x, weight, bias, stride, form),)
    if shape.operation == PASSES[1]:
        return (input_gradient(g, x, weight, stride, form),)
    dw, db = weight_gradient(g, x, weight, stride, True, form)
    assert db is not None
    return dw, db


def gelu_after_bias(x: Tensor, g: Tensor, bias: Tensor, form: str) -> Tensors:
    """Return GELU of a map that has a bias in it already, and the gradients of both."""
    if form == "triton":
        y = GeluFunction.apply(x, bias)
        return (y.detach(), *torch.autograd.grad(y, [x, bias], g))
    y = gelu(x)
    (dx,) = torch.autograd.grad(y, [x], g)
    return y.detach(), dx, dx.sum((0, 2, 3), dtype=bias.dtype)


def join(y: Tensor, shortcut: Tensor, g: Tensor, gamma: Tensor, form: str) -> Tensors:
    """Return branch times layer scale plus shortcut, and the gradients of branch and scale."""
    fused = form == "triton"
    out = JoinFunction.apply(y, shortcut, gamma, None) if fused else y * gamma.view(-1, 1, 1) + shortcut
    return (out.detach(), *torch.autograd.grad(out, [y, gamma], g))


def of_module(modules: Mapping[str, nn.Module], x: Tensor, g: Tensor, form: str) -> Tensors:
    """Return the output of a module in a form, and the gradients of map and parameters, as in training."""
    module = modules[base(form)]
    if isinstance(module, FusedNorm):
        module.form = form
    with torch.autocast(x.device.type, x.dtype, enabled=x.dtype in (torch.bfloat16, torch.float16)):
        y = module(x)
    return (y.detach(), *torch.autograd.grad(y, [x, *module.parameters()], g.to(y.dtype)))


def compile_form(shape: OpShape, form: str, kind: torch.dtype) -> None:
    """Run a form once to compile it, in a process that imports only this module."""
    with suppress(Exception):  # it fails again, with its reason, where it is measured
        call = operation_at(shape, CHECKED, kind, torch.device("cuda"))
        call(form)
        if shape.operation == PASSES[0]:  # without a bias, as before BatchNorm, it is another kernel
            call.func(*call.args[:-1], None, form)


def relative_errors(results: Tensors, exact: Tensors) -> float:
    """Return the largest relative error of several tensors."""
    pairs = zip(results, exact, strict=True)
    return max(float((mine.double() - best).norm() / best.norm().clamp_min(1e-30)) for mine, best in pairs)
