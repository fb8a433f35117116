"""One optimizer step: forward and backward for each micro-batch of this rank, then the optimizer."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from roadmap.data import sampling
from roadmap.distributed.device import autocast
from roadmap.errors import NonFiniteError
from roadmap.training import mixup
from roadmap.training.optim import set_lr
from roadmap.training.state import FIRST_SCALE, RunContext, TrainState

Batch = tuple[Tensor, Tensor]  # images (N, 3, H, W), labels (N,)


def train_step(ctx: RunContext, state: TrainState, batches: Iterator[Batch], lr: float) -> tuple[Tensor, Tensor]:
    """Take one step on the next batch, given in micro-batches; return loss and gradient norm, left on the device."""
    state.optimizer.zero_grad(set_to_none=True)
    set_lr(state.optimizer, lr)
    # A pass has the same number in the run, and so the same images and draws, however many ranks share the passes.
    first = ctx.grad_accumulation * state.global_step
    numbers = range(first + ctx.ranks.rank, first + ctx.grad_accumulation, ctx.ranks.world_size)
    losses = []
    for number in numbers:
        images, targets = prepare(ctx, *next(batches), number)
        state.in_step = True
        losses.append(backward(ctx, state, images, targets, last=number == numbers[-1]))
    loss, grad_norm = optimizer_step(ctx, state, torch.stack(losses).sum())
    if state.ema is not None:
        state.ema.update_parameters(state.net)
    state.in_step = False
    return loss, grad_norm


def prepare(ctx: RunContext, images: Tensor, labels: Tensor, number: int) -> Batch:
    """Seed the random operations of the net, and mix a micro-batch.

    Both are functions of the run's seed and of the pass's number in the run: resuming needs no random state. Targets
    are the labels, or soft `(N, num_classes)` where images were mixed.
    """
    torch.manual_seed(sampling.step_seed(ctx.config.seed, number))
    return mixup.mixup_batch(images, labels, ctx.config.recipe, len(ctx.images.classes), ctx.config.seed, number)


def backward(ctx: RunContext, state: TrainState, images: Tensor, targets: Tensor, *, last: bool) -> Tensor:
    """Add a micro-batch's share to the gradients, averaged over the ranks with the last; return its share of loss."""
    recipe = ctx.config.recipe
    smoothing = 0.0 if mixup.mixes(recipe) else recipe.label_smoothing  # mixed targets are smooth already
    share_of_rank = len(images) * ctx.ranks.world_size / recipe.batch_size
    with ctx.ranks.no_sync(state.model, last=last):
        with autocast(ctx.device, ctx.precision):
            loss = cross_entropy(state.model(images), targets, label_smoothing=smoothing) * share_of_rank
        state.scaler.scale(loss).backward()
    return loss.detach()


def optimizer_step(ctx: RunContext, state: TrainState, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the gradients, clipped if configured; return the loss averaged over all ranks and the unclipped norm.

    A step whose loss or gradient is not finite is skipped by the fused optimizer itself (`found_inf`), without a wait.
    """
    loss = ctx.ranks.all_reduce_mean(loss)
    state.scaler.unscale_(state.optimizer)
    grad_norm = nn.utils.get_total_norm([p.grad for p in state.net.parameters() if p.grad is not None])
    if ctx.config.recipe.clip_grad is not None:
        nn.utils.clip_grads_with_norm_(state.net.parameters(), ctx.config.recipe.clip_grad, grad_norm)
    state.optimizer.found_inf = (~torch.isfinite(loss + grad_norm)).float()  # type: ignore[attr-defined]
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return loss, grad_norm


def require_steps_taken(state: TrainState, *, last: bool) -> None:
    """Raise NonFiniteError where fp16's gradients keep overflowing, after an epoch: every such step was skipped.

    Each skipped step halves the scale of the loss. Below 1 the scale does not cause the overflow. If it was halved in
    every step up to the end of the `last` epoch, the net is untrained. Waits for the device.
    """
    if not state.scaler.is_enabled():
        return
    scale = state.scaler.get_scale()
    untrained = scale <= FIRST_SCALE * state.scaler.get_backoff_factor() ** state.global_step
    if scale < 1 or (last and untrained):
        which = "no step was taken at all" if untrained else f"the scale of the loss is down to {scale:.3g}"
        raise NonFiniteError(
            f"step {state.global_step}: gradients overflow in fp16 and their steps are skipped, {which}; "
            "recipe.precision=bf16 or fp32 has the range"
        )
