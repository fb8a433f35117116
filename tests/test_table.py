"""`python -m roadmap.steps`: the table of all rows, and what changes from one to another."""

import csv
import io
import re

import pytest

from roadmap import paper
from roadmap.steps.__main__ import main as command
from roadmap.steps.table import main
from roadmap.steps.tree import step_tree


def out(capsys, *words):
    code = main(words)
    return code, *capsys.readouterr()


@pytest.mark.parametrize("regime", ["tiny", pytest.param("base", marks=pytest.mark.slow)])  # test_macs.py has base
def test_every_rows_gmacs_is_the_papers_but_for_the_slips_that_are_marked(capsys, regime):
    _, text, _ = out(capsys, "--regime", regime, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == [*("step", "label", "gmacs", "macts", "params_m", "paper_gmacs", "paper_top1", "note")]
    beyond = [r for r in rows if r["note"] == "not of the paper"]
    assert "grn" in [r["step"] for r in beyond]
    assert {(r["paper_gmacs"], r["paper_top1"]) for r in beyond} == {("", "")}
    rows = [r for r in rows if r not in beyond]
    assert [r["step"] for r in rows] == list(paper.rows(regime))
    differing = {r["step"] for r in rows if f"{float(r['gmacs']):.2f}" != f"{float(r['paper_gmacs']):.2f}"}
    assert differing == {step for reg, step in paper.SLIPS if reg == regime} == {r["step"] for r in rows if r["note"]}


def test_own_steps_stand_behind_their_parent_and_regimes_of_our_own_have_no_paper_numbers_and_no_swin(
    tmp_path, capsys, monkeypatch
):
    """As a command of its own."""
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - gelu\n  - _self_\nmodel:\n  kernel_size: 13\n"
    )
    (tmp_path / "step" / "vain.yaml").write_text(
        "# @package _global_\ndefaults:\n  - mine\n  - _self_\nmodel:\n  kernel_size: 13\n"
    )
    words = ["--regime", "nano", "--format", "markdown", "-cd", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["roadmap.steps", *words])
    assert command() == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert len(lines) == 2 + len(step_tree()) - 1 + 2  # without `swin`, with `mine` and `vain`
    assert "swin" not in text
    assert lines[2].startswith("| resnet | ResNet | 0.0026 | 0.0275 | 0.58 |  |  |")
    names = [line.split()[1] for line in lines]
    assert names[names.index("gelu") + 1 :][:2] == ["mine", "vain"]
    assert [line.split("|")[-2].strip() for line in lines if "changes" in line] == ["changes nothing of mine"]


TREE = """\
* move_up_depthwise
|-* kernel_5
|-* kernel_9
| * nine_gelu
| |-* nine_norm
| * nine_plain
| * nine_last
|-* kernel_11
* kernel_7
* gelu"""


def test_the_tree_runs_on_where_most_follows_and_the_others_leave_it_before(tmp_path, capsys):
    (tmp_path / "step").mkdir()
    for name, parent, change in (
        ("nine_gelu", "kernel_9", "activation: gelu"),
        ("nine_norm", "nine_gelu", "norm: layer_norm"),
        ("nine_plain", "nine_gelu", "norms_per_block: 1"),
        ("nine_last", "nine_plain", "activations_per_block: 1"),
    ):
        text = f"# @package _global_\ndefaults:\n  - {parent}\n  - _self_\nmodel:\n  {change}\n"
        (tmp_path / "step" / f"{name}.yaml").write_text(text)
    code, text, _ = out(capsys, "--tree", "-cd", str(tmp_path))
    drawn = [re.split(r"  |$", line)[0].rstrip() for line in text.splitlines()]
    assert len(drawn) == 1 + len(step_tree()) + 4 + 1
    known = [*paper.rows("tiny"), "nine_"]
    assert code == 0 and TREE in "\n".join(line for line in drawn if any(name in line for name in known))
    assert drawn[-2:] == ["", "* swin"]
    line = {each.partition("* ")[2].split()[0]: each for each in text.splitlines() if "* " in each}
    assert line["gelu"].split()[2:] == ["4.15", "ReLU", "to", "GELU"]
    assert line["kernel_9"].endswith("  tried, not kept") and line["swin"].endswith("  reference")
    assert line["grn"].endswith("  not of the paper") and line["nine_last"].endswith("  not of the paper")


def test_diff_shows_the_step(capsys):
    _, text, _ = out(capsys, "--regime", "tiny", "--diff", "layer_norm", "separate_downsampling")
    assert "model.separate_downsampling: False -> True" in text
    assert "+ stages.1.downsample.conv.weight 192x96x2x2" in text
    assert "- stages.1.block0.shortcut.conv.weight 192x96x1x1" in text
    assert "~ stages.1.block0.conv1.weight 96x1x7x7 -> 192x1x7x7" in text
    assert "GMACs: 4.146 -> 4.456" in text
    _, text, _ = out(capsys, "--regime", "tiny", "--diff", "kernel_7", "gelu")
    assert "0 added, 0 removed, 0 reshaped" in text


def test_diff_folds_blocks_that_change_alike(capsys):
    _, text, _ = out(capsys, "--regime", "tiny", "--diff", "patchify_stem", "depthwise")
    assert "~ stages.2.block0-8.conv2.weight 256x256x3x3 -> 256x1x3x3" in text


@pytest.mark.parametrize(("words", "piece"), [
    (("--regime", "tny"), "did you mean tiny?"),
    (("--diff", "gelu", "rellu"), "gelu"),
    (("--wat",), "--wat"),
    (("--tree", "--diff", "gelu", "resnet"), "not allowed with argument --tree"),
    (("--tree", "--format", "csv"), "not allowed with argument --tree"),
    (("--tree", "--regime", "tny"), "did you mean tiny?"),
    (("-cd", "nowhere"), "nowhere"),
])  # fmt: skip
def test_mistakes_end_with_64_and_a_line(capsys, words, piece):
    code, text, errors = out(capsys, *words)
    assert code == 64
    assert text == ""
    assert piece in errors
    assert len(errors.splitlines()) == 1
