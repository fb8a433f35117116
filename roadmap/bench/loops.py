"""Three loops over the same epoch: our own, the least that trains a net, and one as timm's training script has it. Used by `bench train`.

All three train the same net on the same images, mixed by the recipe's mixup and cutmix, with the same optimizer and in the same precision.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from roadmap import data
from roadmap.bench.measure import Call, Candidate
from roadmap.bench.peers import has_net, peer_net
from roadmap.config.choices import Optimizer
from roadmap.data import sampling
from roadmap.distributed.device import autocast
from roadmap.errors import ConfigError
from roadmap.training import mixup
from roadmap.training.state import RunContext, TrainState, build_state
from roadmap.training.step import Batch
from roadmap.training.train import train_one_epoch

LOG_EVERY = 50  # steps; timm's default


def loops(ctx: RunContext, libraries: list[str]) -> list[Candidate]:
    """Return the loops to compare, a call an epoch; the bare one comes first."""
    images = ctx.steps_per_epoch * ctx.config.recipe.batch_size

    def begun(start: Callable[[], Callable[[int], None]]) -> Callable[[], Call]:
        def epochs() -> Call:
            epoch, number = start(), iter(range(ctx.config.recipe.epochs))
            return lambda: epoch(next(number))

        return epochs

    found = [
        Candidate("bare loop", begun(lambda: partial(bare_epoch, ctx, build_state(ctx))), images, "torch"),
        Candidate("our loop", begun(lambda: partial(train_one_epoch, ctx, build_state(ctx))), images),
    ]
    if "timm" in libraries and has_net("timm", ctx.config.step, ctx.config.model):
        found.append(Candidate("timm's loop and net", begun(lambda: timm_loop(ctx)), images, "timm"))
    return found


def batches_of(ctx: RunContext, epoch: int) -> Iterator[Batch]:
    """Iterate over an epoch's images and labels, as our loop does."""
    config = ctx.config
    ids = sampling.train_index_batches(len(ctx.images.train), config.recipe.batch_size, config.seed, epoch)
    return data.train_batches(
        ctx.images.train, config.data, config.recipe, ids, seed=config.seed, epoch=epoch, device=ctx.device
    )


def bare_epoch(ctx: RunContext, state: TrainState, epoch: int) -> None:
    """Train an epoch as in a tutorial: the same net, input, precision and optimizer, and nothing else."""
    config = ctx.config
    state.model.train()
    for number, (images, labels) in enumerate(batches_of(ctx, epoch)):
        mixed, targets = mixup.mixup_batch(images, labels, config.recipe, len(ctx.images.classes), config.seed, number)
        state.optimizer.zero_grad(set_to_none=True)
        with autocast(ctx.device, ctx.precision):
            loss = cross_entropy(state.model(mixed), targets)  # mixed targets are smooth already
        loss.backward()
        state.optimizer.step()


def timm_loop(ctx: RunContext) -> Callable[[int], None]:
    """Return an epoch of timm's net, optimizer, scheduler, mixing and loss, put together as in its training script. Raises ConfigError."""
    from timm.data.mixup import Mixup
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.utils import AverageMeter

    config, recipe, classes = ctx.config, ctx.config.recipe, len(ctx.images.classes)
    if recipe.optimizer != Optimizer.adamw:
        raise ConfigError(f"--step={config.step}: timm's loop has AdamW only, not the recipe's {recipe.optimizer}")
    torch.manual_seed(config.seed)
    net = (
        peer_net("timm", config.step, config.model, classes, config.data.image_size)
        .to(ctx.device)
        .to(memory_format=torch.channels_last)
    )
    model: nn.Module = torch.compile(net) if config.compile else net  # type: ignore[assignment]
    optimizer = create_optimizer_v2(net, "adamw", lr=recipe.base_lr, weight_decay=recipe.weight_decay, fused=True)
    steps = ctx.steps_per_epoch
    scheduler = CosineLRScheduler(optimizer, recipe.epochs * steps, lr_min=recipe.min_lr, t_in_epochs=False)
    smooth = {"label_smoothing": recipe.label_smoothing, "num_classes": classes}
    mixup = Mixup(recipe.mixup, recipe.cutmix, switch_prob=recipe.mix_switch, **smooth)
    loss_of, losses = SoftTargetCrossEntropy(), AverageMeter()

    def epoch(number: int) -> None:
        torch.backends.cudnn.benchmark = True
        net.train()
        for index, (images, labels) in enumerate(batches_of(ctx, number)):
            mixed, targets = mixup(images, labels)
            optimizer.zero_grad()
            with autocast(ctx.device, ctx.precision):
                loss = loss_of(model(mixed), targets)
            loss.backward()
            optimizer.step()
            if index % LOG_EVERY == 0 or index == steps - 1:
                losses.update(loss.item(), len(images))
            scheduler.step_update(number * steps + index + 1)
        torch.backends.cudnn.benchmark = False

    return epoch
