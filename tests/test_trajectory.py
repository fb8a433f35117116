"""Fifty steps of a small ConvNeXt beside timm's net, loss, optimizer and schedule, in double precision: the same curve.

In float32 the two part by rounding alone (1e-6 of the weights), which would hide as much of an error. In float64
rounding is 1e-16, and fifty steps make less than 1e-14 of it: a bound of 1e-12 leaves no room for an error.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from timm.loss import SoftTargetCrossEntropy
from timm.models.convnext import ConvNeXt
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.nn.functional import cross_entropy

from roadmap.config.choices import Precision
from roadmap.config.recipe import RecipeConfig
from roadmap.distributed.ranks import Ranks
from roadmap.net import build_net, export_weights, load_weights
from roadmap.steps.compose import compose
from roadmap.training import mixup
from roadmap.training.ema import build_ema
from roadmap.training.mixup import mixup_batch
from roadmap.training.optim import build_optimizer, learning_rate, set_lr
from roadmap.training.step import optimizer_step, train_step

from .net_rows import images, one_thread, rows  # noqa: F401

STEPS, BATCH, CLASSES = 50, 8, 10
RECIPE = RecipeConfig(
    optimizer="adamw", lr=4e-3, min_lr=1e-6, schedule="cosine", epochs=1, batch_size=BATCH,
    weight_decay=0.05, decay_1d=False, label_smoothing=0.1, mixup=0.8,
)  # fmt: skip


def distance(layer_norm_eps: float, steps: int) -> tuple[float, float]:
    """Return the largest difference of a loss and, in the end, of a weight, as our net is trained beside timm's."""
    torch.manual_seed(0)
    theirs = ConvNeXt(depths=(1, 1, 3, 1), dims=(12, 24, 48, 96), num_classes=CLASSES).double()
    cfg = rows("toy")["separate_downsampling"].replace(layer_scale=1e-6)
    ours = build_net(cfg, CLASSES).double()
    load_weights(ours, theirs.state_dict())
    for module in ours.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = layer_norm_eps
    optimizer, their_optimizer = build_optimizer(ours, RECIPE), create_optimizer_v2(theirs, "adamw", 4e-3, 0.05)
    schedule = CosineLRScheduler(their_optimizer, t_initial=STEPS, lr_min=1e-6, t_in_epochs=False)
    ctx = SimpleNamespace(ranks=Ranks(), config=SimpleNamespace(recipe=RECIPE))
    state = SimpleNamespace(net=ours, optimizer=optimizer, scaler=torch.amp.GradScaler(enabled=False))
    pixels, labels = images(4 * BATCH, 32).double(), torch.arange(4 * BATCH) % CLASSES
    apart = []
    for step in range(steps):
        batch = torch.randperm(len(labels), generator=torch.Generator().manual_seed(step))[:BATCH]
        x, targets = mixup_batch(pixels[batch], labels[batch], RECIPE, CLASSES, 0, step)
        set_lr(optimizer, learning_rate(RECIPE, step, STEPS))
        schedule.step_update(step)
        loss, their_loss = cross_entropy(ours(x), targets.double()), SoftTargetCrossEntropy()(theirs(x), targets)
        for each, made_of in ((optimizer, loss), (their_optimizer, their_loss)):
            each.zero_grad()
            made_of.backward()
        optimizer_step(ctx, state, loss.detach())
        their_optimizer.step()
        apart.append(abs(loss.item() - their_loss.item()))
    weights = export_weights(ours, "timm")
    return max(apart), max(float((weights[key] - value).abs().max()) for key, value in theirs.state_dict().items())


def test_fifty_steps_are_those_of_timms_net_loss_optimizer_and_schedule():
    assert max(distance(1e-6, STEPS)) < 1e-12


def test_an_eps_that_is_a_tenth_more_is_seen_in_five():
    assert distance(1.1e-6, 5)[1] > 1e-9


# Made with the authors' own `engine.train_one_epoch`, `optim_factory`, `utils.cosine_scheduler` and ConvNeXt, and timm
# 0.3.2's Mixup (seeded as ours before each pass), SoftTargetCrossEntropy and ModelEma, on the images and first weights
# of the test below: the loss of each step, and of each tensor the sum and the sum of its products with `waves`.
AUTHORS = Path(__file__).parent / "fixtures" / "authors_engine.json"


def waves(shape: tuple[int, ...], phase: float) -> torch.Tensor:
    """Return numbers that no generator makes, the same with every version of torch."""
    return torch.cos(torch.arange(math.prod(shape), dtype=torch.float64) * 0.7 + phase).reshape(shape)


def test_accumulation_mixing_warm_up_decay_and_average_are_those_of_the_authors_engine(monkeypatch):
    """Fifteen steps of two passes each, in double precision."""
    soft_targets, classes, per_epoch = mixup.soft_targets, 7, 5
    monkeypatch.setattr(mixup, "soft_targets", lambda *args: soft_targets(*args).double())
    published = compose("separate_downsampling", "tiny", ["recipe.ema_decay=0.9"])
    recipe = published.recipe.replace(epochs=3, warmup_epochs=1.0, batch_size=12, micro_batch=6)
    net = build_net(published.model.replace(depths=[1, 1, 2, 1], width=4, drop_path=0.0), classes).double()
    first = {
        key: 0.1 * waves(value.shape, sum(map(ord, key))) if value.ndim > 1 else value
        for key, value in export_weights(net, "official").items()
    }
    load_weights(net, {key: torch.full_like(v, 0.1) if key.endswith("gamma") else v for key, v in first.items()})
    ctx = SimpleNamespace(
        config=SimpleNamespace(recipe=recipe, seed=3), ranks=Ranks(), grad_accumulation=2, device=torch.device("cpu"),
        precision=Precision.fp32, images=SimpleNamespace(classes=range(classes)),
    )  # fmt: skip
    state = SimpleNamespace(
        net=net, model=net, optimizer=build_optimizer(net, recipe), scaler=torch.amp.GradScaler(enabled=False),
        ema=build_ema(net, recipe.ema_decay), global_step=0, in_step=False,
    )  # fmt: skip
    batches = ((waves((6, 3, 32, 32), number), torch.arange(6) * number % classes) for number in range(30))
    losses = []
    for state.global_step in range(15):
        rate = learning_rate(recipe, state.global_step, per_epoch)
        losses.append(float(train_step(ctx, state, batches, rate)[0]))
    theirs = json.loads(AUTHORS.read_text())
    assert losses == pytest.approx(theirs["losses"], rel=1e-12)
    for name, trained in (("net", net), ("ema", state.ema.module)):
        ours = export_weights(trained, "official")
        assert ours.keys() == theirs[name].keys()
        for key, value in ours.items():
            sums = [float(value.sum()), float((value * waves(value.shape, 0)).sum())]
            assert sums == pytest.approx(theirs[name][key], rel=1e-9, abs=1e-11), (name, key)
