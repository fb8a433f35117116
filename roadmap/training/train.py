"""Train one network in its run directory, continuing where an earlier start of the same run ended.

Read from top to bottom: start the ranks; in each of them check, lock the directory, restore; then epoch by epoch train,
evaluate, save. What comes before the first step is in `roadmap.training.setup`, a step in `roadmap.training.step`.

A run is a generator that pauses once it is prepared, after each step, and before it waits for the device:
`roadmap.training.group` lets other runs of the same process go on meanwhile.
"""

from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from torch import nn

from roadmap import data
from roadmap.config.choices import Precision
from roadmap.config.schema import Config
from roadmap.data import sampling
from roadmap.distributed.device import autocast, choose_count, choose_device, num_threads
from roadmap.distributed.launch import launch
from roadmap.distributed.rank_env import RankEnv, rank_env
from roadmap.distributed.ranks import Ranks
from roadmap.distributed.signals import StopSignal
from roadmap.errors import StoppedEarly
from roadmap.runs.null_logger import NullLogger
from roadmap.runs.progress import SweepProgress
from roadmap.runs.recorded_config import identity
from roadmap.runs.result import load_result
from roadmap.runs.run_dir import RunDir, run_path
from roadmap.runs.run_logger import RunLogger
from roadmap.runs.schema import STATUS
from roadmap.training.cuda_graph import release_step
from roadmap.training.device_errors import device_errors, memory_errors
from roadmap.training.evaluation import (
    Evaluation,
    collect_scores,
    eval_batch_size,
    evaluation_files,
    score_batches,
    shard_batches,
)
from roadmap.training.initial_weights import read_initial_weights
from roadmap.training.optim import learning_rate
from roadmap.training.setup import check_run, load_images, open_run, restore
from roadmap.training.state import RunContext, TrainState
from roadmap.training.step import require_steps_taken, train_step

T = TypeVar("T")
Steps = Generator[bool, None, T]  # yields whether the run waits for the device next, and returns a result
Metrics = dict[str, float]  # of an evaluation: loss, top1, top5, and ema_top1, ema_top5 of a moving average


def train(config: Config, sweep: SweepProgress | None = None) -> dict[str, Any]:
    """Train a run, or continue it; return its summary, at once if it is finished.

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
    return load_result(run_path(config))


def train_spawned_rank(config: Config, sweep: SweepProgress, env: RankEnv, port: int) -> float:
    """Run one rank in a process that the launcher started; return how many runs of the sweep are done."""
    train_rank(config, sweep, env, port)
    return sweep.runs_done


def train_rank(config: Config, sweep: SweepProgress, env: RankEnv, port: int | None = None) -> dict[str, Any]:
    """Do one rank's part of a run; return the summary."""
    return run_to_end(run_steps(config, sweep, env, port))


def run_steps(
    config: Config,
    sweep: SweepProgress,
    env: RankEnv,
    port: int | None = None,
    *,
    shared_stop: StopSignal | None = None,
    group_size: int = 1,
) -> Steps[dict[str, Any]]:
    """Do one rank's part of a run. Every rank takes the same path, rank 0 alone writes.

    Where `group_size` runs are trained side by side, `shared_stop` listens for signals to all of them.
    """
    ranks, run = Ranks(env, choose_device(config.device, env)), RunDir(run_path(config))
    with ranks.process_group(config, port), ExitStack() as stack:
        # Check all that can be wrong before anything is written.
        stack.enter_context(memory_errors())
        images = ranks.all_or_raise(lambda: load_images(config, sweep.cache))
        run_info = ranks.all_or_raise(lambda: check_run(config, images, ranks))
        initial = ranks.all_or_raise(lambda: read_initial_weights(config, images.classes, run.path, sweep))
        run_info |= {"group_size": group_size} if group_size > 1 else {}
        same = {key: run_info[key] for key in ("code_hash", "data_fingerprint", "precision", "kernels")}
        ranks.require_equal(same | identity(config.values()))

        # Lock the run directory. From here on a signal, an error or the end leaves a status there.
        if ranks.broadcast_from_rank0(lambda: open_run(run, config, run_info, stack)):
            return load_result(run.path)
        stack.enter_context(num_threads(ranks.broadcast_from_rank0(lambda: run_info["threads"])))
        ranks.status = run.path / STATUS
        stop = shared_stop or stack.enter_context(StopSignal(ranks))
        stack.callback(lambda: setattr(sweep, "stopped", stop.signal is not None))
        logger = RunLogger(run, config, run_info, ranks.device, sweep) if ranks.is_main else NullLogger(run_info)
        stack.enter_context(logger)
        stack.callback(setattr, stop, "interrupts", False)  # the record is closed, however often Ctrl-C is pressed
        stack.enter_context(ranks.share_errors())
        stack.enter_context(memory_errors())

        # Build the net, load the newest checkpoint, train.
        precision = Precision(run_info["precision"])
        ctx = RunContext(config, images, ranks, logger, stop, precision, run_info["cuda_graph"], initial, sweep.cache)
        state = restore(ctx, run)
        stack.push(partial(release_step, ctx, state))
        with logger.paused(restart=sweep.prepares_ahead):
            yield False
        metrics = yield from fit(ctx, state)
        del metrics["loss"]  # the summary has the accuracies
        counts = {"val_images": len(images.val), "epoch": state.epochs_evaluated}
        return logger.finish(metrics | counts)


def fit(ctx: RunContext, state: TrainState) -> Steps[Metrics]:
    """Train up to the recipe's last epoch; return its evaluation. Asked to stop, saves and raises StoppedEarly."""
    metrics = None
    try:
        with device_errors(ctx, state):
            for epoch in range(state.epochs_evaluated, ctx.config.recipe.epochs):
                yield from train_one_epoch(ctx, state, epoch)
                metrics = yield from evaluate_epoch(ctx, state)
                save_checkpoint(ctx, state)
            return metrics or (yield from evaluate_again(ctx, state))
    except StoppedEarly:
        if not state.in_step:
            save_checkpoint(ctx, state)
            ctx.logger.wait_for_checkpoint()
        raise


def train_one_epoch(ctx: RunContext, state: TrainState, epoch: int) -> Steps[None]:
    """Take the optimizer steps of an epoch that are not done yet."""
    config, logger, num_images = ctx.config, ctx.logger, len(ctx.images.train.labels)
    done = state.global_step - epoch * ctx.steps_per_epoch
    index_batches = sampling.train_index_batches(num_images, config.recipe.batch_size, config.seed, epoch, skip=done)
    micro_batches = [part for batch in index_batches for part in batch.split(ctx.micro_batch)]
    batches = data.train_batches(
        ctx.images.train, config.data, config.recipe, micro_batches[ctx.ranks.rank :: ctx.ranks.world_size],
        seed=config.seed, epoch=epoch, device=ctx.device,
    )  # fmt: skip
    batches = ctx.stop.interruptible(logger.timed(batches))
    state.model.train()
    for _ in index_batches:
        lr = learning_rate(config.recipe, state.global_step, ctx.steps_per_epoch)
        loss, grad_norm = (state.step_fn or train_step)(ctx, state, batches, lr)
        state.global_step += 1
        yield logger.flush_due()
        logger.log_step(epoch + 1, state.global_step, lr, loss, grad_norm, config.recipe.batch_size)
        if ctx.stop.raise_if_set(save_due=logger.checkpoint_due()):
            save_checkpoint(ctx, state)
    yield True
    logger.flush()
    require_steps_taken(state, last=epoch + 1 == config.recipe.epochs)


def evaluate_epoch(ctx: RunContext, state: TrainState) -> Steps[Metrics]:
    """Evaluate after an epoch, and record it."""
    metrics, files = yield from evaluate_nets(ctx, state)
    state.epochs_evaluated += 1
    if metrics["top1"] > state.best_top1:
        state.best_top1, state.best_step = metrics["top1"], state.global_step
    values = {f"val/{name}": value for name, value in metrics.items()}
    ctx.logger.log_evaluation(state.epochs_evaluated, state.global_step, values, files)
    return metrics


def evaluate_again(ctx: RunContext, state: TrainState) -> Steps[Metrics]:
    """Evaluate a run that was stopped between its last checkpoint and its result."""
    metrics, files = yield from evaluate_nets(ctx, state)
    ctx.logger.write_evaluation(files)
    return metrics


def evaluate_nets(ctx: RunContext, state: TrainState) -> Steps[tuple[Metrics, dict[str, bytes]]]:
    """Evaluate the net, and its moving average where there is one; return the metrics, and the net's files by name.

    Raises NonFiniteError for either.
    """
    where = f"step {state.global_step}"
    result = (yield from evaluate_net(ctx, state.net)).require_finite(f"{where}: the net")
    metrics = {"loss": result.loss, "top1": result.top1, "top5": result.top5}
    if state.ema is not None:
        of_ema = (yield from evaluate_net(ctx, state.ema.module)).require_finite(f"{where}: the moving average")
        metrics |= {"ema_top1": of_ema.top1, "ema_top5": of_ema.top5}
    return metrics, evaluation_files(result, ctx.images.val.labels, len(ctx.images.classes))


def evaluate_net(ctx: RunContext, net: nn.Module) -> Steps[Evaluation]:
    """Evaluate a net on every validation image once, over all ranks. Raises StoppedEarly between batches."""
    config, split = ctx.config, ctx.images.val
    ctx.ranks.broadcast_buffers(net)
    index_batches = sampling.eval_index_batches(len(split.labels), eval_batch_size(config.data.image_size, ctx.device))
    mine, rounds = shard_batches(index_batches, ctx.ranks)
    batches = data.eval_batches(split, config.data, config.recipe, mine, device=ctx.device)
    with autocast(ctx.device, ctx.precision):
        scores = score_batches(net, ctx.stop.stoppable(batches, rounds))
    yield True
    return collect_scores(scores, mine, len(split.labels), ctx.ranks)


def save_checkpoint(ctx: RunContext, state: TrainState) -> None:
    """Start writing a checkpoint in the background. Raises NonFiniteError, and DiskError for this or an earlier one."""
    manifest = {"identity": identity(ctx.config.values()), **state.counters()}
    ctx.logger.save_checkpoint(state.state_dict(), manifest)


def run_to_end(steps: Steps[T]) -> T:
    """Take all steps of a run, one after the other; return its result."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    except BaseException as error:
        steps.throw(error)  # an interrupt between two steps is the run's, too; its own error is raised again
        raise
