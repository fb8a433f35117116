"""`python -m roadmap.bench net`: the whole training step of every row of a regime, beside the nets of other libraries.

A row is our net, eager and compiled; the first and the last row and Swin stand beside timm's and torchvision's nets, which are checked
to have the same number of parameters. Images are random and stay on the device; channels-last, the recipe's optimizer, bf16 on a
GPU that has it. Beside the speed stands what the device allows at most (see roadmap/bench/bound.py).
"""

import argparse
from collections.abc import Sequence

import torch

from roadmap.bench.bound import Work, bounds, measured_rates, step_work
from roadmap.bench.forms import FORMS, GPU_FORMS, Setting, candidates
from roadmap.bench.measure import Result, free, measure
from roadmap.bench.options import Parser, chosen_peers, count, known, listed, on_gpu, parser, settings
from roadmap.bench.sheet import Sheet
from roadmap.config.choices import Device
from roadmap.config.schema import Config
from roadmap.distributed.device import choose_device, choose_precision
from roadmap.errors import ConfigError
from roadmap.net import build_net
from roadmap.steps.compose import compose
from roadmap.steps.tree import regimes, step_tree

CPU_SIZE, CPU_BATCH, GPU_BATCH = 64, 4, 256


def main(words: Sequence[str]) -> int:
    """Measure the rows that are asked for; print a line for each candidate. Returns an exit code."""
    options = net_options("net", __doc__)
    options.add_argument("--regime", default="tiny", help=f"{', '.join(regimes())}; default: %(default)s")
    args = options.parse_args(words)
    measure_rows("net", words, args)
    return 0


def net_options(name: str, about: str | None) -> Parser:
    """Return the options of a benchmark of nets."""
    options = parser(name, about, warm_up=5 if torch.cuda.is_available() else 2)
    options.add_argument(
        "--rows", type=listed, metavar="STEP,STEP", help="only these; default: every row of the regime"
    )
    options.add_argument(
        "--forms", type=listed, metavar="FORM,FORM",
        help=f"{', '.join(FORMS)}; default: all of them on a GPU, without {' and '.join(GPU_FORMS)} on a CPU",
    )  # fmt: skip
    options.add_argument(
        "--batch", type=count, help=f"images a step; default: {GPU_BATCH} on a GPU, {CPU_BATCH} on a CPU"
    )
    options.add_argument(
        "--image-size", type=count, help=f"pixels; default: the regime's own on a GPU, at most {CPU_SIZE} on a CPU"
    )
    return options


def measure_rows(name: str, words: Sequence[str], args: argparse.Namespace) -> dict[str, list[Result]]:
    """Measure every row of `args` and return the results by row. Raises ConfigError for a wrong name before anything is measured."""
    forms = known(
        "--forms", args.forms or [form for form in FORMS if form not in GPU_FORMS or on_gpu(args)], list(FORMS), "form"
    )
    libraries, configs = chosen_peers(args), row_configs(args)
    device = choose_device(Device(args.device))
    first = next(iter(configs.values()))
    size = args.image_size or (first.data.image_size if device.type == "cuda" else min(first.data.image_size, CPU_SIZE))
    batch = args.batch or (GPU_BATCH if device.type == "cuda" else CPU_BATCH)
    precision = choose_precision(first.recipe.precision, device)
    setting = Setting(device, precision, batch, size, first.data.num_classes or 1000)
    taken = {
        "forms": forms,
        "peers": libraries,
        "rows": list(configs),
        "batch": batch,
        "image_size": size,
        "precision": str(precision),
    }
    works = {step: work_of(config, setting) for step, config in configs.items()}
    sheet = Sheet(name, words, device, settings(args) | taken, args.json)
    print(f"regime {args.regime}, {batch} images of {size}x{size} a step, {precision}", flush=True)
    rates = measured_rates(device, precision)
    line = f"the device, at its best: {rates.flop_per_s / 1e12:.3g} TFLOP/s ({precision}), {rates.bytes_per_s / 1e9:.4g} GB/s"
    sheet.note("rates", {"flop_per_s": rates.flop_per_s, "bytes_per_s": rates.bytes_per_s}, line)
    results = {}
    for step, config in configs.items():
        results[step] = measure(
            candidates(config, setting, forms, libraries), device, repeats=args.repeats, warm_up=args.warm_up
        )
        sheet.add(step, results[step], bounds(works[step], rates, batch))
        torch.compiler.reset()  # past a few nets of one class the compiler leaves the next ones eager
        free(device)
    sheet.check()
    return results


def row_configs(args: argparse.Namespace) -> dict[str, Config]:
    """Compose the rows: those asked for, or every row that the regime has. Raises ConfigError."""
    tree = step_tree()
    if args.rows:
        return {step: compose(step, args.regime) for step in known("--rows", args.rows, list(tree), "row")}
    reference = compose(next(iter(tree)), args.regime).regime.reference
    return {
        step: compose(step, args.regime)
        for step, about in tree.items()
        if reference is not None or not about.is_reference
    }


def work_of(config: Config, setting: Setting) -> Work:
    """Return the work of a training step of a row's net. Raises ConfigError where the images are too small for it."""
    with torch.device("meta"):
        net = build_net(config.model, setting.num_classes)
    try:
        return step_work(net, setting.batch, setting.image_size, config.recipe, setting.precision)
    except RuntimeError:
        raise ConfigError(
            f"--image-size={setting.image_size}: too small for the net of {config.step}, which divides it by {config.model.reduction}"
        ) from None
