"""What every custom operation needs: whether Triton can run here, tile sizes, what autocast asks for."""

import importlib.util
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

OLDEST = (8, 0)  # compute capability: bf16 in hardware, and the registers that the tiles are chosen for
NHWC = torch.channels_last


@cache
def has_triton() -> bool:
    """Tell whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Tell whether Triton runs its kernels on the CPU, operation by operation (TRITON_INTERPRET=1, for tests)."""
    return os.environ.get("TRITON_INTERPRET", "") not in ("", "0")


def why_no_triton(device: torch.device) -> str | None:
    """Return why Triton kernels cannot run on a device, or None where they can."""
    if not has_triton():
        return "Triton is not installed"
    if device.type == "cpu":
        return None if interpreted() else "Triton has no kernels for the CPU"
    if device.type != "cuda" or torch.version.hip is not None:
        return f"the Triton kernels are for NVIDIA GPUs, not for {'ROCm' if device.type == 'cuda' else device.type}"
    found = torch.cuda.get_device_capability(device)
    if found < OLDEST:
        return f"this GPU has compute capability {found[0]}.{found[1]}, the Triton kernels need {OLDEST[0]}.{OLDEST[1]}"
    return None


def supported(*tensors: torch.Tensor | None) -> bool:
    """Tell whether the Triton kernels know the tensors' types and have anything to do."""
    known = (torch.float32, torch.bfloat16, torch.float16)
    return all(t is None or (t.dtype in known and t.numel() > 0) for t in tensors)


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """Return the type that autocast would give `x` in a convolution, or None where it leaves it as it is."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def power_of_2(n: int) -> int:
    """Return the next power of two that is not below `n`."""
    return 1 << max(0, n - 1).bit_length()


def ceil_div(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def operation(name: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function on tensors with torch.library, and return how to call it; `fake` gives its results' shapes.

    `torch.compile` then takes it as one operation. Elsewhere it is called as it is: torch's dispatch of an operation in
    Python costs as much as a small map's convolution.
    """

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        """Register `run`, whose annotations give the operation's signature."""
        registered = torch.library.custom_op(f"roadmap::{name}", run, mutates_args=())
        registered.register_fake(fake)

        def call(*args: Any) -> Any:
            return registered(*args) if torch.compiler.is_compiling() else run(*args)

        return call

    return register
