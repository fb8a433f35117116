"""`python -m roadmap.bench infer`: how fast chosen rows answer, beside the nets of other libraries.

Each row is measured twice, all candidates in turn: the latency of one image, and the images/s of the best batch. That
batch is found by doubling, with each library's uncompiled net, until a doubling twice gains nothing, memory
ends, or the time does; the other forms of the net are measured at it. Images are random and stay on the device;
channels-last, inference mode, bf16 on a GPU that has it.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from roadmap.bench.input import time_limit
from roadmap.bench.measure import Call, Candidate, free_memory, measure, seconds
from roadmap.bench.options import above_zero, chosen_peers, count, names, parser
from roadmap.bench.peers import CONVNEXT, RESNET
from roadmap.bench.results import Results
from roadmap.bench.rows import Build, Setting, add_rows, builders, choose_setting, row_configs, start_net
from roadmap.config.choices import Kernels
from roadmap.config.schema import Config
from roadmap.distributed.device import autocast, is_out_of_memory
from roadmap.errors import ConfigError

FORMS: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"compiled": True},
    "graph": {"compiled": True, "mode": "reduce-overhead"},  # compiled, and replayed as a CUDA graph
    "kernels": {"kernels": Kernels.auto},  # as a run evaluates: compiled on a GPU
}
PEER_FORMS = ("eager", "compiled", "graph")
ON_CPU = ("eager", "kernels")  # compiling for a CPU takes longer than measuring there
GAIN, PATIENCE = 1.02, 2  # a batch counts as better from here on; worse ones in a row that end the search
CALLS, TRY_S = 5, 0.2  # of a try at least
FEWEST = 5  # measurements of each candidate, however short the time
MOST_ON_CPU, MOST_ON_GPU = 64, 1024  # images


@dataclass
class Search:
    """The images/s of a net by batch, the best batch, and why no larger one was tried."""

    batch: int = 1
    ended: str = ""
    images_per_s: dict[int, float] = field(default_factory=dict)


def main(argv: Sequence[str]) -> int:
    """Measure the rows that are asked for; print a line for each candidate. Returns an exit code."""
    options = parser("infer", __doc__, warm_up=5)
    options.set_defaults(repeats=100)
    add_rows(options, [RESNET, CONVNEXT])
    options.add_argument(
        "--forms", type=names(FORMS), metavar="FORM,FORM",
        help=f"{', '.join(FORMS)}; default on a CPU: {', '.join(ON_CPU)}",
    )  # fmt: skip
    most = f"default: {MOST_ON_GPU} on a GPU, {MOST_ON_CPU} on a CPU"
    options.add_argument("--most", type=count, help=f"images of a batch; {most}")
    options.add_argument("--limit", type=above_zero, default=300.0, help="seconds, for all rows; default: %(default)s")
    args = options.parse_args(argv)
    libraries, configs = chosen_peers(args), row_configs(args)
    setting = choose_setting(args, configs, batch=1)
    on_gpu, device = setting.device.type == "cuda", setting.device
    args.forms = args.forms or list(FORMS if on_gpu else ON_CPU)
    args.most = args.most or (MOST_ON_GPU if on_gpu else MOST_ON_CPU)
    how = f"n = {args.repeats} of one image and a fifth of that at the best batch, fewer where --limit asks, in turn;"
    how += " median, 10th and 90th percentile;"
    results = Results("infer", argv, device, args, how, peers=libraries, precision=str(setting.precision))
    size = f"{setting.image_size}x{setting.image_size}"
    print(f"regime {args.regime}, images of {size}, {setting.precision}", flush=True)
    ends = time.monotonic() + args.limit
    for number, (step, config) in enumerate(configs.items()):
        share_s = (ends - time.monotonic()) / (len(configs) - number)
        if share_s <= 0:
            print(f"{step}: left out, --limit={args.limit:g} s have passed", flush=True)
            continue
        measure_row(config, setting, results, args, libraries, time.monotonic() + share_s)
    results.require_any()
    return 0


def measure_row(
    config: Config, setting: Setting, results: Results, args: argparse.Namespace, libraries: Sequence[str], ends: float
) -> None:
    """Find the best batch of each library's net, and measure a row's candidates with one image and with that."""
    device, builds = setting.device, builders(config, setting, libraries)
    began, searches = time.monotonic(), {}
    for number, (name, build) in enumerate(builds.items()):  # half of the time, shared by those that are left
        left_s = began + (ends - began) / 2 - time.monotonic()
        until = time.monotonic() + left_s / (len(builds) - number)
        searches[name] = best_batch(build, setting, args.most, until, tuned=name != "ours")
    pairs = [(name, form) for name in builds for form in args.forms if name == "ours" or form in PEER_FORMS]

    def all_at(batch_of: Callable[[str], int], repeats: int, until: float) -> list[Candidate]:
        found = []
        for name, form in pairs:
            at, peer = replace(setting, batch=batch_of(name)), None if name == "ours" else name
            start = partial(call_of, builds[name], at, form, until, tuned=peer is not None)
            found.append(Candidate(f"{name} {form}", at.batch, start, peer))
        known = [(c.images, searches[name].images_per_s) for c, (name, _) in zip(found, pairs, strict=True)]
        round_s = sum(images / images_per_s[images] for images, images_per_s in known if images_per_s)
        fitting = int((until - time.monotonic()) / 2 / round_s) if round_s else repeats
        measure(found, device, repeats=max(FEWEST, min(repeats, fitting)), warm_up=args.warm_up)
        torch.compiler.reset()  # past a few nets of one class the compiler leaves the next ones eager
        return found

    half = time.monotonic() + (ends - time.monotonic()) / 2
    results.add(f"{config.step}, one image", all_at(lambda name: 1, args.repeats, half))
    whole = all_at(lambda name: searches[name].batch, max(FEWEST, args.repeats // 5), ends)
    results.add(f"{config.step}, best batch", whole)
    batches = ", ".join(f"{name} {search.batch} ({search.ended})" for name, search in searches.items())
    tried = {name: asdict(search) for name, search in searches.items()}
    found = results.record.get("searches", {}) | {config.step: tried}
    results.note("searches", found, f"{config.step}: best batch: {batches}")


def call_of(build: Build, setting: Setting, form: str, until: float, *, tuned: bool) -> Call:
    """Return a forward pass that has run once, to compile it. Raises TimeoutError if that takes too long."""
    with time_limit(max(until - time.monotonic(), 1.0)):
        images, _ = setting.example()
        run = forward(build, setting, **FORMS[form], tuned=tuned)
        run(images)
    return partial(run, images)


def forward(
    build: Build, setting: Setting, *, compiled: bool = False, mode: str | None = None, kernels: Kernels | None = None,
    tuned: bool = False,
) -> Callable[[Tensor], Tensor]:  # fmt: skip
    """Return a net's forward pass, images (N, 3, H, W) -> logits, channels-last, without gradients.

    `tuned` lets cuDNN try its algorithms. Raises ConfigError for a graph on a CPU.
    """
    device = setting.device
    if mode is not None and device.type != "cuda":
        raise ConfigError("a CUDA graph needs a GPU")
    net = start_net(build, setting, train=False, kernels=kernels, compiled=compiled, dynamic=False, mode=mode)

    def run(images: Tensor) -> Tensor:
        torch.backends.cudnn.benchmark = tuned
        with torch.inference_mode(), autocast(device, setting.precision):
            return net(images)

    return run


def best_batch(build: Build, setting: Setting, most: int, until: float, *, tuned: bool) -> Search:
    """Double the batch while the images/s grow; a net that cannot be built has none, and fails again when measured."""
    search = Search()
    try:
        search.ended = double(search, forward(build, setting, tuned=tuned), setting, most, until)
    except ConfigError as error:  # whoever measures it gets it again
        search.ended = str(error)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        search.ended = "memory"
    free_memory(setting.device)
    return search


def double(search: Search, run: Callable[[Tensor], Tensor], setting: Setting, most: int, until: float) -> str:
    """Double the batch of a search until there is a reason not to, and return that."""
    worse, batch = 0, 1
    while True:
        images, _ = replace(setting, batch=batch).example()
        run(images)
        times_s: list[float] = []
        while len(times_s) < CALLS or sum(times_s) < TRY_S:
            times_s.append(seconds(setting.device, partial(run, images)))
        search.images_per_s[batch] = batch / min(times_s)  # what else runs here makes a call slow, and none fast
        better = search.images_per_s[batch] > GAIN * search.images_per_s[search.batch]
        worse = 0 if better or batch == 1 else worse + 1
        search.batch = batch if better else search.batch
        expected_s = 2 * (CALLS + 1) * float(np.median(times_s))
        batch *= 2
        if worse == PATIENCE:
            return "no longer grew"
        if batch > most:
            return f"--most={most}"
        if time.monotonic() + expected_s > until:
            return "--limit"
