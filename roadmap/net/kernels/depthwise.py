"""The depthwise convolution with other forms of its passes: (N, C, H, W) -> (N, C, OH, OW), odd K, padding K // 2.

Each of its three passes has a form. `plain` is torch's own. `flipped` (input gradient, stride 1) is a forward
convolution with the flipped kernel, for which cuDNN and oneDNN have a better algorithm. `bias_apart` (weight gradient)
sums the bias gradient by itself. `columns` (stride 1) and `triton` (stride 2) are ours. In every form, taps that cannot
reach a small map are left out.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import conv2d

from roadmap.net.kernels import depthwise_columns, depthwise_strided
from roadmap.net.kernels.triton_support import NHWC, autocast_dtype, operation, supported

KERNELS = (3, 5, 7, 9, 11)  # that the Triton kernels have tiles for
OURS = ("columns", "triton")  # the forms in Triton; `columns` may name its tile


class Forms(NamedTuple):
    """The form of each pass."""

    forward: str = "plain"
    input_gradient: str = "plain"
    weight_gradient: str = "plain"


class Depthwise(nn.Conv2d):
    """A depthwise `nn.Conv2d` whose passes have the forms that `use_kernels` has chosen."""

    forms: Forms

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, OH, OW), channels-last; in autocast's type, as a convolution is."""
        weight = reachable_taps(self.weight, x)
        size = weight.shape[-1]
        if size == 1 or self.forms == Forms():  # of one tap there is nothing to gain
            return conv2d(x, weight, self.bias, self.stride, size // 2, groups=self.groups)
        kind = autocast_dtype(x) or x.dtype
        bias = None if self.bias is None else self.bias.to(kind)
        return DepthwiseFunction.apply(x.to(kind), weight.to(kind), bias, self.stride[0], *self.forms)


def reachable_taps(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the inner 2H - 1 rows and columns of a kernel (C, 1, K, K): the others only meet padding on a map of H.

    Exact: what is left out adds zeros, and its gradient is zero.
    """
    reach, middle = max(x.shape[2:]), weight.shape[-1] // 2
    if reach > middle:
        return weight
    taps = slice(middle - reach + 1, middle + reach)
    # Permuted like the map, so that the gradient lies in memory as a channels-last kernel does.
    return weight.permute(0, 2, 3, 1)[:, taps, taps].permute(0, 3, 1, 2)


class DepthwiseFunction(torch.autograd.Function):
    """A depthwise convolution of x (N, C, H, W) with a kernel (C, 1, K, K) and a bias (C,), each pass in its form."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, *forms: str
    ) -> torch.Tensor:
        """Return the output (N, C, OH, OW), channels-last."""
        x = x.contiguous(memory_format=NHWC)
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.has_bias, ctx.forms = stride, bias is not None, forms
        return output(x, weight, bias, stride, forms[0])

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of map, kernel and bias."""
        x, weight = ctx.saved_tensors
        # Every form, cuDNN's too, is far slower on a gradient that is not channels-last.
        g = g.contiguous(memory_format=NHWC)
        dx = input_gradient(g, x, weight, ctx.stride, ctx.forms[1]) if ctx.needs_input_grad[0] else None
        dw = db = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            dw, db = weight_gradient(g, x, weight, ctx.stride, ctx.has_bias, ctx.forms[2])
        return dx, dw, db, None, None, None, None


def output(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, form: str) -> torch.Tensor:
    """Return the output (N, C, OH, OW)."""
    if form.startswith(OURS) and supported(x, weight, bias):
        return forward_by_triton(x, weight, bias, stride, form)
    return conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=x.shape[1])


def input_gradient(g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: int, form: str) -> torch.Tensor:
    """Return the gradient of the map (N, C, H, W)."""
    if form.startswith(OURS) and supported(g, weight):
        return input_gradient_by_triton(g, weight, stride, x.shape[2], x.shape[3], form)
    if form == "flipped":
        return conv2d(g, weight.flip(-1, -2), None, 1, weight.shape[-1] // 2, groups=x.shape[1])
    return by_torch(g, x, weight, stride, [True, False, False])[0]


def weight_gradient(
    g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: int, has_bias: bool, form: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the gradients of kernel and bias."""
    if form.startswith(OURS) and supported(g, x, weight):
        dw, db = weight_gradient_by_triton(x, g, weight.shape[-1], stride, form)
        return dw.to(weight.dtype), db.to(weight.dtype) if has_bias else None
    if form == "bias_apart" and has_bias:
        return by_torch(g, x, weight, stride, [False, True, False])[1], g.sum((0, 2, 3))
    _, dw, db = by_torch(g, x, weight, stride, [False, True, has_bias])
    return dw, db if has_bias else None


def by_torch(
    g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: int, mask: list[bool]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return torch's own gradients of map, kernel and bias, those of the mask."""
    c, pad = x.shape[1], weight.shape[-1] // 2
    return torch.ops.aten.convolution_backward(
        g, x, weight, [c], [stride, stride], [pad, pad], [1, 1], False, [0, 0], c, mask
    )


@operation(
    "depthwise_forward",
    lambda x, weight, bias, stride, form: torch.empty(
        depthwise_strided.out_shape(x, stride), dtype=x.dtype, device=x.device, memory_format=NHWC
    ),
)
def forward_by_triton(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, form: str
) -> torch.Tensor:
    """Return the output (N, C, OH, OW)."""
    x = x.contiguous(memory_format=NHWC)
    if form.startswith("columns"):
        return depthwise_columns.convolve(x, weight, bias, form)
    return depthwise_strided.convolve(x, weight, bias, stride)


@operation(
    "depthwise_input_gradient",
    lambda g, weight, stride, height, width, form: torch.empty(
        (*g.shape[:2], height, width), dtype=g.dtype, device=g.device, memory_format=NHWC
    ),
)
def input_gradient_by_triton(
    g: torch.Tensor, weight: torch.Tensor, stride: int, height: int, width: int, form: str
) -> torch.Tensor:
    """Return the gradient (N, C, H, W) of the map from that of the output (N, C, OH, OW)."""
    g = g.contiguous(memory_format=NHWC)
    if form.startswith("columns"):
        return depthwise_columns.convolve(g, weight, None, form, flipped=True)
    return depthwise_strided.input_gradient(g, weight, stride, height, width)


@operation(
    "depthwise_weight_gradient",
    lambda x, g, kernel, stride, form: (
        x.new_empty((x.shape[1], 1, kernel, kernel), dtype=torch.float32),
        x.new_empty((x.shape[1],), dtype=torch.float32),
    ),
)
def weight_gradient_by_triton(
    x: torch.Tensor, g: torch.Tensor, kernel: int, stride: int, form: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of kernel (C, 1, K, K) and bias (C,), in fp32."""
    x, g = x.contiguous(memory_format=NHWC), g.contiguous(memory_format=NHWC)
    if form.startswith("columns"):
        partial = depthwise_columns.weight_gradient(x, g, kernel, form)
    else:
        partial = depthwise_strided.weight_gradient(x, g, kernel, stride)
    total = partial.sum(0)
    return total[:-1].t().reshape(-1, 1, kernel, kernel).contiguous(), total[-1].clone()
