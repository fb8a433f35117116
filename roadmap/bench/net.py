"""`python -m roadmap.bench net`: the whole training step of every row of a regime, beside the nets of other libraries.

A row is our net, eager and compiled; the first and the last row and Swin are compared with timm's and torchvision's
nets, which are checked to have the same number of parameters. Images are random and stay on the device; channels-last,
the recipe's optimizer, bf16 on a GPU that has it. Beside the speed is what the device allows at most (bench/bound.py).
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from roadmap.bench.bound import Work, bounds, measured_rates, step_work
from roadmap.bench.forms import FORMS, GPU_FORMS, candidates
from roadmap.bench.measure import Candidate, free_memory, measure
from roadmap.bench.options import chosen_peers, names, parser
from roadmap.bench.results import Results
from roadmap.bench.rows import Setting, add_batch, add_rows, choose_setting, row_configs
from roadmap.config.schema import Config
from roadmap.net import build_net
from roadmap.text import ArgumentParser

READY = "ready"


def main(argv: Sequence[str]) -> int:
    """Measure the rows that are asked for; print a line for each candidate. Returns an exit code."""
    measure_rows("net", argv, net_options("net", __doc__).parse_args(argv))
    return 0


def net_options(name: str, about: str | None, *, batch: int | None = None, size: int | None = None) -> ArgumentParser:
    """Return the options of a benchmark of nets."""
    options = parser(name, about, warm_up=5 if torch.cuda.is_available() else 2)
    every_form = f"{', '.join(FORMS)}; default: all of them on a GPU, without {' and '.join(GPU_FORMS)} on a CPU"
    add_rows(options, size=size)
    options.add_argument("--forms", type=names(FORMS), metavar="FORM,FORM", help=every_form)
    add_batch(options, batch)
    options.add_argument("--without-ours", action="store_true", help="measure the libraries' nets alone")
    gate = "say `ready` on stdout when a row is compiled and warm, and time it when a line comes on stdin"
    options.add_argument("--gate", action="store_true", help=gate)
    return options


def measure_rows(name: str, argv: Sequence[str], args: argparse.Namespace) -> dict[str, list[Candidate]]:
    """Measure every row of `args`; return the candidates by row. Raises ConfigError before anything is measured."""
    libraries, configs = chosen_peers(args), row_configs(args)
    setting = choose_setting(args, configs)
    device, batch, size, precision = setting.device, setting.batch, setting.image_size, str(setting.precision)
    forms = args.forms or [form for form in FORMS if form not in GPU_FORMS or device.type == "cuda"]
    works = {step: work_of(config, setting) for step, config in configs.items()}
    taken: dict[str, Any] = {"forms": forms, "peers": libraries, "rows": list(configs)}
    results = Results(name, argv, device, args, **taken, batch=batch, image_size=size, precision=precision)
    print(f"regime {args.regime}, {batch} images of {size}x{size} a step, {precision}", flush=True)
    rates = None if args.gate else measured_rates(device, setting.precision)  # not beside other processes
    if rates is not None:
        best = f"{rates.flop_per_s / 1e12:.3g} TFLOP/s ({precision}), {rates.bytes_per_s / 1e9:.4g} GB/s"
        results.note("rates", rates._asdict(), f"the device, at its best: {best}")
    rows = {}
    for step, config in configs.items():
        found = candidates(config, setting, forms, libraries)
        rows[step] = [candidate for candidate in found if candidate.peer is not None or not args.without_ours]
        gate = wait_at_gate if args.gate else None
        measure(rows[step], device, repeats=args.repeats, warm_up=args.warm_up, gate=gate)
        results.add(step, rows[step], bounds(works[step], rates, batch) if rates is not None else {})
        torch.compiler.reset()  # past a few nets of one class the compiler leaves the next ones eager
        free_memory(device)
    results.require_any()
    return rows


def wait_at_gate() -> None:
    """Tell the parent process that this one is ready, and wait until it may use the device alone."""
    print(READY, flush=True)
    sys.stdin.readline()


def work_of(config: Config, setting: Setting) -> Work:
    """Return the work of a training step of a row's net."""
    with torch.device("meta"):
        net = build_net(config.model, setting.num_classes)
    return step_work(net, setting.batch, setting.image_size, config.recipe, setting.precision)
