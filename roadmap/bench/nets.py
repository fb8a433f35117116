"""The speed of every row of a regime: a whole training step, eager and compiled. Used by `roadmap.bench.train`."""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from roadmap.config import Config
from roadmap.net import build_net
from roadmap.recipe.optim import build_optimizer
from roadmap.runtime.device import autocast, choose_device, choose_precision, peak_memory_gb, reset_peak_memory
from roadmap.steps import compose, step_tree

WARM_UP, MEASURED = 5, 20  # steps; the median of those measured counts


def nets(args: argparse.Namespace, runs: str) -> list[str]:
    """Measure every row of `--regime` at `--batch` images of `--image-size`: images/s eager and compiled, memory in GiB."""
    lines = [f"| {args.regime} | eager images/s | compiled images/s | step ms (compiled) | memory GiB |", "|---|---|---|---|---|"]
    for step, about in step_tree().items():
        if about.is_reference and args.regime not in ("tiny", "base"):
            continue
        config = compose(step, args.regime, [f"data.image_size={args.image_size}", f"device={args.device}"])
        eager_s, _ = step_time(config, args.batch, compiled=False)
        compiled_s, memory = step_time(config, args.batch, compiled=True)
        lines.append(f"| {step} | {args.batch / eager_s:,.0f} | {args.batch / compiled_s:,.0f} | {1e3 * compiled_s:.1f} | {memory:.1f} |")
        print(lines[-1], flush=True)
    return lines


def step_time(config: Config, batch: int, *, compiled: bool) -> tuple[float, float]:
    """Return the median seconds of a training step on random images, and the peak memory in GiB."""
    device = choose_device(config.device)
    precision = choose_precision(config.recipe.precision, device)
    net = build_net(config.model, 1000).to(device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(net, config.recipe)
    model: nn.Module = torch.compile(net) if compiled else net  # type: ignore[assignment]
    size = config.data.image_size
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), device=device)
    reset_peak_memory(device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    for _ in range(WARM_UP):
        step()
    times = [_seconds(device, step) for _ in range(MEASURED)]
    return statistics.median(times), peak_memory_gb(device)


def _seconds(device: torch.device, step: Callable[[], None]) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        step()
        return time.perf_counter() - began
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    step()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1e3
