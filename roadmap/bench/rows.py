"""The rows that a benchmark of nets measures: which ones, how their nets are run, which libraries have them."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from roadmap import paper
from roadmap.bench.options import count, names
from roadmap.bench.peers import has_net, peer_net
from roadmap.config.choices import Device, Kernels, Precision
from roadmap.config.schema import Config
from roadmap.distributed.device import choose_device, choose_precision
from roadmap.errors import ConfigError
from roadmap.net import build_net, cost, use_kernels
from roadmap.steps.compose import compose
from roadmap.steps.tree import regimes, step_tree
from roadmap.text import ArgumentParser

CPU_SIZE, CPU_BATCH, GPU_BATCH = 64, 4, 256
Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class Setting:
    """How the nets of a comparison are run: the same for all of them."""

    device: torch.device
    precision: Precision
    batch: int
    image_size: int
    num_classes: int
    soft_labels: bool = False  # a share of each class, as mixing makes them

    def example(self) -> tuple[Tensor, Tensor]:
        """Return random images, channels-last, and labels, on the device."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, 3, self.image_size, self.image_size, generator=generator)
        labels = torch.randint(self.num_classes, (self.batch,), generator=generator)
        if self.soft_labels:
            labels = one_hot(labels, self.num_classes).float()
        return images.to(self.device).contiguous(memory_format=torch.channels_last), labels.to(self.device)


def add_rows(options: ArgumentParser, rows: Sequence[str] = (), *, size: int | None = None) -> None:
    """Add the options that choose rows, and the size of their images."""
    every, of_regime = ",".join(rows) or "every row of the regime", f"the regime's, at most {CPU_SIZE} on a CPU"
    options.add_argument("--regime", default="tiny", help=f"{', '.join(regimes())}; default: %(default)s")
    options.add_argument("--rows", type=names(step_tree()), default=rows, metavar="STEP,STEP", help=f"default: {every}")
    options.add_argument("--image-size", type=count, default=size, help=f"pixels; default: {size or of_regime}")


def add_batch(options: ArgumentParser, batch: int | None = None) -> None:
    """Add the option for the images of a step."""
    by_device = f"{GPU_BATCH} on a GPU, {CPU_BATCH} on a CPU"
    options.add_argument("--batch", type=count, default=batch, help=f"images; default: {batch or by_device}")


def row_configs(args: argparse.Namespace) -> dict[str, Config]:
    """Compose the rows: those asked for, or every row that the regime has. Raises ConfigError."""
    tree = step_tree()
    steps = args.rows or [step for step in tree if step in paper.order()]
    if not args.rows and compose(steps[0], args.regime).regime.reference is None:
        steps = [step for step in steps if not tree[step].is_reference]
    return {step: compose(step, args.regime) for step in steps}


def choose_setting(args: argparse.Namespace, configs: Mapping[str, Config], batch: int | None = None) -> Setting:
    """Return how all nets are run: by the options, or else by the first row and the device.

    Raises ConfigError where the images are too small for one of the rows.
    """
    device, first = choose_device(Device(args.device)), next(iter(configs.values()))
    on_cpu = device.type == "cpu"
    size = args.image_size or min(first.data.image_size, CPU_SIZE if on_cpu else first.data.image_size)
    batch = batch or args.batch or (CPU_BATCH if on_cpu else GPU_BATCH)
    classes = first.data.num_classes or 1000
    for step, config in configs.items():
        try:
            cost(config.model, classes, size)
        except ConfigError:
            small = f"too small for the net of {step}, which divides it by {config.model.reduction}"
            raise ConfigError(f"--image-size={size}: {small}") from None
    return Setting(device, choose_precision(first.recipe.precision, device), batch, size, classes)


def builders(config: Config, setting: Setting, libraries: Sequence[str]) -> dict[str, Build]:
    """Return the functions that build a row's net: ours, then that of each library that has the row, by name."""
    found: dict[str, Build] = {"ours": lambda: build_net(config.model, setting.num_classes)}
    step, cfg = config.step, config.model
    for library in libraries:
        if has_net(library, step, cfg):
            found[library] = partial(peer_net, library, step, cfg, setting.num_classes, setting.image_size)
    return found


def start_net(
    build: Build, setting: Setting, *, train: bool, kernels: Kernels | None, compiled: bool, **options: Any
) -> nn.Module:
    """Build a net on the device, channels-last, with the forms of `kernels`; on a GPU such a net is always compiled."""
    torch.manual_seed(0)
    net = build().to(setting.device).to(memory_format=torch.channels_last).train(train)
    if kernels is not None:
        use_kernels(net, setting.device, kernels)
    if compiled or (kernels is not None and setting.device.type == "cuda"):
        net.compile(**options)
    return net
