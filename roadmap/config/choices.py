"""The words a config may choose from. `roadmap.config` uses them as types; the code maps each to what it does."""

from enum import StrEnum


class Stem(StrEnum):
    """What turns the image into the first feature map (Sec. 2.2)."""

    resnet = "resnet"  # 7x7 conv, stride 2, then a 3x3 max-pool, stride 2
    patchify = "patchify"  # 4x4 conv, stride 4


class Activation(StrEnum):
    """The non-linearity of every block (Sec. 2.6)."""

    relu = "relu"
    gelu = "gelu"


class Norm(StrEnum):
    """The normalisation of every block (Sec. 2.6)."""

    batch_norm = "batch_norm"
    layer_norm = "layer_norm"


class Init(StrEnum):
    """How the weights are initialised: kaiming-normal (ResNet) or truncated normal with std 0.02 (Table 5)."""

    kaiming = "kaiming"
    trunc_normal = "trunc_normal"


class When(StrEnum):
    """Whether something is in: `auto` is our reading or choice, the others force it in or out."""

    auto = "auto"
    always = "always"
    never = "never"


class StrideOn(StrEnum):
    """Which convolution of a block carries the stride."""

    spatial = "spatial"
    pointwise = "pointwise"


class Reference(StrEnum):
    """Nets for comparison that are not built from toggles (torchvision's)."""

    swin_t = "swin_t"
    swin_b = "swin_b"


class Optimizer(StrEnum):
    """The optimizers of the two recipes."""

    sgd = "sgd"
    adamw = "adamw"


class Schedule(StrEnum):
    """How the learning rate falls after the warm-up."""

    cosine = "cosine"
    step = "step"


class LrScaling(StrEnum):
    """Whether the learning rate follows a batch size other than the one it is stated for."""

    none = "none"
    linear = "linear"


class Precision(StrEnum):
    """Number format of forward and backward; `auto` is bf16 autocast on a GPU that has it, else fp32."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"  # with loss scaling


class Interpolation(StrEnum):
    """How images are resized."""

    bicubic = "bicubic"
    bilinear = "bilinear"


class RecipeName(StrEnum):
    """The two training recipes of the roadmap, and that of its reference."""

    original = "original"
    enhanced = "enhanced"
    swin = "swin"


class Crop(StrEnum):
    """How a training image is cut out."""

    none = "none"  # the whole image
    pad = "pad"  # zero padding of `data.padding` pixels, then a random window
    resized = "resized"  # random resized crop: 8 to 100 % of the area, aspect 3/4 to 4/3


class ClassOrder(StrEnum):
    """The order of class folders, from which their labels follow: 1, 10, 2 as text, and 1, 2, 10 by number."""

    text = "text"  # torchvision's ImageFolder
    numeric = "numeric"


class Pipeline(StrEnum):
    """Where images are prepared: one by one as in the official code, or in batches of tensors on the device."""

    reference = "reference"
    fast = "fast"


class Decoder(StrEnum):
    """What decodes the JPEGs of class folders for the fast pipeline.

    `auto` is always the CPU: its bytes are Pillow's, and a result must depend on the config, not on which of them is
    fastest on a machine. `nvjpeg` is for few cores per GPU, `both` for many.
    """

    auto = "auto"
    cpu = "cpu"  # libjpeg, in `data.workers` processes
    nvjpeg = "nvjpeg"  # on the GPU; its bytes differ a little
    both = "both"  # nvJPEG for images with an even id, libjpeg for the others

    @property
    def needs_gpu(self) -> bool:
        """Tell whether a GPU decodes images."""
        return self in (Decoder.nvjpeg, Decoder.both)


class Mode(StrEnum):
    """What `run.py` does with the config."""

    train = "train"
    evaluate = "evaluate"  # score weights: `weights=FILE`, or a run directory
    predict = "predict"  # name the likeliest classes of images, and write their features
    export = "export"  # write the net for other programs
    data_check = "data_check"  # open every image and count, before it costs; needs no step

    @property
    def takes_a_net(self) -> bool:
        """Whether it uses a trained net unchanged; for a run, with all its settings."""
        return self in (Mode.evaluate, Mode.predict, Mode.export)


class ExportFormat(StrEnum):
    """What `mode=export` writes."""

    onnx = "onnx"
    torch_export = "torch_export"  # torch.export.load reads it


class Device(StrEnum):
    """Where the run computes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Kernels(StrEnum):
    """Which forms of its operations the net trains with (`roadmap.net.kernels`); they differ in rounding."""

    auto = "auto"  # those that were measured to win on this device
    plain = "plain"  # torch's own
    fast = "fast"  # every one that can run on this device


class WandbMode(StrEnum):
    """`auto` is online where a login is found, else offline."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


class WandbCheckpoints(StrEnum):
    """Which checkpoint of a finished run goes to W&B."""

    none = "none"
    last = "last"
    best = "best"
