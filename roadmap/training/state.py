"""What the loop works with: the state that a checkpoint holds, and the context of one start of a run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from roadmap.config.choices import Precision
from roadmap.config.schema import Config
from roadmap.data import datasets
from roadmap.distributed.ranks import Ranks
from roadmap.distributed.signals import StopSignal
from roadmap.runs.run_logger import NullLogger, RunLogger
from roadmap.training.grad_accumulation import micro_batch_size

COUNTED = ("global_step", "epochs_evaluated", "best_top1", "best_step")


@dataclass
class TrainState:
    """Where training stands: all that a checkpoint holds."""

    net: nn.Module
    model: nn.Module  # the net as it is called in training: compiled, its gradients averaged over the ranks
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of fp16's losses; idle otherwise
    ema: AveragedModel | None = None
    global_step: int = 0  # optimizer steps done
    epochs_evaluated: int = 0
    best_top1: float = -1.0
    best_step: int | None = None
    step_fn: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None  # a captured step; None: the eager one

    def counted(self) -> dict[str, Any]:
        """Return the numbers of a checkpoint."""
        return {key: getattr(self, key) for key in COUNTED}

    def saved(self) -> dict[str, Any]:
        """Return all of a checkpoint: plain containers and tensors, which go on changing as training goes on."""
        ema = {"ema": self.ema.state_dict()} if self.ema is not None else {}
        parts = {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        return self.counted() | parts | ema

    def restore(self, saved: dict[str, Any]) -> None:
        """Take up what a checkpoint holds."""
        self.net.load_state_dict(saved["net"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for group in self.optimizer.param_groups:  # a captured step's rate is a tensor, that of an eager one a number
            group["lr"] = float(group["lr"])
            group |= {"capturable": False} if "capturable" in group else {}
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(saved["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(saved["ema"])
        for key in COUNTED:
            setattr(self, key, saved[key])


@dataclass(frozen=True)
class RunContext:
    """What the steps of one start work with."""

    config: Config
    images: datasets.ImageSet
    ranks: Ranks
    logger: RunLogger | NullLogger
    stop: StopSignal
    precision: Precision
    cuda_graph: bool = False  # a whole step is captured
    cache: dict[str, Any] = field(default_factory=dict)  # what one run leaves to the next of the same process

    @property
    def device(self) -> torch.device:
        """Return the device of this rank."""
        return self.ranks.device

    @property
    def micro_batch(self) -> int:
        """Return the images of one forward pass."""
        return micro_batch_size(self.config.recipe)

    @property
    def grad_accumulation(self) -> int:
        """Return the forward passes of one optimizer step, over all ranks."""
        return self.config.recipe.batch_size // self.micro_batch

    @property
    def steps_per_epoch(self) -> int:
        """Return the full batches of an epoch; the last incomplete one is dropped."""
        return len(self.images.train.labels) // self.config.recipe.batch_size
