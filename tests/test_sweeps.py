"""The studies in `sweeps/`: every cell composes, has a place of its own, and the files say truly what they hold."""

import math
import re

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from roadmap.runs.run_dir import run_path
from roadmap.steps.compose import compose, validate
from roadmap.steps.tree import CONF, step_tree

SWEEPS = CONF.parent / "sweeps"
NAMES = sorted(path.stem for path in SWEEPS.glob("*.yaml"))
NETS = [step for step in step_tree() if step != "swin"]


def cells(name):
    """Compose every cell of a study, as Hydra's sweeper would."""
    with initialize_config_dir(str(SWEEPS), version_base="1.3"):
        where = [f"hydra.searchpath=[file://{CONF}]"]
        params = hydra_compose(name, where, return_hydra_config=True).hydra.sweeper.params
        lists = [[""]]
        for key, values in params.items():
            override = OverridesParser.create().parse_override(f"{key}={values}")
            options = (
                [f"{key}={v}" for v in override.sweep_string_iterator()]
                if override.is_sweep_override()
                else [f"{key}={values}"]
            )
            lists = [[*words, option] for words in lists for option in options]
        for words in lists:
            cfg = hydra_compose(name, [*where, *words[1:]], return_hydra_config=True)
            yield validate(cfg, dict(cfg.hydra.runtime.choices), words[1:], [CONF])


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_is_legal_and_has_a_place_of_its_own(name):
    configs = list(cells(name))
    head = " ".join(line for line in (SWEEPS / f"{name}.yaml").read_text().splitlines() if line.startswith("#"))
    assert f"-cn {name}" in head
    assert int(re.search(r"(\d+) runs", head)[1]) == len(configs)
    assert {config.study for config in configs} == {name}
    assert len({run_path(config) for config in configs}) == len(configs)
    assert all(config.cell == config.step + (f"+{config.variant}" if config.variant else "") for config in configs)


@pytest.mark.parametrize(("name", "regime", "extra"), [
    ("demo", "nano", []), ("mini", "mini", []), ("roadmap_tiny", "tiny", ["swin"]), ("roadmap_base", "base", ["swin"]),
])  # fmt: skip
def test_roadmaps_hold_every_row_in_order(name, regime, extra):
    configs = list(cells(name))
    assert {config.regime.name for config in configs} == {regime}
    assert list(dict.fromkeys(config.step for config in configs)) == NETS + extra
    assert len(configs) == math.prod([len(NETS + extra), len({config.seed for config in configs})])


def test_every_design_study_is_a_file():
    assert {
        "roadmap_tiny",
        "roadmap_base",
        "kernel_size",
        "leave_one_out",
        "one_at_a_time",
        "recipe",
        "demo",
        "mini",
    } <= set(NAMES)


def test_the_recipe_study_changes_one_part_at_a_time():
    """Against the plain step: a part is one key, but for the optimizer, which brings its rate and decay."""
    plain = compose("separate_downsampling", "tiny").recipe.values()
    changed = {}
    for config in cells("recipe"):
        recipe = config.recipe.values()
        changed[config.variant] = {key: recipe[key] for key in plain if recipe[key] != plain[key]}
    assert changed.pop("without_adamw") == {
        "optimizer": "sgd", "lr": 0.1, "lr_batch_size": 256, "lr_scaling": "linear", "weight_decay": 1e-4,
    }  # fmt: skip
    assert changed == {
        "without_mixup": {"mixup": 0.0},
        "without_cutmix": {"cutmix": 0.0},
        "without_rand_augment": {"rand_augment": None},
        "without_random_erasing": {"random_erasing": 0.0},
        "without_label_smoothing": {"label_smoothing": 0.0},
        "without_stochastic_depth": {"drop_path": 0.0},
        "without_layer_scale": {"layer_scale": None},
        "with_90_epochs": {"epochs": 90},
    }
