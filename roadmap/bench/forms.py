"""The forms in which a whole training step is measured: forward, loss, backward, optimizer. Used by `bench net`, `mini` and `input`.

`candidates` is the one place that lists who takes part in a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from roadmap.bench.measure import Candidate
from roadmap.bench.peers import has_net, peer_net
from roadmap.config.choices import Kernels, Precision
from roadmap.config.schema import Config
from roadmap.distributed.device import autocast
from roadmap.errors import ConfigError
from roadmap.net import build_net, use_kernels
from roadmap.training import cuda_graph
from roadmap.training.cuda_graph import capture
from roadmap.training.optim import build_optimizer

Build = Callable[[], nn.Module]
Step = Callable[[Tensor, Tensor], None]  # images (N, 3, H, W), labels (N,) or soft targets (N, num_classes)


@dataclass(frozen=True)
class Setting:
    """How the nets of a comparison are trained: the same for all of them."""

    device: torch.device
    precision: Precision
    batch: int
    image_size: int
    num_classes: int

    def example(self) -> tuple[Tensor, Tensor]:
        """Return random images, channels-last, and labels, on the device."""
        draw = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, 3, self.image_size, self.image_size, generator=draw)
        labels = torch.randint(self.num_classes, (self.batch,), generator=draw)
        return images.to(self.device).contiguous(memory_format=torch.channels_last), labels.to(self.device)


def whole_step(build: Build, config: Config, setting: Setting, *, tuned: bool = False, compiled: bool = False) -> Step:
    """Return the training step of a net, channels-last, with the recipe's fused optimizer.

    `tuned` lets cuDNN try its algorithms, as timm's and torchvision's own training does.
    """
    torch.manual_seed(0)
    net = build().to(setting.device).to(memory_format=torch.channels_last)
    net.train()
    optimizer = build_optimizer(net, config.recipe)
    model: nn.Module = torch.compile(net) if compiled else net  # type: ignore[assignment]

    def step(images: Tensor, labels: Tensor) -> None:
        torch.backends.cudnn.benchmark = tuned
        optimizer.zero_grad(set_to_none=True)
        with autocast(setting.device, setting.precision):
            loss = cross_entropy(
                model(images), labels, label_smoothing=0.0 if labels.ndim > 1 else config.recipe.label_smoothing
            )
        loss.backward()
        optimizer.step()

    return step


def captured_step(
    build: Build, config: Config, setting: Setting, *, tuned: bool = False, capture: Callable[..., Any] = capture
) -> Step:
    """Return the eager training step as one CUDA graph, into whose images and labels each batch is copied. Raises ConfigError on a CPU."""
    if setting.device.type != "cuda" and capture is cuda_graph.capture:
        raise ConfigError("a CUDA graph needs a GPU")
    torch.backends.cudnn.benchmark = tuned
    torch.manual_seed(0)
    net = build().to(setting.device).to(memory_format=torch.channels_last)
    net.train()
    optimizer = build_optimizer(net, config.recipe)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=setting.device)
        group["capturable"] = True
    held_images, held_labels = setting.example()

    def step() -> tuple[Tensor, Tensor]:
        optimizer.zero_grad(set_to_none=True)
        with autocast(setting.device, setting.precision):
            loss = cross_entropy(net(held_images), held_labels, label_smoothing=config.recipe.label_smoothing)
        loss.backward()
        optimizer.step()
        return loss, held_labels

    recorded, _ = capture(step)

    def replayed(images: Tensor, labels: Tensor) -> None:
        held_images.copy_(images)
        held_labels.copy_(labels)
        recorded.replay()

    return replayed


def with_kernels(build: Build, config: Config, setting: Setting, *, tuned: bool = False, choice: Kernels) -> Step:
    """Return the training step of a net whose operations have the forms of a choice, compiled on a GPU."""

    def built() -> nn.Module:
        net = build().to(setting.device)
        use_kernels(net, setting.device, choice)
        return net

    return whole_step(built, config, setting, tuned=tuned, compiled=setting.device.type == "cuda")


FORMS: dict[str, Callable[..., Step]] = {  # of ours
    "eager": whole_step,
    "compiled": partial(whole_step, compiled=True),
    "graph": captured_step,
    "kernels": partial(with_kernels, choice=Kernels.auto),
    "fast": partial(with_kernels, choice=Kernels.fast),
}
GPU_FORMS = (
    "compiled",
    "graph",
    "fast",
)  # a graph and Triton need a GPU, and compiling for a CPU takes longer than measuring there
PEER_FORMS = ("eager", "compiled")


def candidates(config: Config, setting: Setting, forms: Sequence[str], libraries: Sequence[str]) -> list[Candidate]:
    """Return who takes part in a row: our net in every form, then each library's net of that row, eager and compiled."""

    def candidate(name: str, form: str, build: Build, peer: str | None) -> Candidate:
        def start() -> Callable[[], None]:
            images, labels = setting.example()
            step = FORMS[form](build, config, setting, tuned=peer is not None)
            return lambda: step(images, labels)

        return Candidate(f"{name} {form}", start, setting.batch, peer)

    found = [candidate("ours", form, lambda: build_net(config.model, setting.num_classes), None) for form in forms]
    for library in libraries:
        if has_net(library, config.step, config.model):
            build = partial(peer_net, library, config.step, config.model, setting.num_classes, setting.image_size)
            found += [candidate(library, form, build, library) for form in PEER_FORMS if form in forms]
    return found
