"""Train one net as its config says, in one run directory, and go on where an earlier start of the same run ended.

`train` reads top to bottom: start the ranks, check_run, hold the directory, take up the state; then epoch by epoch train, evaluate, save.
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
from roadmap.config.choices import DataName, Precision
from roadmap.config.schema import Config
from roadmap.data import datasets, sampling
from roadmap.data.verify import verification_note
from roadmap.distributed.device import (
    autocast,
    choose_compile,
    choose_count,
    choose_device,
    is_of_compiler,
    is_out_of_memory,
)
from roadmap.distributed.launch import launch
from roadmap.distributed.rank_env import RankEnv, rank_env
from roadmap.distributed.ranks import Ranks
from roadmap.distributed.signals import StopSignal
from roadmap.errors import ConfigError, StoppedEarly
from roadmap.net import build_net, use_kernels
from roadmap.net.kernels import announcement, forms_of
from roadmap.runs import checkpoint
from roadmap.runs.progress import SweepProgress
from roadmap.runs.run_dir import RunDir, run_path
from roadmap.runs.run_logger import NullLogger, RunLogger
from roadmap.runs.schema import CHECKPOINTS, STATUS
from roadmap.training.cuda_graph import with_captured_step
from roadmap.training.ema import build_ema
from roadmap.training.evaluation import Evaluation, eval_batch_size, evaluate, shard_batches
from roadmap.training.optim import build_optimizer, learning_rate
from roadmap.training.setup import check_run, identity_hash, load_summary, require_same_run
from roadmap.training.state import RunContext, TrainState
from roadmap.training.step import largest_micro_batch, train_step

log = logging.getLogger("roadmap")


def train(config: Config, sweep: SweepProgress | None = None) -> dict[str, Any]:
    """Train, or go on training, or find the run done already; return its summary.

    On several devices this process starts a rank for each, unless it is a rank itself. Raises RoadmapError: for a wrong
    config or data before anything is written, for a stop or a failure after the state is saved.
    """
    env, sweep = rank_env(), sweep or SweepProgress()
    num_ranks = choose_count(config, env)
    if num_ranks == 1:
        return train_rank(config, sweep, env)
    try:
        sweep.runs_done = launch(partial(train_spawned_rank, config, replace(sweep, cache={})), num_ranks)
    except StoppedEarly:
        sweep.stopped = True
        raise
    return load_summary(RunDir(run_path(config)))


def train_spawned_rank(config: Config, sweep: SweepProgress, env: RankEnv, port: int) -> float:
    """Be a rank that another process has started; return what the sweep has worked by now."""
    train_rank(config, sweep, env, port)
    return sweep.runs_done


def train_rank(config: Config, sweep: SweepProgress, env: RankEnv, port: int | None = None) -> dict[str, Any]:
    """Do one rank's part of a run. Every rank takes the same path; rank 0 writes and speaks."""
    ranks = Ranks(env, choose_device(config.device, env))
    with ExitStack() as stack:
        runs = Path(config.paths.runs).expanduser().absolute()
        times = {"start_timeout_s": config.start_timeout_s, "comm_timeout_s": config.comm_timeout_s}
        stack.enter_context(ranks.process_group(runs, port, **times))
        images = ranks.all_or_raise(lambda: load_images(config, sweep.cache))
        run_info = ranks.all_or_raise(lambda: check_run(config, images, ranks))
        ranks.require_equal({key: run_info[key] for key in ("code_hash", "data_fingerprint", "precision", "kernels")})
        run = RunDir(run_path(config))
        if ranks.broadcast_from_rank0(lambda: is_done(open_run(run, config, run_info, stack))):
            return load_summary(run)
        ranks.status, stop = run.path / STATUS, stack.enter_context(StopSignal(ranks))
        stack.callback(lambda: setattr(sweep, "stopped", stop.signal is not None))
        logger = build_logger(run, config, run_info, ranks, sweep)
        stack.enter_context(logger)
        with ranks.share_errors():
            ctx = RunContext(
                config,
                images,
                ranks,
                logger,
                stop,
                Precision(run_info["precision"]),
                run_info["cuda_graph"],
                sweep.cache,
            )
            state = restore(ctx, run)
            result, of_ema = fit(ctx, state)
        values = {
            "top1": result.top1,
            "top5": result.top5,
            "val_images": len(result.correct),
            "epoch": state.epochs_evaluated,
        }
        return logger.finish(values | ({"ema_top1": of_ema.top1, "ema_top5": of_ema.top5} if of_ema else {}))


def load_images(config: Config, cache: dict[str, Any]) -> datasets.ImageSet:
    """Load a set, or take the one that an earlier run of this process has in memory. Raises DataError, ConfigError."""
    key = config.data.values()
    if config.data.name not in datasets.IN_MEMORY:
        return datasets.load(config.data, config.paths.runs)
    if cache.get("images", (None,))[0] != key:
        cache.pop("images", None)  # its memory is free before the next set takes its own
        cache["images"] = key, datasets.load(config.data)
    images: datasets.ImageSet = cache["images"][1]
    return images


def open_run(run: RunDir, config: Config, run_info: dict[str, Any], stack: ExitStack) -> RunDir:
    """Hold the run's directory until the stack is left, and take up its status. Raises Busy, Refused, NoProgress, DiskError."""
    stack.enter_context(run.lock())
    if config.fresh and run.set_aside():
        stack.enter_context(run.lock())
    run.load_status(config.values(), run_info, allow_drift=config.allow_drift)
    run.count_deaths()
    return run


def is_done(run: RunDir) -> bool:
    """Tell whether the run came to its end before."""
    return run.status.get("state") == "done"


def build_logger(
    run: RunDir, config: Config, run_info: dict[str, Any], ranks: Ranks, sweep: SweepProgress
) -> RunLogger | NullLogger:
    """Return what logs the run: of all ranks the first alone writes."""
    if not ranks.is_main:
        return NullLogger(may_overflow=run_info["precision"] == Precision.fp16)
    return RunLogger(run, config, run_info, ranks.device, config.recipe.epochs * run_info["steps_per_epoch"], sweep)


def restore(ctx: RunContext, run: RunDir) -> TrainState:
    """Build net and optimizer, and take up the newest whole checkpoint where there is one. Raises DataError, Refused."""
    config, logger, folder = ctx.config, ctx.logger, run.path / CHECKPOINTS
    state, time_s = begin(ctx), 0.0
    found = ctx.ranks.broadcast_from_rank0(lambda: find_checkpoint(ctx, folder))
    if found is not None:
        saved = checkpoint.load(Path(found["path"]))
        state.restore(saved)
        time_s = saved["time_s"]
        for reason in found["skipped"]:
            logger.say(f"passed over {reason}")
        logger.say(
            f"{config.cell}: goes on at step {state.global_step}, {state.epochs_evaluated} of {config.recipe.epochs} epochs done"
        )
    # The others wait: until the record is open, W&B's server may take its time.
    ctx.ranks.broadcast_from_rank0(lambda: logger.start(state.global_step, state.epochs_evaluated, time_s))
    recipe, world_size = config.recipe, ctx.ranks.world_size
    log.info(
        "batch %d = %d device%s x micro-batch %d x %d passes; %s; base rate %g; %d images an epoch left over",
        recipe.batch_size, world_size, "s" * (world_size > 1), ctx.micro_batch, ctx.grad_accumulation // world_size, ctx.precision, recipe.base_lr,
        len(ctx.images.train.labels) % recipe.batch_size,
    )  # fmt: skip
    log.info(announcement(forms_of(config.model, ctx.device, config.kernels), ctx.device, config.kernels))
    log.info(verification_note(ctx.images, config.data.name, config.paths.runs))
    if note := data.note(config.data, ctx.device):
        log.info(note)
    return state


def find_checkpoint(ctx: RunContext, folder: Path) -> dict[str, Any] | None:
    """Return path and skipped ones of the newest checkpoint of this run, if any. Raises DataError, Refused."""
    checkpoint.tidy(folder)
    found = checkpoint.find_newest(folder)
    if found is None:
        return None
    require_same_run(
        folder.parent, found.manifest, {"identity": identity_hash(ctx.config), "steps_per_epoch": ctx.steps_per_epoch}
    )
    return {"path": str(found.path), "skipped": found.skipped}


def begin(ctx: RunContext) -> TrainState:
    """Return the state before the first step: the same on every rank."""
    config, size = ctx.config, ctx.config.data.image_size
    torch.manual_seed(config.seed)
    net = build_net(config.model, len(ctx.images.classes)).to(ctx.device)
    net.to(memory_format=torch.channels_last)
    use_kernels(net, ctx.device, config.kernels)
    if config.recipe.sync_batch_norm:
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    example = torch.zeros(min(2, ctx.micro_batch), 3, size, size, device=ctx.device).contiguous(
        memory_format=torch.channels_last
    )
    model = ctx.ranks.wrap_ddp(net, example)
    if choose_compile(config, ctx.device):
        torch._dynamo.config.optimize_ddp = False  # it would cut the net at every bucket, and fails on nets of ours
        model = cast(nn.Module, torch.compile(model))
    scaler = torch.amp.GradScaler(ctx.device.type, enabled=ctx.precision == Precision.fp16)
    return TrainState(net, model, build_optimizer(net, config.recipe), scaler, build_ema(net, config.recipe.ema_decay))


def fit(ctx: RunContext, state: TrainState) -> tuple[Evaluation, Evaluation | None]:
    """Train and evaluate up to the recipe's last epoch, saving after each; return the last evaluation, and that of the EMA.

    Asked to stop, saves and raises StoppedEarly.
    """
    results = None
    try:
        if ctx.cuda_graph:
            state = with_captured_step(ctx, state, begin)
        for epoch in range(state.epochs_evaluated, ctx.config.recipe.epochs):
            train_epoch(ctx, state, epoch)
            results = evaluate_epoch(ctx, state)
            save(ctx, state)
        results = results or evaluations(ctx, state)
    except StoppedEarly:
        save(ctx, state)
        ctx.logger.wait_for_checkpoint()
        raise
    except RuntimeError as error:
        if is_out_of_memory(error):
            clear_frames(error.__traceback__)  # which hold the tensors of the pass that failed
            smaller = largest_micro_batch(ctx, state)
            what = f"recipe.micro_batch={ctx.micro_batch}: a pass of so many images is too large for the memory of {ctx.device}"
            fits = f"{smaller} fits this net" if smaller else "not even 2 images fit"
            raise ConfigError(f"{what}; {fits}. All rows of a study must have the same") from None
        if is_of_compiler(error):
            why = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"compile={ctx.config.compile}: torch cannot compile this net here ({why}); compile=false"
            ) from error
        raise
    return results


def train_epoch(ctx: RunContext, state: TrainState, epoch: int) -> None:
    """Take the optimizer steps of an epoch that are not done yet."""
    config, logger, ranks = ctx.config, ctx.logger, ctx.ranks
    done = state.global_step - epoch * ctx.steps_per_epoch
    whole = sampling.train_index_batches(
        len(ctx.images.train.labels), config.recipe.batch_size, config.seed, epoch, skip=done
    )
    micro = [part for batch in whole for part in batch.split(ctx.micro_batch)][ranks.rank :: ranks.world_size]
    batches = data.train_batches(
        ctx.images.train, config.data, config.recipe, micro, seed=config.seed, epoch=epoch, device=ctx.device
    )
    batches = logger.timed(batches)
    state.model.train()
    for _ in whole:
        lr = learning_rate(config.recipe, state.global_step, ctx.steps_per_epoch)
        loss, grad_norm = (state.step_fn or train_step)(ctx, state, batches, lr)
        state.global_step += 1
        logger.log_step(epoch + 1, state.global_step, lr, loss, grad_norm, config.recipe.batch_size)
        if ctx.stop.raise_if_set(save_due=logger.checkpoint_due()):
            save(ctx, state)
    logger.flush()


def evaluate_epoch(ctx: RunContext, state: TrainState) -> tuple[Evaluation, Evaluation | None]:
    """Evaluate after an epoch, and record it."""
    result, of_ema = evaluations(ctx, state)
    state.epochs_evaluated += 1
    if result.top1 > state.best_top1:
        state.best_top1, state.best_step = result.top1, state.global_step
    values = {"val/loss": result.loss, "val/top1": result.top1, "val/top5": result.top5}
    values |= {"val/ema_top1": of_ema.top1, "val/ema_top5": of_ema.top5} if of_ema else {}
    bits = BytesIO()
    np.save(bits, result.packed())
    ctx.logger.log_evaluation(state.epochs_evaluated, state.global_step, values, bits.getvalue())
    return result, of_ema


def evaluations(ctx: RunContext, state: TrainState) -> tuple[Evaluation, Evaluation | None]:
    """Evaluate the net, and its moving average where there is one."""
    return evaluation(ctx, state.net), evaluation(ctx, state.ema.module) if state.ema is not None else None


def evaluation(ctx: RunContext, net: nn.Module) -> Evaluation:
    """Evaluate a net on every validation image once, over all ranks. Raises StoppedEarly between batches."""
    split = ctx.images.val
    ctx.ranks.broadcast_buffers(net)
    mine, rounds = shard_batches(
        sampling.eval_index_batches(len(split.labels), eval_batch_size(ctx.config.data.image_size, ctx.device)),
        ctx.ranks,
    )
    batches = data.eval_batches(split, ctx.config.data, ctx.config.recipe, mine, device=ctx.device)
    with autocast(ctx.device, ctx.precision):
        return evaluate(net, ctx.stop.stoppable(batches, rounds), mine, len(split.labels), ctx.ranks)


def save(ctx: RunContext, state: TrainState) -> None:
    """Let a checkpoint be written beside training. Raises NonFiniteError, and DiskError for this or an earlier one."""
    run_info = {"identity": identity_hash(ctx.config), **state.counted()}
    ctx.logger.save_checkpoint(state.saved(), run_info, state.best_step)


def result_line(config: Config, summary: dict[str, Any]) -> str:
    """Return the line that a run ends with: step, top-1, GMACs, parameters, where the run is."""
    path = run_path(config)
    rank_env = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    meaning = " (synthetic images: the accuracy means nothing)" if config.data.name == DataName.synthetic else ""
    return (
        f"{config.cell}: top-1 {summary['top1']:.2f} %{meaning}, {summary['gmacs']:.4g} GMACs, "
        f"{summary['params_m']:.4g} M parameters, {rank_env}"
    )
