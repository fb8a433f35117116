"""`python -m roadmap.bench train [PART ...]`: what training costs beside the net itself.

`overhead`: our loop against a bare PyTorch loop, in turn; `data`: how long training waits for the reference pipeline; `checkpoint`:
what a save costs; `nets`: every row of a regime, eager and compiled. Without a PART, all but `nets`.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from roadmap import data
from roadmap.bench.nets import nets
from roadmap.choices import Precision
from roadmap.config import Config
from roadmap.data import order, sets
from roadmap.errors import RoadmapError
from roadmap.job import Job, State, check
from roadmap.runtime.device import autocast, choose_device, peak_memory_gb
from roadmap.runtime.dist import Ranks
from roadmap.runtime.folder import RunDir, run_path
from roadmap.runtime.ledger import METRICS, read_metrics
from roadmap.runtime.progress import Sweep
from roadmap.runtime.record import Record
from roadmap.runtime.stop import Stop
from roadmap.steps import compose
from roadmap.train import begin, fit, save, train_epoch

QUIET = ("wandb.mode=disabled", "checkpoint.every_min=100000", "recipe.warmup_epochs=0", "recipe.micro_batch=null")
SKETCH = (500, 375)  # pixels, the average photograph of ImageNet


@contextmanager
def a_job(config: Config) -> Iterator[tuple[Job, State]]:
    """Yield a run that is about to take its first step, in a run directory as training has it."""
    images, ranks = sets.load(config.data, config.paths.runs), Ranks(device=choose_device(config.device))
    facts = check(config, images, ranks)
    run = RunDir(run_path(config))
    total = config.recipe.epochs * facts["steps_per_epoch"]
    with run.held(), Stop() as stop, Record(run, config, facts, ranks.device, total, Sweep()) as record:
        job = Job(config, images, ranks, record, stop, Precision(facts["precision"]))
        state = begin(job)
        record.start(0, 0, 0.0)
        yield job, state


def synthetic(args: argparse.Namespace, runs: str, epochs: int) -> Config:
    """Return a run of `--steps` steps an epoch on images made up, of the regime's and the recipe's own net."""
    words = [
        "data=synthetic", "data.num_classes=1000", f"data.image_size={args.image_size}", f"data.train_images={args.batch * args.steps}",
        "data.val_images=64", f"recipe.batch_size={args.batch}", f"recipe.epochs={epochs}", "recipe.mixup=0", "recipe.cutmix=0",
        "recipe.rand_augment=null", "recipe.random_erasing=0", f"device={args.device}", *QUIET, f"paths.runs={runs}",
    ]  # fmt: skip
    return compose(args.step, args.regime, words)


def timed(job: Job, call: Callable[[], object]) -> float:
    """Return the seconds of a call, the device's work included."""
    wait_for(job.device)
    began = time.perf_counter()
    call()
    wait_for(job.device)
    return time.perf_counter() - began


def wait_for(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bare_epoch(job: Job, state: State, epoch: int) -> None:
    """Train an epoch as in a tutorial: the same net, input, precision and optimizer, and nothing else."""
    config = job.config
    batches = order.train_index_batches(len(job.images.train), config.recipe.batch_size, config.seed, epoch)
    pictures = data.train_batches(job.images.train, config.data, config.recipe, batches, seed=config.seed, epoch=epoch, device=job.device)
    state.model.train()
    for images, labels in pictures:
        state.optimizer.zero_grad(set_to_none=True)
        with autocast(job.device, job.precision):
            loss = cross_entropy(state.model(images), labels, label_smoothing=config.recipe.label_smoothing)
        loss.backward()
        state.optimizer.step()


def overhead(args: argparse.Namespace, runs: str) -> list[str]:
    """Compare our loop with a bare one, in turn, and return what came out."""
    with a_job(synthetic(args, runs, args.rounds + 1)) as (job, ours):
        bare = begin(job)
        bare_epoch(job, bare, 0)
        train_epoch(job, ours, 0)  # both warm
        ratios, speeds = [], []
        for epoch in range(1, args.rounds + 1):
            seconds = dict.fromkeys(("bare", "ours"), 0.0)
            for name in ("bare", "ours") if epoch % 2 else ("ours", "bare"):
                call = (lambda e=epoch: bare_epoch(job, bare, e)) if name == "bare" else (lambda e=epoch: train_epoch(job, ours, e))
                seconds[name] = timed(job, call)
            ratios.append(seconds["ours"] / seconds["bare"])
            speeds.append(args.batch * args.steps / seconds["ours"])
        memory = peak_memory_gb(job.device)
    return [
        f"overhead: our loop takes {spread(ratios)} of a bare loop's time; {statistics.median(speeds):,.1f} images/s, "
        f"peak memory {memory:.2f} GiB; {args.rounds} x {args.steps} steps of {args.batch} images, {job.precision}, {device_name(job)}"
    ]


def saving(args: argparse.Namespace, runs: str) -> list[str]:
    """Compare epochs during which a checkpoint is written with epochs without, and return what came out."""
    with a_job(synthetic(args, runs, 2 * args.rounds + 1)) as (job, state):
        train_epoch(job, state, 0)
        lost, copies, writes = [], [], []
        for number in range(args.rounds):
            plain = timed(job, lambda n=number: train_epoch(job, state, 2 * n + 1))  # type: ignore[misc]
            began = time.perf_counter()
            copies.append(timed(job, lambda: save(job, state)))
            with_save = copies[-1] + timed(job, lambda n=number: train_epoch(job, state, 2 * n + 2))  # type: ignore[misc]
            job.record.settle()
            writes.append(time.perf_counter() - began - with_save)
            lost.append(with_save - plain)
        newest = max((run_path(job.config) / "checkpoints").glob("*.pt"))
        megabytes, parameters = newest.stat().st_size / 1e6, sum(p.numel() for p in state.net.parameters()) / 1e6
    return [
        f"checkpoint: {parameters:.1f} M parameters, {megabytes:,.0f} MB; training waits {spread(copies)} s for the copy and loses "
        f"{spread(lost)} s in all; writing outlasts the {args.steps} steps beside it by {spread(writes)} s; {device_name(job)}"
    ]


def waiting(args: argparse.Namespace, runs: str) -> list[str]:
    """Train on photographs in class folders with the whole reference pipeline, and return how long training waited."""
    root = Path(runs) / "photographs"
    draw_photographs(root, count=max(4, args.batch * args.steps // 2))
    words = [
        "data=imagefolder", f"data.root={root}", f"data.image_size={args.image_size}", f"data.resize_size={args.image_size * 8 // 7}",
        f"data.workers={args.workers}", f"recipe.batch_size={args.batch}", "recipe.epochs=2", f"device={args.device}",
        "recipe.rand_augment=rand-m9-mstd0.5-inc1", "recipe.random_erasing=0.25", "recipe.mixup=0.8", "recipe.cutmix=1", *QUIET,
        f"paths.runs={runs}",
    ]  # fmt: skip
    config = compose(args.step, args.regime, words)
    with a_job(config) as (job, state):
        batches = order.train_index_batches(len(job.images.train), args.batch, 0, 0)
        pictures = data.train_batches(job.images.train, config.data, config.recipe, batches, seed=0, epoch=0, device=job.device)
        alone = len(batches) * args.batch / timed(job, lambda: [None for _ in pictures])
        fit(job, state)
    rows = [row for row in read_metrics(run_path(config) / METRICS).rows if row["kind"] == "train" and row["epoch"] == 2]
    return [
        f"data: training waits {100 * rows[-1]['train/data_wait']:.1f} % of its time for the reference pipeline at "
        f"{rows[-1]['train/images_per_s']:,.1f} images/s; the pipeline alone gives {alone:,.1f} images/s with {args.workers} workers; "
        f"JPEGs of {SKETCH[0]}x{SKETCH[1]}, {device_name(job)}"
    ]


def draw_photographs(root: Path, count: int) -> None:
    """Write JPEGs of soft noise in two class folders, about as large as photographs."""
    draw = np.random.default_rng(0)
    for split, number in (("train", count), ("val", 4)):
        for label in range(2):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(number):
                small = Image.fromarray(draw.integers(0, 256, (94, 125, 3), dtype=np.uint8))
                small.resize(SKETCH, Image.Resampling.BICUBIC).save(folder / f"{index}.jpg", quality=92)


def spread(values: Sequence[float]) -> str:
    """Return median, least and largest, with their number."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f}, n = {len(values)})"


def device_name(job: Job) -> str:
    """Return the name of the accelerator, or the threads of the CPU."""
    return torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


PARTS: dict[str, Callable[[argparse.Namespace, str], list[str]]] = {
    "overhead": overhead, "data": waiting, "checkpoint": saving, "nets": nets,
}  # fmt: skip


def main(words: Sequence[str]) -> int:
    """Run the parts that are asked for; print a line for each. Returns an exit code."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        prog="python -m roadmap.bench train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all but nets")
    parser.add_argument("--step", default="separate_downsampling", help="default: %(default)s")
    parser.add_argument("--regime", default="tiny", help="default: %(default)s")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--batch", type=int, default=256 if on_gpu else 8, help="images a step; default here: %(default)s")
    parser.add_argument("--image-size", type=int, default=224 if on_gpu else 96, help="pixels; default here: %(default)s")
    parser.add_argument("--steps", type=int, default=50 if on_gpu else 6, help="steps a measurement; default here: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="measurements; default: %(default)s")
    parser.add_argument("--workers", type=int, default=16 if on_gpu else 2, help="processes of the pipeline; default here: %(default)s")
    args = parser.parse_args(words)
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f"{unknown[0]}: there is no such part; allowed: {', '.join(PARTS)}")
    try:
        for part in args.parts or [part for part in PARTS if part != "nets"]:
            with TemporaryDirectory(prefix="roadmap-bench-") as runs:
                for line in PARTS[part](args, runs):
                    print(line, flush=True)
    except RoadmapError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    return 0
