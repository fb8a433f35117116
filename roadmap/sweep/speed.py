"""A short measurement of a net's training speed on the GPU that is here, for the plan of a study: the net and its steps, no data."""

import time

import torch
from torch.nn.functional import cross_entropy

from roadmap.choices import Precision
from roadmap.config import Config
from roadmap.net import build_net
from roadmap.recipe.optim import build_optimizer
from roadmap.runtime.device import choose_precision
from roadmap.sweep.plan import num_classes

WARM_UP, STEPS = 5, 15


def images_per_s(config: Config) -> float | None:
    """Return the images/s that one GPU trains at the recipe's micro-batch; None where there is no GPU, or the batch does not fit."""
    if not torch.cuda.is_available():
        return None
    device, batch = torch.device("cuda"), config.recipe.micro_batch or config.recipe.batch_size
    try:
        net = build_net(config.model, num_classes(config)).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return _timed(config, net, build_optimizer(net, config.recipe), batch, device)
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        torch.cuda.empty_cache()


def _timed(config: Config, net: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: int, device: torch.device) -> float:
    size = config.data.image_size
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(num_classes(config), (batch,), device=device)
    bf16 = choose_precision(config.recipe.precision, device) == Precision.bf16
    began = 0.0
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            torch.cuda.synchronize()
            began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            cross_entropy(net(images), labels).backward()
        optimizer.step()
    torch.cuda.synchronize()
    return batch * STEPS / (time.perf_counter() - began)
