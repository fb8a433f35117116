"""`python -m roadmap.bench train`: our training loop against a bare PyTorch loop and timm's, in turn.

All three train the same net on the same synthetic images, mixed by the recipe's mixup and cutmix, with the same
optimizer and in the same precision; a measurement is an epoch of `--steps` steps. Every net's speed is `bench net`,
every pipeline's `bench input`, the wait for a pipeline `bench input --train STEP`. At the end: what a run costs before
its first step.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from roadmap import data
from roadmap.bench.bound import bounds, measured_rates
from roadmap.bench.measure import Call, Candidate, measure
from roadmap.bench.net import work_of
from roadmap.bench.options import chosen_peers, count, parser
from roadmap.bench.peers import has_net, peer_net
from roadmap.bench.results import Results
from roadmap.bench.rows import Setting
from roadmap.config.choices import Device, Optimizer, Precision
from roadmap.config.schema import Config
from roadmap.data import datasets, sampling
from roadmap.distributed.device import autocast, choose_device
from roadmap.distributed.ranks import Ranks
from roadmap.distributed.signals import StopSignal
from roadmap.errors import ConfigError
from roadmap.runs.progress import SweepProgress
from roadmap.runs.run_dir import RunDir, run_path
from roadmap.runs.run_logger import RunLogger
from roadmap.runs.schema import METRICS
from roadmap.steps.compose import compose
from roadmap.training.mixup import mixup_batch
from roadmap.training.setup import check_run
from roadmap.training.state import RunContext, TrainState, build_state
from roadmap.training.train import run_to_end, train_one_epoch

LOG_EVERY = 50  # steps; timm's default
CHECKOUT = Path(__file__).resolve().parent.parent.parent
POLL_S = 0.005


def main(argv: Sequence[str]) -> int:
    """Measure the loops. Returns an exit code."""
    batch, size, steps = (256, 224, 50) if torch.cuda.is_available() else (8, 64, 3)
    options = parser("train", __doc__, warm_up=1)
    options.add_argument("--step", default="separate_downsampling", help="default: %(default)s")
    options.add_argument("--regime", default="tiny", help="default: %(default)s")
    options.add_argument("--batch", type=count, default=batch, help="images a step; default here: %(default)s")
    options.add_argument("--image-size", type=count, default=size, help="pixels; default here: %(default)s")
    options.add_argument("--steps", type=count, default=steps, help="of a measurement; default here: %(default)s")
    options.add_argument("--compile", action="store_true", help="run all nets through torch.compile")
    args = options.parse_args(argv)
    libraries = chosen_peers(args)
    results = Results("train", argv, choose_device(Device(args.device)), args)
    images = f"{args.batch} images of {args.image_size}x{args.image_size}"
    print(f"{args.step} of {args.regime}, {args.steps} steps of {images} a measurement")
    with TemporaryDirectory(prefix="roadmap-bench-") as runs, run_context(config_of(args, runs)) as ctx:
        found = loops(ctx, libraries)
        measure(found, ctx.device, repeats=args.repeats, warm_up=args.warm_up)
        setting = Setting(ctx.device, ctx.precision, args.batch, args.image_size, len(ctx.images.classes))
        rates = measured_rates(ctx.device, ctx.precision)
        results.add("loops", found, bounds(work_of(ctx.config, setting), rates, args.batch))
    results.require_any()
    began_s = seconds_to_first_row(args.step, args.device)
    if began_s is not None:
        command = f"python run.py +step={args.step}, from its start to the first line of its record"
        results.note("start_s", began_s, f"{command}: {began_s:.2f} s of processor time (n = 1)")
    return 0


def config_of(args: argparse.Namespace, runs: str) -> Config:
    """Return a run with an epoch for every call of a loop."""
    overrides = [
        "data=synthetic", "data.num_classes=1000", f"data.image_size={args.image_size}", "data.val_images=64",
        f"data.train_images={args.batch * args.steps}", f"recipe.batch_size={args.batch}", "recipe.micro_batch=null",
        f"recipe.epochs={args.repeats + args.warm_up + 1}", "recipe.warmup_epochs=0", "recipe.mixup=0.8",
        "recipe.cutmix=1", "recipe.rand_augment=null", "recipe.random_erasing=0", f"device={args.device}",
        f"compile={str(args.compile).lower()}", "wandb.mode=disabled", "checkpoint.every_min=100000",
        f"paths.runs={runs}",
    ]  # fmt: skip
    return compose(args.step, args.regime, overrides)


@contextmanager
def run_context(config: Config) -> Iterator[RunContext]:
    """Yield the context of a run that is about to take its first step, in a run directory like that of a training."""
    images, ranks = datasets.load(config.data), Ranks(device=choose_device(config.device))
    run_info = check_run(config, images, ranks)
    run = RunDir(run_path(config))
    logger = RunLogger(run, config, run_info, ranks.device, SweepProgress())
    with run.lock(), StopSignal() as stop, logger:
        logger.start(0, 0, 0.0)
        yield RunContext(config, images, ranks, logger, stop, Precision(run_info["precision"]))


def loops(ctx: RunContext, libraries: list[str]) -> list[Candidate]:
    """Return the loops to compare, an epoch per call, the bare one first."""
    images = ctx.steps_per_epoch * ctx.config.recipe.batch_size

    def candidate(name: str, peer: str | None, start: Callable[[], Callable[[int], None]]) -> Candidate:
        def build() -> Call:
            epoch, numbers = start(), iter(range(ctx.config.recipe.epochs))
            return lambda: epoch(next(numbers))

        return Candidate(name, images, build, peer)

    found = [
        candidate("bare loop", "torch", lambda: partial(bare_epoch, ctx, build_state(ctx))),
        candidate("our loop", None, lambda: partial(our_epoch, ctx, build_state(ctx))),
    ]
    if "timm" in libraries and has_net("timm", ctx.config.step, ctx.config.model):
        found.append(candidate("timm's loop and net", "timm", lambda: timm_loop(ctx)))
    return found


def batches_of(ctx: RunContext, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over an epoch's images and labels, as our loop does."""
    config, train = ctx.config, ctx.images.train
    ids = sampling.train_index_batches(len(train), config.recipe.batch_size, config.seed, epoch)
    return data.train_batches(train, config.data, config.recipe, ids, seed=config.seed, epoch=epoch, device=ctx.device)


def our_epoch(ctx: RunContext, state: TrainState, epoch: int) -> None:
    """Train an epoch as a run does."""
    run_to_end(train_one_epoch(ctx, state, epoch))


def bare_epoch(ctx: RunContext, state: TrainState, epoch: int) -> None:
    """Train an epoch as in a tutorial: the same net, input, precision and optimizer, and nothing else."""
    config = ctx.config
    state.model.train()
    for number, (images, labels) in enumerate(batches_of(ctx, epoch)):
        mixed, targets = mixup_batch(images, labels, config.recipe, len(ctx.images.classes), config.seed, number)
        state.optimizer.zero_grad(set_to_none=True)
        with autocast(ctx.device, ctx.precision):
            loss = cross_entropy(state.model(mixed), targets)  # mixed targets are smooth already
        loss.backward()
        state.optimizer.step()


def timm_loop(ctx: RunContext) -> Callable[[int], None]:
    """Return an epoch of timm's net, optimizer, scheduler, mixing and loss, as in its script. Raises ConfigError."""
    from timm.data.mixup import Mixup
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.utils import AverageMeter

    config, recipe, classes, steps = ctx.config, ctx.config.recipe, len(ctx.images.classes), ctx.steps_per_epoch
    if recipe.optimizer != Optimizer.adamw:
        raise ConfigError(f"--step={config.step}: timm's loop has AdamW only, not the recipe's {recipe.optimizer}")
    torch.manual_seed(config.seed)
    net = peer_net("timm", config.step, config.model, classes, config.data.image_size)
    net = net.to(ctx.device).to(memory_format=torch.channels_last)
    model: nn.Module = torch.compile(net) if config.compile == "true" else net  # type: ignore[assignment]
    optimizer = create_optimizer_v2(net, "adamw", lr=recipe.base_lr, weight_decay=recipe.weight_decay, fused=True)
    scheduler = CosineLRScheduler(optimizer, recipe.epochs * steps, lr_min=recipe.min_lr, t_in_epochs=False)
    smooth = {"label_smoothing": recipe.label_smoothing, "num_classes": classes}
    mix = Mixup(recipe.mixup, recipe.cutmix, switch_prob=recipe.mix_switch, **smooth)
    loss_of, losses = SoftTargetCrossEntropy(), AverageMeter()

    def epoch(number: int) -> None:
        torch.backends.cudnn.benchmark = True
        net.train()
        for index, (images, labels) in enumerate(batches_of(ctx, number)):
            mixed, targets = mix(images, labels)
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


def seconds_to_first_row(step: str, device: str = "auto") -> float | None:
    """Run a step of the demo until its ledger has a line; return the processor seconds, of all its threads, by then.

    None on systems without /proc. Raises ConfigError if the run ends before.
    """
    if not Path("/proc/self/stat").exists():
        return None
    with TemporaryDirectory(prefix="roadmap-bench-") as runs:
        command = [sys.executable, "run.py", f"+step={step}", f"paths.runs={runs}", f"device={device}"]
        command += ["wandb.mode=offline"]
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            while not any(path.stat().st_size for path in Path(runs).rglob(METRICS)):
                if process.poll() is not None:
                    told = process.stderr.read().strip() if process.stderr else ""
                    raise ConfigError(f"{' '.join(command[1:])}: ended before its first step: {told[-300:]}")
                time.sleep(POLL_S)
            return processor_seconds(process.pid)
        finally:
            process.kill()
            process.communicate()


def processor_seconds(pid: int) -> float:
    """Return the processor seconds of a process so far, with those of its ended children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
