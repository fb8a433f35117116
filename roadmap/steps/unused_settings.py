"""Settings that a user gave and that nothing will read, given the others: they are told, not passed over."""

from collections.abc import Callable, Iterable

from roadmap import catalog
from roadmap.config import Config
from roadmap.config.choices import Crop, LrScaling, Mode, Norm, Optimizer, Pipeline, Schedule

# A key, whether it is read, and what would have to be otherwise.
READ_WITH: dict[str, tuple[Callable[[Config], bool], str]] = {
    "recipe.momentum": (lambda c: c.recipe.optimizer == Optimizer.sgd, "recipe.optimizer=sgd"),
    "recipe.beta1": (lambda c: c.recipe.optimizer == Optimizer.adamw, "recipe.optimizer=adamw"),
    "recipe.beta2": (lambda c: c.recipe.optimizer == Optimizer.adamw, "recipe.optimizer=adamw"),
    "recipe.eps": (lambda c: c.recipe.optimizer == Optimizer.adamw, "recipe.optimizer=adamw"),
    "recipe.step_epochs": (lambda c: c.recipe.schedule == Schedule.step, "recipe.schedule=step"),
    "recipe.step_factor": (lambda c: c.recipe.schedule == Schedule.step, "recipe.schedule=step"),
    "recipe.min_lr": (lambda c: c.recipe.schedule == Schedule.cosine, "recipe.schedule=cosine"),
    "recipe.lr_batch_size": (lambda c: c.recipe.lr_scaling == LrScaling.linear, "recipe.lr_scaling=linear"),
    "recipe.mix_switch": (
        lambda c: c.recipe.mixup > 0 and c.recipe.cutmix > 0,
        "recipe.mixup and recipe.cutmix above 0",
    ),
    "recipe.interpolation": (
        lambda c: read_in_workers(c) or c.data.crop == Crop.resized or c.recipe.rand_augment is not None,
        "data.pipeline=reference, a set of class folders, data.crop=resized or recipe.rand_augment",
    ),
    "recipe.sync_batch_norm": (lambda c: c.model.norm == Norm.batch_norm, "a net with BatchNorm"),
    "recipe.init": (lambda c: c.model.reference is None, "a net of ours"),
    "recipe.layer_scale": (lambda c: c.model.reference is None, "a net of ours"),
    "data.padding": (lambda c: c.data.crop == Crop.pad, "data.crop=pad"),
    "data.workers": (lambda c: read_in_workers(c), "data.pipeline=reference or a set of class folders"),
    "data.decoder": (
        lambda c: c.data.pipeline == Pipeline.fast and not in_memory(c),
        "a set of class folders with data.pipeline=fast",
    ),
    **dict.fromkeys(
        ("fresh", "allow_drift", "devices", "compile", "cuda_graph"), (lambda c: c.mode != Mode.evaluate, "mode=train")
    ),
}


def in_memory(config: Config) -> bool:
    """Whether the images are held in memory, and not read one by one."""
    return catalog.find(config.data.name, config.data.kind).in_memory


def read_in_workers(config: Config) -> bool:
    """Whether images are prepared one by one before a batch is made of them."""
    return config.data.pipeline == Pipeline.reference or not in_memory(config) or config.data.resize_size is not None


def unused_settings(config: Config, overrides: Iterable[str]) -> list[str]:
    """Return a line for each override of a command line that changes nothing."""
    keys = [word.partition("=")[0].lstrip("+") for word in overrides]
    return [
        f"{key}: has no effect here, it needs {READ_WITH[key][1]}"
        for key in keys
        if key in READ_WITH and not READ_WITH[key][0](config)
    ]
