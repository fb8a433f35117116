"""What the tests of the kernels share: maps, float64 as the measure, and how far a form may be from it."""

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import conv2d, layer_norm

NHWC = torch.channels_last
Tensors = Sequence[torch.Tensor]


def drawn(*shape: int, seed: int, kind: torch.dtype) -> torch.Tensor:
    """Return seeded noise of a type; a map is channels-last."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(kind)
    return values.contiguous(memory_format=NHWC) if len(shape) == 4 else values


def results(function: Callable[..., torch.Tensor], inputs: Tensors, g: torch.Tensor) -> list[torch.Tensor]:
    """Return what a function gives, and the gradients of its inputs for the gradient `g` of that."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    out.backward(g.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def errors(function: Callable[..., torch.Tensor], inputs: Tensors, g: torch.Tensor, exact: Tensors) -> list[float]:
    """Return the relative errors (root mean square) of a function's result and gradients."""
    found = results(function, inputs, g)
    return [((a.double() - b).norm() / b.norm().clamp_min(1e-30)).item() for a, b in zip(found, exact, strict=True)]


def assert_as_exact(
    form: Callable[..., torch.Tensor], plain: Callable[..., torch.Tensor], inputs: Tensors, *, factor: float
) -> None:
    """Assert that a form is as near to float64 as torch's own form is, for result and gradients.

    `factor` is room for sums in another order; 1e-6 for types in which both are nearly exact.
    """
    shape = plain(*(tensor.detach() for tensor in inputs)).shape
    g = drawn(*shape, seed=9, kind=inputs[0].dtype)
    exact = results(plain, [tensor.double() for tensor in inputs], g.double())
    ours, theirs = errors(form, inputs, g, exact), errors(plain, inputs, g, exact)
    for name, mine, other in zip(("result", "map", "second", "third", "fourth"), ours, theirs, strict=False):
        assert mine <= factor * other + 1e-6, f"{name}: {mine:.2e} against {other:.2e}"


def depthwise_inputs(shape: Sequence[int], kernel: int, kind: torch.dtype, bias: bool = True) -> list[torch.Tensor]:
    """Return a map, a kernel and a bias."""
    c = shape[1]
    tensors = [
        drawn(*shape, seed=0, kind=kind),
        drawn(c, 1, kernel, kernel, seed=1, kind=kind),
        drawn(c, seed=2, kind=kind),
    ]
    return tensors if bias else tensors[:2]


def plain_depthwise(stride: int) -> Callable[..., torch.Tensor]:
    """Return torch's depthwise convolution."""

    def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=x.shape[1])

    return run


def plain_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return torch's LayerNorm over the channels of a map."""
    return layer_norm(x.permute(0, 2, 3, 1), [x.shape[1]], weight, bias, 1e-6).permute(0, 3, 1, 2)
