"""The schema: every key says what it may be and what it affects, in all sections alike, and everything else follows."""

import dataclasses
import json
from contextlib import suppress

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from roadmap.config import KEYS, Affects, Config, defaults
from roadmap.config.fields import Section
from roadmap.errors import ConfigError
from roadmap.runs.recorded_config import identity, lost_keys
from roadmap.steps.compose import compose
from roadmap.steps.tree import CONF
from roadmap.text import flatten

SECTIONS = [name for name, field in Config.model_fields.items() if isinstance(field.annotation, type(Section))]
NUMBERS = [name for name, key in KEYS.items() if type(key.default) in (int, float)]
WHOLE = [name for name in NUMBERS if type(KEYS[name].default) is int]
TEXTS = [name for name, key in KEYS.items() if isinstance(key.default, str) and type(key.default) is str]


def nested(key, value):
    """Return the arguments of a config with one key set."""
    *sections, name = key.split(".")
    return {sections[0]: {name: value}} if sections else {name: value}


def refusal(key, value):
    """Return the message with which a value is refused."""
    with pytest.raises(ConfigError) as caught:
        Config(**nested(key, value))
    return str(caught.value)


@pytest.mark.parametrize("key", NUMBERS)
def test_no_number_is_anything_else(key):
    for value in (float("nan"), float("inf"), -float("inf"), True, "fast", "9" * 100_000, [1], {}):
        message = refusal(key, value)
        assert message.startswith(f"{key}="), value
        assert len(message) < 300 and "\n" not in message, value


@pytest.mark.parametrize("key", WHOLE)
def test_a_whole_number_has_no_fraction_but_may_be_written_as_text(key):
    assert "whole number" in refusal(key, 20.5)
    config = Config(**nested(key, str(KEYS[key].default)))
    assert flatten(config.values())[key] == KEYS[key].default


@pytest.mark.parametrize("key", [name for name in NUMBERS if KEYS[name].allowed])
@given(value=st.floats(-1e9, 1e9))
@settings(max_examples=20)
def test_ranges_are_enforced_in_every_section(key, value):
    value = int(value) if key in WHOLE else value
    if all(_within(end, value) for end in KEYS[key].allowed.split(" and ")):
        with suppress(ConfigError):  # values that other keys do not go with
            assert flatten(Config(**nested(key, value)).values())[key] == value
    else:
        assert f"{key}=" in refusal(key, value)


def _within(end, value):
    """Tell whether a value is within an end of a range as the schema words it."""
    if end.startswith("one of"):
        return str(value) in end
    word, number = end.rsplit(" ", 1)
    number = float(number)
    return {"at least": value >= number, "above": value > number, "at most": value <= number, "below": value < number}[
        word
    ]


@pytest.mark.parametrize("key", TEXTS)
def test_texts_are_bounded(key):
    assert len(refusal(key, "x" * 100_000)) < 1500
    assert len(refusal(key, ["x" * 1000] * 1000)) < 1500


def test_a_text_is_of_a_thousand_characters_at_most():
    assert refusal("variant", "x" * 1001).endswith(": is too long, at most 1000 characters")
    assert Config(variant="x" * 1000).variant == "x" * 1000


@pytest.mark.parametrize("section", ["", *(f"{name}." for name in SECTIONS)])
def test_an_unknown_key_is_refused_everywhere_with_what_there_is(section):
    message = refusal(f"{section}no_such_key", 1)
    assert message.startswith(f"{section}no_such_key: there is no such key; ")
    assert section or "; there are: +step, +variant, study, seed, " in message  # and none that nobody may set


FOUR = "must be a list of four numbers of blocks, each from 1 to 200"


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        *(("devices", value, f"devices={value}: must be auto or a number from 1 to 1024")
          for value in ("0", "1025", "00001", "²", "Auto")),
        ("compile", "yes", "compile=yes: must be one of auto, true, false"),
        ("adopted", "maybe", "adopted=maybe: must be one of yes, no, reference"),
        ("checkpoint.keep", 1, "checkpoint.keep=1: must be at least 2 and at most 1000"),
        ("checkpoint.every_min", -1, "checkpoint.every_min=-1: must be at least 0 and at most 100000"),
        ("seed", None, "seed=null: must not be null"),
        ("seed", 2**31, "seed=2147483648: must be at least 0 and at most 2147483647"),
        ("fresh", "maybe", "fresh=maybe: must be true or false"),
        ("fresh", [1], "fresh=[1]: must be true or false"),
        ("step", ["a", 1], "step=[a, 1]: must be text"),
        ("recipe.clip_grad", True, "recipe.clip_grad=true: must be a number or null"),
        ("recipe.lr", "9" * 41, f"recipe.lr={'9' * 41}: must be a number"),
        ("model.layer_scale", 0, "model.layer_scale=0: must be above 0 and at most 10"),
        ("model.depths", [1, 2], f"model.depths=[1, 2]: {FOUR}"),
        ("model.depths", [1] * 5, f"model.depths=[1, 1, 1, 1, 1]: {FOUR}"),
        ("model.depths", [1, 2, 201, 3], f"model.depths[2]=201: {FOUR}"),
        ("model.depths", ["x", "y", 1, 1], f"model.depths[0]=x: {FOUR}"),  # one line
        ("data.mean", [0, float("inf"), 0], "data.mean[1]=inf: must be a list of three finite numbers"),
        ("wandb.mode", False, "wandb.mode=false: must be one of auto, online, offline, disabled"),
        ("recipe.lr_batch_siz", 1, "recipe.lr_batch_siz: there is no such key; did you mean recipe.lr_batch_size?"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_with_what_is_allowed(key, value, told):
    assert refusal(key, value).partition(" There are")[0] == told


def test_a_key_with_a_dot_belongs_below_its_section():
    for name, told in (
        ("recipe.lr", "recipe.lr: a file sets it below its section, `recipe: {lr: ...}`"),
        ("recipe." + "x" * 1000, "recipe.xxx"),
        ("x" * 1000, "xxx"),
    ):
        with pytest.raises(ConfigError) as caught:
            Config(**{name: 1})
        assert str(caught.value).startswith(told) and len(str(caught.value)) < 500
    with pytest.raises(ConfigError, match=r"^recipe\.a\.b: there is no such key; "):
        Config(recipe={"a.b": 1})


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_is_no_value(section):
    assert refusal(section, 3) == f"{section}=3: is a section; set the keys below it"


def test_every_wrong_key_of_a_command_has_a_line():
    with pytest.raises(ConfigError) as caught:
        compose("gelu", overrides=["seed=-1", "model.width=0", "recipe.lr=nan", "checkpoint.keep=0", "data.zoom=2"])
    assert [line.split("=")[0] for line in str(caught.value).splitlines()] == [
        "seed", "model.width", "recipe.lr", "data.zoom", "checkpoint.keep",
    ]  # fmt: skip


def test_a_text_may_be_written_as_a_number_or_a_truth_value():
    values = Config(study=3, variant=1.5, devices=2, compile=True).values()
    assert [values[key] for key in ("study", "variant", "devices", "compile")] == ["3", "1.5", "2", "true"]


def test_a_config_is_its_values():
    config = compose("separate_downsampling", "tiny")
    assert Config(**config.values()) == config
    assert set(flatten(config.values())) == set(KEYS)
    assert json.loads(json.dumps(config.values())) == config.values()
    assert config.replace(seed=3).seed == 3
    with pytest.raises(ConfigError, match=r"^seed=-1: "):
        config.replace(seed=-1)


def test_a_key_knows_what_it_may_be():
    names = ("compile", "format", "weights", "step", "fresh")
    allowed = {name: (KEYS[name].allowed, KEYS[name].is_text) for name in names}
    assert allowed == {
        "compile": ("one of auto, true, false", False), "format": ("one of onnx, torch_export", False),
        "weights": ("", True), "step": ("", True), "fresh": ("", False),
    }  # fmt: skip


def test_an_identity_is_what_a_result_depends_on():
    values = compose("gelu").values()
    kinds = {kind: [name for name, key in KEYS.items() if key.affects == kind] for kind in Affects}
    assert set(identity(values)) == set(kinds[Affects.result])
    assert set(kinds[Affects.rounding]) == {"compile", "cuda_graph", "kernels"}
    for key in (
        "model.width", "recipe.micro_batch", "recipe.precision", "data.image_size", "data.decoder", "seed", "step",
    ):  # fmt: skip
        assert key in kinds[Affects.result]
    for key in ("data.root", "data.workers", "paths.runs", "wandb.mode", "checkpoint.keep", "device", "comm_timeout_s"):
        assert key in kinds[Affects.place]


def test_what_conf_local_may_set_is_free():
    local = {name for name, key in KEYS.items() if key.local}
    assert all(KEYS[name].affects == Affects.place for name in local)
    assert local == {name for name in KEYS if name.startswith(("paths.", "wandb.", "checkpoint."))} | {
        "device", "devices", "start_timeout_s", "comm_timeout_s", "data.root", "data.download", "data.workers",
    }  # fmt: skip


def test_what_is_set_for_one_run_is_not_set_for_the_cells_of_a_study():
    assert {name for name, key in KEYS.items() if not key.cells} == {
        "study", "mode", "images", "features", "format", "out", "dry", "fresh",
    }  # fmt: skip


@given(lost=st.sets(st.sampled_from(sorted(set(KEYS) - {"step", "recipe.momentum"})), max_size=12))
@example(lost={"recipe.optimizer"})  # on which it hangs whether the momentum is read
@settings(max_examples=40)
def test_a_key_that_a_record_lacks_counts_as_its_default(lost):
    values = Config(step="gelu", recipe={"momentum": 0.5}).values()
    whole = identity(values)
    older = {name: value for name, value in flatten(values).items() if name not in lost}
    assert identity(older) == whole
    assert not lost_keys(older)


def test_what_nothing_reads_is_no_part_of_an_identity():
    values = compose("gelu").values()  # AdamW, a cosine, no scaling of the rate
    unread = {"momentum": 0.5, "step_epochs": 7.0, "lr_batch_size": 4096}
    assert identity(values | {"recipe": values["recipe"] | unread}) == identity(values)
    assert identity(values | {"recipe": values["recipe"] | unread | {"lr_scaling": "linear"}}) != identity(values)
    assert compose("gelu", overrides=["recipe.momentum=0.5", "recipe.lr_batch_size=4096"]).cell == "gelu"
    assert compose("resnet", overrides=["recipe.momentum=0.5"]).cell == "resnet,recipe.momentum=0.5"


def test_a_recorded_key_that_the_schema_has_lost_is_named():
    values = compose("gelu").values()
    values["model"]["squeeze"] = 4
    assert lost_keys(values) == ["model.squeeze=4"]
    assert identity(values) == identity(compose("gelu").values())


def test_defaults_are_plain_values():
    assert yaml.safe_load(yaml.safe_dump(defaults())) == defaults()
    assert {name: dataclasses.asdict(key)["default"] for name, key in KEYS.items()} == defaults()


def test_conf_sets_no_key_that_there_is_not():
    body = yaml.safe_load((CONF / "config.yaml").read_text())
    known = flatten({name: value for name, value in body.items() if name not in ("defaults", "hydra")})
    assert set(known) <= set(KEYS)
    for group in ("recipe", "data", "regime"):
        for path in (CONF / group).glob("*.yaml"):
            assert {f"{group}.{name}" for name in yaml.safe_load(path.read_text())} <= set(KEYS), path


def test_every_key_of_the_images_can_be_set_whatever_file_is_chosen(tmp_path):
    base = yaml.safe_load((CONF / "data_defaults.yaml").read_text())
    assert {"name": "digits", **base} == {
        name.removeprefix("data."): value for name, value in defaults().items() if name.startswith("data.")
    }
    for group in ("data", "variant"):
        (tmp_path / group).mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("name: mine\nkind: npz\n")
    words = [f"data.{name}={json.dumps(value)}" for name, value in base.items() if name != "kind"]
    assert compose("gelu", overrides=["data=mine", *words], config_dir=tmp_path).cell == "gelu"


class TestCellNames:
    """A cell is named by what differs from its plain step."""

    def cell(self, *overrides, step="gelu", regime="nano"):
        return compose(step, regime, list(overrides)).cell

    @pytest.mark.parametrize(
        "overrides",
        [
            ["recipe.epochs=20"], ["recipe=enhanced"], ["model.kernel_size=7"], ["recipe.drop_path=0"],
            ["model.drop_path=0"], ["model={kernel_size: 7, depthwise: true}"], ["scale=demo", "data=digits"],
            ["kernels=plain", "compile=false", "devices=1"], ["recipe.lr='2e-3'"],
        ],
    )  # fmt: skip
    def test_what_is_the_default_names_no_new_cell(self, overrides):
        assert self.cell(*overrides) == "gelu"

    def test_what_follows_from_another_key_is_not_repeated(self):
        assert self.cell("recipe.drop_path=0.1") == "gelu,recipe.drop_path=0.1"
        assert self.cell("model.drop_path=0.1") == "gelu,model.drop_path=0.1"
        assert (
            self.cell("recipe.drop_path=0.1", "model.drop_path=0.1") == "gelu,model.drop_path=0.1,recipe.drop_path=0.1"
        )

    def test_a_group_is_named_by_its_choice_and_what_it_brings_is_not(self):
        assert self.cell("recipe=original") == "gelu,recipe=original"
        assert self.cell("recipe=original", "recipe.lr=0.3") == "gelu,recipe=original,recipe.lr=0.3"
        assert self.cell("recipe=enhanced", step="resnet") == "resnet,recipe=enhanced"
        assert self.cell("debug=overfit") == "gelu,debug=overfit"

    def test_a_value_that_refers_to_another_key_is_still_named(self):
        assert self.cell("model.width=${regime.resnet_width}") == "gelu,model.width=16"

    def test_a_dictionary_is_its_keys(self):
        assert self.cell("model={kernel_size: 9, width: 8}") == self.cell("model.width=8", "model.kernel_size=9")
