"""What the loop works with: the context of one start of a run, and the state that a checkpoint holds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from roadmap.config.choices import Precision
from roadmap.config.schema import Config
from roadmap.data import datasets
from roadmap.distributed.device import choose_compile
from roadmap.distributed.ranks import Ranks
from roadmap.distributed.signals import StopSignal
from roadmap.net import build_net, use_kernels
from roadmap.runs.null_logger import NullLogger
from roadmap.runs.run_logger import RunLogger
from roadmap.text import clean
from roadmap.training.ema import build_ema
from roadmap.training.initial_weights import InitialWeights
from roadmap.training.optim import build_optimizer, is_like, kind_of, load_optimizer

FIRST_SCALE = 2.0**16  # of fp16's losses: torch's own
COUNTERS = ("global_step", "epochs_evaluated", "best_top1", "best_step")


@dataclass(frozen=True)
class RunContext:
    """What stays the same during one start of a run."""

    config: Config
    images: datasets.ImageSet
    ranks: Ranks
    logger: RunLogger | NullLogger
    stop: StopSignal
    precision: Precision
    cuda_graph: bool = False  # a whole step is captured
    initial: InitialWeights | None = None  # weights to start from instead of random ones
    cache: dict[str, Any] = field(default_factory=dict)  # what one run leaves to the next of the same process

    @property
    def device(self) -> torch.device:
        """Return the device of this rank."""
        return self.ranks.device

    @property
    def micro_batch(self) -> int:
        """Return the images of one forward pass."""
        return self.config.recipe.images_per_pass

    @property
    def grad_accumulation(self) -> int:
        """Return the forward passes of one optimizer step, over all ranks."""
        return self.config.recipe.batch_size // self.micro_batch

    @property
    def steps_per_epoch(self) -> int:
        """Return the full batches of an epoch; the last incomplete one is dropped."""
        return len(self.images.train.labels) // self.config.recipe.batch_size


@dataclass
class TrainState:
    """What changes from step to step: all that a checkpoint holds."""

    net: nn.Module
    model: nn.Module  # the net as it is called in training: compiled, its gradients averaged over the ranks
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of fp16's losses; does nothing otherwise
    ema: AveragedModel | None = None
    global_step: int = 0  # optimizer steps done
    epochs_evaluated: int = 0
    best_top1: float = -1.0
    best_step: int | None = None
    in_step: bool = False  # a pass has changed BatchNorm's statistics, the optimizer not yet the weights
    step_fn: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None  # a captured step; None: the eager one

    def counters(self) -> dict[str, Any]:
        """Return the numbers of a checkpoint."""
        return {key: getattr(self, key) for key in COUNTERS}

    def state_dict(self) -> dict[str, Any]:
        """Return the content of a checkpoint: plain containers and live tensors, which training keeps changing."""
        parts: dict[str, Any] = {"net": self.net, "optimizer": self.optimizer, "scaler": self.scaler}
        if self.ema is not None:
            parts["ema"] = self.ema
        return self.counters() | {key: part.state_dict() for key, part in parts.items()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Load what a checkpoint holds. Raises ValueError for one that is not of this net and optimizer."""
        require_like(saved, self.counters(), "")
        for key, part in {"net": self.net, "ema": self.ema}.items():
            if part is not None:
                require_like(saved.get(key), part.state_dict(), f"{key}.")
                part.load_state_dict(saved[key])
        load_optimizer(self.optimizer, saved.get("optimizer"))
        if self.scaler.is_enabled():
            require_like(saved.get("scaler"), self.scaler.state_dict(), "scaler.")
            self.scaler.load_state_dict(saved["scaler"])
        for key in COUNTERS:
            setattr(self, key, saved[key])


def require_like(saved: Any, own: Mapping[str, Any], prefix: str) -> None:
    """Raise ValueError where a part of a checkpoint lacks what ours has, or has it of another kind, shape or type."""
    for key, mine in own.items():
        theirs = saved.get(key) if isinstance(saved, dict) else None
        if isinstance(mine, Tensor):
            fits = is_like(theirs, mine)
        else:
            fits = type(theirs) in (int, float) or (theirs is None and mine is None)  # no best step yet
        if not fits:
            raise ValueError(f"{prefix}{key} is {kind_of(theirs)}, and not {kind_of(mine)}")
    if unknown := [key for key in saved if key not in own] if prefix else []:
        raise ValueError(f"{prefix}{clean(unknown[0], 80)} is not of this net")


def build_state(ctx: RunContext) -> TrainState:
    """Return the state before the first step: the same on every rank."""
    config, size = ctx.config, ctx.config.data.image_size
    torch.manual_seed(config.seed)
    net = build_net(config.model, len(ctx.images.classes)).to(ctx.device)
    if ctx.initial is not None:
        ctx.initial.load(net)
    net.to(memory_format=torch.channels_last)
    use_kernels(net, ctx.device, config.kernels)
    if config.recipe.sync_batch_norm:
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    example = torch.zeros(min(2, ctx.micro_batch), 3, size, size, device=ctx.device)
    model = ctx.ranks.wrap_ddp(net, example.contiguous(memory_format=torch.channels_last))
    if choose_compile(config, ctx.device):
        model = compiled(ctx, model)
    scaler = torch.amp.GradScaler(ctx.device.type, FIRST_SCALE, enabled=ctx.precision == Precision.fp16)
    return TrainState(net, model, build_optimizer(net, config.recipe), scaler, build_ema(net, config.recipe.ema_decay))


def compiled(ctx: RunContext, model: nn.Module) -> nn.Module:
    """Return the net as `torch.compile` wraps it; its first call compiles."""
    torch._dynamo.config.optimize_ddp = False  # it splits the net at every bucket, and fails on some of our nets
    cfg = ctx.config.model.values()
    if ctx.cache.setdefault("compiled", cfg) != cfg:
        torch._dynamo.reset()  # all rows are one class, of which it compiles eight: later ones would stay eager
        ctx.cache["compiled"] = cfg
    return cast(nn.Module, torch.compile(model))
