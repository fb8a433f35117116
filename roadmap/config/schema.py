"""The schema of a run: every key with its type, range, default and meaning, and what it affects.

`steps.validate` turns a composed config into a `Config`; the net, the data and the training take the parts they need.
A default is what the code did before the key was there, for ever: what is new is switched on in `conf/`.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from roadmap import catalog
from roadmap.catalog import DataKind
from roadmap.config.choices import (
    Activation,
    Capture,
    ClassOrder,
    Crop,
    Decoder,
    Device,
    Init,
    Kernels,
    Mode,
    Norm,
    Pipeline,
    Reference,
    Stem,
    StrideOn,
    WandbMode,
    When,
)
from roadmap.config.fields import Affects, Float, Int, Key, Section, Text, key, keys, section, shown
from roadmap.config.recipe import RecipeConfig
from roadmap.errors import ConfigError

# Blocks per stage and embedding width of the reference nets (Swin, Table 7): the only shapes they come in.
REFERENCE_SHAPES = {Reference.swin_t: ((2, 2, 6, 2), 96), Reference.swin_b: ((2, 2, 18, 2), 128)}

Blocks = Annotated[Int, Field(ge=1, le=200)]
Depths = tuple[Blocks, Blocks, Blocks, Blocks]
Colours = tuple[Float, Float, Float]


class NetConfig(Section):
    """The net: the toggles of the roadmap, what the recipe asks of the net, and the readings that the paper leaves
    open.

    Raises ConfigError for a combination of toggles that has no meaning, naming the toggles.
    """

    prefix = "model."
    evaluation = True

    # The toggles, in the roadmap's order.
    depths: Depths = key((3, 4, 6, 3), about="a list of four numbers of blocks, each from 1 to 200")
    width: Int = key(
        64, ge=1, le=4096, about="channels of the first stage's blocks (bottleneck width where not inverted)"
    )
    stem: Stem = key(Stem.resnet, about="what turns the image into the first feature map (Sec. 2.2)")
    stem_stride: Int = key(4, one_of=(4, 2), about="pixels; 4 is the paper's, 2 leaves small images a larger map")
    depthwise: bool = key(False, about="the spatial conv is depthwise (Sec. 2.3)")
    inverted: bool = key(False, about="hidden width 4 x the block's, instead of 1/4 (Sec. 2.4)")
    depthwise_first: bool = key(False, about="the depthwise conv comes before the 1x1 convs (Sec. 2.5)")
    kernel_size: Int = key(3, ge=1, le=63, about="of the spatial conv, odd (Sec. 2.5)")
    activation: Activation = key(Activation.relu, about="of every block (Sec. 2.6)")
    activations_per_block: Int = key(3, one_of=(3, 1))
    norm: Norm = key(Norm.batch_norm, about="of every block (Sec. 2.6)")
    norms_per_block: Int = key(3, one_of=(3, 1))
    separate_downsampling: bool = key(False, about="a conv of its own between the stages (Sec. 2.6)")
    # Recipe values that live in the net.
    layer_scale: Float | None = key(None, gt=0, le=10, about="initial value; null leaves it out")
    drop_path: Float = key(
        0.0, ge=0, le=0.99, evaluation=False, about="stochastic depth of the last block, growing linearly from 0"
    )
    init: Init = key(Init.kaiming, evaluation=False, about="how the weights start")
    # What the paper leaves open, explained in docs/fidelity.md: our reading is the default, the other one an override.
    stem_norm: bool = key(True, about="reading 1: a norm follows the stem's conv, also after patchify")
    stem_activation: When = key(When.auto, about="reading 1; auto: goes with activations_per_block=1")
    projection_norm: bool = key(
        True, about="reading 2: the 1x1 shortcut projection keeps its norm, of the current kind"
    )
    residual_activation: When = key(
        When.auto, about="reading 3: after the addition; auto: goes with activations_per_block=1"
    )
    head_norm: When = key(
        When.auto, about="reading 4: after the final pooling; auto: enters with separate_downsampling"
    )
    stride_on: StrideOn = key(StrideOn.spatial, about="reading 6: the conv that carries a block's stride")
    conv_bias: When = key(When.auto, about="reading 7; auto: a conv has a bias unless a BatchNorm follows it")
    batch_norm_eps: Float = key(1e-5, gt=0, le=1)
    layer_norm_eps: Float = key(1e-6, gt=0, le=1)
    reference: Reference | None = key(None, about="a net that is not built from toggles")

    @model_validator(mode="after")
    def _check(self) -> "NetConfig":
        if self.kernel_size % 2 == 0:
            raise ConfigError(f"model.kernel_size={self.kernel_size}: must be odd, so that the map keeps its size")
        if self.reference is not None:
            self._check_reference(self.reference)
        for toggle in ("depthwise", "inverted"):
            if self.depthwise_first and not getattr(self, toggle):
                raise ConfigError(
                    f"model.depthwise_first=true with model.{toggle}=false: only a depthwise conv of an inverted "
                    "bottleneck can move up (Sec. 2.4 and 2.5)"
                )
        return self

    def _check_reference(self, reference: Reference) -> None:
        depths, width = REFERENCE_SHAPES[reference]
        free = {"depths", "width", "drop_path", "init", "reference"}
        for name, field in type(self).model_fields.items():
            if name not in free and getattr(self, name) != field.default:
                value = shown(getattr(self, name))
                raise ConfigError(
                    f"model.{name}={value} with model.reference={reference}: a reference net has no toggles"
                )
        if self.depths != depths or self.width != width:
            raise ConfigError(
                f"model.reference={reference}: comes with model.depths={list(depths)} and model.width={width} only"
            )

    @property
    def reduction(self) -> int:
        """Return by how much the net divides height and width: the stem's stride, and three times two."""
        return 8 * self.stem_stride


class RegimeConfig(Section):
    """The sizes between which the roadmap leads; the steps refer to them (`depths: ${regime.swin_depths}`)."""

    prefix = "regime."

    name: Text = "nano"
    scale: Text = key("demo", about="the scale that this regime belongs to")
    resnet_depths: Depths = key((3, 4, 6, 3), about="a list of four numbers of blocks, each from 1 to 200")
    swin_depths: Depths = key((3, 3, 9, 3), about="a list of four numbers of blocks, each from 1 to 200")
    resnet_width: Int = key(64, ge=1, le=4096)
    ratio_width: Int = key(64, ge=1, le=4096, about="from `stage_ratio` on")
    swin_width: Int = key(96, ge=1, le=4096, about="from `increase_width` on")
    stem_stride: Int = key(4, one_of=(4, 2), about="pixels")
    small_images: Int = key(32, ge=8, le=4096, about="pixels to which the sets of 28 and 32 pixels are brought")
    drop_path: Float = key(0.0, ge=0, le=0.99)
    # These two reach a run through its recipe, where they are part of its identity.
    swin_drop_path: Float = key(0.0, ge=0, le=0.99, affects=Affects.place, about="of recipe=swin")
    micro_batch: Int = key(128, ge=1, le=1_000_000, affects=Affects.place, about="of recipe=enhanced")
    reference: Reference | None = key(None, about="the net of `+step=swin`; null where the regime has none")
    reference_depths: Depths | None = key(None, about="a list of four numbers of blocks, each from 1 to 200")
    reference_width: Int | None = key(None, ge=1, le=4096)


class DataConfig(Section):
    """The images: where they are and how they are cut; each set names its own flip, crop, mean and standard
    deviation."""

    prefix = "data."

    name: Text = key("digits", evaluation=True)
    kind: DataKind | None = key(
        None, evaluation=True, about="of a set of one's own: how its images are kept; null: what is known of the name"
    )
    root: Text | None = key(
        None, affects=Affects.place, evaluation=True, local=True, about="folder of the images; else ROADMAP_DATA"
    )
    download: bool = key(
        False, affects=Affects.place, evaluation=True, local=True, about="fetch a public set into `root`"
    )
    num_classes: Int | None = key(None, ge=2, le=1_000_000, about="null: counted from the class folders")
    class_order: ClassOrder = key(
        ClassOrder.text, evaluation=True, about="labels of class folders: 1, 10, 2 as text; 1, 2, 10 by number"
    )
    image_size: Int = key(32, ge=8, le=4096, evaluation=True, about="pixels, height and width of the net's input")
    resize_size: Int | None = key(
        None, ge=8, le=8192, evaluation=True, about="evaluation: short side before the centre crop; null: no crop"
    )
    mean: Colours = key((0.5, 0.5, 0.5), evaluation=True, about="a list of three finite numbers")
    std: Colours = key((0.5, 0.5, 0.5), evaluation=True, about="a list of three finite numbers above 0")
    flip: bool = key(False, about="horizontally, with probability 0.5")
    crop: Crop = key(Crop.none, about="how a training image is cut out")
    padding: Int = key(0, ge=0, le=1024, about="pixels", needs=("data.crop", "pad"))
    rotate: Float = key(0.0, ge=0, le=180, about="degrees, up to +-")
    zoom: Float = key(0.0, ge=0, le=0.9, about="scale by 1 +- zoom")
    shift: Float = key(0.0, ge=0, le=0.9, about="share of the image, up to +-")
    pipeline: Pipeline = key(Pipeline.fast, evaluation=True, about="where images are prepared")
    workers: Int = key(
        0, ge=0, le=1024, affects=Affects.place, evaluation=True, local=True,
        about="processes that prepare images: of class folders, and of any set with pipeline=reference",
    )  # fmt: skip
    decoder: Decoder = key(Decoder.auto, about="of class folders with pipeline=fast")
    train_images: Int | None = key(
        None, ge=2, le=100_000_000, about="synthetic: how many; others: the first so many of a fixed shuffle"
    )
    val_images: Int | None = key(None, ge=2, le=100_000_000, evaluation=True)

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        catalog.find(self.name, self.kind)
        if min(self.std) <= 0:
            raise ConfigError(f"data.std={shown(self.std)}: must be a list of three finite numbers above 0")
        if self.resize_size is not None and self.resize_size < self.image_size:
            raise ConfigError(
                f"data.resize_size={self.resize_size}: must be at least data.image_size={self.image_size}"
            )
        return self


class PathsConfig(Section):
    """Where runs are kept: `paths.runs`, else ROADMAP_RUNS, else `runs`."""

    prefix = "paths."
    affects = Affects.place
    evaluation = local = True

    runs: Text = "runs"


class WandbConfig(Section):
    """Weights & Biases."""

    prefix = "wandb."
    affects = Affects.place
    local = True

    mode: WandbMode = key(WandbMode.auto, about="auto: online where a login is found, else offline")
    project: Text = "convnext-roadmap"
    entity: Text | None = None


class CheckpointConfig(Section):
    """When training can be resumed from."""

    prefix = "checkpoint."
    affects = Affects.place
    local = True

    every_min: Float = key(
        10.0, ge=0, le=100_000, about="minutes between checkpoints within an epoch, beside its end's"
    )
    keep: Int = key(2, ge=2, le=1000, about="newest checkpoints kept, beside the best")


def _as_switch(value: Any) -> Any:
    """Return auto, true or false as text: YAML has made truth values of two of them."""
    return str(value).lower() if isinstance(value, bool | str) else value


class Config(Section):
    """One run. `step` to `adopted` are written by `steps.validate`, from the step tree and the paper's tables."""

    affects = Affects.place

    step: Text = key("", affects=Affects.result)
    variant: Text | None = key(None, affects=Affects.result)
    cell: Text = key("", about="the run's name: step, +variant, and what differs from its plain step")
    parent: Text | None = None
    label: Text = ""
    adopted: Text = key("yes", one_of=("yes", "no", "reference"))
    study: Text = key("single", cells=False)
    seed: Int = key(0, ge=0, le=2**31 - 1, affects=Affects.result)
    mode: Mode = key(Mode.train, evaluation=True, cells=False)
    weights: Text | None = key(None, evaluation=True, cells=False, about="of mode=evaluate: a file, or a run directory")
    weights_key: Text | None = key(None, evaluation=True, about="of several weights in a file: which (model_ema, ...)")
    device: Device = key(Device.auto, evaluation=True, local=True)
    devices: Text = key("auto", local=True, about="how many of this node: auto is all its GPUs, or one CPU process")
    compile: Annotated[Text, BeforeValidator(_as_switch)] = key(
        "auto", affects=Affects.rounding, one_of=("auto", "true", "false"),
        about="auto: torch.compile for large images on a GPU",
    )  # fmt: skip
    cuda_graph: Capture = key(Capture.auto, affects=Affects.rounding, about="optimizer steps as CUDA graphs")
    kernels: Kernels = key(
        Kernels.auto, affects=Affects.rounding, evaluation=True, about="forms of the net's operations"
    )
    start_timeout_s: Float = key(600.0, ge=1, le=86_400, local=True, about="until all ranks have listed the images")
    comm_timeout_s: Float = key(
        120.0, ge=1, le=86_400, local=True, about="from then on: a rank that is silent for so long is lost"
    )
    dry: bool = key(False, evaluation=True, cells=False, about="print what the run would be, and do nothing")
    fresh: bool = key(False, cells=False, about="start over: an earlier run directory is moved aside, never deleted")
    allow_drift: bool = key(False, about="resume although the code or the data have changed; recorded in the results")
    regime: RegimeConfig = section(RegimeConfig)
    model: NetConfig = section(NetConfig)
    recipe: RecipeConfig = section(RecipeConfig)
    data: DataConfig = section(DataConfig)
    paths: PathsConfig = section(PathsConfig)
    wandb: WandbConfig = section(WandbConfig)
    checkpoint: CheckpointConfig = section(CheckpointConfig)

    @classmethod
    def settable(cls) -> list[str]:
        """Return the keys that a user may set: a step and a variant are chosen with a plus sign."""
        return ["+step", "+variant", *(name for name in cls.model_fields if name not in DERIVED)]

    @field_validator("devices")
    @classmethod
    def _check_devices(cls, value: str) -> str:
        if value != "auto" and not (value.isascii() and value.isdigit() and len(value) < 5 and 1 <= int(value) <= 1024):
            raise ConfigError(f"devices={shown(value)}: must be auto or a number from 1 to 1024")
        return value


DERIVED = ("step", "variant", "cell", "parent", "label", "adopted")  # written by `steps.validate`, never by a user
KEYS: dict[str, Key] = keys(Config)


def affects(name: str) -> Affects | None:
    """Return what a dotted key affects; None for a key that there is not (any more)."""
    return KEYS[name].affects if name in KEYS else None


def is_read(name: str, values: Mapping[str, Any]) -> bool:
    """Tell whether anything reads a key, given the others: `values` are a config by dotted key, or its texts."""
    needs = KEYS[name].needs
    return needs is None or str(values.get(needs[0], KEYS[needs[0]].default)) == needs[1]


def defaults() -> dict[str, Any]:
    """Return the default of every dotted key: what a record that lacks the key was made with."""
    return {name: key.default for name, key in KEYS.items()}
