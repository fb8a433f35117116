"""`python -m roadmap.bench input`: images a second from JPEGs on disk to batches ready for the net, beside other libraries' loaders.

Without `--root` the photographs are made up (roadmap/bench/photographs.py). A measurement is an epoch; the clock starts when as many
batches have come as there are workers, so that their start does not count and no batch is had for nothing. Reading and decoding alone
is the bound that no pipeline on the CPU can pass. `--train STEP` feeds a whole training step of that row instead, beside one fed with
one batch again and again: what is lost against that is the input's doing.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import count as counter
from pathlib import Path

import torch
from torch import Tensor

from roadmap.bench.forms import FORMS, Setting, Step
from roadmap.bench.measure import BOUND, Call, Candidate, measure, wait_for
from roadmap.bench.options import chosen_peers, count, known, on_gpu, parser, settings
from roadmap.bench.photographs import SIZE, borrow_photographs, draw_photographs, told_size
from roadmap.bench.pipelines import BOUNDS, DECODING, PIPELINES, Epoch, Source
from roadmap.bench.sheet import Sheet
from roadmap.config.choices import Device
from roadmap.config.schema import Config
from roadmap.distributed.device import choose_device, choose_precision
from roadmap.errors import ConfigError, DiskError
from roadmap.net import build_net
from roadmap.steps.compose import compose
from roadmap.steps.tree import step_tree
from roadmap.training import mixup

FULL_RECIPE = (
    "recipe.rand_augment=rand-m9-mstd0.5-inc1",
    "recipe.random_erasing=0.25",
    "recipe.mixup=0.8",
    "recipe.cutmix=1",
)

SYNTHETIC = "one batch again and again"
CLASSES = 1000  # of the net that is fed, however many the folders have


def main(words: Sequence[str]) -> int:
    """Measure every pipeline; print a line for each. Returns an exit code."""
    args = parse(words)
    device = choose_device(Device(args.device))
    with ExitStack() as stack:
        sheet = Sheet("input", words, device, settings(args), args.json)
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="roadmap-bench-", dir=args.work)))
        config = config_of(args, root)
        gather_images(sheet, args, root)
        source, batches = Source(config, device), args.images // args.batch
        step = trained(args, config, device) if args.train else None
        found = fed(source, args.peers, batches, step) if step else alone(source, args.peers, batches)
        results = measure(found, device, repeats=args.repeats, warm_up=args.warm_up)
        limit = next((r.images_per_s for r in results if r.name in (DECODING, SYNTHETIC) and r.failed is None), None)
        sheet.add(args.train or "input", results, {"synthetic" if step else "decode": limit} if limit else None)
        sheet.check()
    return 0


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises ConfigError."""
    cores, gpu = os.cpu_count() or 1, torch.cuda.is_available()
    options = parser("input", __doc__, repeats=20, warm_up=1)
    options.add_argument(
        "--root", type=Path, help="a folder with train/<class>/*.jpg: real photographs; default: made up"
    )
    options.add_argument(
        "--work",
        type=Path,
        help="where to put the photographs, or links to them; default: the system's temporary folder",
    )
    options.add_argument("--images", type=count, help="of an epoch; default: 4 batches a worker on a GPU, 8 on a CPU")
    options.add_argument("--batch", type=count, default=256 if gpu else 8, help="images; default env: %(default)s")
    options.add_argument("--image-size", type=count, default=224, help="pixels; default: %(default)s")
    options.add_argument(
        "--workers", type=int, default=cores, help="processes of each pipeline; default: the cores, here %(default)s"
    )
    options.add_argument("--train", metavar="STEP", help="feed a whole training step of this row")
    options.add_argument("--regime", default="tiny", help="of --train; default: %(default)s")
    args = options.parse_args(words)
    args.peers = chosen_peers(args)
    if args.train:
        known("--train", [args.train], list(step_tree()), "row")
    if not 0 <= args.workers <= cores:
        raise ConfigError(
            f"--workers={args.workers}: must be from 0 to the {cores} cores of this machine, so that all pipelines have as many"
        )
    for key in ("root", "work"):
        if (folder := getattr(args, key)) is not None and not folder.is_dir():
            raise ConfigError(f"--{key}={folder}: is no folder")
    args.images = args.images or args.batch * max(1, args.workers) * (4 if on_gpu(args) else 8)
    if args.images // args.batch < 2 * max(1, args.workers):
        few = f"{args.images // args.batch} batches of {args.batch} are too few for {args.workers} workers"
        raise ConfigError(f"--images={args.images}: {few}; at least twice as many batches as workers")
    return args


def config_of(args: argparse.Namespace, root: Path) -> Config:
    """Return a run on the photographs with the full recipe of the paper."""
    words = [
        "data=imagefolder", f"data.root='{root}'", f"data.image_size={args.image_size}", f"data.resize_size={args.image_size * 8 // 7}",
        f"data.workers={args.workers}", f"recipe.batch_size={args.batch}", "recipe.micro_batch=null", f"device={args.device}", *FULL_RECIPE,
    ]  # fmt: skip
    return compose(args.train or "separate_downsampling", args.regime, words)


def gather_images(sheet: Sheet, args: argparse.Namespace, root: Path) -> None:
    """Make up the photographs, or link real ones, and say what is read. Raises DiskError, ConfigError."""
    try:
        sizes = borrow_photographs(args.root, root, args.images) if args.root else draw_photographs(root, args.images)
    except OSError as error:
        raise DiskError(
            f"{root}: the photographs cannot be put there ({error.strerror}); --work=FOLDER names another place"
        ) from None
    whose = f"JPEGs of {args.root}" if args.root else f"JPEGs made up, {SIZE[0]}x{SIZE[1]}"
    line = f"{whose}, {told_size(sizes)}, {len(sizes)} of them, read again and again: from memory where they fit"
    sheet.note("images", {"count": len(sizes), "mean_bytes": sum(sizes) / len(sizes)}, line)
    print(
        f"batch {args.batch}, {args.workers} workers, to {args.image_size} pixels, the paper's full recipe", flush=True
    )


def alone(source: Source, libraries: Sequence[str], batches: int) -> list[Candidate]:
    """Return the bounds and every pipeline, each running as fast as it can."""

    def candidate(name: str, library: str | None, start: Callable[[Source], Epoch]) -> Candidate:
        return Candidate(
            name, lambda: epochs(start(source), source, lambda images, labels: None), counted(source, batches), library
        )

    found = [candidate(name, BOUND, start) for name, start in BOUNDS]
    return found + [candidate(*pipeline) for pipeline in PIPELINES if pipeline[1] is None or pipeline[1] in libraries]


def fed(source: Source, libraries: Sequence[str], batches: int, step: Step) -> list[Candidate]:
    """Return a training step fed by one batch again and again, and by every pipeline."""

    def repeated(source: Source) -> Epoch:
        images = torch.randn(source.batch, 3, source.size, source.size, device=source.device).contiguous(
            memory_format=torch.channels_last
        )
        labels = torch.zeros(source.batch, dtype=torch.int64, device=source.device)

        def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
            return ((images, labels) for _ in range(batches))

        return epoch

    recipe, numbers = source.config.recipe, counter()

    def train(images: Tensor, labels: Tensor) -> None:
        step(*mixup.mixup_batch(images, labels, recipe, CLASSES, 0, next(numbers)))

    def candidate(name: str, library: str | None, start: Callable[[Source], Epoch]) -> Candidate:
        return Candidate(name, lambda: epochs(start(source), source, train), counted(source, batches), library)

    found = [candidate(SYNTHETIC, BOUND, repeated)]
    return found + [candidate(*pipeline) for pipeline in PIPELINES if pipeline[1] is None or pipeline[1] in libraries]


def trained(args: argparse.Namespace, config: Config, device: torch.device) -> Step:
    """Return the training step that all pipelines feed: compiled on a GPU, eager on a CPU."""
    setting = Setting(device, choose_precision(config.recipe.precision, device), args.batch, args.image_size, CLASSES)
    form = "compiled" if device.type == "cuda" else "eager"
    return FORMS[form](lambda: build_net(config.model, CLASSES), config, setting)


def counted(source: Source, batches: int) -> int:
    """Return the images of an epoch that the clock sees."""
    return (batches - max(1, source.config.data.workers)) * source.batch


def epochs(epoch: Epoch, source: Source, use: Callable[[Tensor, Tensor], None]) -> Call:
    """Return a call that takes an epoch and returns its seconds, from the batch on by which every worker has given one."""
    numbers, skipped = counter(), max(1, source.config.data.workers)

    def call() -> float:
        began = 0.0
        for number, (images, labels) in enumerate(epoch(next(numbers)), 1):
            use(images, labels)
            if number == skipped:
                wait_for(source.device)
                began = time.perf_counter()
        wait_for(source.device)
        return time.perf_counter() - began

    return call
