"""The schema of a run: dataclasses with ranges, units and plain error messages.

`steps.checked` turns a composed config into a `Config`; the net, the data and the training take the parts they need.
Imports the standard library only, so that every room can import it.
"""

import math
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Any, get_args

from roadmap import catalog
from roadmap.catalog import DataKind
from roadmap.config.choices import (
    Activation,
    Capture,
    Crop,
    Decoder,
    Device,
    Init,
    Interpolation,
    Kernels,
    LrScaling,
    Mode,
    Norm,
    Optimizer,
    Pipeline,
    Precision,
    RecipeName,
    Reference,
    Schedule,
    Stem,
    StrideOn,
    WandbMode,
    When,
)
from roadmap.errors import ConfigError


def between(default: Any, low: float, high: float = math.inf, *, above: bool = False) -> Any:
    """A number that must lie in [low, high], or in (low, high] with `above`."""
    return field(default=default, metadata={"low": low, "high": high, "above": above})


def check_ranges(section: str, config: Any) -> None:
    """Raise ConfigError for the first number of a dataclass that is not finite or outside its range."""
    for item in fields(config):
        value = getattr(config, item.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        low, high, above = (
            item.metadata.get(k, d) for k, d in (("low", -math.inf), ("high", math.inf), ("above", False))
        )
        if not math.isfinite(value) or value > high or value < low or (above and value == low):
            allowed = f"{'above' if above else 'at least'} {low}" + ("" if high == math.inf else f" and at most {high}")
            key = f"{section}.{item.name}".lstrip(".")
            raise ConfigError(f"{key}={value}: must be {'finite' if low == -math.inf else allowed}")


def choices_from_strings(config: Any) -> None:
    """Turn plain strings into the members of their StrEnum, for dataclasses built without OmegaConf."""
    for item in fields(config):
        value = getattr(config, item.name)
        kinds = [k for k in (item.type, *get_args(item.type)) if isinstance(k, type) and issubclass(k, StrEnum)]
        if kinds and isinstance(value, str) and not isinstance(value, kinds[0]):
            one_of(item.name, value, tuple(kinds[0]))
            setattr(config, item.name, kinds[0](value))


def one_of(key: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise ConfigError unless the value is one of those allowed."""
    if value not in allowed:
        raise ConfigError(f"{key}={value}: must be one of {', '.join(map(str, allowed))}")


# Blocks per stage and embedding width of the reference nets (Swin, Table 7): the only shapes they come in.
REFERENCE_SHAPES = {Reference.swin_t: ((2, 2, 6, 2), 96), Reference.swin_b: ((2, 2, 18, 2), 128)}


@dataclass
class NetConfig:
    """The net: the toggles of the roadmap, what the recipe asks of the net, and the readings that the paper leaves open.

    Raises ConfigError for a combination of toggles that has no meaning, naming the toggles.
    """

    # The toggles, in the roadmap's order.
    depths: tuple[int, ...] = (3, 4, 6, 3)  # blocks per stage
    width: int = between(64, 1, 4096)  # channels of the first stage's blocks (bottleneck width where not inverted)
    stem: Stem = Stem.resnet
    stem_stride: int = 4  # pixels; 4 is the paper's, 2 leaves small images a map that large kernels need
    depthwise: bool = False
    inverted: bool = False  # hidden width 4 x the block's, instead of 1/4
    depthwise_first: bool = False
    kernel_size: int = between(3, 1, 63)  # of the spatial conv
    activation: Activation = Activation.relu
    activations_per_block: int = 3  # 3 or 1
    norm: Norm = Norm.batch_norm
    norms_per_block: int = 3  # 3 or 1
    separate_downsampling: bool = False
    # Recipe values that live in the net.
    layer_scale: float | None = between(None, 0, 10, above=True)  # initial value; null leaves it out
    drop_path: float = between(0.0, 0, 0.99)  # stochastic depth of the last block, growing linearly from 0
    init: Init = Init.kaiming
    # What the paper leaves open: our reading is the default, the other one an override.
    stem_norm: bool = True  # 1. a norm follows the stem's conv, also after patchify
    stem_activation: When = When.auto  # 1. auto: goes with activations_per_block=1
    projection_norm: bool = True  # 2. the 1x1 shortcut projection keeps its norm, of the current kind
    residual_activation: When = When.auto  # 3. after the addition; auto: goes with activations_per_block=1
    head_norm: When = When.auto  # 4. after the final pooling; auto: enters with separate_downsampling
    stride_on: StrideOn = StrideOn.spatial  # 6. the spatial conv carries a block's stride, wherever it stands
    conv_bias: When = When.auto  # 7. auto: a conv has a bias unless a BatchNorm follows it
    batch_norm_eps: float = between(1e-5, 0, 1, above=True)
    layer_norm_eps: float = between(1e-6, 0, 1, above=True)
    reference: Reference | None = None  # a net that is not built from toggles

    def __post_init__(self) -> None:
        choices_from_strings(self)
        self.depths = tuple(self.depths)
        if len(self.depths) != 4 or not all(isinstance(d, int) and 1 <= d <= 200 for d in self.depths):
            raise ConfigError(f"model.depths={list(self.depths)}: must be four numbers of blocks, each from 1 to 200")
        check_ranges("model", self)
        one_of("model.activations_per_block", self.activations_per_block, (3, 1))
        one_of("model.norms_per_block", self.norms_per_block, (3, 1))
        one_of("model.stem_stride", self.stem_stride, (4, 2))
        if self.kernel_size % 2 == 0:
            raise ConfigError(f"model.kernel_size={self.kernel_size}: must be odd, so that the map keeps its size")
        if self.reference is not None:
            self._check_reference()
        for toggle in ("depthwise", "inverted"):
            if self.depthwise_first and not getattr(self, toggle):
                raise ConfigError(
                    f"model.depthwise_first=true with model.{toggle}=false: only a depthwise conv of an inverted bottleneck "
                    "can move up (Sec. 2.4 and 2.5)"
                )

    @property
    def reduction(self) -> int:
        """Return by how much the net divides height and width: the stem's stride, and three times two."""
        return 8 * self.stem_stride

    def _check_reference(self) -> None:
        assert self.reference is not None
        depths, width = REFERENCE_SHAPES[self.reference]
        free = {"depths", "width", "drop_path", "init", "reference"}
        changed = [f for f in fields(self) if f.name not in free and getattr(self, f.name) != f.default]
        if changed:
            name = changed[0].name
            raise ConfigError(
                f"model.{name}={getattr(self, name)} with model.reference={self.reference}: a reference net has no toggles"
            )
        if self.depths != depths or self.width != width:
            raise ConfigError(
                f"model.reference={self.reference}: comes with model.depths={list(depths)} and model.width={width} only"
            )


@dataclass
class RegimeConfig:
    """The sizes between which the roadmap leads; the steps refer to them (`depths: ${regime.swin_depths}`)."""

    name: str = "nano"
    scale: str = "demo"  # the scale that this regime belongs to
    resnet_depths: tuple[int, ...] = (3, 4, 6, 3)
    swin_depths: tuple[int, ...] = (3, 3, 9, 3)
    resnet_width: int = 64
    ratio_width: int = 64  # from `stage_ratio` on
    swin_width: int = 96  # from `increase_width` on
    stem_stride: int = 4
    small_images: int = 32  # pixels to which the sets of 28 and 32 pixels are brought
    drop_path: float = 0.0
    reference: Reference | None = None  # the net of `+step=swin`; null where the regime has none
    reference_depths: tuple[int, ...] | None = None
    reference_width: int | None = None


@dataclass
class RecipeConfig:
    """How a net is trained. Lengths in epochs, rates per optimizer step at `batch_size` images."""

    name: RecipeName = RecipeName.original
    epochs: int = between(90, 1, 100_000)
    batch_size: int = between(256, 1, 1_000_000)  # images per optimizer step, over all devices
    micro_batch: int | None = between(None, 1, 1_000_000)  # images per device and forward pass; null: the whole batch
    optimizer: Optimizer = Optimizer.sgd
    lr: float = between(0.1, 0, 1000, above=True)  # base learning rate, at `lr_batch_size`
    lr_batch_size: int = between(256, 1, 1_000_000)  # images per optimizer step that `lr` is stated for
    lr_scaling: LrScaling = LrScaling.none  # linear: base rate = lr x batch_size / lr_batch_size
    min_lr: float = between(0.0, 0, 1000)  # where the cosine ends
    warmup_epochs: float = between(0.0, 0, 100_000)  # linear from 0
    schedule: Schedule = Schedule.step
    step_epochs: float = between(
        30.0, 0, 100_000, above=True
    )  # schedule=step: divide the rate by 1/step_factor so often
    step_factor: float = between(0.1, 0, 1, above=True)
    momentum: float = between(0.9, 0, 1)  # sgd
    beta1: float = between(0.9, 0, 1)  # adamw
    beta2: float = between(0.999, 0, 1)
    eps: float = between(1e-8, 0, 1, above=True)
    weight_decay: float = between(1e-4, 0, 100)
    decay_1d: bool = True  # whether norms, biases and layer scales decay too
    label_smoothing: float = between(0.0, 0, 0.99)
    mixup: float = between(0.0, 0, 100)  # alpha of the Beta distribution; 0 turns it off
    cutmix: float = between(0.0, 0, 100)
    mix_switch: float = between(0.5, 0, 1)  # probability of cutmix where both are on
    rand_augment: str | None = None  # timm's notation, e.g. rand-m9-mstd0.5-inc1
    random_erasing: float = between(0.0, 0, 1)  # probability, pixel mode, one box
    interpolation: Interpolation = Interpolation.bilinear
    init: Init = Init.kaiming
    layer_scale: float | None = between(None, 0, 10, above=True)
    drop_path: float = between(0.0, 0, 0.99)
    ema_decay: float | None = between(
        None, 0, 1, above=True
    )  # moving average of weights and buffers; null: none (the roadmap)
    precision: Precision = Precision.auto
    sync_batch_norm: bool = (
        False  # BatchNorm's statistics over all GPUs; false: of one GPU's micro-batch, as in the paper
    )

    @property
    def base_lr(self) -> float:
        """Return the rate that the schedule starts from, at this batch size."""
        return self.lr * self.batch_size / self.lr_batch_size if self.lr_scaling == LrScaling.linear else self.lr

    def __post_init__(self) -> None:
        choices_from_strings(self)
        check_ranges("recipe", self)
        if self.batch_size % (self.micro_batch or 1):
            raise ConfigError(
                f"recipe.batch_size={self.batch_size}: must be a multiple of recipe.micro_batch={self.micro_batch}"
            )
        if self.warmup_epochs > self.epochs:
            raise ConfigError(
                f"recipe.warmup_epochs={self.warmup_epochs:g}: must be at most recipe.epochs={self.epochs}"
            )
        if self.min_lr > self.base_lr:
            raise ConfigError(f"recipe.min_lr={self.min_lr:g}: must be at most the base rate {self.base_lr:g}")


@dataclass
class DataConfig:
    """The images: where they are and how they are cut; each set names its own flip, crop, mean and standard deviation."""

    name: str = "digits"
    kind: DataKind | None = None  # of a set of one's own; null: what `roadmap.catalog` says of the name
    root: str | None = None  # folder of the images; ROADMAP_DATA where not given
    download: bool = False  # fetch a public set into `root`
    num_classes: int | None = between(None, 2, 1_000_000)  # null: counted from the class folders
    image_size: int = between(32, 8, 4096)  # pixels, height and width of the net's input
    resize_size: int | None = between(None, 8, 8192)  # evaluation: short side before the centre crop; null: no crop
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    flip: bool = False  # horizontally, with probability 0.5
    crop: Crop = Crop.none
    padding: int = between(0, 0, 1024)  # crop=pad: pixels
    rotate: float = between(0.0, 0, 180)  # degrees, up to +-
    zoom: float = between(0.0, 0, 0.9)  # scale by 1 +- zoom
    shift: float = between(0.0, 0, 0.9)  # share of the image, up to +-
    pipeline: Pipeline = Pipeline.fast
    workers: int = between(
        0, 0, 1024
    )  # processes that prepare images: of class folders, and of any set with pipeline=reference
    decoder: Decoder = Decoder.auto  # of class folders with pipeline=fast
    train_images: int | None = between(
        None, 2, 100_000_000
    )  # synthetic: how many; others: the first so many of a fixed shuffle
    val_images: int | None = between(None, 2, 100_000_000)

    def __post_init__(self) -> None:
        check_ranges("data", self)
        choices_from_strings(self)
        catalog.find(self.name, self.kind)
        for key in ("mean", "std"):
            value = tuple(getattr(self, key))
            setattr(self, key, value)
            if len(value) != 3 or not all(math.isfinite(v) for v in value) or (key == "std" and min(value) <= 0):
                raise ConfigError(
                    f"data.{key}={list(value)}: must be three finite numbers" + (" above 0" if key == "std" else "")
                )
        if self.resize_size is not None and self.resize_size < self.image_size:
            raise ConfigError(
                f"data.resize_size={self.resize_size}: must be at least data.image_size={self.image_size}"
            )


@dataclass
class PathsConfig:
    """Where runs are kept: `paths.runs`, else ROADMAP_RUNS, else `runs`."""

    runs: str = "runs"


@dataclass
class WandbConfig:
    """Weights & Biases. Never part of a run's identity."""

    mode: WandbMode = WandbMode.auto
    project: str = "convnext-roadmap"
    entity: str | None = None


@dataclass
class CheckpointConfig:
    """When training can be resumed from. Never part of a run's identity."""

    every_min: float = between(
        10.0, 0, 100_000
    )  # minutes between checkpoints within an epoch; one at each epoch's end as well
    keep: int = between(2, 2, 1000)  # newest checkpoints kept, beside the best


@dataclass
class Config:
    """One run. `step` to `adopted` are written by `steps.checked`, from the step tree and the paper's tables."""

    step: str = ""
    variant: str | None = None
    cell: str = ""  # step, +variant, and the overrides that change the result
    parent: str | None = None
    label: str = ""
    adopted: str = "yes"  # yes | no | reference
    study: str = "single"
    seed: int = between(0, 0, 2**31 - 1)
    mode: Mode = Mode.train
    weights: str | None = None  # mode=evaluate: a file of published weights, or one of our run directories
    device: Device = Device.auto
    devices: str = "auto"  # how many of this node: auto is all its GPUs, or one CPU process; part of a run's identity
    compile: str = (
        "auto"  # true | false; auto: torch.compile for large images on a GPU. What it computes differs in rounding
    )
    cuda_graph: Capture = Capture.auto  # a whole optimizer step as one CUDA graph
    kernels: Kernels = Kernels.auto  # forms of the net's operations; they differ in rounding
    start_timeout_s: float = between(600.0, 1, 86_400)  # until all ranks have come and have listed the images
    comm_timeout_s: float = between(120.0, 1, 86_400)  # from then on: a rank that is silent for so long is lost
    fresh: bool = False  # start over: an earlier run directory is moved aside, never deleted
    allow_drift: bool = False  # resume although the code or the data have changed; recorded in the results
    regime: RegimeConfig = field(default_factory=RegimeConfig)
    model: NetConfig = field(default_factory=NetConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        choices_from_strings(self)
        check_ranges("", self)
        self.devices, self.compile = str(self.devices), str(self.compile).lower()
        one_of("compile", self.compile, ("auto", "true", "false"))
        if self.devices != "auto" and not (
            self.devices.isascii() and self.devices.isdigit() and 1 <= int(self.devices) <= 1024
        ):
            raise ConfigError(f"devices={self.devices}: must be auto or a number from 1 to 1024")


def resolved(config: Any) -> Any:
    """Return a config as plain containers (dict, list, str, numbers), for files and checkpoints."""
    if is_dataclass(config):
        return {item.name: resolved(getattr(config, item.name)) for item in fields(config)}
    if isinstance(config, tuple | list):
        return [resolved(item) for item in config]
    return str(config) if isinstance(config, str) else config
