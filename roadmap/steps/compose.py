"""The steps: their tree, and how a step of a regime becomes a validate `Config`.

`compose` is for Python, tests and the table; `run.py` lets Hydra compose and calls `checked` on the result.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from roadmap.config.choices import Mode
from roadmap.config.schema import Config
from roadmap.errors import ConfigError
from roadmap.steps.cell_name import cell_name
from roadmap.steps.hydra_errors import DERIVED, HYDRA_ERRORS, plain_error
from roadmap.steps.hydra_guard import check_config_dirs, check_overrides
from roadmap.steps.tree import CONF, regimes, step_folders, step_tree
from roadmap.text import check_name, nearest


def compose(
    step: str, regime: str = "nano", overrides: Sequence[str] = (), config_dir: str | Path | None = None
) -> Config:
    """Compose one step of one regime, at the regime's own scale unless an override chooses another.

    `config_dir` is a folder with steps, variants or data sets of one's own. Raises ConfigError.
    """
    folders = step_folders(config_dir)
    check_overrides([f"+step={step}", *overrides])
    check_config_dirs(folders, CONF)
    known = regimes()
    if regime not in known:
        raise ConfigError(f"regime={regime}: there is no such regime; {nearest(regime, known)}")
    given = {o.split("=")[0].lstrip("+~") for o in overrides}
    lines = [f"+step={step}", f"regime={regime}"]
    lines += [] if "scale" in given else [f"scale={known[regime]}"]
    lines += [f"hydra.searchpath=[file://{folders[0]}]"] if config_dir else []
    lines += overrides
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra_compose("config", lines, return_hydra_config=True)
        choices = dict(cfg.hydra.runtime.choices)
        return validate(cfg, choices, list(overrides), folders)
    except HYDRA_ERRORS as error:
        raise ConfigError(plain_error(error, folders)) from None


def validate(cfg: DictConfig, choices: Mapping[str, Any], overrides: Sequence[str], folders: Sequence[Path]) -> Config:
    """Turn what Hydra composed into a `Config` that can be run, and name it.

    `choices` are Hydra's (`hydra.runtime.choices`), `overrides` those of the command line. `mode=data_check` needs no step, and
    stays without a name. Raises ConfigError and OmegaConf's errors (for `explain`).
    """
    tree, debug = step_tree(folders), choices.get("debug")
    known = [path.stem for folder in folders for path in (folder / "debug").glob("*.yaml")]
    if debug is not None and debug not in known:
        raise ConfigError(f"debug={debug}: there is no such debug; {nearest(str(debug), known)}")
    name = choices.get("step")
    if name is None and cfg.get("mode") != Mode.data_check:
        raise ConfigError(f"no step: say +step=NAME; {nearest('', tree)}")
    if name is not None and name not in tree:
        raise ConfigError(f"+step={name}: one step at a time; {nearest(str(name), tree)}")
    values = OmegaConf.to_container(_without_hydra(cfg), resolve=True)
    assert isinstance(values, dict)
    for key in DERIVED:
        if key in values:
            why = (
                "its file must begin with: # @package _global_"
                if isinstance(values[key], dict)
                else "is derived, and cannot be set"
            )
            raise ConfigError(f"{key}={values[key]}: {why}")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), values))
    assert isinstance(config, Config)
    if name is None:  # a data check concerns the images only, and leaves no run directory
        return config
    step, variant = tree[str(name)], choices.get("variant")
    config.step, config.variant = step.name, variant
    config.parent, config.label, config.adopted = step.parent, step.label(config.regime.name), step.adopted
    config.cell = cell_name(config, choices, overrides)
    for key, value in (
        ("step", config.step),
        ("variant", config.variant),
        ("study", config.study),
        ("regime", config.regime.name),
    ):
        if value is not None:
            check_name(key, value)
    return config


def _without_hydra(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
