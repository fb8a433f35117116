"""`python -m roadmap.bench input`: images a second from JPEGs on disk to batches ready for the net, with other loaders.

One pipeline after the other, the most informative first, each with all workers to itself and for `--seconds` or longer;
the clock starts when as many batches have come as there are workers, so that their start does not count and no batch is
counted that was prepared before. Batches come in bursts, one from each worker: whole rounds of the workers are timed.
What no longer fits into `--limit` is left out, and said. Without `--root` the photographs are synthetic
(bench/photographs.py). Reading and decoding alone is the bound that no pipeline on the CPU can pass. `--train STEP`
feeds a whole training step of that row in the second half of the time, beside one fed with one batch again and again:
what is lost against that is due to the input. Compiling the step does not count.
"""

import argparse
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, repeat
from itertools import count as counter
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from roadmap.bench.forms import FORMS
from roadmap.bench.measure import BOUND, Candidate, free_memory, synchronize
from roadmap.bench.options import above_zero, chosen_peers, count, folder, parser
from roadmap.bench.photographs import SIZE, describe_sizes, link_photographs, write_photographs
from roadmap.bench.pipelines import BOUNDS, ON_A_GPU, PIPELINES, Entry, Epoch, Start
from roadmap.bench.results import Results, rate
from roadmap.bench.rows import Setting
from roadmap.config.choices import Device
from roadmap.config.schema import Config
from roadmap.distributed.cores import num_cores
from roadmap.distributed.device import choose_device, choose_precision
from roadmap.errors import ConfigError
from roadmap.files import disk_errors
from roadmap.net import build_net
from roadmap.steps.compose import compose
from roadmap.training import mixup

FULL_RECIPE = (
    "recipe.rand_augment=rand-m9-mstd0.5-inc1", "recipe.random_erasing=0.25", "recipe.mixup=0.8", "recipe.cutmix=1",
)  # fmt: skip
IMAGES_PER_S = 500  # that a core decodes at most
START_S = 20.0  # that workers may take until each has given a batch
CLASSES = 1000  # of the net that is fed, however many the folders have
Use = Callable[[Tensor, Tensor], object]  # what is done with a batch


def main(argv: Sequence[str]) -> int:
    """Measure every pipeline; print a line for each as it comes, and the table. Returns an exit code."""
    began = time.monotonic()
    args = parse(argv)
    device = choose_device(Device(args.device))
    how = f"one after the other, each for {args.seconds:g} s in {args.repeats} parts; median, 10th and 90th percentile;"
    with TemporaryDirectory(prefix="roadmap-bench-") as folder:
        results = Results("input", argv, device, args, how=how)
        config = config_of(args, folder)
        gather_images(results, args, Path(folder))
        end = began + args.limit

        def measured_each(todo: Sequence[tuple[Entry, Use]], end: float) -> list[Candidate]:
            """Measure one after the other; each result is kept when it is there."""
            found: list[Candidate] = []
            for entry, use in todo:
                found.append(made := measure(*entry, use, args, config, device, end))
                line = f"{made.name}: {made.failed or f'{rate(made.images_per_s)} images/s'}"
                results.note("so_far", {candidate.name: candidate.times_s for candidate in found}, line)
            return found

        bound = [(name, BOUND, start) for name, start in BOUNDS.items()]
        alone: list[tuple[Entry, Use]] = [
            (entry, lambda images, labels: None) for entry in [*pipelines(args, device), *bound]
        ]
        measured = measured_each(alone, (time.monotonic() + end) / 2 if args.train else end)
        decode = next(c for c in measured if c.name == next(iter(BOUNDS)))
        results.record.pop("so_far")  # it is in the row now
        results.add("input", measured, {} if decode.failed else {"decode": decode.images_per_s})
        if args.train:
            again: Entry = ("one batch again and again", BOUND, same_batch)
            built: list[Use] = []
            step = Candidate(again[0], args.batch, lambda: lambda: None, again[1])
            started = time.monotonic()
            step.attempt(lambda: built.append(train_on(config, device)), device)
            end += time.monotonic() - started  # what is compiled takes longer than all else
            fed = [(entry, use) for use in built for entry in [again, *pipelines(args, device)]]
            measured = measured_each(fed, end) or [step]
            limits = {} if measured[0].failed else {"synthetic": measured[0].images_per_s}
            results.record.pop("so_far", None)
            results.add(args.train, measured, limits)
        results.require_any()
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises ConfigError."""
    cores, gpu = num_cores(), torch.cuda.is_available()
    options = parser("input", __doc__, warm_up=1)
    options.set_defaults(repeats=3)
    options.add_argument("--seconds", type=above_zero, default=6.0, help="of each candidate; default: %(default)s")
    options.add_argument("--limit", type=above_zero, default=95.0, help="seconds, for all; default: %(default)s")
    options.add_argument("--root", type=folder, help="real photographs: a folder with train/<class>/*.jpg")
    options.add_argument("--images", type=count, help="of an epoch; default: as many as can be decoded in time")
    options.add_argument("--batch", type=count, default=256 if gpu else 8, help="images; default here: %(default)s")
    options.add_argument("--image-size", type=count, default=224, help="pixels; default: %(default)s")
    options.add_argument("--workers", type=int, default=cores, help="of each pipeline; default: the cores, %(default)s")
    options.add_argument("--train", metavar="STEP", help="feed a whole training step of this row")
    options.add_argument("--regime", default="tiny", help="of --train; default: %(default)s")
    args = options.parse_args(argv)
    args.peers = chosen_peers(args)
    if not 0 <= args.workers <= cores:
        raise ConfigError(f"--workers={args.workers}: must be from 0 to the {cores} cores of this machine")
    least = 2 * args.batch * max(1, args.workers)
    args.images = args.images or max(least, int(args.seconds * IMAGES_PER_S * max(1, args.workers)))
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


def pipelines(args: argparse.Namespace, device: torch.device) -> list[Entry]:
    """Return our pipelines, and those of the requested libraries, that can run on a device."""
    fast, *others = PIPELINES
    known = [fast, *ON_A_GPU, *others] if device.type == "cuda" else PIPELINES
    return [pipeline for pipeline in known if pipeline[1] in (None, *args.peers)]


def measure(
    name: str, library: str | None, start: Start, use: Use, args: argparse.Namespace, config: Config,
    device: torch.device, end: float,
) -> Candidate:  # fmt: skip
    """Measure one pipeline, and end its workers."""
    candidate = Candidate(name, args.batch, lambda: lambda: None, library)
    left = end - time.monotonic()
    if left < args.seconds:
        candidate.failed = f"left out: {max(left, 0):.0f} s of --limit={args.limit:g} are left for it"
        return candidate

    def run() -> None:
        workers = 1 if start is same_batch else max(1, args.workers)
        try:
            with time_limit(min(left, START_S + 2 * args.seconds)):
                for time_s in batch_times(start(config, device), device, workers, use, args.seconds, args.repeats):
                    candidate.times_s.append(time_s)
        except TimeoutError:
            if not candidate.times_s:
                raise

    candidate.attempt(run, device)
    free_memory(device)
    return candidate


def batch_times(
    epoch: Epoch, device: torch.device, workers: int, use: Use, total_s: float, parts: int
) -> Iterator[float]:
    """Pass batches to `use` for `total_s` seconds; yield the seconds per batch in each of `parts` parts.

    A part has a multiple of `workers` batches, and may take longer for that; as many are skipped at first.
    """
    batches = chain.from_iterable(epoch(number) for number in counter())
    for _ in range(workers):
        use(*next(batches))
    synchronize(device)
    began = since = time.perf_counter()
    number, part = 0, 1
    for images, labels in batches:
        use(images, labels)
        number += 1
        if number % workers or time.perf_counter() - began < total_s * part / parts:
            continue
        synchronize(device)
        now = time.perf_counter()
        yield (now - since) / number
        since, number, part = now, 0, part + 1
        if part > parts:
            break


@contextmanager
def time_limit(limit_s: float) -> Iterator[None]:
    """Raise TimeoutError in a block that takes longer, whatever it waits for."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"took longer than {limit_s:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit_s, limit_s)  # again: Python drops what a destructor raises
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def same_batch(config: Config, device: torch.device) -> Epoch:
    """Return a pipeline that yields one random batch again and again."""
    batch, size = config.recipe.batch_size, config.data.image_size
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    return lambda number: repeat((images, labels))


def train_on(config: Config, device: torch.device) -> Use:
    """Return the training step that all pipelines feed, mixing included: on a GPU as a run has it, eager on a CPU."""
    recipe, numbers = config.recipe, counter()
    precision = choose_precision(recipe.precision, device)
    setting = Setting(device, precision, recipe.batch_size, config.data.image_size, CLASSES, soft_labels=True)
    form = FORMS["captured" if device.type == "cuda" else "eager"]
    step = form(lambda: build_net(config.model, CLASSES), config, setting)
    return lambda images, labels: step(*mixup.mixup_batch(images, labels, recipe, CLASSES, 0, next(numbers)))
