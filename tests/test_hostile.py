"""Nothing that is read can run code, hang, or take more than its share: configs, and words of a command line."""

import os
import re
import sys
import time
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from roadmap.errors import ConfigError
from roadmap.files import read_json, read_yaml
from roadmap.parsing import parse_json, parse_yaml
from roadmap.steps import compose
from roadmap.steps.command_line import CommandLine
from roadmap.sweep.study import read_study
from roadmap.text import ArgumentParser

HEAD = "# @package _global_\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)
TOO_MUCH = {
    "bomb": (BOMB, "more than 10000 values"),
    "merged bomb": ("a: &a {x: 1, y: 2}\n" + BOMB.replace("a: &a", "z: &z\n  <<: *a\na: &a"), "more than 10000 values"),
    "loop": ("x: &a {b: *a}\n", r"\*a contains itself"),
    "loop of a list": ("x: &a [1, [*a]]\n", r"\*a contains itself"),
    "deep": ("x: " + "[" * 50 + "]" * 50 + "\n", "nested more than 32 deep"),
    "deep lines": ("".join(" " * i + "a:\n" for i in range(100)), "nested more than 32 deep"),
    "endless brackets": ("x: " + "[" * 100_000, "nested more than 32 deep|maximum nesting depth"),
    "wide": ("x: [" + "1, " * 20_000 + "1]\n", "more than 10000 values"),
    "digits": ("seed: " + "1" * 100_000 + "\n", "a value of 100000 characters"),
    "number": ("seed: 0x" + "f" * 5_000 + "\n", "a number of 5002 digits"),
    "text": ("study: " + "a" * 100_000 + "\n", "a value of 100000 characters"),
    "no date": ("study: 2001-99-99\n", "month must be in"),
}


def seconds(call, *args, **more):
    """Return how long this process computed in a call that raises ConfigError or ValueError, and its text."""
    began = time.process_time()
    with pytest.raises((ConfigError, ValueError)) as caught:
        call(*args, **more)
    return time.process_time() - began, str(caught.value)


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_yaml_that_takes_more_than_its_share_is_refused_in_milliseconds(tmp_path, kind):
    body, reason = TOO_MUCH[kind]
    (tmp_path / "config.yaml").write_text(body)
    took, text = seconds(read_yaml, tmp_path / "config.yaml")
    assert took < 1
    assert str(tmp_path / "config.yaml") in text
    assert re.search(reason, text)


def test_anchors_of_plain_size_are_read_as_ever():
    values = parse_yaml("a: &a {x: 1}\nb: [*a, *a]\nc: {<<: *a, y: 2}\n")
    assert values == {"a": {"x": 1}, "b": [{"x": 1}, {"x": 1}], "c": {"x": 1, "y": 2}}
    assert parse_yaml("x: " + "[" * 31 + "]" * 31) is not None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested more than 32 deep"),
        ("[" * 50 + "]" * 50, "nested more than 32 deep"),
        ('{"a": ' * 40 + "1" + "}" * 40, "nested more than 32 deep"),
        ('{"a": ' + "1" * 5000 + "}", "a number of 5000 digits"),
        ('{"a": ' + "1" * 41 + "}", "a number of 41 digits"),
        ("\xff", "Expecting value"),
    ],
)
def test_json_that_takes_more_than_its_share_is_refused(text, reason):
    took, told = seconds(parse_json, text.encode())
    assert took < 1
    assert reason in told


def test_numbers_that_are_none_are_read_as_they_are_written():
    assert parse_json(b'{"a": NaN, "b": -Infinity, "c": 1e999, "d": 1.5}') == {
        "a": None,
        "b": None,
        "c": None,
        "d": 1.5,
    }
    assert parse_json(('{"a": [' + "{}," * 1000 + "{}]}").encode())["a"][0] == {}


def make(path, kind):
    """Put something in a file's place."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "link to itself":
        path.symlink_to(path.name)
    elif kind == "gigabytes":
        with open(path, "wb") as file:
            file.truncate(4 * 2**30)


@pytest.mark.parametrize("kind", ["pipe", "folder", "endless", "link to itself", "gigabytes"])
def test_what_is_no_file_of_ours_is_an_error_at_once(tmp_path, kind):
    for read in (read_json, read_yaml):
        make(tmp_path / "file", kind)
        with pytest.raises(OSError, match=r"not a regular file|too large|symbolic links|Is a directory"):
            read(tmp_path / "file")
        (tmp_path / "file").rmdir() if kind == "folder" else (tmp_path / "file").unlink()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "own" / "step").mkdir(parents=True)
    (tmp_path / "own" / "step" / "mine.yaml").write_text(HEAD + "defaults: [gelu, _self_]\n")
    return tmp_path / "own"


@pytest.mark.parametrize(("file", "kind"), [
    *(("step/bad.yaml", kind) for kind in sorted(TOO_MUCH.keys() - {"no date"})),  # which Hydra takes for text
    ("recipe/bad.yaml", "bomb"), ("bad.yaml", "bomb"),
])  # fmt: skip
def test_a_config_that_takes_more_than_its_share_never_reaches_hydra(folder, file, kind):
    body, reason = TOO_MUCH[kind]
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(HEAD + body)
    took, text = seconds(compose, "mine", config_dir=folder)
    assert took < 2
    assert str(folder / file) in text
    assert re.search(reason, text)


def test_so_in_a_study_and_in_local_settings(folder, tmp_path):
    (folder / "bad.yaml").write_text("defaults: [config, _self_]\n" + BOMB)
    with pytest.raises(ConfigError, match=r"bad\.yaml: .*more than 10000 values"):
        read_study(str(folder / "bad.yaml"), runs=tmp_path / "runs")
    from roadmap.steps import config_files

    (tmp_path / "conf" / "local").mkdir(parents=True)
    (tmp_path / "conf" / "local" / "default.yaml").write_text(HEAD + "x: &a {b: *a}\n")
    with pytest.raises(ConfigError, match=r"local/default\.yaml: \*a contains itself"):
        config_files.check_config_dirs([tmp_path / "conf"], tmp_path / "conf")


CODE = "x:\n  _target_: os.mkdir\n  path: {marker}\n"
LOGGING = "version: 1\nhandlers:\n  x:\n    (): os.mkdir\n    path: {marker}\nroot:\n  handlers: [x]\n"
DOUBLING = "".join(f"k{i}: ${{k{i - 1}}}${{k{i - 1}}}\n" for i in range(1, 30))
SNEAKY = {  # what Hydra would act on -> files of a folder of configs
    "a callback": {"step/evil.yaml": HEAD + "hydra:\n  callbacks:\n    x: {_target_: os.mkdir, path: {marker}}\n"},
    "a callback by its dotted key": {"step/evil.yaml": HEAD + "hydra.callbacks.x: {path: {marker}}\n"},
    "a folder for Hydra": {"step/evil.yaml": HEAD + "hydra:\n  run:\n    dir: {marker}\n"},
    "code in a list": {"step/evil.yaml": HEAD + "model:\n  deep:\n    - _target_: os.mkdir\n"},
    "a header without a space": {"step/evil.yaml": "#@package hydra.job_logging\n" + LOGGING},
    "a header with more spaces": {"step/evil.yaml": "#   @package hydra.callbacks\n" + CODE},
    "logging under Hydra's own name": {"hydra/job_logging/none.yaml": LOGGING},
    "a tag that only Hydra's parser knows": {
        "step/evil.yaml": HEAD + "p: !!python/object/apply:pathlib.Path [a]\nhydra:\n  callbacks:\n" + CODE
    },
    "a default outside": {"step/evil.yaml": HEAD + "defaults:\n  - gelu\n  - ../../outside\n  - _self_\n"},
    "a default among Hydra's": {"step/evil.yaml": HEAD + "defaults:\n  - gelu\n  - data@hydra.callbacks: digits\n"},
    "a launcher": {"evil.yaml": "defaults:\n  - config\n  - override hydra/launcher: joblib\n"},
    "a list that sets Hydra": {
        "evil.yaml": "defaults: [config]\nhydra: {sweeper: {params: {hydra.job.env_set.X: '1,2'}}}\n"
    },
    "references that double": {"step/evil.yaml": HEAD + "k0: x\n" + DOUBLING},
    "a list of code": {"evil.yaml": "defaults: [config]\nhydra: {sweeper: {params: {'+hydra/launcher': joblib}}}\n"},
}


@pytest.mark.parametrize("kind", SNEAKY)
def test_what_hydra_would_act_on_is_refused_however_it_is_written(folder, tmp_path, monkeypatch, kind):
    marker = tmp_path / "marker"
    (tmp_path / "outside.yaml").write_text(HEAD + CODE.format(marker=marker))
    for name, body in SNEAKY[kind].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(body.replace("{marker}", str(marker)))
        with pytest.raises(ConfigError, match=name):
            compose("mine", config_dir=folder)
    for option in (("-cd", str(folder)), (f"--config-dir={folder}",)):
        code, _, written = typed(monkeypatch, *option, "+step=mine")
        assert (code, len(written)) == (64, 1) and name in written[0]
    assert not marker.exists()


def test_references_that_double_by_other_ways_end_by_themselves(folder, monkeypatch):
    monkeypatch.setattr(sys.modules["roadmap.steps.compose"], "COMPOSE_S", 2.0)
    doubling = "".join(f"k{i}:\n  a: ${{k{i - 1}}}\n  b: ${{k{i - 1}}}\n" for i in range(1, 30))
    (folder / "step" / "evil.yaml").write_text(HEAD + "defaults: [gelu, _self_]\nk0: x\n" + doubling)
    took, text = seconds(compose, "evil", config_dir=folder)
    assert took < 5
    assert "takes more than 2 s to compose" in text


def test_a_help_that_cannot_read_a_folder_is_a_plain_error(monkeypatch, folder):
    (folder / "step" / "bad.yaml").write_text(HEAD + BOMB)
    code, _, written = typed(monkeypatch, "-cd", str(folder), "--help")
    assert code == 64
    assert "bad.yaml" in written[0]


def test_a_folder_behind_a_link_is_read_too(folder, tmp_path):
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "x.yaml").write_text(HEAD + CODE)
    (folder / "variant").symlink_to(tmp_path / "evil")
    (tmp_path / "evil" / "round").symlink_to(tmp_path / "evil")
    with pytest.raises(ConfigError, match=r"variant/x\.yaml: holds a _target_"):
        compose("mine", config_dir=folder)


@pytest.mark.parametrize("kind", ["pipe", "endless", "gigabytes"])
def test_a_config_that_is_no_file_is_refused_at_once(folder, kind):
    make(folder / "step" / "evil.yaml", kind)
    with pytest.raises(ConfigError, match=r"step/evil\.yaml: cannot be read \((not a regular file|too large)"):
        compose("mine", config_dir=folder)


WORDS = {
    "digits": "recipe.lr=" + "1" * 100_000,
    "characters": "study=" + "a" * 100_000,
    "items": "model.depths=[" + ",".join("1" * 40_000) + "]",
    "short items": "model.depths=[" + ",".join("1" * 1_900) + "]",
    "brackets": "model=" + "{a:" * 200 + "1" + "}" * 200,
    "lists": "model.depths=" + "[" * 200 + "]" * 200,
    "functions": "recipe.lr=" + "sort(" * 200 + "1" + ")" * 200,
    "digits within bounds": "recipe.epochs=" + "9" * 4_500,
    "digits at the bound": "recipe.lr=" + "9" * 3_900,
    "a number for a scale": "scale=nan",
    "a negative number for a set": "data=-5",
    "a number for a variant": "+variant=3",
    "a truth value for a recipe": "recipe=true",
    "numbers among names": "+variant=without_gelu,3",
    "numbers counted": "regime=range(0,3)",
    "a path for a variant": "+variant=../../x",
    "a group of no number of ours": "+tune=3",
    "more runs than can be": "seed=range(0,1000000000)",
    "more runs shuffled": "seed=shuffle(range(0,1000000000))",
    "runs without an end": "seed=range(0,1,0)",
    "half runs without an end": "seed=range(0.0,1,0)",
    "an interval": "seed=interval(0,1)",
    "many references": "study=" + "${seed}" * 100,
    "itself": "recipe.lr=${recipe.lr}",
    "the whole": "study=${model}",
    "Hydra's own through a list": "hydra.sweeper.params={hydra.job.env_set.X:'1'}",
}


@pytest.mark.parametrize("kind", WORDS)
def test_a_word_that_is_too_much_ends_with_64_in_no_time(monkeypatch, kind):
    for words in ((WORDS[kind],), ("-m", WORDS[kind])):
        code, took, written = typed(monkeypatch, "+step=gelu", *words)
        assert (code, took < 2) == (64, True), written


@pytest.mark.parametrize(
    "words",
    [
        ("--exp", "x.pickle"), ("--exp=x.pickle",), ("--experimental-rerun=x",), ("--config-d=DIR", "-cn", "mine"),
        ("--config-path", "DIR"), ("-cp", "DIR"), ("-cd",), ("-cd", "--exp"), ("-cn", "../../evil"), ("-cn=/tmp/evil",),
        ("--multi",), ("-mc", "job"), ("--", "x"), ("-cdDIR",), ("--run",), ("--shell-completion",), ("--hydra-help",),
    ],
)  # fmt: skip
def test_only_options_spelled_in_full_reach_hydra(monkeypatch, words):
    code, _, written = typed(monkeypatch, "+step=gelu", *words)
    assert code == 64, written


def test_our_own_commands_take_no_abbreviations():
    parser = ArgumentParser(prog="x")
    parser.add_argument("--config-dir")
    with pytest.raises(ConfigError, match="--config"):
        parser.parse_args(["--config", "x"])


def typed(monkeypatch, *words):
    """Return exit code, seconds of computing, and what a command line writes that would do nothing."""
    written = []

    def run(config, sweep, env):
        written.append("done")
        return ""

    line = CommandLine(run, words)
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as run.py has it
    monkeypatch.setattr(CommandLine, "write", lambda _, line: written.append(line))
    began = time.process_time()
    code = line.main()
    return code, time.process_time() - began, written


# The grammar of overrides: keys, values of every kind, and what is put around them.
KEYS_TEXT = """seed study mode data scale regime recipe debug step variant tune local recipe.lr recipe.epochs
    recipe.drop_path model model.depths model.width model.norm model.kernel_size data.root data.mean data.name wandb
    paths.runs wandb.project checkpoint.keep devices hydra.mode hydra.sweeper.params hydra.run.dir nope model.nope
    cell a/b"""
KEYS = st.sampled_from(KEYS_TEXT.split())
SIGNS = st.sampled_from(["", "", "", "+", "++", "~", "-", "+-"])
LEAVES_TEXT = r"""gelu null true nan -inf 1e999 0x1f 1_0 -5 3 1e-3 .5 ./x ../x /tmp/x a:b ${seed} ${model} ${nope}
    ${recipe.lr} ${oc.env:HOME} ${oc.env:NOPE} ${oc.decode:x} ${oc.create:{a:1}} ${now:} '' "x" 'a range(3) range(1,3)
    interval(0,1) glob(*) choice(1,2) shuffle(1,2) sort(2,1) int(3.5) float(x) json_str({a:1}) tag(a,choice(1,2)) digits
    _target_ without_gelu tiny a=b a\\,b \\ é 日本 % # ! ? @ * ; $ ${ } { [ ] ( ) , :"""
LEAVES = st.one_of(
    st.sampled_from(LEAVES_TEXT.split()),
    st.integers().map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_characters="\0"), max_size=12),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: f"[{','.join(items)}]"),
        st.lists(inner, max_size=4).map(",".join),
        st.lists(st.tuples(LEAVES, inner), max_size=3).map(lambda p: "{" + ",".join(f"{k}:{v}" for k, v in p) + "}"),
        st.tuples(st.sampled_from(["choice", "sort", "shuffle", "str", "range", "extend_list"]), inner).map(
            lambda pair: f"{pair[0]}({pair[1]})"
        ),
        st.tuples(inner, st.integers(1, 3000)).map(lambda pair: pair[0] * pair[1]),
    ),
    max_leaves=8,
)
OVERRIDES = st.one_of(
    st.tuples(SIGNS, KEYS, st.just("="), VALUES).map("".join),
    st.tuples(SIGNS, KEYS).map("".join),
    st.tuples(KEYS, st.sampled_from(["@x=", "@=", "@a:b=", ".=", "..a=", "[0]=", "==", " = "]), LEAVES).map("".join),
    LEAVES,
)
COMMANDS = st.tuples(
    st.sampled_from([(), ("-m",), ("--multirun",)]), st.lists(OVERRIDES, min_size=1, max_size=4).map(tuple)
).map(lambda parts: ("+step=gelu", *parts[0], *parts[1]))


@settings(
    max_examples=int(os.environ.get("ROADMAP_FUZZ", "40")),
    derandomize="ROADMAP_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
@given(COMMANDS)
@example(("+step=gelu", "-m", "seed=1,2", "+variant=null,without_gelu"))
@example(("+step=gelu", "-m", "seed=1,2", "debug=null"))
@example(("+step=gelu", "-m", "seed=range(5,0)"))
@example(("+step=gelu", "-m", "hydra.sweeper.params.seed='1,2'"))
def test_no_command_line_ends_otherwise_than_with_a_plain_word(command):
    with pytest.MonkeyPatch.context() as monkeypatch:
        code, took, written = typed(monkeypatch, *command)
    assert code in (0, 64), written
    assert took < 2 + 0.5 * written.count("done"), written
    assert code == 0 or written, command
    assert all(len(line) < 3000 for line in written)


@pytest.mark.parametrize("step", ["", "a b", "é", "../gelu", "gelu\n", "x" * 200])
def test_compose_takes_a_steps_name_as_a_name(step):
    with pytest.raises(ConfigError):
        compose(step, overrides=("dry=true",), config_dir=None)


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(st.lists(OVERRIDES, max_size=3))
def test_compose_raises_a_plain_error_or_none(overrides):
    with suppress(ConfigError):
        compose("gelu", overrides=overrides)
