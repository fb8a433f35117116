"""The studies in `sweeps/`: every cell composes, has a directory of its own, and the files say truly what they hold."""

import re
from functools import cache

import pytest

from roadmap import paper
from roadmap.runs.run_dir import run_path
from roadmap.steps.compose import compose
from roadmap.sweep.study import RULES, SWEEPS, read_study

NAMES = sorted(path.stem for path in SWEEPS.glob("*.yaml") if path.stem not in RULES)
NETS = [step for step in paper.order() if step != "swin"]


@cache
def configs(name):
    """Return the config of every cell of a study, composed once for all tests."""
    study = read_study(name)
    assert not study.left_out
    return [cell.config for cell in study.cells]


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_is_legal_and_has_a_directory_of_its_own(name):
    found = configs(name)
    head = " ".join(line for line in (SWEEPS / f"{name}.yaml").read_text().splitlines() if line.startswith("#"))
    assert f"-cn {name}" in head
    assert int(re.search(r"(\d+) runs", head)[1]) == len(found)
    assert {config.study for config in found} == {name}
    assert len({run_path(config) for config in found}) == len(found)
    assert all(config.cell == config.step + (f"+{config.variant}" if config.variant else "") for config in found)


@pytest.mark.parametrize(("name", "regime", "extra"), [
    ("demo", "nano", []), ("mini", "mini", []), ("roadmap_tiny", "tiny", ["swin"]), ("roadmap_base", "base", ["swin"]),
])  # fmt: skip
def test_roadmaps_hold_every_row_in_order(name, regime, extra):
    found = configs(name)
    assert {config.regime.name for config in found} == {regime}
    assert list(dict.fromkeys(config.step for config in found)) == NETS + extra
    assert len(found) == len(NETS + extra) * len({config.seed for config in found})


def test_every_design_study_is_a_file():
    roadmaps = {"demo", "mini", "roadmap_base", "roadmap_tiny"}
    assert roadmaps | {"kernel_size", "leave_one_out", "one_at_a_time", "recipe"} <= set(NAMES)


def test_the_recipe_study_changes_one_part_at_a_time():
    """Against the plain step: a part is one key, but for the optimizer, which brings its rate and decay."""
    plain = compose("separate_downsampling", "tiny").recipe.values()
    changed = {}
    for config in configs("recipe"):
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
