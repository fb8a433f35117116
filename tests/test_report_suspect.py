"""What is suspect beside its neighbours is left out unless allowed; what differs in rounding counts and is marked."""

import numpy as np
import pytest

from roadmap import config
from roadmap.report import aggregate, collect, roadmap_chart
from roadmap.report.__main__ import main
from roadmap.runs import schema
from tests.fabricate import groups_of, write_run
from tests.test_report import edit

ROWS = ("enhanced_recipe", "stage_ratio", "patchify_stem", "depthwise")


def others(runs, **summary) -> None:
    """Write neighbours that are all alike."""
    for step in ROWS:
        write_run(runs, step, top1=40.0, **summary)


# Kind that allows it -> what differs in one run, and words of the reason.
DIFFERENT = {
    "data": ({"data_fingerprint": "f00d"}, "images=f00d, not beef"),
    "batch": ({"batch_size": 1024}, "batch_size=1024, not 4096"),
    "config": ({"epochs": 6}, "epochs=6, not 3"),
    "override": ({"drift": ["code_hash: aaaa -> bbbb"]}, "continued although this had changed: code_hash: aaaa"),
}
USUAL = {"code_hash": "aaaa", "data_fingerprint": "beef", "hardware": "NVIDIA H100", "batch_size": 4096}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_a_run_unlike_its_neighbours_is_listed_left_out_and_counts_only_where_allowed(tmp_path, kind):
    change, words = DIFFERENT[kind]
    others(tmp_path, **USUAL)
    write_run(tmp_path, "gelu", 0, top1=50.0, **USUAL)
    write_run(tmp_path, "gelu", 1, top1=90.0, **(USUAL | change))
    collected = collect([tmp_path])
    assert {(run.step, run.seed) for run in collected.runs} == {*((step, 0) for step in ROWS), ("gelu", 0)}
    (finding,) = collected.suspect
    assert finding.path == "roadmap/nano-digits/gelu/seed1"
    assert words in finding.reason
    assert aggregate(collected.runs)[0].rows[-1].top1 == 50.0
    wrong = next(other for other in DIFFERENT if other != kind)
    assert len(collect([tmp_path], allow=[wrong]).runs) == 5
    taken = collect([tmp_path], allow=[kind])
    assert not taken.suspect
    assert words in taken.allowed[0].reason
    row = aggregate(taken.runs)[0].rows[-1]
    assert (row.n, row.top1, row.marks) == (2, 70.0, (kind,))


def test_a_run_that_differs_in_two_ways_counts_only_where_both_are_allowed(tmp_path):
    others(tmp_path, **USUAL)
    write_run(tmp_path, "gelu", **(USUAL | {"data_fingerprint": "f00d", "batch_size": 1024}))
    counted = [len(collect([tmp_path], allow=allow).runs) for allow in (["data"], ["batch"], ["data", "batch"])]
    assert counted == [4, 4, 5]


def test_runs_that_are_left_out_have_no_say_in_what_is_usual(tmp_path):
    write_run(tmp_path, "gelu", 0, epochs=3)
    for seed in (1, 2):
        write_run(tmp_path, "gelu", seed, epochs=6, drift=["code_hash: aaaa -> bbbb"])
    assert [run.seed for run in collect([tmp_path]).runs] == [0]
    assert [run.seed for run in collect([tmp_path], allow=["override"]).runs] == [1, 2]


def test_of_two_seeds_that_differ_the_longer_training_is_the_usual_one(tmp_path):
    for seed, epochs in enumerate((3, 20)):
        write_run(tmp_path, "gelu", seed, epochs=epochs)
    (finding,) = collect([tmp_path]).suspect
    assert (finding.path[-5:], "epochs=3, not 20" in finding.reason) == ("seed0", True)


def test_macs_that_differ_in_their_last_digits_are_the_same(tmp_path):
    for seed, gmacs in enumerate((4.2, 4.20001, 4.3)):
        write_run(tmp_path, "gelu", seed, gmacs=gmacs)
    (finding,) = collect([tmp_path]).suspect
    assert (finding.path[-5:], "gmacs=4.3, not 4.2 " in finding.reason) == ("seed2", True)


def test_a_reference_has_another_recipe_than_the_rows_and_its_seeds_the_same(tmp_path):
    others(tmp_path)
    for seed, rate in enumerate((0.3, 0.3, 0.4)):
        write_run(tmp_path, "swin", seed, config=f"recipe:\n  epochs: 3\n  drop_path: {rate}\n")
    (finding,) = collect([tmp_path]).suspect
    assert finding.path.endswith("swin/seed2")
    assert "recipe.drop_path=0.4, not 0.3 like the other seeds of its cell" in finding.reason


ROUNDING = {
    "code": ({"code_hash": "bbbb"}, "other code than most (bbbb, not aaaa)"),
    "hardware": ({"hardware": "NVIDIA A100"}, "other hardware than most (NVIDIA A100, not NVIDIA H100)"),
    "versions": ({"versions": {"torch": "2.15.0"}}, "other versions than most (torch 2.15.0, not torch 2.14.0)"),
    "kernels": ({"config": "kernels: plain\n"}, "other kernels than most (plain, not auto)"),
    "resumed": ({"rounding": ["hardware: H100 -> A100"]}, "other code, hardware or versions at a later start"),
}


@pytest.mark.parametrize("kind", ROUNDING)
def test_what_differs_in_rounding_alone_counts_is_marked_and_listed_in_a_line_that_counts_it(tmp_path, kind):
    change, words = ROUNDING[kind]
    others(tmp_path / "runs", **USUAL)
    write_run(tmp_path / "runs", "gelu", 0, top1=50.0, **USUAL)
    for seed in (1, 2):
        write_run(tmp_path / "runs", "gelu", seed, top1=51.0, **(USUAL | change))
    collected = collect([tmp_path / "runs"])
    assert (len(collected.runs), collected.suspect, collected.allowed) == (7, (), ())
    (line,) = collected.rounding
    assert str(line) == f"roadmap (nano, digits): 2 of 7 runs have {words}"
    (group,) = aggregate(collected.runs)
    assert (group.rows[-1].n, group.rows[-1].marks) == (3, (kind,))
    assert f"† gelu: counts runs that differ from most of the study ({kind})" in group.notes
    assert "ReLU to GELU †" in [label.get_text() for label in roadmap_chart(group).axes[1].get_yticklabels()]
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--tables-only"]) == 0
    text = (tmp_path / "out" / "table.md").read_text()
    assert "counted, and marked † (1)" in text
    assert "| gelu † |" in text


def test_half_a_study_of_other_code_is_counted_and_so_is_a_run_of_another_commit_without_a_hash(tmp_path):
    others(tmp_path, **USUAL)
    for step in ("inverted_bottleneck", "move_up_depthwise", "kernel_7", "gelu"):
        write_run(tmp_path, step, **(USUAL | {"code_hash": "bbbb"}))
    assert (len(collect([tmp_path]).runs), collect([tmp_path]).suspect) == (8, ())
    others(tmp_path / "no_hash", status={"git_commit": "1111"})
    write_run(tmp_path / "no_hash", "gelu", status={"git_commit": "2222"})
    assert "1 of 5 runs has other code than most (2222, not 1111)" in str(collect([tmp_path / "no_hash"]).rounding[0])


def test_a_key_that_an_older_record_lacks_counts_as_its_default(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "gelu", seed, config="" if seed else "model:\n  stem_stride: 4\n")
    others(tmp_path)
    write_run(tmp_path, "layer_norm", config="tune: {}\n")
    assert (len(collect([tmp_path]).runs), collect([tmp_path]).suspect) == (8, ())
    write_run(tmp_path, "gelu", 3, config="model:\n  stem_stride: 2\n")
    (finding,) = collect([tmp_path]).suspect
    assert "model.stem_stride=2, not 4 like the other seeds of its cell" in finding.reason


def test_a_key_that_the_schema_has_lost_is_compared_among_those_that_have_it(tmp_path):
    for seed, line in enumerate(("", "", "  lost: 1\n", "  lost: 1\n", "  lost: 2\n")):
        write_run(tmp_path, "gelu", seed, config="model:\n  width: 16\n" + line)
    (finding,) = collect([tmp_path]).suspect
    assert (finding.path[-5:], "model.lost=2, not 1" in finding.reason) == ("seed4", True)


def test_a_cell_under_a_redundant_name_is_a_copy_of_the_plainly_named_one(tmp_path):
    write_run(tmp_path, "gelu", 0, epochs=20)
    write_run(tmp_path, "gelu", 0, epochs=20, cell="gelu,recipe.epochs=20", top1=60.0)
    write_run(tmp_path, "gelu", 1, epochs=20, cell="gelu,recipe.epochs=20")
    write_run(tmp_path, "gelu", 0, epochs=20, cell="gelu,recipe.lr=0.5", top1=61.0)
    write_run(tmp_path, "gelu", 0, epochs=20, cell="gelu+with_x", variant="with_x")
    collected = collect([tmp_path])
    found = sorted((run.cell, run.seed) for run in collected.runs)
    assert found == [("gelu", 0), ("gelu+with_x", 0), ("gelu,recipe.epochs=20", 1), ("gelu,recipe.lr=0.5", 0)]
    (finding,) = collected.suspect
    folder = tmp_path / "roadmap" / "nano-digits"
    assert finding.path == f"{folder}/gelu,recipe.epochs=20/seed0"
    assert finding.reason == f"a copy of {folder}/gelu/seed0 under another name: not counted"


def test_a_config_that_differs_in_one_key_is_found_among_seeds_and_among_rows(tmp_path):
    line = "model:\n  kernel_size: {}\n"
    for seed, kernel in enumerate((7, 7, 9)):
        write_run(tmp_path, "gelu", seed, config=line.format(kernel))
    for step in ROWS:
        write_run(tmp_path, step, config="tune: {}\n")
    (finding,) = collect([tmp_path]).suspect
    assert finding.path.endswith("gelu/seed2")
    assert "model.kernel_size=9, not 7 like the other seeds of its cell" in finding.reason
    rate = config.defaults()["recipe.lr"]
    for step, key, value, usual in (
        ("layer_norm", "recipe.lr", "0.5", rate),
        ("fewer_norms", "data.flip", "true", "false"),
    ):
        changed = write_run(tmp_path, step) / schema.CONFIG
        section, _, name = key.partition(".")
        changed.write_text(changed.read_text().replace(f"{section}:\n", f"{section}:\n  {name}: {value}\n"))
        reasons = [finding.reason for finding in collect([tmp_path]).suspect]
        assert any(f"{key}={value}, not {usual} like most runs of its recipe" in reason for reason in reasons)


def test_a_step_of_ones_own_and_an_override_may_have_another_recipe(tmp_path):
    others(tmp_path, batch_size=4096)
    write_run(tmp_path, "mine", parent="gelu", batch_size=512, epochs=9)
    write_run(tmp_path, "gelu", cell="gelu,recipe.epochs=9", epochs=9)
    collected = collect([tmp_path])
    assert (len(collected.runs), collected.suspect) == (6, ())


def test_rows_of_another_commit_with_the_same_code_are_not_marked(tmp_path):
    """The code's hash leaves out what cannot change a result; the commit decides only where there is no hash."""
    others(tmp_path, code_hash="aaaa", status={"git_commit": "1111"})
    write_run(tmp_path, "gelu", code_hash="aaaa", status={"git_commit": "2222"})
    assert not (collect([tmp_path]).suspect or collect([tmp_path]).rounding)


def test_what_is_not_recorded_is_not_held_against_a_run(tmp_path):
    others(tmp_path, **USUAL)
    write_run(tmp_path, "gelu", hardware=None, data_fingerprint=None, code_hash="aaaa")
    assert not (collect([tmp_path]).suspect or collect([tmp_path]).rounding)


def bits(right: int, n: int = 40) -> np.ndarray:
    return np.arange(n) < right


def shorten_file(path, less: int) -> None:
    path.write_bytes(path.read_bytes()[:-less])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda run: np.save(run / schema.CORRECT, np.packbits(bits(10))), "says 25 % are right"),
        (lambda run: np.save(run / schema.CORRECT, np.packbits(bits(10, 80))), "80 bits for 40 images"),
        (lambda run: np.save(run / schema.CORRECT, np.array([object()])), "does not contain packed bits"),
        (lambda run: np.save(run / schema.CORRECT, np.zeros(5)), "does not contain packed bits"),
        (lambda run: (run / schema.CORRECT).write_bytes(b"\x93NUMPY"), "does not contain packed bits"),
        (lambda run: (run / schema.CORRECT).write_bytes(b""), "does not contain packed bits"),
        (lambda run: shorten_file(run / schema.CORRECT, 2), "cannot be read (3 bytes instead of 5)"),
        (lambda run: edit(run / schema.SUMMARY, val_images=400), "40 bits for 400 images"),
    ],
)
def test_bits_that_are_not_those_of_the_accuracy_are_suspect(tmp_path, damage, reason):
    run = write_run(tmp_path, "gelu", correct=bits(20))
    assert not collect([tmp_path]).suspect
    damage(run)
    collected = collect([tmp_path])
    assert not collected.runs
    assert reason in collected.suspect[0].reason


@pytest.mark.parametrize("loss", ["NaN", "null"])
def test_a_training_loss_that_is_not_a_number_is_suspect(tmp_path, loss):
    run = write_run(tmp_path, "gelu")
    text = (run / schema.METRICS).read_text()
    (run / schema.METRICS).write_text(text.replace('"train/loss": 1.0', f'"train/loss": {loss}', 1))
    assert "not a number" in collect([tmp_path]).suspect[0].reason


def test_the_command_takes_allowed_kinds_and_refuses_others(tmp_path, capsys):
    others(tmp_path / "runs", data_fingerprint="beef")
    write_run(tmp_path / "runs", "gelu", data_fingerprint="f00d")
    command = [str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert main([*command, "--tables-only"]) == 0
    assert "images=f00d" in capsys.readouterr().out
    assert main([*command, "--tables-only", "--allow", "code", "hardware", "data"]) == 0
    assert "gelu †" in capsys.readouterr().out
    assert main([*command, "--allow", "everything"]) == 64
    assert "override, code, data, hardware, batch, config" in capsys.readouterr().err


def test_missing_rows_parents_and_seeds_are_named(tmp_path):
    for seed in range(2):
        for step in ROWS:
            write_run(tmp_path, step, seed)
    write_run(tmp_path, "gelu", 0)
    (group,) = groups_of(tmp_path)
    said = "\n".join(group.missing)
    assert "inverted_bottleneck" in said
    assert "gelu: its parent kernel_7 has no usable run" in said
    assert "gelu: no usable run of seed 1" in said
    assert "swin" not in said  # no net of this regime
