"""The forms that were measured to win, by device: what `kernels=auto` takes. A form that is not listed is not taken.

The table is part of the code, not timed when a run starts: a run is a function of its config, its device and the code.
`python -m roadmap.bench net` measures.
"""

from typing import NamedTuple


class Measured(NamedTuple):
    """One form that wins somewhere; `kernel` and `stride` are of the convolution, None where there is none."""

    device: str  # "cpu", or "cuda" and the compute capability
    operation: str
    kernel: int | None
    stride: int | None
    form: str


MEASURED = (
    # H100 80GB (capability 9.0), torch 2.11, compiled, bf16, batch 256 at 224, ConvNeXt-T's whole training step, median
    # of 20: 4,270 images/s with the flipped kernel against 3,917 (timm's net, whose kernels are 7x7).
    Measured("cuda 9.0", "depthwise input gradient", 7, 1, "flipped"),
    # The same: 1x1 convolutions were 3 % slower than Linear.
    Measured("cuda 9.0", "pointwise", 1, 1, "linear"),
    # x86 with AVX-512, torch 2.14, fp32, one thread, batch 32 at 32, forward and backward of whole nets, median of 15
    # ratios of processor time: 1.07 to 1.15 times as fast in five rows of nano, 1.12 to 1.17 in mini; in tiny at 224
    # (batch 4, median of 13) 1.01 and 1.03. The forms of the depthwise convolution gain 15 % on large maps (flipped,
    # bias_apart), but lose as much on maps of 4x4 and less.
    Measured("cpu", "pointwise", 1, 1, "linear"),
    Measured("cpu", "pointwise without bias", 1, 1, "linear"),
)
