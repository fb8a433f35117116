"""What the loop of `roadmap.train` works with: the run's job, the state that a checkpoint holds, and the checks before both."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from roadmap import data
from roadmap.choices import Norm, Precision
from roadmap.config import Config, resolved
from roadmap.data import order, sets
from roadmap.errors import ConfigError, DataError, Refused
from roadmap.net import cost
from roadmap.net.kernels import forms_of, in_words
from roadmap.recipe import mix
from roadmap.recipe.passes import check_passes, micro_batch
from roadmap.runtime import provenance
from roadmap.runtime.device import choose_compile, choose_graph, choose_precision
from roadmap.runtime.dist import Ranks
from roadmap.runtime.folder import RunDir, differences, identity
from roadmap.runtime.ledger import SUMMARY, read_json
from roadmap.runtime.pending import Bystander
from roadmap.runtime.record import Record
from roadmap.runtime.stop import Stop

COUNTED = ("global_step", "epochs_evaluated", "best_top1", "best_step")


@dataclass
class State:
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
    take_step: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None  # a captured step; None: the eager one

    def counted(self) -> dict[str, Any]:
        """Return the numbers of a checkpoint."""
        return {key: getattr(self, key) for key in COUNTED}

    def saved(self) -> dict[str, Any]:
        """Return all of a checkpoint: plain containers and tensors, which go on changing as training goes on."""
        ema = {"ema": self.ema.state_dict()} if self.ema is not None else {}
        parts = {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
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
class Job:
    """What the steps of one start work with."""

    config: Config
    images: sets.ImageSet
    ranks: Ranks
    record: Record | Bystander
    stop: Stop
    precision: Precision
    cuda_graph: bool = False  # a whole step is captured
    kept: dict[str, Any] = field(default_factory=dict)  # what one run leaves to the next of the same process

    @property
    def device(self) -> torch.device:
        """Return the device of this rank."""
        return self.ranks.device

    @property
    def micro_batch(self) -> int:
        """Return the images of one forward pass."""
        return micro_batch(self.config.recipe)

    @property
    def passes(self) -> int:
        """Return the forward passes of one optimizer step, over all ranks."""
        return self.config.recipe.batch_size // self.micro_batch

    @property
    def steps_per_epoch(self) -> int:
        """Return the full batches of an epoch; the last incomplete one is dropped."""
        return len(self.images.train.labels) // self.config.recipe.batch_size


def check(config: Config, images: sets.ImageSet, ranks: Ranks) -> dict[str, Any]:
    """Check what needs images and ranks, before anything is written. Return what is known of the run. Raises ConfigError."""
    num_classes, size = len(images.classes), config.data.image_size
    order.train_index_batches(len(images.train.labels), config.recipe.batch_size, config.seed, 0)
    data.check(config.data, config.recipe, ranks.device)
    mix.check(config.recipe)
    check_passes(config.recipe, ranks.world_size)
    if config.recipe.sync_batch_norm and ranks.device.type != "cuda":
        raise ConfigError("recipe.sync_batch_norm=true: needs GPUs")
    if micro_batch(config.recipe) == 1 and size <= config.model.reduction and config.model.norm == Norm.batch_norm:
        raise ConfigError(
            f"recipe.micro_batch=1 with data.image_size={size}: BatchNorm has a single pixel left at the end of the net; at least 2 images"
        )
    precision = choose_precision(config.recipe.precision, ranks.device)
    try:
        net = cost(config.model, num_classes, size)
    except RuntimeError:
        raise ConfigError(f"data.image_size={size}: too small for this net, which divides it by {config.model.reduction}") from None
    return {
        "gmacs": net.gmacs,
        "params_m": net.params_m,
        "num_classes": num_classes,
        "data_fingerprint": images.fingerprint,
        "code_hash": provenance.code_hash(),
        "steps_per_epoch": len(images.train.labels) // config.recipe.batch_size,
        "precision": str(precision),
        "world_size": ranks.world_size,
        "compile": choose_compile(config, ranks.device),
        "cuda_graph": choose_graph(config, ranks.device, precision, ranks.world_size),
        "kernels": in_words(forms_of(config.model, ranks.device, config.kernels)),
    }


def summary_of(run: RunDir) -> dict[str, Any]:
    """Return the summary of a run that is done. Raises DataError where it cannot be read."""
    try:
        summary = read_json(run.path / SUMMARY)
        return summary | {key: float(summary[key]) for key in ("top1", "gmacs", "params_m")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{run.path / SUMMARY}: cannot be read ({error}); fresh=true starts over and keeps this aside") from None


def identity_hash(config: Config) -> str:
    """Return a hash of all that a result depends on."""
    return hashlib.sha256(json.dumps(identity(resolved(config)), sort_keys=True).encode()).hexdigest()[:16]


def refuse_another(path: Path, manifest: dict[str, Any], mine: dict[str, Any]) -> None:
    """Raise Refused where a checkpoint is of another config, or of epochs of another length."""
    changes = differences({key: manifest.get(key) for key in mine}, mine)
    if changes:
        raise Refused(f"{path}: its checkpoint is of another run ({'; '.join(changes)}); fresh=true sets it aside")
