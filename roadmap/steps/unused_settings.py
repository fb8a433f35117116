"""What a user gave and would not expect: settings without effect, given the others, and a recipe without the lengths of
its scale. They are reported, not passed over silently."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hydra.conf import HydraConf

from roadmap.config import KEYS, Config, is_read
from roadmap.config.choices import Crop, Mode, Norm, Pipeline
from roadmap.errors import ConfigError
from roadmap.steps.cell_name import plain_values
from roadmap.steps.compose import compose_primary
from roadmap.steps.hydra_errors import HYDRA_ERRORS
from roadmap.steps.recorded import takes_a_run
from roadmap.steps.tree import CONF
from roadmap.text import flatten

OF_TRAINING = ("fresh", "allow_drift", "devices", "compile", "cuda_graph")
# Keys that depend on more than one other key (for those that depend on one, the schema has `needs`): whether the key is
# read, and what it needs.
READ_WITH: dict[str, tuple[Callable[[Config], bool], str]] = {
    "recipe.mix_switch": (
        lambda c: c.recipe.mixup > 0 and c.recipe.cutmix > 0,
        "recipe.mixup and recipe.cutmix above 0",
    ),
    "recipe.interpolation": (
        lambda c: read_in_workers(c) or c.data.crop == Crop.resized or c.recipe.rand_augment is not None,
        "data.pipeline=reference, a set of class folders, data.crop=resized or recipe.rand_augment",
    ),
    "recipe.warmup_lr": (lambda c: c.recipe.warmup_epochs > 0, "recipe.warmup_epochs above 0"),
    "recipe.sync_batch_norm": (lambda c: c.model.norm == Norm.batch_norm, "a net with BatchNorm"),
    "recipe.init": (lambda c: c.model.reference is None, "a net of ours"),
    "recipe.layer_scale": (lambda c: c.model.reference is None, "a net of ours"),
    "data.workers": (lambda c: read_in_workers(c), "data.pipeline=reference or a set of class folders"),
    "data.decoder": (
        lambda c: c.data.pipeline == Pipeline.fast and not c.data.known.in_memory,
        "a set of class folders with data.pipeline=fast",
    ),
    "data.val_images": (lambda c: not c.data.holdout, "data.holdout=0: the validation images are not read"),
    "data.holdout": (lambda c: c.mode != Mode.data_check, "mode=train or mode=evaluate: a check opens all images"),
    "data.class_order": (lambda c: not c.data.known.in_memory, "a set of class folders"),
    "initial_weights": (lambda c: c.mode == Mode.train, "mode=train"),
    "weights_key": (lambda c: bool(c.weights), "weights="),
    **dict.fromkeys(("images", "features"), (lambda c: c.mode == Mode.predict, "mode=predict")),
    "format": (lambda c: c.mode == Mode.export, "mode=export"),
    **dict.fromkeys(
        ("kernels", "device", "recipe.precision"),
        (lambda c: c.mode != Mode.export, "another mode: a net is exported in fp32, as torch computes it on a CPU"),
    ),
    "out": (lambda c: c.mode in (Mode.predict, Mode.export), "mode=predict or mode=export"),
    **dict.fromkeys(("scale", "debug"), (lambda c: not takes_a_run(c.mode, c.weights), "weights=FILE, not of a run")),
    **dict.fromkeys(OF_TRAINING, (lambda c: not c.mode.takes_a_net, "mode=train")),
}


def read_in_workers(config: Config) -> bool:
    """Whether images are prepared one by one before a batch is made of them."""
    data = config.data
    return data.pipeline == Pipeline.reference or not data.known.in_memory or data.resize_size is not None


def unused_settings(config: Config, overrides: Iterable[str]) -> list[str]:
    """Return a line for each override of a command line that has no effect."""
    values, lines = flatten(config.values()), []
    for name in (word.partition("=")[0].lstrip("+") for word in overrides):
        if name in KEYS and (needs := KEYS[name].needs) and not is_read(name, values):
            lines.append(f"{name}: has no effect here, it needs {'='.join(needs)}")
        elif name in READ_WITH and not READ_WITH[name][0](config):
            lines.append(f"{name}: has no effect here, it needs {READ_WITH[name][1]}")
    return lines


def variant_without_effect(config: Config, hydra: HydraConf) -> Iterator[str]:
    """Yield a line for a variant that changes nothing of its step. Hydra must be initialised still."""
    words = [word for word in hydra.overrides.task if word.partition("=")[0].lstrip("+") != "variant"]
    with suppress(ConfigError, *HYDRA_ERRORS):  # a step that only its variant makes legal is changed by it
        if len(words) < len(hydra.overrides.task):
            plain = Config(**plain_values(compose_primary(str(hydra.job.config_name), words)))
            if all(getattr(plain, name) == getattr(config, name) for name in ("model", "recipe", "data")):
                yield f"+variant={config.variant}: changes nothing of {config.step}"


def recipe_without_lengths(config: Config, choices: Mapping[str, str | None], folders: Sequence[Path]) -> Iterator[str]:
    """Yield a line for a recipe of the user's own that keeps its lengths in a scale that shortens ours."""
    recipe, scale = choices.get("recipe"), choices.get("scale")

    def has_lengths(name: str | None) -> bool:
        return any((folder / "tune" / f"{scale}_{name}.yaml").is_file() for folder in folders)

    if not (CONF / "recipe" / f"{recipe}.yaml").is_file() and has_lengths("enhanced") and not has_lengths(recipe):
        lengths = f"recipe.epochs={config.recipe.epochs} recipe.batch_size={config.recipe.batch_size}"
        yield f"recipe={recipe}: has {lengths}; tune/{scale}_{recipe}.yaml would set its lengths in scale={scale}"
