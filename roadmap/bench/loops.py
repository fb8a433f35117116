"""Three loops over the same epoch: our own, the least that trains a net, and one as timm's training script has it. Used by `bench train`.

All three train the same net on the same images, mixed by the recipe's mixup and cutmix, with the same optimizer and in the same precision.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from roadmap import data
from roadmap.bench.measure import Call, Contestant
from roadmap.bench.peers import has_net, peer_net
from roadmap.choices import Optimizer
from roadmap.data import order
from roadmap.errors import ConfigError
from roadmap.job import Job, State
from roadmap.recipe import mix
from roadmap.runtime.device import autocast
from roadmap.train import begin, train_epoch
from roadmap.update import Batch

LOG_EVERY = 50  # steps; timm's default


def loops(job: Job, libraries: list[str]) -> list[Contestant]:
    """Return the loops to compare, a call an epoch; the bare one comes first."""
    images = job.steps_per_epoch * job.config.recipe.batch_size

    def begun(start: Callable[[], Callable[[int], None]]) -> Callable[[], Call]:
        def epochs() -> Call:
            epoch, number = start(), iter(range(job.config.recipe.epochs))
            return lambda: epoch(next(number))

        return epochs

    found = [
        Contestant("bare loop", begun(lambda: partial(bare_epoch, job, begin(job))), images, "torch"),
        Contestant("our loop", begun(lambda: partial(train_epoch, job, begin(job))), images),
    ]
    if "timm" in libraries and has_net("timm", job.config.step, job.config.model):
        found.append(Contestant("timm's loop and net", begun(lambda: timm_loop(job)), images, "timm"))
    return found


def batches_of(job: Job, epoch: int) -> Iterator[Batch]:
    """Iterate over an epoch's images and labels, as our loop does."""
    config = job.config
    ids = order.train_index_batches(len(job.images.train), config.recipe.batch_size, config.seed, epoch)
    return data.train_batches(job.images.train, config.data, config.recipe, ids, seed=config.seed, epoch=epoch, device=job.device)


def bare_epoch(job: Job, state: State, epoch: int) -> None:
    """Train an epoch as in a tutorial: the same net, input, precision and optimizer, and nothing else."""
    config = job.config
    state.model.train()
    for number, (images, labels) in enumerate(batches_of(job, epoch)):
        mixed, targets = mix.mix(images, labels, config.recipe, len(job.images.classes), config.seed, number)
        state.optimizer.zero_grad(set_to_none=True)
        with autocast(job.device, job.precision):
            loss = cross_entropy(state.model(mixed), targets)  # mixed targets are smooth already
        loss.backward()
        state.optimizer.step()


def timm_loop(job: Job) -> Callable[[int], None]:
    """Return an epoch of timm's net, optimizer, scheduler, mixing and loss, put together as in its training script. Raises ConfigError."""
    from timm.data.mixup import Mixup
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.utils import AverageMeter

    config, recipe, classes = job.config, job.config.recipe, len(job.images.classes)
    if recipe.optimizer != Optimizer.adamw:
        raise ConfigError(f"--step={config.step}: timm's loop has AdamW only, not the recipe's {recipe.optimizer}")
    torch.manual_seed(config.seed)
    net = peer_net("timm", config.step, config.model, classes, config.data.image_size).to(job.device).to(memory_format=torch.channels_last)
    model: nn.Module = torch.compile(net) if config.compile else net  # type: ignore[assignment]
    optimizer = create_optimizer_v2(net, "adamw", lr=recipe.base_lr, weight_decay=recipe.weight_decay, fused=True)
    steps = job.steps_per_epoch
    scheduler = CosineLRScheduler(optimizer, recipe.epochs * steps, lr_min=recipe.min_lr, t_in_epochs=False)
    smooth = {"label_smoothing": recipe.label_smoothing, "num_classes": classes}
    mixup = Mixup(recipe.mixup, recipe.cutmix, switch_prob=recipe.mix_switch, **smooth)
    loss_of, losses = SoftTargetCrossEntropy(), AverageMeter()

    def epoch(number: int) -> None:
        torch.backends.cudnn.benchmark = True
        net.train()
        for index, (images, labels) in enumerate(batches_of(job, number)):
            mixed, targets = mixup(images, labels)
            optimizer.zero_grad()
            with autocast(job.device, job.precision):
                loss = loss_of(model(mixed), targets)
            loss.backward()
            optimizer.step()
            if index % LOG_EVERY == 0 or index == steps - 1:
                losses.update(loss.item(), len(images))
            scheduler.step_update(number * steps + index + 1)
        torch.backends.cudnn.benchmark = False

    return epoch
