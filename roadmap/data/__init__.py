"""The images: iterate over batches of a set (`datasets.load`) that are ready for the net.

`sampling` says which ids are in a batch; which pipeline prepares the images is the config's choice.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from roadmap.config.choices import Decoder, Pipeline
from roadmap.config.images import DataConfig
from roadmap.config.recipe import RecipeConfig
from roadmap.data import gpu_transforms, transforms
from roadmap.data.datasets import BatchSpec, Split
from roadmap.data.rand_augment import parse_policy
from roadmap.errors import ConfigError
from roadmap.net.kernels.triton_support import why_no_triton

Batches = Iterator[tuple[Tensor, Tensor]]

TRAIN = {Pipeline.fast: gpu_transforms.train_batches, Pipeline.reference: transforms.train_batches}
EVAL = {Pipeline.fast: gpu_transforms.eval_batches, Pipeline.reference: transforms.eval_batches}


def check_pipeline(data: DataConfig, recipe: RecipeConfig, device: torch.device | None = None) -> None:
    """Raise ConfigError for settings that the chosen pipeline cannot honour, before anything is written or loaded.

    `device` is where training images are wanted; without one, what depends on it is not checked.
    """
    if data.pipeline == Pipeline.fast:
        parse_policy(data, recipe)
    elif recipe.rand_augment is not None:
        transforms.rand_augment(data, recipe)
    wants_gpu = data.pipeline == Pipeline.fast and data.decoder.needs_gpu and not data.known.in_memory
    if wants_gpu and device is not None:
        why = why_no_triton(device) if device.type == "cuda" else f"this run computes on {device}"
        if why is not None:
            raise ConfigError(
                f"data.decoder={data.decoder}: needs a GPU and Triton, and {why}; "
                "data.decoder=auto or cpu decodes anywhere"
            )


def pipeline_note(data: DataConfig, device: torch.device) -> str | None:
    """Return a line for a run's log about the decoder that was chosen, if one was."""
    if data.pipeline != Pipeline.fast or data.known.in_memory:
        return None
    gpu, cpu = "nvJPEG on the GPU", "libjpeg in the worker processes"
    what = {Decoder.nvjpeg: gpu, Decoder.both: f"{gpu} and {cpu}, half of them each"}.get(data.decoder, cpu)
    slow = "; slow without a GPU: no faster than data.pipeline=reference" if device.type == "cpu" else ""
    return f"training images are decoded by {what} (data.decoder={data.decoder}){slow}"


def train_batches(
    split: Split,
    data: DataConfig,
    recipe: RecipeConfig,
    index_batches: Sequence[Tensor],
    *,
    seed: int,
    epoch: int,
    device: torch.device,
) -> Batches:
    """Iterate over augmented batches on the device: images float32 `(B, 3, H, W)`, channels-last, labels int64 `(B,)`.

    What is random about an image depends on (seed, epoch, id) only. Raises ConfigError (see `check_pipeline`) at once,
    and DataError on reaching an image that cannot be read.
    """
    check_pipeline(data, recipe, device)
    return TRAIN[data.pipeline](BatchSpec(split, data, recipe, index_batches, device, seed, epoch))


def eval_batches(
    split: Split, data: DataConfig, recipe: RecipeConfig, index_batches: Sequence[Tensor], *, device: torch.device
) -> Batches:
    """Iterate over batches for evaluation, nothing random about them; shapes and errors as in `train_batches`."""
    check_pipeline(data, recipe)
    return EVAL[data.pipeline](BatchSpec(split, data, recipe, index_batches, device))
