"""Where a run computes, and in which number format. Used by training and evaluation."""

import torch

from roadmap.choices import Device, Precision
from roadmap.errors import ConfigError


def choose_device(wanted: Device) -> torch.device:
    """Return the device of a run. Raises ConfigError where a GPU was asked for and there is none."""
    if wanted == Device.cuda and not torch.cuda.is_available():
        raise ConfigError("device=cuda: there is no GPU here; device=cpu or device=auto")
    return torch.device("cuda" if wanted != Device.cpu and torch.cuda.is_available() else "cpu")


def choose_precision(wanted: Precision, device: torch.device) -> Precision:
    """Return fp32 or bf16. Raises ConfigError where the GPU has no bf16 and it was asked for."""
    if device.type == "cpu":
        return Precision.fp32 if wanted == Precision.auto else wanted
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == Precision.bf16 and not has_bf16:
        raise ConfigError("recipe.precision=bf16: this GPU has none; recipe.precision=fp32")
    return Precision.bf16 if has_bf16 and wanted != Precision.fp32 else Precision.fp32
