"""The schema of the images."""

from pydantic import model_validator

from roadmap import catalog
from roadmap.catalog import DataKind, DataSet
from roadmap.config.choices import ClassOrder, Crop, Decoder, Pipeline
from roadmap.config.fields import Affects, Float, Int, Section, Text, key, shown
from roadmap.errors import ConfigError

MAX_CLASSES = 1_000_000
Colours = tuple[Float, Float, Float]


class DataConfig(Section):
    """The images: where they are and how they are cut; each set names its own flip, crop, mean and standard
    deviation."""

    prefix = "data."

    name: Text = key("digits", evaluation=True)
    kind: DataKind | None = key(
        None, evaluation=True, about="of your own set: how its images are stored; null: as known for the name"
    )
    root: Text | None = key(
        None, affects=Affects.place, evaluation=True, local=True, about="folder of the images; else ROADMAP_DATA"
    )
    download: bool = key(False, affects=Affects.place, evaluation=True, local=True, about="fetch a set into `root`")
    num_classes: Int | None = key(None, ge=2, le=MAX_CLASSES, about="null: counted from the class folders")
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
        about="processes per device that prepare images: of class folders, and of any set with pipeline=reference",
    )  # fmt: skip
    decoder: Decoder = key(Decoder.auto, about="of class folders with pipeline=fast")
    train_images: Int | None = key(
        None, ge=2, le=100_000_000, about="synthetic: how many; others: the first of a fixed shuffle"
    )
    val_images: Int | None = key(None, ge=2, le=100_000_000, evaluation=True)
    holdout: Float = key(
        0.0, ge=0, le=0.9, evaluation=True,
        about="share of the training images, class by class, evaluated in place of the validation images",
    )  # fmt: skip

    @property
    def known(self) -> DataSet:
        """Return what the catalog knows of the set."""
        return catalog.find(self.name, self.kind)

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        catalog.find(self.name, self.kind)
        if min(self.std) <= 0:
            raise ConfigError(f"data.std={shown(self.std)}: must be a list of three finite numbers above 0")
        if self.resize_size is not None and self.resize_size < self.image_size:
            least = f"data.image_size={self.image_size}"
            raise ConfigError(f"data.resize_size={self.resize_size}: must be at least {least}")
        return self
