"""`python -m roadmap.bench input`: images a second from JPEGs on disk to batches ready for the net, with other loaders.

Without `--root` the photographs are synthetic (bench/photographs.py). A measurement is an epoch; the clock starts when
as many batches have come as there are workers, so that their start does not count and no batch is had for nothing.
Reading and decoding alone is the bound that no pipeline on the CPU can pass. `--train STEP` feeds a whole training step
of that row instead, beside one fed with one batch again and again: what is lost against that is due to the input.
"""

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count as counter
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from roadmap.bench.forms import FORMS, Setting
from roadmap.bench.measure import BOUND, Call, Candidate, measure, synchronize
from roadmap.bench.options import chosen_peers, count, on_gpu, parser
from roadmap.bench.photographs import SIZE, describe_sizes, link_photographs, write_photographs
from roadmap.bench.pipelines import BOUNDS, PIPELINES, Epoch, Start
from roadmap.bench.results import Results
from roadmap.config.choices import Device
from roadmap.config.schema import Config
from roadmap.distributed.device import choose_device, choose_precision
from roadmap.errors import ConfigError
from roadmap.files import disk_errors
from roadmap.net import build_net
from roadmap.steps.compose import compose
from roadmap.training import mixup

FULL_RECIPE = (
    "recipe.rand_augment=rand-m9-mstd0.5-inc1", "recipe.random_erasing=0.25", "recipe.mixup=0.8", "recipe.cutmix=1",
)  # fmt: skip
CLASSES = 1000  # of the net that is fed, however many the folders have
Use = Callable[[Tensor, Tensor], object]  # what is done with a batch


def main(argv: Sequence[str]) -> int:
    """Measure every pipeline; print a line for each. Returns an exit code."""
    args = parse(argv)
    device = choose_device(Device(args.device))
    with TemporaryDirectory(prefix="roadmap-bench-") as folder:
        results = Results("input", argv, device, args)
        config = config_of(args, folder)
        gather_images(results, args, Path(folder))
        if args.train:
            repeated = {"one batch again and again": partial(same_batch, args.images // args.batch)}
            found = candidates(args, config, device, repeated, train_on(config, device))
        else:
            found = candidates(args, config, device, BOUNDS, lambda images, labels: None)
        measure(found, device, repeats=args.repeats, warm_up=args.warm_up)
        limits = {"synthetic" if args.train else "decode": found[0].images_per_s} if not found[0].failed else {}
        results.add(args.train or "input", found, limits)
        results.require_any()
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises ConfigError."""
    cores, gpu = os.cpu_count() or 1, torch.cuda.is_available()
    options = parser("input", __doc__, warm_up=1)
    options.add_argument("--root", type=Path, help="real photographs: a folder with train/<class>/*.jpg")
    options.add_argument("--images", type=count, help="of an epoch; default: 4 batches a worker on a GPU, 8 on a CPU")
    options.add_argument("--batch", type=count, default=256 if gpu else 8, help="images; default here: %(default)s")
    options.add_argument("--image-size", type=count, default=224, help="pixels; default: %(default)s")
    options.add_argument("--workers", type=int, default=cores, help="of each pipeline; default: the cores, %(default)s")
    options.add_argument("--train", metavar="STEP", help="feed a whole training step of this row")
    options.add_argument("--regime", default="tiny", help="of --train; default: %(default)s")
    args = options.parse_args(argv)
    args.peers = chosen_peers(args)
    if not 0 <= args.workers <= cores:
        raise ConfigError(f"--workers={args.workers}: must be from 0 to the {cores} cores of this machine")
    if args.root is not None and not args.root.is_dir():
        raise ConfigError(f"--root={args.root}: is no folder")
    args.images = args.images or args.batch * max(1, args.workers) * (4 if on_gpu(args) else 8)
    if args.images // args.batch < 2 * max(1, args.workers):
        few = f"{args.images // args.batch} batches of {args.batch} are too few for {args.workers} workers"
        raise ConfigError(f"--images={args.images}: {few}; at least twice as many batches as workers")
    return args


def config_of(args: argparse.Namespace, root: str) -> Config:
    """Return a run on the photographs with the full recipe of the paper."""
    overrides = [
        "data=imagefolder", f"data.root='{root}'", f"data.image_size={args.image_size}",
        f"data.resize_size={args.image_size * 8 // 7}", f"data.workers={args.workers}",
        f"recipe.batch_size={args.batch}", "recipe.micro_batch=null", f"device={args.device}", *FULL_RECIPE,
    ]  # fmt: skip
    return compose(args.train or "separate_downsampling", args.regime, overrides)


def gather_images(results: Results, args: argparse.Namespace, root: Path) -> None:
    """Write synthetic photographs, or link real ones, and print what is read. Raises DiskError, ConfigError."""
    with disk_errors(root):
        sizes = link_photographs(args.root, root, args.images) if args.root else write_photographs(root, args.images)
    what = f"JPEGs of {args.root}" if args.root else f"synthetic JPEGs, {SIZE[0]}x{SIZE[1]}"
    line = f"{what}, {describe_sizes(sizes)}, {len(sizes)} of them, read again and again: from memory where they fit"
    results.note("images", {"count": len(sizes), "mean_bytes": sum(sizes) / len(sizes)}, line)
    how = f"batch {args.batch}, {args.workers} workers, to {args.image_size} pixels"
    print(f"{how}, the paper's full recipe", flush=True)


def candidates(
    args: argparse.Namespace, config: Config, device: torch.device, bounds: Mapping[str, Start], use: Use
) -> list[Candidate]:
    """Return the bounds and every pipeline, each giving its batches to `use`."""
    skipped = max(1, args.workers)  # batches before the clock starts: one of each worker
    images = (args.images // args.batch - skipped) * args.batch

    def candidate(name: str, library: str | None, start: Start) -> Candidate:
        return Candidate(name, images, lambda: timed_epochs(start(config, device), device, skipped, use), library)

    pipelines = [pipeline for pipeline in PIPELINES if pipeline[1] in (None, *args.peers)]
    return [candidate(name, BOUND, start) for name, start in bounds.items()] + [candidate(*p) for p in pipelines]


def same_batch(batches: int, config: Config, device: torch.device) -> Epoch:
    """Return a pipeline that yields one random batch again and again."""
    batch, size = config.recipe.batch_size, config.data.image_size
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    return lambda number: repeat((images, labels), batches)


def train_on(config: Config, device: torch.device) -> Use:
    """Return the training step that all pipelines feed, mixing included: compiled on a GPU, eager on a CPU."""
    recipe, numbers = config.recipe, counter()
    precision = choose_precision(recipe.precision, device)
    setting = Setting(device, precision, recipe.batch_size, config.data.image_size, CLASSES)
    form = FORMS["compiled" if device.type == "cuda" else "eager"]
    step = form(lambda: build_net(config.model, CLASSES), config, setting)
    return lambda images, labels: step(*mixup.mixup_batch(images, labels, recipe, CLASSES, 0, next(numbers)))


def timed_epochs(epoch: Epoch, device: torch.device, skipped: int, use: Use) -> Call:
    """Return a call that takes an epoch and returns its seconds, from the batch after the first `skipped` on."""
    numbers = counter()

    def call() -> float:
        began = 0.0
        for number, (images, labels) in enumerate(epoch(next(numbers)), 1):
            use(images, labels)
            if number == skipped:
                synchronize(device)
                began = time.perf_counter()
        synchronize(device)
        return time.perf_counter() - began

    return call
