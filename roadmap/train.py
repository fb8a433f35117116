"""Train one net as its config says, in one run directory, and go on where an earlier start of the same run ended.

`train` reads top to bottom: check, hold the directory, take up the state; then epoch by epoch train, evaluate, save.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel

from roadmap import data
from roadmap.choices import DataName, Precision
from roadmap.config import Config, resolved
from roadmap.data import order, sets
from roadmap.data.full_check import standing
from roadmap.errors import ConfigError, DataError, Refused, StoppedEarly
from roadmap.evaluate import Evaluation, evaluate
from roadmap.net import build_net, cost
from roadmap.recipe import mix
from roadmap.recipe.ema import average_of
from roadmap.recipe.optim import build_optimizer, learning_rate
from roadmap.runtime import checkpoint, provenance
from roadmap.runtime.device import choose_device, choose_precision
from roadmap.runtime.folder import CHECKPOINTS, RunDir, differences, disk, identity, run_path
from roadmap.runtime.ledger import CORRECT, SUMMARY, read_json, replace_file
from roadmap.runtime.progress import Sweep
from roadmap.runtime.record import Record
from roadmap.runtime.stop import Stop

log = logging.getLogger("roadmap")
EVAL_BATCH = 256  # images; any size gives the same counts
Batch = tuple[torch.Tensor, torch.Tensor]  # images (N, 3, H, W), labels (N,)
SAVED = ("global_step", "epochs_evaluated", "best_top1", "best_step")


@dataclass
class State:
    """Where training stands: all that a checkpoint holds."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None = None
    global_step: int = 0  # optimizer steps done
    epochs_evaluated: int = 0
    best_top1: float = -1.0
    best_step: int | None = None


@dataclass(frozen=True)
class Job:
    """What the steps of one start work with."""

    config: Config
    images: sets.ImageSet
    device: torch.device
    record: Record
    stop: Stop
    precision: Precision

    @property
    def micro_batch(self) -> int:
        """Return the images of one forward pass."""
        return self.config.recipe.micro_batch or self.config.recipe.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Return the full batches of an epoch; the last incomplete one is dropped."""
        return len(self.images.train.labels) // self.config.recipe.batch_size


def train(config: Config, sweep: Sweep | None = None) -> dict[str, Any]:
    """Train, or go on training, or find the run done already; return its summary.

    Raises RoadmapError: for a wrong config or data before anything is written, for a stop or a failure after the state
    is saved.
    """
    images = sets.load(config.data, config.paths.runs)
    device = choose_device(config.device)
    facts = check(config, images, device)
    with ExitStack() as stack:
        run = RunDir(run_path(config))
        stack.enter_context(run.held())
        if config.fresh and run.set_aside():
            stack.enter_context(run.held())
        run.take_up(resolved(config), facts, allow_drift=config.allow_drift)
        if run.status.get("state") == "done":
            return summary_of(run)
        sweep, stop = sweep or Sweep(), stack.enter_context(Stop())
        stack.callback(lambda: setattr(sweep, "stopped", stop.signal is not None))
        record = stack.enter_context(Record(run, config, facts, device, config.recipe.epochs * facts["steps_per_epoch"], sweep))
        job = Job(config, images, device, record, stop, Precision(facts["precision"]))
        state = take_up(job)
        result, of_ema = fit(job, state)
        values = {"top1": result.top1, "top5": result.top5, "val_images": len(result.correct), "epoch": state.epochs_evaluated}
        return record.done(values | ({"ema_top1": of_ema.top1, "ema_top5": of_ema.top5} if of_ema else {}))


def summary_of(run: RunDir) -> dict[str, Any]:
    """Return the summary of a run that is done. Raises DataError where it cannot be read."""
    try:
        summary = read_json(run.path / SUMMARY)
        return summary | {key: float(summary[key]) for key in ("top1", "gmacs", "params_m")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{run.path / SUMMARY}: cannot be read ({error}); fresh=true starts over and keeps this aside") from None


def check(config: Config, images: sets.ImageSet, device: torch.device) -> dict[str, Any]:
    """Check what needs the images, before anything is written. Return what is known of net and images. Raises ConfigError."""
    num_classes, size = len(images.classes), config.data.image_size
    order.train_index_batches(len(images.train.labels), config.recipe.batch_size, config.seed, 0)
    data.check(config.data, config.recipe)
    mix.check(config.recipe)
    try:
        net = cost(config.model, num_classes, size)
    except RuntimeError:
        raise ConfigError(f"data.image_size={size}: too small for this net, which divides it by 32") from None
    return {
        "gmacs": net.gmacs,
        "params_m": net.params_m,
        "num_classes": num_classes,
        "data_fingerprint": images.fingerprint,
        "code_hash": provenance.code_hash(),
        "steps_per_epoch": len(images.train.labels) // config.recipe.batch_size,
        "precision": str(choose_precision(config.recipe.precision, device)),
    }


def take_up(job: Job) -> State:
    """Build net and optimizer, and take up the newest whole checkpoint where there is one. Raises DataError."""
    config, record = job.config, job.record
    torch.manual_seed(config.seed)
    net = build_net(config.model, len(job.images.classes)).to(job.device)
    net.to(memory_format=torch.channels_last)
    state, time_s = State(net, build_optimizer(net, config.recipe), average_of(net, config.recipe.ema_decay)), 0.0
    checkpoint.tidy(record.run.path / CHECKPOINTS)
    found = checkpoint.load_newest(record.run.path / CHECKPOINTS)
    if found is not None:
        refuse_another(job, found.manifest)
        net.load_state_dict(found.state["net"])
        state.optimizer.load_state_dict(found.state["optimizer"])
        if state.ema is not None:
            state.ema.load_state_dict(found.state["ema"])
        for key in SAVED:
            setattr(state, key, found.state[key])
        time_s = found.state["time_s"]
        for reason in found.skipped:
            record.say(f"passed over {reason}")
        record.say(f"{config.cell}: goes on at step {state.global_step}, {state.epochs_evaluated} of {config.recipe.epochs} epochs done")
    record.start(state.global_step, state.epochs_evaluated, time_s)
    recipe, dropped = config.recipe, len(job.images.train.labels) % config.recipe.batch_size
    log.info(
        "batch %d = 1 device x micro-batch %d x %d passes; %s; base rate %g; %d images an epoch left over",
        recipe.batch_size, job.micro_batch, recipe.batch_size // job.micro_batch, job.precision, recipe.base_lr, dropped,
    )  # fmt: skip
    log.info(standing(job.images, config.data.name, config.paths.runs))
    return state


def identity_hash(config: Config) -> str:
    """Return a hash of all that a result depends on."""
    return hashlib.sha256(json.dumps(identity(resolved(config)), sort_keys=True).encode()).hexdigest()[:16]


def refuse_another(job: Job, manifest: dict[str, Any]) -> None:
    """Raise Refused where a checkpoint is of another config, or of epochs of another length."""
    mine = {"identity": identity_hash(job.config), "steps_per_epoch": job.steps_per_epoch}
    changes = differences({key: manifest.get(key) for key in mine}, mine)
    if changes:
        raise Refused(f"{job.record.run.path}: its checkpoint is of another run ({'; '.join(changes)}); fresh=true sets it aside")


def fit(job: Job, state: State) -> tuple[Evaluation, Evaluation | None]:
    """Train and evaluate up to the recipe's last epoch, saving after each; return the last evaluation, and that of the EMA.

    Asked to stop, saves and raises StoppedEarly.
    """
    results = None
    try:
        for epoch in range(state.epochs_evaluated, job.config.recipe.epochs):
            train_epoch(job, state, epoch)
            results = evaluate_epoch(job, state)
            save(job, state)
    except StoppedEarly:
        save(job, state)
        raise
    return results or evaluations(job, state)


def train_epoch(job: Job, state: State, epoch: int) -> None:
    """Take the optimizer steps of an epoch that are not done yet."""
    config, record = job.config, job.record
    done = state.global_step - epoch * job.steps_per_epoch
    whole = order.train_index_batches(len(job.images.train.labels), config.recipe.batch_size, config.seed, epoch, skip=done)
    micro = [part for batch in whole for part in batch.split(job.micro_batch)]
    pictures = data.train_batches(job.images.train, config.data, config.recipe, micro, seed=config.seed, epoch=epoch, device=job.device)
    batches = record.waiting(pictures)
    state.net.train()
    for _ in whole:
        lr = learning_rate(config.recipe, state.global_step, job.steps_per_epoch)
        loss, grad_norm = optimizer_step(job, state, batches, lr)
        state.global_step += 1
        record.step(epoch + 1, state.global_step, lr, loss, grad_norm, config.recipe.batch_size)
        job.stop.check()
        if record.checkpoint_due():
            save(job, state)
    record.flush()


def optimizer_step(job: Job, state: State, batches: Iterator[Batch], lr: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Take one step on the next batch, given in micro-batches; return the loss and the gradient's norm, left on the device.

    A step whose loss or gradient is not finite is skipped by the fused optimizer itself (`found_inf`), without a wait.
    """
    state.optimizer.zero_grad(set_to_none=True)
    passes = job.config.recipe.batch_size // job.micro_batch
    losses = [backward(job, state, *batch, number) for number, batch in enumerate(islice(batches, passes), passes * state.global_step)]
    loss = torch.stack(losses).sum()
    grad_norm = nn.utils.get_total_norm([p.grad for p in state.net.parameters() if p.grad is not None])
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.found_inf = (~torch.isfinite(loss + grad_norm)).float()  # type: ignore[attr-defined]
    state.optimizer.step()
    if state.ema is not None:
        state.ema.update_parameters(state.net)
    return loss, grad_norm


def backward(job: Job, state: State, images: torch.Tensor, labels: torch.Tensor, number: int) -> torch.Tensor:
    """Add a micro-batch's share to the gradients; return its share of the loss.

    What is random in the net and in mixing is a function of the seed and of the pass's number in the run: a resumed run
    needs no random state.
    """
    recipe = job.config.recipe
    torch.manual_seed(order.step_seed(job.config.seed, number))
    images, targets = mix.mix(images, labels, recipe, len(job.images.classes), job.config.seed, number)
    smoothing = recipe.label_smoothing if targets is labels else 0.0  # mixed targets are smooth already
    with autocast(job):
        loss = cross_entropy(state.net(images), targets, label_smoothing=smoothing) * (len(images) / recipe.batch_size)
    loss.backward()
    return loss.detach()


def autocast(job: Job) -> torch.autocast:
    """Return the context in which the net computes in the run's precision."""
    return torch.autocast(job.device.type, torch.bfloat16, enabled=job.precision == Precision.bf16)


def evaluate_epoch(job: Job, state: State) -> tuple[Evaluation, Evaluation | None]:
    """Evaluate after an epoch, and record it."""
    result, of_ema = evaluations(job, state)
    state.epochs_evaluated += 1
    values = {"val/loss": result.loss, "val/top1": result.top1, "val/top5": result.top5}
    values |= {"val/ema_top1": of_ema.top1, "val/ema_top5": of_ema.top5} if of_ema else {}
    job.record.evaluated(state.epochs_evaluated, state.global_step, values)
    if result.top1 > state.best_top1:
        state.best_top1, state.best_step = result.top1, state.global_step
    bits = BytesIO()
    np.save(bits, result.packed())
    path = job.record.run.path / CORRECT
    with disk(path):
        replace_file(path, bits.getvalue())
    return result, of_ema


def evaluations(job: Job, state: State) -> tuple[Evaluation, Evaluation | None]:
    """Evaluate the net, and its moving average where there is one."""
    return evaluation(job, state.net), evaluation(job, state.ema.module) if state.ema is not None else None


def evaluation(job: Job, net: nn.Module) -> Evaluation:
    """Evaluate a net on every validation image once. Raises StoppedEarly between batches."""
    split = job.images.val
    indices = order.eval_index_batches(len(split.labels), EVAL_BATCH)
    batches = data.eval_batches(split, job.config.data, job.config.recipe, indices, device=job.device)
    with autocast(job):
        return evaluate(net, job.stop.between(batches))


def save(job: Job, state: State) -> None:
    """Write a checkpoint, after the ledger lines that it covers. Raises NonFiniteError, DiskError."""
    job.record.flush()
    plain = {key: getattr(state, key) for key in SAVED}
    facts = {"identity": identity_hash(job.config), "time": time.time(), "world_size": 1, **job.record.facts}
    tensors = {"net": state.net.state_dict(), "optimizer": state.optimizer.state_dict()}
    tensors |= {"ema": state.ema.state_dict()} if state.ema is not None else {}
    checkpoint.save(
        job.record.run.path / CHECKPOINTS,
        {**plain, "time_s": job.record.time_s, **tensors},
        {**plain, **facts},
        keep=job.config.checkpoint.keep,
        best_step=state.best_step,
    )
    job.record.saved(state.epochs_evaluated, state.global_step)


def result_line(config: Config, summary: dict[str, Any]) -> str:
    """Return the line that a run ends with: step, top-1, GMACs, parameters, where the run is."""
    path = run_path(config)
    place = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    meaning = " (synthetic images: the accuracy means nothing)" if config.data.name == DataName.synthetic else ""
    return (
        f"{config.cell}: top-1 {summary['top1']:.2f} %{meaning}, {summary['gmacs']:.4g} GMACs, "
        f"{summary['params_m']:.4g} M parameters, {place}"
    )
