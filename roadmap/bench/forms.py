"""The forms in which a whole training step is measured: forward, loss, backward, optimizer. Used by `bench net`, `mini` and `input`.

`contestants` is the one place that lists who takes part in a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from roadmap.bench.measure import Contestant
from roadmap.bench.peers import has_net, peer_net
from roadmap.choices import Precision
from roadmap.config import Config
from roadmap.net import build_net
from roadmap.recipe.optim import build_optimizer
from roadmap.runtime.device import autocast

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
            loss = cross_entropy(model(images), labels, label_smoothing=0.0 if labels.ndim > 1 else config.recipe.label_smoothing)
        loss.backward()
        optimizer.step()

    return step


FORMS: dict[str, Callable[..., Step]] = {"eager": whole_step, "compiled": partial(whole_step, compiled=True)}  # of ours
PEER_FORMS = ("eager", "compiled")


def contestants(config: Config, setting: Setting, forms: Sequence[str], libraries: Sequence[str]) -> list[Contestant]:
    """Return who takes part in a row: our net in every form, then each library's net of that row, eager and compiled."""

    def contestant(name: str, form: str, build: Build, peer: str | None) -> Contestant:
        def start() -> Callable[[], None]:
            images, labels = setting.example()
            step = FORMS[form](build, config, setting, tuned=peer is not None)
            return lambda: step(images, labels)

        return Contestant(f"{name} {form}", start, setting.batch, peer)

    found = [contestant("ours", form, lambda: build_net(config.model, setting.num_classes), None) for form in forms]
    for library in libraries:
        if has_net(library, config.step, config.model):
            build = partial(peer_net, library, config.step, config.model, setting.num_classes, setting.image_size)
            found += [contestant(library, form, build, library) for form in PEER_FORMS if form in forms]
    return found
