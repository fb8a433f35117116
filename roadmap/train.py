"""Train one net as its config says, in one run directory, and go on where an earlier start of the same run ended.

`train` reads top to bottom: start the ranks, check, hold the directory, take up the state; then epoch by epoch train, evaluate, save.
"""

import logging
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from traceback import clear_frames
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from roadmap import data
from roadmap.choices import DataName, Precision
from roadmap.config import Config, resolved
from roadmap.data import order, sets
from roadmap.data.full_check import standing
from roadmap.errors import ConfigError, StoppedEarly
from roadmap.evaluate import Evaluation, batch_size, evaluate, share
from roadmap.graph import captured
from roadmap.job import Job, State, check, identity_hash, refuse_another, summary_of
from roadmap.net import build_net, use_kernels
from roadmap.net.kernels import announcement, forms_of
from roadmap.recipe.ema import average_of
from roadmap.recipe.optim import build_optimizer, learning_rate
from roadmap.runtime import checkpoint
from roadmap.runtime.device import autocast, choose_compile, choose_count, choose_device, is_of_compiler, is_out_of_memory
from roadmap.runtime.dist import Ranks
from roadmap.runtime.folder import CHECKPOINTS, RunDir, run_path
from roadmap.runtime.launch import launch
from roadmap.runtime.ledger import STATUS
from roadmap.runtime.pending import Bystander
from roadmap.runtime.place import Place, place
from roadmap.runtime.progress import Sweep
from roadmap.runtime.record import Record
from roadmap.runtime.stop import Stop
from roadmap.update import largest_pass, optimizer_step

log = logging.getLogger("roadmap")


def train(config: Config, sweep: Sweep | None = None) -> dict[str, Any]:
    """Train, or go on training, or find the run done already; return its summary.

    On several devices this process starts a rank for each, unless it is a rank itself. Raises RoadmapError: for a wrong
    config or data before anything is written, for a stop or a failure after the state is saved.
    """
    here, sweep = place(), sweep or Sweep()
    num_ranks = choose_count(config, here)
    if num_ranks == 1:
        return train_rank(config, sweep, here)
    try:
        sweep.worked = launch(partial(worked_by_rank, config, replace(sweep, kept={})), num_ranks)
    except StoppedEarly:
        sweep.stopped = True
        raise
    return summary_of(RunDir(run_path(config)))


def worked_by_rank(config: Config, sweep: Sweep, here: Place, port: int) -> float:
    """Be a rank that another process has started; return what the sweep has worked by now."""
    train_rank(config, sweep, here, port)
    return sweep.worked


def train_rank(config: Config, sweep: Sweep, here: Place, port: int | None = None) -> dict[str, Any]:
    """Do one rank's part of a run. Every rank takes the same path; rank 0 writes and speaks."""
    ranks = Ranks(here, choose_device(config.device, here))
    with ExitStack() as stack:
        runs = Path(config.paths.runs).expanduser().absolute()
        times = {"start_timeout_s": config.start_timeout_s, "comm_timeout_s": config.comm_timeout_s}
        stack.enter_context(ranks.joined(runs, port, **times))
        images = ranks.together(lambda: images_of(config, sweep.kept))
        facts = ranks.together(lambda: check(config, images, ranks))
        ranks.same({key: facts[key] for key in ("code_hash", "data_fingerprint", "precision", "kernels")})
        run = RunDir(run_path(config))
        if ranks.from_main(lambda: is_done(claim(run, config, facts, stack))):
            return summary_of(run)
        ranks.status, stop = run.path / STATUS, stack.enter_context(Stop(ranks))
        stack.callback(lambda: setattr(sweep, "stopped", stop.signal is not None))
        record = recorder(run, config, facts, ranks, sweep)
        stack.enter_context(record)
        with ranks.sharing():
            job = Job(config, images, ranks, record, stop, Precision(facts["precision"]), facts["cuda_graph"], sweep.kept)
            state = take_up(job, run)
            result, of_ema = fit(job, state)
        values = {"top1": result.top1, "top5": result.top5, "val_images": len(result.correct), "epoch": state.epochs_evaluated}
        return record.done(values | ({"ema_top1": of_ema.top1, "ema_top5": of_ema.top5} if of_ema else {}))


def images_of(config: Config, kept: dict[str, Any]) -> sets.ImageSet:
    """Load a set, or take the one that an earlier run of this process has in memory. Raises DataError, ConfigError."""
    key = resolved(config.data)
    if config.data.name not in sets.IN_MEMORY:
        return sets.load(config.data, config.paths.runs)
    if kept.get("images", (None,))[0] != key:
        kept.pop("images", None)  # its memory is free before the next set takes its own
        kept["images"] = key, sets.load(config.data)
    images: sets.ImageSet = kept["images"][1]
    return images


def claim(run: RunDir, config: Config, facts: dict[str, Any], stack: ExitStack) -> RunDir:
    """Hold the run's directory until the stack is left, and take up its status. Raises Busy, Refused, NoProgress, DiskError."""
    stack.enter_context(run.held())
    if config.fresh and run.set_aside():
        stack.enter_context(run.held())
    run.take_up(resolved(config), facts, allow_drift=config.allow_drift)
    run.count_deaths()
    return run


def is_done(run: RunDir) -> bool:
    """Tell whether the run came to its end before."""
    return run.status.get("state") == "done"


def recorder(run: RunDir, config: Config, facts: dict[str, Any], ranks: Ranks, sweep: Sweep) -> Record | Bystander:
    """Return what keeps the record: of all ranks the first alone writes."""
    if not ranks.is_main:
        return Bystander(may_overflow=facts["precision"] == Precision.fp16)
    return Record(run, config, facts, ranks.device, config.recipe.epochs * facts["steps_per_epoch"], sweep)


def take_up(job: Job, run: RunDir) -> State:
    """Build net and optimizer, and take up the newest whole checkpoint where there is one. Raises DataError, Refused."""
    config, record, folder = job.config, job.record, run.path / CHECKPOINTS
    state, time_s = begin(job), 0.0
    found = job.ranks.from_main(lambda: newest(job, folder))
    if found is not None:
        saved = checkpoint.load(Path(found["path"]))
        state.restore(saved)
        time_s = saved["time_s"]
        for reason in found["skipped"]:
            record.say(f"passed over {reason}")
        record.say(f"{config.cell}: goes on at step {state.global_step}, {state.epochs_evaluated} of {config.recipe.epochs} epochs done")
    # The others wait: until the record is open, W&B's server may take its time.
    job.ranks.from_main(lambda: record.start(state.global_step, state.epochs_evaluated, time_s))
    recipe, world_size = config.recipe, job.ranks.world_size
    log.info(
        "batch %d = %d device%s x micro-batch %d x %d passes; %s; base rate %g; %d images an epoch left over",
        recipe.batch_size, world_size, "s" * (world_size > 1), job.micro_batch, job.passes // world_size, job.precision, recipe.base_lr,
        len(job.images.train.labels) % recipe.batch_size,
    )  # fmt: skip
    log.info(announcement(forms_of(config.model, job.device, config.kernels), job.device, config.kernels))
    log.info(standing(job.images, config.data.name, config.paths.runs))
    if note := data.note(config.data, job.device):
        log.info(note)
    return state


def newest(job: Job, folder: Path) -> dict[str, Any] | None:
    """Return path and skipped ones of the newest checkpoint of this run, if any. Raises DataError, Refused."""
    checkpoint.tidy(folder)
    found = checkpoint.find_newest(folder)
    if found is None:
        return None
    refuse_another(folder.parent, found.manifest, {"identity": identity_hash(job.config), "steps_per_epoch": job.steps_per_epoch})
    return {"path": str(found.path), "skipped": found.skipped}


def begin(job: Job) -> State:
    """Return the state before the first step: the same on every rank."""
    config, size = job.config, job.config.data.image_size
    torch.manual_seed(config.seed)
    net = build_net(config.model, len(job.images.classes)).to(job.device)
    net.to(memory_format=torch.channels_last)
    use_kernels(net, job.device, config.kernels)
    if config.recipe.sync_batch_norm:
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    example = torch.zeros(min(2, job.micro_batch), 3, size, size, device=job.device).contiguous(memory_format=torch.channels_last)
    model = job.ranks.parallel(net, example)
    if choose_compile(config, job.device):
        torch._dynamo.config.optimize_ddp = False  # it would cut the net at every bucket, and fails on nets of ours
        model = cast(nn.Module, torch.compile(model))
    scaler = torch.amp.GradScaler(job.device.type, enabled=job.precision == Precision.fp16)
    return State(net, model, build_optimizer(net, config.recipe), scaler, average_of(net, config.recipe.ema_decay))


def fit(job: Job, state: State) -> tuple[Evaluation, Evaluation | None]:
    """Train and evaluate up to the recipe's last epoch, saving after each; return the last evaluation, and that of the EMA.

    Asked to stop, saves and raises StoppedEarly.
    """
    results = None
    try:
        if job.cuda_graph:
            state = captured(job, state, begin)
        for epoch in range(state.epochs_evaluated, job.config.recipe.epochs):
            train_epoch(job, state, epoch)
            results = evaluate_epoch(job, state)
            save(job, state)
        results = results or evaluations(job, state)
    except StoppedEarly:
        save(job, state)
        job.record.settle()
        raise
    except RuntimeError as error:
        if is_out_of_memory(error):
            clear_frames(error.__traceback__)  # which hold the tensors of the pass that failed
            smaller = largest_pass(job, state)
            what = f"recipe.micro_batch={job.micro_batch}: a pass of so many images is too large for the memory of {job.device}"
            fits = f"{smaller} fits this net" if smaller else "not even 2 images fit"
            raise ConfigError(f"{what}; {fits}. All rows of a study must have the same") from None
        if is_of_compiler(error):
            why = " ".join(str(error).split())[:200]
            raise ConfigError(f"compile={job.config.compile}: torch cannot compile this net here ({why}); compile=false") from error
        raise
    return results


def train_epoch(job: Job, state: State, epoch: int) -> None:
    """Take the optimizer steps of an epoch that are not done yet."""
    config, record, ranks = job.config, job.record, job.ranks
    done = state.global_step - epoch * job.steps_per_epoch
    whole = order.train_index_batches(len(job.images.train.labels), config.recipe.batch_size, config.seed, epoch, skip=done)
    micro = [part for batch in whole for part in batch.split(job.micro_batch)][ranks.rank :: ranks.world_size]
    pictures = data.train_batches(job.images.train, config.data, config.recipe, micro, seed=config.seed, epoch=epoch, device=job.device)
    batches = record.waiting(pictures)
    state.model.train()
    for _ in whole:
        lr = learning_rate(config.recipe, state.global_step, job.steps_per_epoch)
        loss, grad_norm = (state.take_step or optimizer_step)(job, state, batches, lr)
        state.global_step += 1
        record.step(epoch + 1, state.global_step, lr, loss, grad_norm, config.recipe.batch_size)
        if job.stop.check(save_due=record.checkpoint_due()):
            save(job, state)
    record.flush()


def evaluate_epoch(job: Job, state: State) -> tuple[Evaluation, Evaluation | None]:
    """Evaluate after an epoch, and record it."""
    result, of_ema = evaluations(job, state)
    state.epochs_evaluated += 1
    if result.top1 > state.best_top1:
        state.best_top1, state.best_step = result.top1, state.global_step
    values = {"val/loss": result.loss, "val/top1": result.top1, "val/top5": result.top5}
    values |= {"val/ema_top1": of_ema.top1, "val/ema_top5": of_ema.top5} if of_ema else {}
    bits = BytesIO()
    np.save(bits, result.packed())
    job.record.evaluated(state.epochs_evaluated, state.global_step, values, bits.getvalue())
    return result, of_ema


def evaluations(job: Job, state: State) -> tuple[Evaluation, Evaluation | None]:
    """Evaluate the net, and its moving average where there is one."""
    return evaluation(job, state.net), evaluation(job, state.ema.module) if state.ema is not None else None


def evaluation(job: Job, net: nn.Module) -> Evaluation:
    """Evaluate a net on every validation image once, over all ranks. Raises StoppedEarly between batches."""
    split = job.images.val
    job.ranks.spread_buffers(net)
    mine, rounds = share(order.eval_index_batches(len(split.labels), batch_size(job.config.data.image_size, job.device)), job.ranks)
    batches = data.eval_batches(split, job.config.data, job.config.recipe, mine, device=job.device)
    with autocast(job.device, job.precision):
        return evaluate(net, job.stop.between(batches, rounds), mine, len(split.labels), job.ranks)


def save(job: Job, state: State) -> None:
    """Let a checkpoint be written beside training. Raises NonFiniteError, and DiskError for this or an earlier one."""
    facts = {"identity": identity_hash(job.config), **state.counted()}
    job.record.checkpoint(state.saved(), facts, state.best_step)


def result_line(config: Config, summary: dict[str, Any]) -> str:
    """Return the line that a run ends with: step, top-1, GMACs, parameters, where the run is."""
    path = run_path(config)
    place = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    meaning = " (synthetic images: the accuracy means nothing)" if config.data.name == DataName.synthetic else ""
    return (
        f"{config.cell}: top-1 {summary['top1']:.2f} %{meaning}, {summary['gmacs']:.4g} GMACs, "
        f"{summary['params_m']:.4g} M parameters, {place}"
    )
