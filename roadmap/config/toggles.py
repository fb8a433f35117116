"""The schema of the net: the toggles, and the sizes between which the roadmap leads."""

from typing import Annotated

from pydantic import Field, model_validator

from roadmap.config.choices import Activation, Init, Norm, Reference, Stem, StrideOn, When
from roadmap.config.fields import Affects, Float, Int, Section, Text, key, shown
from roadmap.errors import ConfigError

# Blocks per stage and embedding width of the reference nets (Swin, Table 7): the only shapes they come in.
REFERENCE_SHAPES = {Reference.swin_t: ((2, 2, 6, 2), 96), Reference.swin_b: ((2, 2, 18, 2), 128)}

Blocks = Annotated[Int, Field(ge=1, le=200)]
Depths = tuple[Blocks, Blocks, Blocks, Blocks]


class NetConfig(Section):
    """The net: the toggles of the roadmap, what the recipe asks of the net, and the readings that the paper leaves
    open.

    Raises ConfigError for a meaningless combination of toggles, and names them.
    """

    prefix = "model."
    evaluation = True

    # The toggles, in the roadmap's order.
    depths: Depths = key((3, 4, 6, 3), about="a list of four numbers of blocks, each from 1 to 200")
    width: Int = key(64, ge=1, le=4096, about="channels of the first stage's blocks (the bottleneck's if not inverted)")
    stem: Stem = key(Stem.resnet, about="what turns the image into the first feature map (Sec. 2.2)")
    stem_stride: Int = key(4, one_of=(4, 2), about="pixels; 4 is the paper's, 2 leaves small images a larger map")
    depthwise: bool = key(False, about="the spatial conv is depthwise (Sec. 2.3)")
    inverted: bool = key(False, about="hidden width 4 x the block's, instead of 1/4 (Sec. 2.4)")
    depthwise_first: bool = key(False, about="the depthwise conv comes before the 1x1 convs (Sec. 2.5)")
    kernel_size: Int = key(3, ge=1, le=63, about="of the spatial conv, odd (Sec. 2.5)")
    activation: Activation = key(Activation.relu, about="of every block (Sec. 2.6)")
    activations_per_block: Int = key(3, one_of=(3, 1), about="1: between the two 1x1 convs (Sec. 2.6)")
    norm: Norm = key(Norm.batch_norm, about="of every block (Sec. 2.6)")
    norms_per_block: Int = key(3, one_of=(3, 1), about="1: after the spatial conv (Sec. 2.6)")
    separate_downsampling: bool = key(False, about="a conv of its own between the stages (Sec. 2.6)")
    grn: bool = key(False, about="global response normalisation before the last 1x1 conv (V2, arXiv 2301.00808)")
    # Recipe values that live in the net.
    layer_scale: Float | None = key(None, gt=0, le=10, about="initial value; null leaves it out")
    drop_path: Float = key(0.0, ge=0, le=0.99, evaluation=False, about="stochastic depth of the last block, from 0 up")
    init: Init = key(Init.kaiming, evaluation=False, about="how the weights are initialised")
    # What the paper leaves open, explained in docs/fidelity.md: our reading is the default, the other one an override.
    stem_norm: bool = key(True, about="reading 1: a norm follows the stem's conv, also after patchify")
    stem_activation: When = key(When.auto, about="reading 1; auto: goes with activations_per_block=1")
    projection_norm: bool = key(True, about="reading 2: the 1x1 shortcut projection has a norm, of the current kind")
    residual_activation: When = key(When.auto, about="reading 3: after the addition; auto: as stem_activation")
    head_norm: When = key(When.auto, about="reading 4: after the pooling; auto: enters with separate_downsampling")
    stride_on: StrideOn = key(StrideOn.spatial, about="reading 6: the conv that carries a block's stride")
    conv_bias: When = key(When.auto, about="reading 7; auto: a conv has a bias unless a BatchNorm follows it")
    batch_norm_eps: Float = key(1e-5, gt=0, le=1, needs=("model.norm", "batch_norm"))
    layer_norm_eps: Float = key(1e-6, gt=0, le=1, needs=("model.norm", "layer_norm"))
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
        for name, wanted in (("inverted", True), ("activations_per_block", 1)):
            if self.grn and (value := getattr(self, name)) != wanted:
                raise ConfigError(
                    f"model.grn=true with model.{name}={shown(value)}: it follows the only activation of an "
                    f"inverted bottleneck, model.{name}={shown(wanted)}"
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
            shapes = f"model.depths={list(depths)} and model.width={width}"
            raise ConfigError(f"model.reference={reference}: comes with {shapes} only")

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
