"""How a step of a regime becomes a checked `Config`.

`compose` is for Python, tests and the table; `run.py` lets Hydra compose and calls `validate` on the result.
"""

import signal
import threading
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose as hydra_compose
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.conf import HydraConf
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import setup_globals
from omegaconf import DictConfig, OmegaConf

from roadmap.config import KEYS, Config
from roadmap.config.choices import Mode
from roadmap.config.fields import shown
from roadmap.config.schema import DERIVED, WEIGHTS
from roadmap.errors import ConfigError
from roadmap.files import expand
from roadmap.runs.weights_source import check_initial_weights, library_weights, name_initial_weights
from roadmap.steps.cell_name import cell_name, plain_values, variant_name
from roadmap.steps.config_files import check_config_dirs
from roadmap.steps.hydra_errors import HYDRA_ERRORS, HYDRA_RESOLVERS, file_of_unknown_key, plain_error
from roadmap.steps.hydra_guard import check_overrides
from roadmap.steps.recorded import config_of_run, takes_a_net, takes_a_run
from roadmap.steps.tree import CONF, Step, regimes, step_folders, step_tree
from roadmap.text import check_name, flatten, nearest


def compose(
    step: str, regime: str = "nano", overrides: Sequence[str] = (), config_dir: str | Path | None = None
) -> Config:
    """Compose one step of one regime, at the regime's own scale unless an override chooses another.

    `config_dir` is a folder with configs of the user's own, as run.py takes one with -cd. Raises ConfigError.
    """
    folders = step_folders(config_dir)
    check_overrides([f"+step={step}", *overrides], folders)
    check_config_dirs(folders, CONF)
    step_tree(folders)  # a circle of parents would be followed without end
    known = regimes(folders)
    if regime not in known:
        raise ConfigError(f"regime={regime}: there is no such regime; {nearest(regime, known)}")
    given = {o.split("=")[0].lstrip("+~") for o in overrides}
    try:
        with hydra_initialized(folders[0]):
            scale = [] if "scale" in given else [f"scale={known[regime] or _inherited_scale(regime)}"]
            cfg = compose_primary("config", [f"+step={step}", f"regime={regime}", *scale, *overrides])
            return validate(cfg, cfg.hydra, folders)
    except HYDRA_ERRORS as error:
        raise ConfigError(plain_error(error, folders)) from None


def _inherited_scale(regime: str) -> str:
    """Return the scale of a regime whose file begins with another one's. Hydra must be initialised."""
    return str(compose_primary("config", [f"regime={regime}"]).regime.get("scale", KEYS["regime.scale"].default))


COMPOSE_S = 10.0  # a config takes a tenth


class _TooLong(BaseException):
    """Of the timer alone: libraries catch every Exception."""


@contextmanager
def bounded_time() -> Iterator[None]:
    """Raise ConfigError where composing computes longer than that: references within references can double what they
    stand for without end. In the main thread alone, where Python takes signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> NoReturn:
        raise _TooLong

    before = signal.signal(signal.SIGVTALRM, stop)
    left = signal.setitimer(signal.ITIMER_VIRTUAL, COMPOSE_S, COMPOSE_S)  # again: Python drops what a destructor raises
    try:
        yield
    except _TooLong:
        why = "do its values refer to each other?"
        raise ConfigError(f"the config takes more than {COMPOSE_S:g} s to compose: {why}") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, *left)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def without_clock() -> Iterator[None]:
    """Let no value refer to what changes from start to start, the clock and the number of a job: Hydra's resolvers are
    away meanwhile. The same command finds the same run."""
    for name in HYDRA_RESOLVERS:
        OmegaConf.clear_resolver(name)
    try:
        yield
    finally:
        setup_globals()


def accept_lazy_help() -> None:
    """Let Hydra make its parser on Python 3.14 and later, where argparse reads each help text at once: one of Hydra's
    is no text. Nobody sees it, since our own help is shown in its stead."""
    if hasattr(ArgumentParser, "_check_help"):
        ArgumentParser._check_help = lambda *_: None


@contextmanager
def hydra_initialized(folder: Path) -> Iterator[None]:
    """Let Hydra compose as `python run.py -cd FOLDER` does; its own `initialize_config_dir` takes one folder."""
    version.setbase("1.3")
    path = create_config_search_path(str(CONF))
    path.prepend("command-line", f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2(task_name="study", config_search_path=path)
    try:
        yield
    finally:
        GlobalHydra.instance().clear()


def compose_primary(primary: str, overrides: Sequence[str]) -> DictConfig:
    """Return what Hydra makes of a primary file and overrides, its own settings included. Hydra must be initialised."""
    with bounded_time():
        return hydra_compose(primary, list(overrides), return_hydra_config=True)


def validate(
    cfg: DictConfig,
    hydra: HydraConf,
    folders: Sequence[Path],
    compose_plain: Callable[[str, Sequence[str]], DictConfig] = compose_primary,
) -> Config:
    """Turn what Hydra composed into a `Config` that can be run, and name it.

    `hydra` are Hydra's own settings, which must be initialised still; `folders` the config folders; `compose_plain`
    composes the plain step that the name compares with. `mode=data_check` needs no step, and gets no name. Raises
    ConfigError, DataError for `weights` that cannot be read, and OmegaConf's errors (for `plain_error`).
    """
    with without_clock():
        step, of_run = _chosen_step(cfg, hydra.runtime.choices, folders)
        _check_names(cfg, hydra.runtime.choices, folders)
        values = _values(cfg)
    if of_run and flatten(values).keys() <= KEYS.keys():
        return config_of_run(flatten(values), hydra)
    try:
        config = Config(**values)
    except ConfigError as error:
        if path := file_of_unknown_key(values, hydra.overrides.task, folders):
            raise ConfigError(f"{path}: {error}") from None
        raise
    if step is None:  # a data check concerns the images only, and leaves no run directory
        return config
    config.step, config.variant = step.name, variant_name(hydra)
    config.parent, config.label, config.adopted = step.parent, step.label(config.regime.name), step.adopted
    for key, value in {"step": config.step, "study": config.study, "regime": config.regime.name}.items():
        check_name(key, value)
    if config.mode == Mode.train and config.weights:
        # If their name is given, the weights themselves may be gone by now.
        weights = config.initial_weights or name_initial_weights(config.weights, config.weights_key)
        config.initial_weights = check_initial_weights(weights)
    config.cell = cell_name(config, cfg, hydra, lambda words: compose_plain(str(hydra.job.config_name), words))
    return config


def _chosen_step(
    cfg: DictConfig, choices: Mapping[str, str | None], folders: Sequence[Path]
) -> tuple[Step | None, bool]:
    """Return the step that was chosen, if any, and whether a run of ours in `weights` says everything."""
    tree, name, debug = step_tree(folders), choices.get("step"), choices.get("debug")
    known = [path.stem for folder in folders for path in (folder / "debug").glob("[!.]*.yaml")]
    if debug is not None and debug not in known:
        raise ConfigError(f"debug={debug}: there is no such debug; {nearest(debug, known)}")
    mode, weights = cfg.get("mode", Mode.train), cfg.get("weights")
    of_run = takes_a_run(mode, weights)
    if name is None and takes_a_net(mode) and weights and not library_weights(str(weights)):
        of_run |= not expand(str(weights)).exists()  # whose reading will say so
    if name is None and mode not in list(Mode):
        raise ConfigError(f"mode={shown(mode)}: must be {KEYS['mode'].allowed}")
    if name is None and takes_a_net(mode) and not weights:
        raise ConfigError(f"mode={mode}: needs weights={WEIGHTS['weights']}")
    if name is None and mode != Mode.data_check and not of_run:
        unknown = next((str(key) for key in cfg if key not in {"hydra", *Config.model_fields}), None)
        if unknown is not None:  # +stp=gelu
            raise ConfigError(f"{unknown}: there is no such key; {nearest(unknown, Config.settable())}")
        raise ConfigError(f"no step: give +step=NAME; {nearest('', tree)}")
    if name is not None and name not in tree:
        raise ConfigError(f"+step={name}: one step at a time; {nearest(name, tree)}")
    return tree[name] if name else None, of_run


def _values(cfg: DictConfig) -> dict[str, Any]:
    """Return the values of a composed config. Raises ConfigError for one that only we may set."""
    with bounded_time():
        values = plain_values(cfg)
    for key in filter(values.__contains__, DERIVED):
        if isinstance(values[key], dict):
            raise ConfigError(f"{key}={values[key]}: its file must begin with: # @package _global_")
        raise ConfigError(f"{key}={values[key]}: is derived, and cannot be set")
    return values


def _check_names(cfg: DictConfig, choices: Mapping[str, str | None], folders: Sequence[Path]) -> None:
    """Raise ConfigError for a chosen file without a name, for which the schema's default would be another's."""
    for group in ("regime", "data", "recipe"):
        if not isinstance(body := cfg.get(group), DictConfig) or "name" in body:
            continue
        chosen = str(choices.get(group))
        name = f"{group}/{chosen}.yaml"
        path = next((path for folder in folders if (path := folder / name).is_file()), name)
        missing = [f"name: {KEYS['recipe.name'].allowed if group == 'recipe' else chosen}"]
        missing += ["kind: folders (or npz)"] if group == "data" and body.get("kind") is None else []
        raise ConfigError(f"{path}: lacks {' and '.join(missing)}")
