"""The image sets: one row each, with everything that is known of a set before it is read.

How a set's images are cut and normalised is said in its file in `conf/data/`. A new set is a row here and such a file.
A user's own set needs no row, only `data.kind` and `data.root`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from roadmap.errors import ConfigError
from roadmap.text import check_name, nearest

SPLITS = ("train", "val")


class DataKind(StrEnum):
    """How the images of a set are kept."""

    memory = "memory"  # read as a whole by a loader of `roadmap.data.in_memory`
    folders = "folders"  # train/<class>/*.jpg and val/<class>/*.jpg, read image by image
    npz = "npz"  # train.npz and val.npz, each with arrays `images` and `labels`; read as a whole


@dataclass(frozen=True)
class Archive:
    """A public archive of a set: where it is, the MD5 sum of the file, and the folder in it."""

    url: str
    md5: str
    folder: str


@dataclass(frozen=True)
class DataSet:
    """What is known of a set before it is read; None, or empty, where only the files know."""

    title: str  # as it is written for people
    kind: DataKind
    num_classes: int | None = None
    num_images: Mapping[str, int] = field(default_factory=dict)  # of `train` and `val`
    image_size: int | None = None  # loader=idx: of the files, pixels
    loader: str = ""  # kind=memory: its function in `roadmap.data.in_memory`
    classes: tuple[str, ...] = ()  # their names in the order of the labels
    classes_sha256: str = ""  # kind=folders: of the sorted names of the class folders, one a line
    subfolder: str = ""  # kind=folders: where train and val may lie under `data.root`, a pattern
    needs_root: bool = True  # false: it comes with the packages, or is made up
    torchvision: str = ""  # its class in torchvision.datasets, which knows files, sums and where they are fetched
    archive: Archive | None = None  # where it is fetched, if torchvision does not know
    caution: str = ""  # what must be said of an accuracy on it

    @property
    def in_memory(self) -> bool:
        """Whether the images are held in memory, and not read one by one."""
        return self.kind != DataKind.folders

    @property
    def can_be_fetched(self) -> bool:
        """Whether `data.download=true` knows where the set is."""
        return bool(self.torchvision or self.archive)

    @property
    def is_small(self) -> bool:
        """Whether the set is known to be far smaller than ImageNet."""
        return 0 < self.num_images.get("train", 0) < 100_000 and not self.caution


def counts(train: int, val: int) -> dict[str, int]:
    """Return the numbers of images by split."""
    return {"train": train, "val": val}


FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DATA_SETS = {
    "digits": DataSet("digits", DataKind.memory, 10, counts(1437, 360), loader="digits", needs_root=False),
    "fashion_mnist": DataSet(
        "Fashion-MNIST",
        DataKind.memory,
        10,
        counts(60_000, 10_000),
        image_size=28,
        loader="idx",
        classes=FASHION,
        torchvision="FashionMNIST",
    ),
    "cifar10": DataSet("CIFAR-10", DataKind.memory, 10, counts(50_000, 10_000), loader="cifar", torchvision="CIFAR10"),
    "cifar100": DataSet(
        "CIFAR-100", DataKind.memory, 100, counts(50_000, 10_000), loader="cifar", torchvision="CIFAR100"
    ),
    "imagenette": DataSet(
        "Imagenette",
        DataKind.folders,
        10,
        counts(9_469, 3_925),
        classes_sha256="7fd320a0db9278e1d61bad4b60fa16be117f8d8adcfe4d03fb5c95672bae6033",
        subfolder="imagenette2*",
        archive=Archive(  # fast.ai's, short side 320; torchvision keeps address and sum in a private table
            "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
            "3df6f0d01a2c9592104656642f5e78a3",
            "imagenette2-320",
        ),
    ),
    "imagenet": DataSet(
        "ImageNet-1K",
        DataKind.folders,
        1000,
        counts(1_281_167, 50_000),
        classes_sha256="385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd",
        subfolder="imagenet",
    ),
    "imagefolder": DataSet("imagefolder", DataKind.folders),
    "synthetic": DataSet(
        "synthetic images",
        DataKind.memory,
        1000,
        counts(2048, 512),
        loader="synthetic",
        needs_root=False,
        caution="synthetic images: the accuracy means nothing",
    ),
}


def find(name: str, kind: str | None = None) -> DataSet:
    """Return what is known of the set that `data.name` and `data.kind` mean; for a user's own set, its kind alone.

    Raises ConfigError for an unknown name without a kind, and for another kind than the set has.
    """
    known = DATA_SETS.get(name)
    if known is None and kind is None:
        raise ConfigError(
            f"data.name={name}: there is no such set; {nearest(name, DATA_SETS)}; "
            "a set of your own needs data.kind=folders or npz"
        )
    if known is None:
        check_name("data.name", name)
        # In memory, a set without a row has the loader of its name.
        return DataSet(name, DataKind(str(kind)), loader=name, needs_root=kind != DataKind.memory)
    if kind not in (None, known.kind):
        raise ConfigError(
            f"data.kind={kind}: data.name={name} is of kind {known.kind}; a set of your own needs another name"
        )
    return known


def title(name: str) -> str:
    """Return a set's name as it is written for people."""
    return DATA_SETS[name].title if name in DATA_SETS else name
