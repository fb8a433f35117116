"""A study's file becomes the cells that plain Hydra makes of it, or is refused in plain words, before all else."""

import os
import socket
from contextlib import nullcontext
from itertools import product

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from roadmap.errors import ConfigError, DataError, Refused
from roadmap.files import read_json
from roadmap.runs.process import process_start
from roadmap.runs.run_dir import run_path
from roadmap.steps.compose import validate
from roadmap.steps.tree import CONF
from roadmap.sweep import study as study_module
from roadmap.sweep.study import SWEEPS, read_study, select_cells
from roadmap.sweep.study_dir import StudyDir
from roadmap.sweep.submit import check_cells, check_images_folder
from tests.fabricate import write_run

MINE = """\
defaults:
  - config
  - _self_
study: mine
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      +step: {steps}
      seed: {seeds}
"""


@pytest.fixture
def mine(tmp_path):
    """Return a function that writes a study of one's own, with a step of its own, and returns its file."""

    def write(steps="gelu,wide_kernel", seeds="0,1", name="mine", text=MINE):
        (tmp_path / "step").mkdir(exist_ok=True)
        step = "# @package _global_\n# Kernels of 13.\ndefaults:\n  - gelu\n  - _self_\nmodel:\n  kernel_size: 13\n"
        (tmp_path / "step" / "wide_kernel.yaml").write_text(step)
        path = tmp_path / f"{name}.yaml"
        path.write_text(text.format(steps=steps, seeds=seeds))
        return str(path)

    return write


def plain_hydra(name, lists):
    """Compose every cell of a study as Hydra's sweeper would, from the lists of its grid."""
    with initialize_config_dir(str(SWEEPS), version_base="1.3"):
        for values in product(*(items.split(",") for items in lists.values())):
            words = [f"{key}={value}" for key, value in zip(lists, values, strict=True)]
            cfg = hydra_compose(name, [f"hydra.searchpath=[file://{CONF}]", *words], return_hydra_config=True)
            yield validate(cfg, cfg.hydra, [CONF])


@pytest.mark.parametrize(("name", "given"), [
    ("kernel_size", {"+step": "kernel_5,kernel_7"}),
    ("leave_one_out", {"+variant": "without_gelu,without_kernel_7", "seed": "0,2"}),
    ("roadmap_base", {"+step": "resnet,enhanced_recipe,gelu,swin", "seed": "1,0"}),
])  # fmt: skip
def test_cells_are_those_that_plain_hydra_makes(name, given):
    lists = {**yaml.safe_load((SWEEPS / f"{name}.yaml").read_text())["hydra"]["sweeper"]["params"], **given}
    study = read_study(name, [f"{key}={items}" for key, items in given.items()])
    expected = [(str(run_path(config)), config.values()) for config in plain_hydra(name, lists)]
    for values in (found := [cell.config.values() for cell in study.cells]):
        values["paths"]["runs"] = expected[0][1]["paths"]["runs"]
    assert [(str(run_path(cell.config)), values) for cell, values in zip(study.cells, found, strict=True)] == expected


def test_a_study_of_ones_own_with_steps_of_its_own(mine):
    study = read_study(mine())
    assert [(c.config.step, c.config.seed) for c in study.cells] == [*product(("gelu", "wide_kernel"), (0, 1))]
    assert study.cells[-1].config.model.kernel_size == 13
    assert study.cells[-1].key == "nano-digits/wide_kernel/seed1"


def test_a_file_that_refers_to_the_seed_is_composed_cell_by_cell(mine):
    study = read_study(mine(text=MINE + "recipe:\n  lr: 0.00${{seed}}\n", seeds="1,2", steps="gelu"))
    assert [cell.config.recipe.lr for cell in study.cells] == [0.001, 0.002]


def test_an_override_that_refers_to_the_seed_names_every_cell_by_its_own():
    study = read_study("demo", ["+step=gelu", "seed=1,2", "recipe.lr=${seed}"])
    assert [(cell.key, cell.config.recipe.lr) for cell in study.cells] == [
        (f"nano-digits/gelu,recipe.lr={k}.0/seed{k}", k) for k in (1, 2)
    ]


def test_words_for_all_cells_replace_the_files_lists_and_name_the_cells():
    study = read_study("demo", ["seed=0,1", "recipe.lr=1e-3", "+step=gelu"])
    assert [cell.key for cell in study.cells] == [f"nano-digits/gelu,recipe.lr=0.001/seed{seed}" for seed in (0, 1)]


def test_runs_do_not_lie_among_the_configs(mine, tmp_path):
    with pytest.raises(ConfigError, match="lies in the study's folder"):
        read_study(mine(), [], tmp_path / "runs")


def test_a_path_with_odd_characters_reaches_the_cells(tmp_path):
    runs = tmp_path / "it's, odd=[1] {x}"
    assert read_study("demo", ["+step=gelu"], runs).cells[0].config.paths.runs == str(runs)


def test_an_illegal_combination_is_left_out_with_its_reason():
    study = read_study("one_at_a_time", ["+variant=with_gelu,with_move_up_depthwise", "seed=0"])
    assert [cell.config.variant for cell in study.cells] == ["with_gelu"]
    assert "only a depthwise conv of an inverted bottleneck can move up" in study.left_out[0].reason
    assert "+variant=with_move_up_depthwise" in study.left_out[0].overrides


def test_cells_are_narrowed_to_steps_and_seeds():
    study = read_study("kernel_size")
    chosen = [cell.key for cell in select_cells(study, ["kernel_9"], ["0", "2"])]
    assert chosen == [f"tiny-imagenet/kernel_9/seed{k}" for k in (0, 2)]
    with pytest.raises(ConfigError, match=r"STEPS=kernel_99: is not in kernel_size; did you mean kernel_9\?"):
        select_cells(study, ["kernel_99"], [])
    with pytest.raises(ConfigError, match="SEEDS=3: is not in kernel_size"):
        select_cells(study, [], ["3"])


@pytest.mark.parametrize(("name", "words", "told"), [
    ("nope", [], "STUDY=nope: there is no such study"),
    ("../demo", [], "STUDY=../demo: a study's file is FOLDER/NAME.yaml"),
    ("a/b", [], "STUDY=a/b: a study's file is FOLDER/NAME.yaml"),
    ("x/nope.yaml", [], "no such file"),
    ("x/nope.yml", [], "STUDY=x/nope.yml: a study's file is FOLDER/NAME.yaml"),
    (str(CONF / "step" / "gelu.yaml"), [], "gelu.yaml: is a step and no study; run.py +step=gelu trains it"),
    ("demo", ["+step=gellu"], "did you mean gelu"),
    ("demo", ["recipe.lrr=1"], "did you mean recipe.lr"),
    ("demo", ["seed=x"], "seed=x: must be a whole number"),
    ("demo", ["seed=1.5"], "seed=1.5: must be a whole number"),
    ("demo", ["seed=0,0"], "two cells are the same run"),
    ("demo", ["study=other"], "study=other: is the study's own"),
    ("demo", ["fresh=true"], "fresh=true: is the study's own"),
    ("demo", ["images=x"], "images=x: is the study's own"),
    ("demo", ["paths.runs=/x"], "paths.runs=/x: RUNS= (--runs) says where a study's runs are kept"),
    ("demo", ["++paths={runs: /x}"], "RUNS= (--runs) says where"),
    ("demo", ["recipe.epochs=1"], "recipe.warmup_epochs=3: must be at most recipe.epochs=1"),  # 16 of 17 rows
    ("demo", ["recipe.warmup_epochs=50"], "recipe.warmup_epochs=50: must be at most recipe.epochs=20"),
    ("demo", ["recipe.micro_batch=3"], "must be a multiple of recipe.micro_batch=3"),
    ("demo", ["recipe.batch_size=5", "recipe.micro_batch=2"], "recipe.batch_size=5"),
    ("demo", ["data.resize_size=8"], "data.resize_size=8: must be at least data.image_size=32"),
    ("demo", ["+step=swin"], "no combination of its grid is legal"),
    ("demo", ["hydra.launcher=submitit"], "hydra.launcher"),
    ("demo", ["gelu"], "gelu: cannot be read as KEY=VALUE"),
    ("demo", ["recipe.lr={"], "recipe.lr={: cannot be read as KEY=VALUE"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_plain_words(name, words, told):
    with pytest.raises(ConfigError) as error:
        read_study(name, words)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_two_wrong_keys_are_no_combination_to_be_left_out():
    with pytest.raises(ConfigError, match=r"(?s)model.kernel_size=0: must be .*\n.*recipe.lr=-1: must be "):
        read_study("demo", ["+step=gelu", "recipe.lr=-1", "model.kernel_size=0"])


@pytest.mark.parametrize(("change", "told"), [
    ({"seeds": ""}, "hydra.sweeper.params.seed is empty"),
    ({"seeds": "[0,1]"}, "write its values with commas"),
    ({"seeds": "range(5,0)"}, "seed=range(5,0): names no values"),
    ({"seeds": "${now:%S},7"}, "seed: refers to `now:`"),
    ({"steps": "gelu,gelu"}, "two cells are the same run"),
    ({"text": MINE.replace("study: mine", "study: a/b")}, "study=a/b: a name consists of letters"),
    ({"text": MINE.replace("study: mine", "study: yours")}, "a study is named like its file, study: mine"),
    ({"text": MINE.replace("MULTIRUN", "RUN")}, "is not a study"),
    ({"text": MINE + "mode: evaluate\n"}, "mode=evaluate: cannot be set for a study's cells"),
    ({"text": MINE + "fresh: true\n"}, "fresh=true: cannot be set for a study's cells"),
    ({"text": MINE + "dry: true\n"}, "dry=true: cannot be set for a study's cells"),
    ({"text": MINE + "modell:\n  kernel_size: 3\n"}, "modell: there is no such key"),
    ({"text": MINE + "  launcher:\n    _target_: os.system\n"}, "_target_"),
    ({"text": "a: [", "steps": "gelu"}, "mine.yaml"),
    ({"text": MINE.replace("- config", "- mine")}, "defaults: a file in the list leads back to the one that names it"),
])  # fmt: skip
def test_a_file_that_is_no_study_is_refused_in_plain_words(mine, change, told):
    with pytest.raises(ConfigError) as error:
        read_study(mine(**change))
    assert told in str(error.value)


def test_a_glob_stands_for_all_steps_but_those_that_the_regime_lacks(mine):
    study = read_study(mine(steps="glob(*)", seeds="0"))
    assert {"resnet", "wide_kernel", "separate_downsampling"} <= {cell.config.step for cell in study.cells}
    assert [left.overrides[0] for left in study.left_out] == ["+step=swin"]


def test_a_folder_that_is_not_there_is_told_before_anything_is_queued(tmp_path):
    with pytest.raises(DataError, match="data=fashion_mnist needs a folder"):
        read_study("mini", check=check_images_folder)
    with pytest.raises(DataError, match="no such folder"):
        read_study("attribution", [f"data.root={tmp_path / 'none'}"], check=check_images_folder)


def test_a_batch_that_the_devices_of_a_cell_cannot_share_is_told_before_anything_is_queued():
    study = read_study("demo", ["+step=gelu"])
    check_cells(study, study.cells)
    told = r"cluster.per_cell=8: .* recipe.micro_batch=null: .* 8 devices have nothing to share"
    with pytest.raises(ConfigError, match=told):
        check_cells(study, study.cells, ranks=8)
    study = read_study("demo", ["+step=gelu", "recipe.micro_batch=8"])
    check_cells(study, study.cells, ranks=8)


def recorded(cell, runs, **more):
    """Make up the run of a cell, with its config."""
    run = write_run(runs, cell.config.step, study=cell.config.study, **more)
    (run / "config.yaml").write_text(yaml.safe_dump(cell.config.values()))
    return run


def test_a_study_whose_config_changed_since_its_cells_ran_is_refused_with_the_fields(tmp_path, mine):
    runs = tmp_path.with_name("runs")
    before = read_study(mine(steps="gelu", seeds="0"), [], runs)
    recorded(before.cells[0], runs)
    check_cells(before, before.cells)
    file = mine(steps="gelu", seeds="0,1", text=MINE + "recipe:\n  weight_decay: 0.3\n")
    study = read_study(file, [], runs)
    with pytest.raises(Refused, match=r"ran with another config \(recipe.weight_decay: .* -> 0.3\)"):
        check_cells(study, study.cells)
    assert read_json(run_path(study.cells[0].config) / "status.json")["state"] == "done"


def test_cells_begun_with_other_code_are_refused_unless_that_is_asked_for(tmp_path):
    study = read_study("demo", ["+step=gelu"], tmp_path)
    run = recorded(study.cells[0], tmp_path, state="stopped", status={"code_hash": "0123456789abcdef"})
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step-0000000010-00001.pt").write_bytes(b"")
    with pytest.raises(Refused, match="was started with other code"):
        check_cells(study, study.cells)
    study = read_study("demo", ["+step=gelu", "allow_drift=true"], tmp_path)
    check_cells(study, study.cells)


@pytest.mark.parametrize("works", [True, False])
def test_a_cell_at_work_keeps_its_own_code_and_leaves_the_others_free_to_start(tmp_path, works):
    study = read_study("demo", ["+step=gelu,resnet"], tmp_path)
    here = {"host": socket.gethostname(), "pid": os.getpid(), "pid_start": process_start(os.getpid()) + (not works)}
    gelu = study.cells[0]
    run = recorded(gelu, tmp_path, state="running", status={"code_hash": "0123456789abcdef", **here})
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step-0000000010-00001.pt").write_bytes(b"")
    directory = StudyDir(tmp_path, "demo")
    directory.make()
    directory.write_cells(study)
    with nullcontext() if works else pytest.raises(Refused, match=f"{gelu.key} was started with other code"):
        check_cells(study, study.cells)


def test_finished_cells_of_other_code_are_finished(tmp_path):
    study = read_study("demo", ["+step=gelu"], tmp_path)
    recorded(study.cells[0], tmp_path, status={"code_hash": "0123456789abcdef"})
    check_cells(study, study.cells)


def test_composing_is_not_done_twice_for_cells_that_differ_in_the_seed(monkeypatch):
    calls = []
    real = study_module.compose_primary
    monkeypatch.setattr(study_module, "compose_primary", lambda *a, **k: calls.append(a) or real(*a, **k))
    read_study("kernel_size", ["seed=0,1,2,3"])
    assert len(calls) == 1 + 5
