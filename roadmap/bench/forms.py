"""The forms in which a whole training step is measured: forward, loss, backward, optimizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from roadmap.bench.measure import Call, Candidate
from roadmap.bench.rows import Build, Setting, builders, start_net
from roadmap.config.choices import Kernels
from roadmap.config.schema import Config
from roadmap.distributed.device import autocast
from roadmap.errors import ConfigError
from roadmap.training import cuda_graph
from roadmap.training.optim import build_optimizer

Step = Callable[[Tensor, Tensor], object]  # images (N, 3, H, W), labels (N,) or soft targets (N, num_classes)


def training_step(
    build: Build, config: Config, setting: Setting, *, compiled: bool = False, kernels: Kernels | None = None,
    capture: Callable[..., Any] | None = None, tuned: bool = False,
) -> Step:  # fmt: skip
    """Return the training step of a net, channels-last, with the recipe's fused optimizer.

    With `kernels` it is compiled on a GPU; `capture` makes one CUDA graph of it. `tuned` lets cuDNN try its algorithms,
    as timm's and torchvision's own training does. Raises ConfigError for a graph on a CPU.
    """
    if capture is cuda_graph.capture and setting.device.type != "cuda":
        raise ConfigError("a CUDA graph needs a GPU")
    net = start_net(build, setting, train=True, kernels=kernels, compiled=compiled)
    optimizer = build_optimizer(net, config.recipe)

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        torch.backends.cudnn.benchmark = tuned
        smoothing = config.recipe.label_smoothing if labels.ndim == 1 else 0.0
        optimizer.zero_grad(set_to_none=True)
        with autocast(setting.device, setting.precision):
            loss = cross_entropy(net(images), labels, label_smoothing=smoothing)
        loss.backward()
        optimizer.step()
        return loss, labels

    return step if capture is None else captured(step, optimizer, setting, capture)


@dataclass
class Captured:
    """A step as one CUDA graph, into whose images and labels each batch is copied."""

    images: Tensor
    labels: Tensor
    graph: torch.cuda.CUDAGraph
    step: Step  # kept: the graph works in the memory of its net and optimizer, and nothing else holds them

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """Replay the step on a batch."""
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()


def captured(step: Step, optimizer: torch.optim.Optimizer, setting: Setting, capture: Callable[..., Any]) -> Captured:
    """Capture a step."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=setting.device)
        group["capturable"] = True
    images, labels = setting.example()
    graph, _ = capture(lambda: step(images, labels))
    return Captured(images, labels, graph, step)


FORMS: dict[str, Callable[..., Step]] = {  # of ours
    "eager": training_step,
    "compiled": partial(training_step, compiled=True),
    "graph": partial(training_step, capture=cuda_graph.capture),
    "kernels": partial(training_step, kernels=Kernels.auto),
    "fast": partial(training_step, kernels=Kernels.fast),
    "captured": partial(training_step, kernels=Kernels.auto, capture=cuda_graph.capture),  # as a run trains at 224
}
# A graph and Triton need a GPU, and compiling for a CPU takes longer than measuring there.
GPU_FORMS = ("compiled", "graph", "fast", "captured")
WITH_KERNELS = ("kernels", "captured")  # those of `kernels=auto`
PEER_FORMS = ("eager", "compiled")


def candidates(config: Config, setting: Setting, forms: Sequence[str], libraries: Sequence[str]) -> list[Candidate]:
    """Return a row's candidates: our net in every form, then each library's net of that row, eager and compiled."""
    found = []
    for name, build in builders(config, setting, libraries).items():
        peer = None if name == "ours" else name

        def start(form: str, build: Build = build, tuned: bool = peer is not None) -> Call:
            return partial(FORMS[form](build, config, setting, tuned=tuned), *setting.example())

        for form in forms if peer is None else [form for form in PEER_FORMS if form in forms]:
            found.append(Candidate(f"{name} {form}", setting.batch, partial(start, form), peer))
    return found
