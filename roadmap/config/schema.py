"""The schema of a run: every key with its type, range, default and meaning, and what it affects.

`steps.validate` turns a composed config into a `Config`; the net, the data and the training take the parts they need.
A default is what the code did before the key was there, for ever: what is new is switched on in `conf/`.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import field_validator

from roadmap.config.choices import Device, ExportFormat, Kernels, Mode, WandbCheckpoints, WandbMode, When
from roadmap.config.fields import Affects, Float, Int, Key, Section, Text, key, keys, section, shown
from roadmap.config.images import DataConfig
from roadmap.config.recipe import RecipeConfig
from roadmap.config.toggles import NetConfig, RegimeConfig
from roadmap.errors import ConfigError
from roadmap.text import flatten

SMALL_IMAGE = 64  # pixels


class PathsConfig(Section):
    """Where runs are kept: `paths.runs`, else ROADMAP_RUNS, else `runs`."""

    prefix = "paths."
    affects = Affects.place
    evaluation = local = True

    runs: Text = key("runs", about="the folder of all runs; where it is not given, ROADMAP_RUNS")

    @field_validator("runs")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():  # as of a variable that is not set: runs would lie in the current folder
            raise ConfigError(f"paths.runs={value}: must name a folder")
        return value


class WandbConfig(Section):
    """Weights & Biases."""

    prefix = "wandb."
    affects = Affects.place
    local = True

    mode: WandbMode = key(WandbMode.auto, about="auto: online where a login is found, else offline")
    project: Text = "convnext-roadmap"
    entity: Text | None = None
    checkpoints: WandbCheckpoints = key(
        WandbCheckpoints.none, about="of a finished run, sent as an artifact; of an offline run by make sync"
    )


class CheckpointConfig(Section):
    """When training can be resumed from."""

    prefix = "checkpoint."
    affects = Affects.place
    local = True

    every_min: Float = key(10.0, ge=0, le=100_000, about="minutes between checkpoints within an epoch")
    keep: Int = key(2, ge=2, le=1000, about="newest checkpoints kept, besides the best")


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
    weights: Text | None = key(
        None, evaluation=True, about="a file, a run directory, torchvision:NAME or timm:NAME; training starts from them"
    )
    weights_key: Text | None = key(None, evaluation=True, about="of several weights in a file: which (model_ema, ...)")
    initial_weights: Text | None = key(
        None,
        affects=Affects.result,
        about="what training starts from: sha256 of the file in `weights`, or a library's name",
    )
    images: Text | None = key(None, evaluation=True, cells=False, about="of mode=predict: an image, or a folder")
    features: bool = key(False, evaluation=True, cells=False, about="mode=predict writes what the last layer is given")
    format: ExportFormat | None = key(None, evaluation=True, cells=False, about="of mode=export")
    out: Text | None = key(None, evaluation=True, cells=False, about="the file that mode=predict or export writes")
    device: Device = key(Device.auto, evaluation=True, local=True)
    devices: Text = key("auto", local=True, about="how many of this node: auto is all its GPUs, or one CPU process")
    compile: Text = key(
        "auto", affects=Affects.rounding, one_of=("auto", "true", "false"),
        about="auto: torch.compile on a GPU, for large images and for rows that are compiled while another trains",
    )  # fmt: skip
    cuda_graph: When = key(When.auto, affects=Affects.rounding, about="optimizer steps as CUDA graphs")
    kernels: Kernels = key(Kernels.auto, affects=Affects.rounding, evaluation=True, about="forms of operations")
    start_timeout_s: Float = key(600.0, ge=1, le=86_400, local=True, about="until all ranks have listed the images")
    comm_timeout_s: Float = key(
        120.0, ge=1, le=86_400, local=True, about="from then on: a rank that is silent for so long is lost"
    )
    dry: bool = key(False, evaluation=True, cells=False, about="print what the run would be, and do nothing")
    fresh: bool = key(False, cells=False, about="start over: an earlier run directory is moved aside, never deleted")
    allow_drift: bool = key(
        False, about="resume although code, images, precision or number of devices have changed; the report shows it"
    )
    regime: RegimeConfig = section(RegimeConfig)
    model: NetConfig = section(NetConfig)
    recipe: RecipeConfig = section(RecipeConfig)
    data: DataConfig = section(DataConfig)
    paths: PathsConfig = section(PathsConfig)
    wandb: WandbConfig = section(WandbConfig)
    checkpoint: CheckpointConfig = section(CheckpointConfig)

    @property
    def has_large_images(self) -> bool:
        """Tell whether launching a step's kernels on a GPU takes less time than computing them does."""
        return self.data.image_size > SMALL_IMAGE

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

    def check_mode(self) -> None:
        """Raise ConfigError if the mode lacks a key that it needs, or has one that it does not take."""
        for name, value in NEEDED.get(self.mode, {}).items():
            if not getattr(self, name):
                raise ConfigError(f"mode={self.mode}: needs {name}={value}")
        if self.weights and self.mode == Mode.data_check:
            raise ConfigError(f"weights={shown(self.weights)}: mode=data_check takes no weights")
        if self.initial_weights and not self.weights:
            raise ConfigError(f"initial_weights={shown(self.initial_weights)}: needs weights= too")
        for name, value in flatten(self.values()).items() if self.mode == Mode.train else ():
            if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):  # of a path's bytes
                raise ConfigError(f"{name}={shown(value)}: is not UTF-8, and config.yaml cannot hold it; a link can")


WEIGHTS = {"weights": "FILE, or weights= one of our run directories"}
NEEDED = {  # by mode: keys without which it has nothing to do, and what they may be
    Mode.evaluate: WEIGHTS,
    Mode.predict: WEIGHTS | {"images": "FILE or FOLDER"},
    Mode.export: WEIGHTS | {"format": " or ".join(ExportFormat)},
}
DERIVED = ("step", "variant", "cell", "parent", "label", "adopted")  # written by `steps.validate`, never by a user
KEYS: dict[str, Key] = keys(Config)


def is_read(name: str, values: Mapping[str, Any]) -> bool:
    """Tell whether anything reads a key, given the others: `values` are a config by dotted key, or its texts."""
    needs = KEYS[name].needs
    return needs is None or str(values.get(needs[0], KEYS[needs[0]].default)) == needs[1]


def defaults() -> dict[str, Any]:
    """Return the default of every dotted key: what a record that lacks the key was made with."""
    return {name: key.default for name, key in KEYS.items()}
