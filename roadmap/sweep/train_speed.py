"""A short measurement of a net's training speed on this machine's GPU, for a plan: the net and its steps, no data."""

import time

import torch
from torch.nn.functional import cross_entropy

from roadmap.config.choices import Precision
from roadmap.config.schema import Config
from roadmap.distributed.device import choose_precision
from roadmap.net import build_net
from roadmap.sweep.plan import num_classes
from roadmap.training.grad_accumulation import micro_batch_size
from roadmap.training.optim import build_optimizer

WARM_UP, STEPS = 5, 15


def gpu_images_per_s(config: Config) -> float | None:
    """Return the images/s that one GPU trains at the recipe's micro-batch; None without a GPU or memory for it."""
    if not torch.cuda.is_available():
        return None
    try:
        return train_images_per_s(config, torch.device("cuda"))
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        torch.cuda.empty_cache()


def train_images_per_s(config: Config, device: torch.device, warm_up: int = WARM_UP, steps: int = STEPS) -> float:
    """Return the images/s of some training steps on random images that lie on the device."""
    net = build_net(config.model, num_classes(config)).to(device)
    net.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(net, config.recipe)
    batch, size = micro_batch_size(config.recipe), config.data.image_size
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(num_classes(config), (batch,), device=device)
    bf16 = choose_precision(config.recipe.precision, device) == Precision.bf16
    began = time.perf_counter()
    for step in range(warm_up + steps):
        if step == warm_up:
            synchronize(device)
            began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
    synchronize(device)
    return batch * steps / (time.perf_counter() - began)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
