"""`python -m roadmap.bench train [PART ...]`: what training costs beside the net itself.

`overhead`: our loop against a bare PyTorch loop and timm's, in turn; `data`: how long training waits for the reference pipeline;
`checkpoint`: what a save costs. Without a PART, all of them. Every net's speed is `bench net`, every pipeline's `bench input`.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from roadmap import data
from roadmap.bench.bound import bounds, measured_rates
from roadmap.bench.forms import Setting
from roadmap.bench.loops import loops
from roadmap.bench.measure import measure, wait_for
from roadmap.bench.net import work_of
from roadmap.bench.options import chosen_peers, count, known, parser, settings
from roadmap.bench.photographs import SIZE, draw_photographs, told_size
from roadmap.bench.sheet import Sheet
from roadmap.config.choices import Device, Precision
from roadmap.config.schema import Config
from roadmap.data import datasets, sampling
from roadmap.distributed.device import choose_device
from roadmap.distributed.ranks import Ranks
from roadmap.distributed.signals import StopSignal
from roadmap.runs.metrics import read_metrics
from roadmap.runs.progress import SweepProgress
from roadmap.runs.run_dir import RunDir, run_path
from roadmap.runs.run_logger import RunLogger
from roadmap.runs.schema import METRICS
from roadmap.steps.compose import compose
from roadmap.training.setup import check_run
from roadmap.training.state import RunContext, TrainState, build_state
from roadmap.training.train import fit, save_checkpoint, train_one_epoch

QUIET = ("wandb.mode=disabled", "checkpoint.every_min=100000", "recipe.warmup_epochs=0", "recipe.micro_batch=null")


@contextmanager
def a_job(config: Config) -> Iterator[tuple[RunContext, TrainState]]:
    """Yield a run that is about to take its first step, in a run directory as training has it."""
    images, ranks = datasets.load(config.data, config.paths.runs), Ranks(device=choose_device(config.device))
    run_info = check_run(config, images, ranks)
    run = RunDir(run_path(config))
    with (
        run.lock(),
        StopSignal() as stop,
        RunLogger(run, config, run_info, ranks.device, SweepProgress()) as logger,
    ):
        ctx = RunContext(config, images, ranks, logger, stop, Precision(run_info["precision"]))
        state = build_state(ctx)
        logger.start(0, 0, 0.0)
        yield ctx, state


def synthetic(args: argparse.Namespace, runs: str, epochs: int) -> Config:
    """Return a run of `--steps` steps an epoch on images made up, of the regime's own net, mixed by the paper's mixup and cutmix."""
    words = [
        "data=synthetic", "data.num_classes=1000", f"data.image_size={args.image_size}", f"data.train_images={args.batch * args.steps}",
        "data.val_images=64", f"recipe.batch_size={args.batch}", f"recipe.epochs={epochs}", "recipe.mixup=0.8", "recipe.cutmix=1",
        "recipe.rand_augment=null", "recipe.random_erasing=0", f"device={args.device}", f"compile={str(args.compile).lower()}", *QUIET,
        f"paths.runs={runs}",
    ]  # fmt: skip
    return compose(args.step, args.regime, words)


def timed(ctx: RunContext, call: Callable[[], object]) -> float:
    """Return the seconds of a call, the device's work included."""
    wait_for(ctx.device)
    began = time.perf_counter()
    call()
    wait_for(ctx.device)
    return time.perf_counter() - began


def overhead(args: argparse.Namespace, runs: str, sheet: Sheet) -> None:
    """Compare our loop with a bare one and with timm's, in turn."""
    with a_job(synthetic(args, runs, args.repeats + args.warm_up + 1)) as (ctx, _):
        results = measure(loops(ctx, args.peers), ctx.device, repeats=args.repeats, warm_up=args.warm_up)
        setting = Setting(ctx.device, ctx.precision, args.batch, args.image_size, len(ctx.images.classes))
        rates = measured_rates(ctx.device, ctx.precision)
        sheet.add("overhead", results, bounds(work_of(ctx.config, setting), rates, args.batch))


def saving(args: argparse.Namespace, runs: str, sheet: Sheet) -> None:
    """Compare epochs during which a checkpoint is written with epochs without."""
    with a_job(synthetic(args, runs, 2 * args.repeats + 1)) as (ctx, state):
        train_one_epoch(ctx, state, 0)
        lost, copies, writes = [], [], []
        for number in range(args.repeats):
            plain = timed(ctx, lambda n=number: train_one_epoch(ctx, state, 2 * n + 1))  # type: ignore[misc]
            began = time.perf_counter()
            copies.append(timed(ctx, lambda: save_checkpoint(ctx, state)))
            with_save = copies[-1] + timed(ctx, lambda n=number: train_one_epoch(ctx, state, 2 * n + 2))  # type: ignore[misc]
            ctx.logger.wait_for_checkpoint()
            writes.append(time.perf_counter() - began - with_save)
            lost.append(with_save - plain)
        newest = max((run_path(ctx.config) / "checkpoints").glob("*.pt"))
        megabytes, parameters = newest.stat().st_size / 1e6, sum(p.numel() for p in state.net.parameters()) / 1e6
    line = (
        f"checkpoint: {parameters:.1f} M parameters, {megabytes:,.0f} MB; training waits {spread(copies)} s for the copy and loses "
        f"{spread(lost)} s in all; writing outlasts the {args.steps} steps beside it by {spread(writes)} s"
    )
    sheet.note("checkpoint", {"megabytes": megabytes, "copy_s": copies, "lost_s": lost, "outlasts_s": writes}, line)


def waiting(args: argparse.Namespace, runs: str, sheet: Sheet) -> None:
    """Train on photographs in class folders with the whole reference pipeline, and tell how long training waited."""
    root = Path(runs) / "photographs"
    sizes = draw_photographs(root, count=max(4, args.batch * args.steps // 2))
    words = [
        "data=imagefolder", f"data.root={root}", f"data.image_size={args.image_size}", f"data.resize_size={args.image_size * 8 // 7}",
        f"data.workers={args.workers}", f"recipe.batch_size={args.batch}", "recipe.epochs=2", f"device={args.device}",
        "recipe.rand_augment=rand-m9-mstd0.5-inc1", "recipe.random_erasing=0.25", "recipe.mixup=0.8", "recipe.cutmix=1", *QUIET,
        f"paths.runs={runs}",
    ]  # fmt: skip
    config = compose(args.step, args.regime, words)
    with a_job(config) as (ctx, state):
        indices = sampling.train_index_batches(len(ctx.images.train), args.batch, 0, 0)
        batches = data.train_batches(
            ctx.images.train, config.data, config.recipe, indices, seed=0, epoch=0, device=ctx.device
        )
        alone = len(indices) * args.batch / timed(ctx, lambda: [None for _ in batches])
        fit(ctx, state)
    rows = [
        row for row in read_metrics(run_path(config) / METRICS).rows if row["kind"] == "train" and row["epoch"] == 2
    ]
    wait, speed = 100 * rows[-1]["train/data_wait"], rows[-1]["train/images_per_s"]
    line = (
        f"data: training waits {wait:.1f} % of its time for the reference pipeline at {speed:,.1f} images/s; the pipeline alone gives "
        f"{alone:,.1f} images/s with {args.workers} workers, their start included; JPEGs of {SIZE[0]}x{SIZE[1]}, {told_size(sizes)}"
    )
    sheet.note(
        "data",
        {"waits_percent": wait, "images_per_s": speed, "pipeline_images_per_s": alone, "workers": args.workers},
        line,
    )


def spread(values: Sequence[float]) -> str:
    """Return median, least and largest, with their number."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f}, n = {len(values)})"


PARTS: dict[str, Callable[[argparse.Namespace, str, Sheet], None]] = {
    "overhead": overhead,
    "data": waiting,
    "checkpoint": saving,
}


def main(words: Sequence[str]) -> int:
    """Run the parts that are asked for. Returns an exit code."""
    gpu = torch.cuda.is_available()
    options = parser("train", __doc__, warm_up=1)
    options.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all of them")
    options.add_argument("--step", default="separate_downsampling", help="default: %(default)s")
    options.add_argument("--regime", default="tiny", help="default: %(default)s")
    options.add_argument(
        "--batch", type=count, default=256 if gpu else 8, help="images a step; default env: %(default)s"
    )
    options.add_argument(
        "--image-size", type=count, default=224 if gpu else 64, help="pixels; default env: %(default)s"
    )
    options.add_argument(
        "--steps", type=count, default=50 if gpu else 3, help="steps of a measurement; default env: %(default)s"
    )
    options.add_argument(
        "--workers", type=count, default=16 if gpu else 2, help="processes of the pipeline; default env: %(default)s"
    )
    options.add_argument("--compile", action="store_true", help="run all nets through torch.compile")
    args = options.parse_args(words)
    parts = known("PART", args.parts, list(PARTS), "part") or list(PARTS)
    args.peers = chosen_peers(args)
    device = choose_device(Device(args.device))
    sheet = Sheet("train", words, device, settings(args), args.json)
    print(
        f"{args.step} of {args.regime}, {args.steps} steps of {args.batch} images of {args.image_size}x{args.image_size} a measurement"
    )
    for part in parts:
        with TemporaryDirectory(prefix="roadmap-bench-") as runs:
            PARTS[part](args, runs, sheet)
    return 0
