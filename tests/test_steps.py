"""The steps as files: each holds its change alone, the tree is the paper's, and what composes is checked."""

import functools
from pathlib import Path

import pytest
import yaml

from roadmap import paper
from roadmap.config import KEYS
from roadmap.errors import ConfigError
from roadmap.steps.compose import compose
from roadmap.steps.help import help_text
from roadmap.steps.table import main
from roadmap.steps.tree import CONF, regimes, step_tree
from roadmap.steps.unused_settings import READ_WITH, unused_settings
from roadmap.text import flatten

BEYOND = [s for s in step_tree() if s not in paper.rows("tiny")]  # what others went on with: `grn`, steps of one's own
STEPS = [s for s in step_tree() if s not in BEYOND]
NETS = [s for s in STEPS if s != "swin"]

# What each step declares to change, in words of the config (stated here once more, from Section 2 of the paper).
RECIPE = {name for name in KEYS if name.startswith("recipe.")}
CHANGES = {
    "stage_ratio": {"model.depths"},
    "patchify_stem": {"model.stem"},
    "depthwise": {"model.depthwise"},
    "increase_width": {"model.width"},
    "inverted_bottleneck": {"model.inverted"},
    "move_up_depthwise": {"model.depthwise_first"},
    "kernel_5": {"model.kernel_size"},
    "kernel_7": {"model.kernel_size"},
    "kernel_9": {"model.kernel_size"},
    "kernel_11": {"model.kernel_size"},
    "gelu": {"model.activation"},
    "fewer_activations": {"model.activations_per_block"},
    "fewer_norms": {"model.norms_per_block"},
    "layer_norm": {"model.norm"},
    "separate_downsampling": {"model.separate_downsampling"},
}


@functools.cache
def composed(step, regime, *overrides):
    """Compose once; for reading."""
    return compose(step, regime, overrides)


def values(config):
    return flatten({k: getattr(config, k).values() for k in ("regime", "model", "recipe", "data")})


def changed(before, after):
    a, b = values(before), values(after)
    return {key for key in a | b if a.get(key) != b.get(key)}


def test_tree_is_the_papers():
    for regime in ("tiny", "base"):
        rows = paper.rows(regime)
        assert STEPS == list(rows)
        tree = step_tree()
        assert {s: tree[s].parent for s in STEPS} == {s: r.parent for s, r in rows.items()}
        assert {s: tree[s].adopted for s in STEPS} == {s: r.adopted for s, r in rows.items()}


@pytest.mark.parametrize("regime", ["nano", "tiny", "base"])
def test_convnext_v2_goes_on_where_the_paper_ends(regime):
    tree = list(step_tree())
    assert tree.index("separate_downsampling") < tree.index("grn") < tree.index("swin") == len(tree) - 1
    config = composed("grn", regime)
    expected = {"model.grn", "model.layer_scale", "recipe.layer_scale"}
    assert changed(composed("separate_downsampling", regime), config) == expected
    assert (config.parent, config.label) == ("separate_downsampling", "GRN (ConvNeXt V2)")
    assert (config.model.grn, config.model.layer_scale, config.model.drop_path) == (True, None, config.recipe.drop_path)


def test_no_study_trains_a_row_that_is_not_the_papers_unless_it_is_asked_for():
    for path in sorted((CONF.parent / "sweeps").glob("*.yaml")):
        asked = yaml.safe_load(path.read_text())["hydra"]["sweeper"]["params"].get("+step", "")
        assert not set(BEYOND) & set(str(asked).split(",")), path.stem


@pytest.mark.parametrize("regime", ["nano", "tiny", "base"])
@pytest.mark.parametrize("step", sorted(CHANGES))
def test_step_differs_from_its_parent_in_the_declared_keys(step, regime):
    parent = step_tree()[step].parent
    expected = CHANGES[step] | ({"model.width"} if (regime, step) == ("base", "stage_ratio") else set())
    assert changed(composed(parent, regime), composed(step, regime)) == expected


def test_enhanced_recipe_changes_the_recipe_and_nothing_else():
    differing = changed(composed("resnet", "tiny"), composed("enhanced_recipe", "tiny"))
    assert differing <= RECIPE | {"model.layer_scale", "model.drop_path", "model.init"}
    assert {"recipe.epochs", "recipe.optimizer", "recipe.lr", "recipe.rand_augment", "model.layer_scale"} <= differing


def test_step_files_hold_no_more_than_their_change():
    for step in CHANGES:
        body = yaml.safe_load((CONF / "step" / f"{step}.yaml").read_text())
        assert set(body) == {"defaults", "model"}, step
        assert {f"model.{key}" for key in body["model"]} - {"model.width"} == CHANGES[step] - {"model.width"}


@pytest.mark.parametrize(("regime", "depths", "width"), [
    ("tiny", (3, 3, 9, 3), 96), ("small", (3, 3, 27, 3), 96), ("base", (3, 3, 27, 3), 128),
    ("large", (3, 3, 27, 3), 192), ("xlarge", (3, 3, 27, 3), 256),
])  # fmt: skip
def test_last_step_has_convnexts_shape(regime, depths, width):
    model = composed("separate_downsampling", regime).model
    assert (model.depths, model.width, model.kernel_size) == (depths, width, 7)
    assert (model.layer_scale, model.init) == (1e-6, "trunc_normal")


def test_regimes_are_those_of_the_design():
    assert list(regimes()) == ["nano", "mini", "tiny", "small", "base", "large", "xlarge"]
    drop_paths = [composed("enhanced_recipe", r).model.drop_path for r in ("tiny", "small", "base", "large")]
    assert drop_paths == [0.1, 0.4, 0.5, 0.5]


@pytest.mark.parametrize(("own", "data"), [("", "fashion_mnist"), ("scale: demo\n", "digits")])
def test_a_regime_of_ones_own_is_one_wherever_its_folder_is_given(tmp_path, capsys, own, data):
    (tmp_path / "regime").mkdir()
    text = f"# Smaller still.\ndefaults: [mini, _self_]\nname: pico\n{own}swin_depths: [1, 1, 2, 1]\nswin_width: 8\n"
    (tmp_path / "regime" / "pico.yaml").write_text(text)
    config = compose("gelu", "pico", ["data.root=/none"], config_dir=tmp_path)
    assert (config.model.depths, config.model.width, config.model.stem_stride) == ((1, 1, 2, 1), 8, 2)
    assert (config.data.name, config.cell) == (data, "gelu")
    assert main(["--regime", "pico", "-cd", str(tmp_path), "--diff", "gelu", "fewer_norms"]) == 0
    assert "gelu -> fewer_norms (pico)" in capsys.readouterr().out
    assert "regime=pico    Smaller still." in help_text([tmp_path, CONF], ["regime"])


def test_a_folder_without_configs_is_none_of_ones_own(tmp_path):
    with pytest.raises(ConfigError, match="holds no folder of configs, which are called step, regime, scale, data"):
        compose("gelu", config_dir=tmp_path)


def test_table_5_is_the_enhanced_recipe():
    recipe = composed("gelu", "tiny").recipe
    assert (recipe.epochs, recipe.warmup_epochs, recipe.batch_size) == (300, 20, 4096)
    assert (recipe.lr, recipe.weight_decay) == (4e-3, 0.05)
    assert (recipe.beta1, recipe.beta2, recipe.eps, recipe.min_lr) == (0.9, 0.999, 1e-8, 1e-6)
    assert (recipe.mixup, recipe.cutmix, recipe.label_smoothing, recipe.random_erasing) == (0.8, 1.0, 0.1, 0.25)
    assert recipe.rand_augment == "rand-m9-mstd0.5-inc1"


class TestPrecedence:
    """scale < step < variant < command line."""

    def test_step_wins_over_scale(self):
        assert composed("resnet", "nano").recipe.optimizer == "sgd"
        assert composed("gelu", "nano").recipe.optimizer == "adamw"
        assert composed("gelu", "nano").recipe.epochs == 20  # the scale's length of the step's recipe

    def test_variant_wins_over_step(self):
        assert composed("separate_downsampling", "nano").model.activation == "gelu"
        assert compose("separate_downsampling", "nano", ["+variant=without_gelu"]).model.activation == "relu"

    def test_command_line_wins_over_all(self):
        words = ["+variant=without_gelu", "model.activation=gelu", "recipe.epochs=3", "recipe=original"]
        config = compose("gelu", "nano", words)
        assert (config.model.activation, config.recipe.epochs, config.recipe.optimizer) == ("gelu", 3, "sgd")

    def test_regime_and_data_win_over_scale(self):
        config = compose("gelu", "tiny", ["scale=demo", "data=imagenet"])
        assert (config.regime.name, config.data.name, config.recipe.epochs) == ("tiny", "imagenet", 20)


class TestVariants:
    TOGGLES = tuple(s for s in NETS if s in CHANGES and s not in ("kernel_5", "kernel_9", "kernel_11"))

    def test_every_toggle_has_both_directions(self):
        found = {p.stem for p in (CONF / "variant").glob("*.yaml")}
        of_recipe = {path.stem for path in (CONF / "variant").glob("*.yaml") if "\nmodel:" not in path.read_text()}
        both = {f"{way}_{toggle}" for toggle in self.TOGGLES for way in ("with", "without")}
        assert found - of_recipe == both | {"with_grn"}

    def test_grn_stands_in_an_inverted_bottleneck_with_one_activation(self):
        for step in ("fewer_activations", "separate_downsampling"):
            assert changed(composed(step, "nano"), composed(step, "nano", "+variant=with_grn")) == {"model.grn"}
        with pytest.raises(ConfigError, match=r"model\.grn=true with model\.activations_per_block=3"):
            compose("gelu", "nano", ["+variant=with_grn"])
        with pytest.raises(ConfigError, match=r"model\.grn=true with model\.inverted=false"):
            compose("resnet", "nano", ["model.grn=true", "model.activations_per_block=1"])

    def outcomes(self, step, way):
        result = {}
        for toggle in self.TOGGLES:
            try:
                result[toggle] = changed(composed(step, "base"), composed(step, "base", f"+variant={way}_{toggle}"))
            except ConfigError as error:
                result[toggle] = str(error)
        return result

    def test_leave_one_out(self):
        out = self.outcomes("separate_downsampling", "without")
        refused = {toggle for toggle, result in out.items() if isinstance(result, str)}
        assert refused == {"depthwise", "inverted_bottleneck"}
        assert all("depthwise_first" in out[toggle] for toggle in refused)
        assert all(out[toggle] == CHANGES[toggle] for toggle in out if toggle not in refused)

    def test_one_at_a_time(self):
        out = self.outcomes("enhanced_recipe", "with")
        refused = {toggle for toggle, result in out.items() if isinstance(result, str)}
        assert refused == {"move_up_depthwise"}
        assert all(out[toggle] == CHANGES[toggle] for toggle in out if toggle not in refused)


class TestCell:
    def cell(self, *overrides, regime="nano"):
        return composed("gelu", regime, *overrides).cell

    def test_plain_step_is_its_name(self):
        assert self.cell() == "gelu"
        assert self.cell(regime="tiny") == "gelu"

    def test_names_what_changes_the_result_sorted(self):
        assert self.cell("recipe.lr=1e-3", "model.kernel_size=9") == "gelu,model.kernel_size=9,recipe.lr=0.001"
        assert self.cell("+variant=without_gelu", "recipe=original") == "gelu+without_gelu,recipe=original"
        words = ("model.depths=[1,1,1,1]", "recipe.layer_scale=null")
        assert self.cell(*words) == ",".join(["gelu", *words])

    def test_one_value_has_one_cell(self):
        assert self.cell("recipe.lr=1e-3") == self.cell("++recipe.lr=0.001")
        assert self.cell("wandb={mode: disabled}", "checkpoint={keep: 3}") == "gelu"

    def test_is_silent_about_what_changes_nothing(self):
        words = ("seed=3", "study=mine", "device=cpu", "data.root=/x", "wandb.mode=disabled", "checkpoint.keep=5")
        assert self.cell(*words, "fresh=true") == "gelu"

    def test_a_scale_that_is_not_the_regimes_is_named(self):
        assert self.cell("scale=demo", regime="tiny") == "gelu,scale=demo"
        assert self.cell("scale=mini") == "gelu,scale=mini"

    def test_long_or_unsafe_names_become_a_hash(self):
        keys = ("beta1", "beta2", "mixup", "cutmix", "random_erasing", "label_smoothing")
        long = self.cell(*(f"recipe.{key}=0.5" for key in keys))
        unsafe = self.cell("regime.scale=../../x")
        assert len(long) <= 80 and len({long, unsafe, self.cell("regime.scale=../../y")}) == 3
        assert "/" not in unsafe and ".." not in unsafe


class TestOwnStep:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "step").mkdir()
        (tmp_path / "step" / "mine.yaml").write_text(
            "# @package _global_\n# My own kernels.\ndefaults:\n  - gelu\n  - _self_\nmodel:\n  kernel_size: 13\n"
        )
        return tmp_path

    def test_is_a_step_like_any_other(self, folder):
        config = compose("mine", "tiny", config_dir=folder)
        assert (config.step, config.label, config.cell) == ("mine",) * 3
        assert (config.parent, config.adopted) == ("gelu", "yes")
        assert (config.model.kernel_size, config.model.activation, config.recipe.name) == (13, "gelu", "enhanced")

    def test_stands_behind_its_parent(self, folder):
        names = list(step_tree([folder, CONF]))
        assert names[names.index("gelu") + 1] == "mine"
        assert [n for n in names if n != "mine" and n not in BEYOND] == STEPS

    def test_takes_its_label_from_a_file(self, folder):
        (folder / "step" / "labels.csv").write_text("step, label, adopted\nmine, huge kernels, no\n")
        config = compose("mine", "nano", config_dir=folder)
        assert (config.label, config.adopted) == ("huge kernels", "no")

    @pytest.mark.parametrize(
        ("body", "told"),
        [
            ("defaults: [gelu, kernel_5, _self_]\n", "one parent in its defaults list, this one has gelu, kernel_5"),
            ("- a\n- b\n", r"must hold KEY: VALUE, and a list below `defaults:`"),
            ("defaults: gelu\n", r"must hold KEY: VALUE, and a list below `defaults:`"),
            ("defaults:\n", r"must hold KEY: VALUE, and a list below `defaults:`"),
            ("model: [\n", "at line 3, column 1"),
            ("model:\n\tkernel_size: 13\n", r"at line 3, column 1; a tab is no indentation, spaces are"),
        ],
    )
    def test_a_file_that_is_no_step_is_named(self, folder, body, told):
        (folder / "step" / "broken.yaml").write_text("# @package _global_\n" + body)
        with pytest.raises(ConfigError, match=rf"broken\.yaml.*{told}"):
            compose("broken", "nano", config_dir=folder)

    def test_a_key_with_a_dot_is_written_below_its_section(self, folder):
        text = "# @package _global_\ndefaults:\n  - gelu\n  - _self_\nmodel.kernel_size: 13\n"
        (folder / "step" / "dotted.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"model\.kernel_size: .* `model: {kernel_size: \.\.\.}`"):
            compose("dotted", "nano", config_dir=folder)

    @pytest.mark.parametrize("place", ["wide.yaml", "step/wide.yml", "steps/wide.yaml"])
    def test_a_step_in_another_place_is_found_and_named(self, folder, place):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text("# @package _global_\ndefaults:\n  - gelu\n  - _self_\n")
        with pytest.raises(ConfigError, match=rf"no such step; .*{place} must be .*step/wide\.yaml"):
            compose("wide", "nano", config_dir=folder)

    def test_a_study_is_no_step_in_another_place(self, folder):
        (folder / "lost.yaml").write_text("hydra:\n  sweeper:\n    params:\n      +step: lost\n")
        with pytest.raises(ConfigError, match=r"step=lost: there is no such step; (did you mean|there are)"):
            compose("lost", "nano", config_dir=folder)

    @pytest.mark.parametrize(("entry", "told"), [
        ("recipe: original", "a step chooses it by `- override /recipe: original`"),
        ("/recipe: original", "recipe: is given twice; a file replaces another's choice by `- override /recipe: NAME`"),
    ])  # fmt: skip
    def test_a_recipe_in_a_list_of_defaults_is_written_as_an_override(self, folder, entry, told):
        body = f"# @package _global_\ndefaults:\n  - gelu\n  - {entry}\n  - _self_\n"
        (folder / "step" / "broken.yaml").write_text(body)
        with pytest.raises(ConfigError, match=told):
            compose("broken", "nano", config_dir=folder)

    def test_a_choice_of_another_group_is_no_step_in_another_place(self, folder):
        (folder / "data").mkdir()
        (folder / "data" / "birds.yaml").write_text("name: birds\n")
        with pytest.raises(ConfigError, match=r"step=birds: there is no such step; (did you mean|there are)"):
            compose("birds", "nano", config_dir=folder)

    def test_a_parent_that_is_none_and_a_circle_of_parents_are_named(self, folder):
        head = "# @package _global_\ndefaults:\n  - {}\n  - _self_\n"
        (folder / "step" / "lost.yaml").write_text(head.format("gleu"))
        with pytest.raises(ConfigError, match="step lost: its parent gleu is not a step; did you mean gelu"):
            compose("lost", "nano", config_dir=folder)
        for one, other in (("lost", "found"), ("found", "lost")):
            (folder / "step" / f"{one}.yaml").write_text(head.format(other))
        for step in ("mine", "lost"):
            with pytest.raises(ConfigError, match="its own ancestor"):
                compose(step, "nano", config_dir=folder)

    def test_a_change_that_its_parent_would_undo_is_refused(self, folder):
        text = "# @package _global_\ndefaults:\n  - _self_\n  - gelu\nmodel:\n  kernel_size: 13\n"
        (folder / "step" / "undone.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"undone\.yaml: _self_ must come after gelu, which undoes"):
            compose("undone", "nano", config_dir=folder)

    def test_a_recipe_that_its_parent_would_undo_is_refused(self, folder):
        """The run would be called `recipe=smooth`, and be one of the parent's."""
        (folder / "recipe").mkdir()
        file = folder / "recipe" / "smooth.yaml"
        file.write_text("defaults:\n  - _self_\n  - enhanced\nlabel_smoothing: 0.2\n")
        with pytest.raises(ConfigError, match=r"smooth\.yaml: _self_ must come after enhanced, which undoes"):
            compose("gelu", "nano", ["recipe=smooth"], config_dir=folder)
        file.write_text("# @package _global_\ndefaults:\n  - enhanced\n  - _self_\nlabel_smoothing: 0.2\n")
        with pytest.raises(ConfigError, match=r"smooth\.yaml: its first line must not be # @package _global_"):
            compose("gelu", "nano", ["recipe=smooth"], config_dir=folder)

    @pytest.mark.parametrize("name", [
        "step/gelu", "variant/with_gelu", "recipe/enhanced", "data/digits", "regime/nano", "tune/demo_enhanced",
    ])  # fmt: skip
    def test_a_file_that_ours_would_be_read_in_place_of_is_refused(self, folder, name):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text("{}\n")
        with pytest.raises(ConfigError, match=rf"conf/{name}\.yaml is read in its place; give this one a name of its"):
            compose("layer_norm", "nano", config_dir=folder)

    @pytest.mark.parametrize("entry", ["step: gelu", "/step: gelu", "override /step: gelu"])
    def test_how_a_parent_is_written_is_told(self, folder, entry):
        (folder / "step" / "child.yaml").write_text(f"# @package _global_\ndefaults:\n  - {entry}\n  - _self_\n")
        with pytest.raises(ConfigError, match=r"child\.yaml: its defaults have `.*`; a parent is written `- gelu`"):
            compose("child", "nano", config_dir=folder)

    def test_the_first_line_is_asked_for(self, folder):
        (folder / "step" / "bare.yaml").write_text("defaults:\n  - gelu\n  - _self_\nmodel:\n  kernel_size: 3\n")
        with pytest.raises(ConfigError, match=r"bare\.yaml: the first line of a step must be: # @package _global_"):
            compose("bare", "nano", config_dir=folder)

    def test_a_mark_that_no_editor_shows_is_named(self, folder):
        text = "# @package _global_\ndefaults:\n  - gelu\n  - _self_\n"
        (folder / "step" / "bare.yaml").write_text(text, encoding="utf-8-sig")
        with pytest.raises(ConfigError, match=r"bare\.yaml: begins with a byte-order mark"):
            compose("bare", "nano", config_dir=folder)

    def test_labels_that_are_not_utf8_are_named(self, folder):
        (folder / "step" / "labels.csv").write_bytes("step,label\nmine,größer\n".encode("cp1252"))
        with pytest.raises(ConfigError, match=r"labels\.csv.*UTF-8"):
            compose("mine", "nano", config_dir=folder)

    @pytest.mark.parametrize(("text", "told"), [
        ("step,lable,adopted\nmine,big,no\n", r"the first line must be step,label,adopted \(found step,lable,adopted"),
        ("mine,big,no\n", "the first line must be step,label,adopted"),
        ("step,label,adopted\nmnie,big,no\n", r"step mnie is not in this folder; did you mean mine\?"),
        ("step,label,adopted\nmine,big,perhaps\n", "of step mine adopted must be yes, no or reference"),
        ("step,label,adopted\nmine,big,kernels,no\n", "of step mine adopted must be yes, no or reference"),
    ])  # fmt: skip
    def test_a_label_without_effect_is_refused(self, folder, text, told):
        (folder / "step" / "labels.csv").write_text(text)
        with pytest.raises(ConfigError, match=rf"labels\.csv: {told}"):
            compose("mine", "nano", config_dir=folder)


BAD = {  # override: what the message must hold
    "recipe.lr=nan": ["recipe.lr=nan", "above 0"],
    "recipe.lr=-1": ["recipe.lr=-1"],
    "paths.runs=": ["paths.runs=: must name a folder"],
    "recipe.lr=fast": ["recipe.lr=fast", "number"],
    "recipe.epochs=0": ["recipe.epochs=0", "at least 1"],
    "recipe.epochs=1.5": ["recipe.epochs", "whole number"],
    "recipe.warmup_epochs=21": ["warmup_epochs=21", "epochs=20"],
    "recipe.optimizer=lamb": ["recipe.optimizer", "sgd, adamw"],
    "model.kernel_size=4": ["model.kernel_size=4", "odd"],
    "model.depths=[1,1]": ["model.depths=[1, 1]", "four"],
    "model.depths=[1,1,1,1,1]": ["model.depths=[1, 1, 1, 1, 1]: must be a list of four numbers"],
    "data.std=[1,1,1,1]": ["data.std=[1, 1, 1, 1]: must be a list of three"],
    "model.depths=3": ["model.depths", "list"],
    "model.norms_per_block=2": ["norms_per_block=2", "3, 1"],
    "model.norm=group": ["model.norm", "batch_norm, layer_norm"],
    "model.kernl=3": ["model.kernl", "did you mean model.kernel_size"],
    "+model.kernl=3": ["model.kernl", "did you mean model.kernel_size"],
    "regime.reference_width=8": ["file of this regime= in conf/regime does not have it", "+regime.reference_width="],
    "+model._target_=os.system": ["model._target_", "no such key"],
    "+stp=gelu": ["stp", "did you mean +step"],
    "+recipe.lr=1": ["+recipe.lr: is in the config already", "without the plus sign"],
    "recipe.beta2=1": ["recipe.beta2=1", "at least 0 and below 1"],  # torch's AdamW takes none
    "recipe.cutmix=1e-310": ["recipe.cutmix=1e-310", "must be 0 or at least 1e-300"],
    "weights=https://host/x.pt": ["weights=https://host/x.pt: is an address"],
    "~recipe.lr": ["~recipe.lr"],
    "+cell=x": ["cell=x"],
    "variant=without_gelu": ["+variant=NAME"],
    "+variant=without_gleu": ["+variant=without_gleu", "did you mean without_gelu"],
    "data=mnist": ["data=mnist", "fashion_mnist", "digits"],
    "recipe=fancy": ["recipe=fancy", "enhanced", "original"],
    "scale=huge": ["scale=huge", "demo"],
    "study=../x": ["study=../x"],
    "seed=x": ["seed", "whole number"],
    "seed=-1": ["seed=-1", "at least 0"],
    "data.std=[1,1,0]": ["data.std", "above 0"],
    "+variant=[without_gelu]": ["variant=[without_gelu]", "one name"],
    "+variant@_global_=without_gelu": ["variant@_global_"],
    "+step@_global_=kernel_11": ["step@_global_"],
    "tune@recipe=mini_enhanced": ["tune@recipe"],
    "recipe=null": ["recipe=null", "one name"],
    "debug=overfitt": ["debug=overfitt", "overfit"],
    "hydra.run.dir=x": ["hydra.run.dir"],
    "hydra/launcher=basic": ["hydra/launcher"],
    "local=mine": ["local"],
    "model=3": ["section"],
    "seed=null": ["seed", "null"],
    "model.width=${nothing}": ["model.width", "nothing"],
}  # fmt: skip


@pytest.mark.parametrize("override", BAD)
def test_bad_override_is_named_in_one_line(override):
    with pytest.raises(ConfigError) as caught:
        compose("gelu", "nano", [override])
    assert "\n" not in str(caught.value)
    for piece in BAD[override]:
        assert piece in str(caught.value)


@pytest.mark.parametrize(("override", "told"), [
    ("recipe.momentum=0.5", "recipe.optimizer=sgd"),
    ("recipe.step_epochs=3", "recipe.schedule=step"),
    ("data.padding=4", "data.crop=pad"),
    ("model.layer_norm_eps=1e-3", "model.norm=layer_norm"),
    ("recipe.lr_batch_size=128", "recipe.lr_scaling=linear"),
    ("recipe.mix_switch=0.1", "recipe.cutmix"),
    ("data.workers=4", "reference"),
])  # fmt: skip
def test_a_setting_without_effect_is_told(override, told):
    (line,) = unused_settings(compose("gelu", "nano", [override]), [override])
    assert line.startswith(override.split("=")[0])
    assert told in line


@pytest.mark.parametrize("override", ["kernels=fast", "device=cpu", "recipe.precision=bf16"])
def test_what_an_exported_net_does_not_have_is_told(override):
    config = compose("gelu", "nano", ["mode=export", "weights=net.pth", "format=onnx", override])
    (line,) = unused_settings(config, [override])
    assert "needs another mode: a net is exported in fp32" in line
    assert unused_settings(config.replace(mode="evaluate"), [override]) == []


def test_settings_that_are_read_are_not_told():
    words = ["recipe.momentum=0.5", "recipe.step_epochs=3", "recipe.lr=0.1"]
    assert unused_settings(compose("resnet", "nano", words), words) == []
    assert {key for key in READ_WITH if key.split(".")[0] == "recipe"} <= RECIPE


def test_unknown_names_list_what_there_is_the_nearest_first():
    nearest = r"did you mean inverted_bottleneck\? There are: inverted_bottleneck, .*resnet"
    with pytest.raises(ConfigError, match=nearest):
        compose("inverted_botleneck", "nano")
    with pytest.raises(ConfigError, match=r"did you mean tiny\? There are: tiny, nano"):
        compose("gelu", "tny")


def test_swin_comes_in_two_regimes_and_without_toggles():
    assert compose("swin", "base").model.reference == "swin_b"
    with pytest.raises(ConfigError, match="regime"):
        compose("swin", "nano")
    with pytest.raises(ConfigError, match=r"model.kernel_size=5 with model.reference=swin_t"):
        compose("swin", "tiny", ["model.kernel_size=5"])


@pytest.mark.parametrize(
    "value", ["${now:%Y}", "x${hydra:job.num}", "${python_version:}", "${oc.decode:${oc.env:CLOCK}}"]
)
def test_no_value_depends_on_the_clock_or_a_job(monkeypatch, value):
    monkeypatch.setenv("CLOCK", "${now:%Y}")
    for key in ("study", "paths.runs"):
        with pytest.raises(ConfigError, match=rf"^{key}: refers to `\w+:`; a value may refer to other keys and"):
            compose("gelu", "nano", [f"{key}='{value}'"])


def test_a_value_may_be_that_of_the_environment(monkeypatch):
    monkeypatch.setenv("CHOSEN", "3")
    assert compose("gelu", "nano", ["seed=${oc.env:CHOSEN}"]).seed == 3
