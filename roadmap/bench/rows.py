"""The rows that a benchmark of nets measures: which ones, the same nets of other libraries, in which forms a step is
taken.

timm has ResNet, ConvNeXt, ConvNeXt V2 and Swin, torchvision ResNet and ConvNeXt. A library is imported where it is
measured: the other benchmarks run without it.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from roadmap import paper
from roadmap.bench.measure import Call, Candidate
from roadmap.bench.options import count, names
from roadmap.config.choices import Device, Kernels, Precision
from roadmap.config.schema import Config
from roadmap.config.toggles import NetConfig
from roadmap.distributed.device import autocast, choose_device, choose_precision
from roadmap.errors import ConfigError
from roadmap.net import build_net, cost, count_params, use_kernels
from roadmap.steps.compose import compose
from roadmap.steps.tree import regimes, step_tree
from roadmap.text import ArgumentParser
from roadmap.training import cuda_graph
from roadmap.training.optim import build_optimizer

CPU_SIZE, CPU_BATCH, GPU_BATCH = 64, 4, 256

Build = Callable[[], nn.Module]
Step = Callable[[Tensor, Tensor], object]  # images (N, 3, H, W), labels (N,) or soft targets (N, num_classes)
# The rows that other libraries have, too.
RESNET, CONVNEXT, CONVNEXT_V2, SWIN = "resnet", "separate_downsampling", "grn", "swin"
RESNET_STEM = (64, 4)  # width and stride of both libraries' stems, whatever the width of the stages


@dataclass(frozen=True)
class Setting:
    """How the nets of a comparison are run: the same for all of them."""

    device: torch.device
    precision: Precision
    batch: int
    image_size: int
    num_classes: int

    def example(self) -> tuple[Tensor, Tensor]:
        """Return random images, channels-last, and labels, on the device."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, 3, self.image_size, self.image_size, generator=generator)
        labels = torch.randint(self.num_classes, (self.batch,), generator=generator)
        return images.to(self.device).contiguous(memory_format=torch.channels_last), labels.to(self.device)


def add_rows(options: ArgumentParser, rows: Sequence[str] = ()) -> None:
    """Add the options that choose rows, and the size of their images."""
    default = ",".join(rows) or "every row of the regime"
    options.add_argument("--regime", default="tiny", help=f"{', '.join(regimes())}; default: %(default)s")
    options.add_argument("--rows", type=names(step_tree()), default=rows, metavar="STEP,STEP", help=f"or {default}")
    options.add_argument("--image-size", type=count, help=f"default: the regime's, at most {CPU_SIZE} on a CPU")


def add_batch(options: ArgumentParser) -> None:
    """Add the option for the images of a step."""
    options.add_argument("--batch", type=count, help=f"default: {GPU_BATCH} on a GPU, {CPU_BATCH} on a CPU")


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


def captured(step: Step, optimizer: torch.optim.Optimizer, setting: Setting, capture: Callable[..., Any]) -> Step:
    """Return a step as one CUDA graph, into whose images and labels each batch is copied."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=setting.device)
        group["capturable"] = True
    graph_images, graph_labels = setting.example()
    graph, _ = capture(lambda: step(graph_images, graph_labels))

    def replay(images: Tensor, labels: Tensor) -> None:
        graph_images.copy_(images)
        graph_labels.copy_(labels)
        graph.replay()

    return replay


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


def timm_resnet(cfg: NetConfig, num_classes: int, image_size: int) -> nn.Module:
    """Return timm's ResNet."""
    from timm.models import resnet

    bottleneck: Any = resnet.Bottleneck  # annotated as an instance there
    return resnet.ResNet(bottleneck, cfg.depths, num_classes, drop_path_rate=cfg.drop_path)


def timm_convnext(cfg: NetConfig, num_classes: int, image_size: int) -> nn.Module:
    """Return timm's ConvNeXt; its pointwise convolutions are linear layers, which is its faster form."""
    from timm.models import convnext

    dims = tuple(cfg.width * 2**stage for stage in range(4))
    net = convnext.ConvNeXt(
        num_classes=num_classes, depths=cfg.depths, dims=dims, kernel_sizes=cfg.kernel_size,
        ls_init_value=cfg.layer_scale, drop_path_rate=cfg.drop_path, use_grn=cfg.grn,
    )  # fmt: skip
    net.stem[0] = patchify(cfg)
    return net


def timm_swin(cfg: NetConfig, num_classes: int, image_size: int) -> nn.Module:
    """Return timm's Swin."""
    from timm.models import swin_transformer

    heads = tuple(cfg.width // 32 * 2**stage for stage in range(4))
    return swin_transformer.SwinTransformer(
        image_size, num_classes=num_classes, embed_dim=cfg.width, depths=cfg.depths, num_heads=heads,
        drop_path_rate=cfg.drop_path,
    )  # fmt: skip


def torchvision_resnet(cfg: NetConfig, num_classes: int, image_size: int) -> nn.Module:
    """Return torchvision's ResNet."""
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, list(cfg.depths), num_classes)


def torchvision_convnext(cfg: NetConfig, num_classes: int, image_size: int) -> nn.Module:
    """Return torchvision's ConvNeXt."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    widths = [cfg.width * 2**stage for stage in range(4)]
    stages = zip(widths, [*widths[1:], None], cfg.depths, strict=True)
    settings = [CNBlockConfig(c, after, depth) for c, after, depth in stages]
    scale = {} if cfg.layer_scale is None else {"layer_scale": cfg.layer_scale}
    net = ConvNeXt(settings, stochastic_depth_prob=cfg.drop_path, num_classes=num_classes, **scale)
    net.features[0][0] = patchify(cfg)
    return net


def patchify(cfg: NetConfig) -> nn.Module:
    """Return the stem's convolution: both libraries only have the paper's stride of 4, small images need 2."""
    return nn.Conv2d(3, cfg.width, cfg.stem_stride, cfg.stem_stride)


NETS: dict[tuple[str, str], Callable[[NetConfig, int, int], nn.Module]] = {
    ("timm", RESNET): timm_resnet,
    ("timm", CONVNEXT): timm_convnext,
    ("timm", CONVNEXT_V2): timm_convnext,
    ("timm", SWIN): timm_swin,
    ("torchvision", RESNET): torchvision_resnet,
    ("torchvision", CONVNEXT): torchvision_convnext,
}


def has_net(library: str, step: str, cfg: NetConfig) -> bool:
    """Tell whether a library has the net of a row. Our row `swin` is torchvision's own net, so no peer of itself."""
    return (library, step) in NETS and (step != RESNET or (cfg.width, cfg.stem_stride) == RESNET_STEM)


def peer_net(library: str, step: str, cfg: NetConfig, num_classes: int, image_size: int) -> nn.Module:
    """Return a library's net of a row. Raises ConfigError if it has another number of parameters than ours."""
    net = NETS[library, step](cfg, num_classes, image_size)
    theirs, ours = count_params(net), count_params(cfg, num_classes)
    if theirs != ours:
        raise ConfigError(f"{library} has another net for {step}: {theirs:,} parameters, ours has {ours:,}")
    return net
