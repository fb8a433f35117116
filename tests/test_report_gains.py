"""What each row gains over its parent: which row that is, over seeds, over images, beside the paper; the findings."""

import csv
import itertools
import json
import re

import numpy as np
import pytest
import yaml

from roadmap.escape import for_tex
from roadmap.report import aggregate, collect, findings
from roadmap.report.analyse import statistics
from roadmap.report.analyse.cells import Gain
from roadmap.report.analyse.formats import p_text
from roadmap.report.write.columns import gain_columns
from roadmap.report.write.csv_files import csv_files
from roadmap.report.write.results_json import to_json
from roadmap.report.write.tables import tables_of, to_markdown, to_tex, to_text
from tests.fabricate import groups_of, write_roadmap, write_run

CHAIN = ("resnet", "enhanced_recipe", "stage_ratio", "patchify_stem", "depthwise")


def cell_of(groups, name):
    return next(cell for group in groups for cell in group.cells if cell.cell == name)


def seeds(runs, step, tops, **more):
    for seed, top1 in enumerate(tops):
        write_run(runs, step, seed, top1=top1, epochs=1, **more)


def test_a_step_is_compared_with_its_parent_and_a_sibling_too(tmp_path):
    for step, top1 in (("move_up_depthwise", 40.0), ("kernel_5", 41.0), ("kernel_7", 42.5), ("gelu", 42.0)):
        write_run(tmp_path, step, top1=top1)
    groups = groups_of(tmp_path)
    told = [(cell.cell, cell.gain.parent, cell.gain.gain) for cell in groups[0].rows if cell.gain]
    of_sizes = [("kernel_5", "move_up_depthwise", 1.0), ("kernel_7", "move_up_depthwise", 2.5)]
    assert told == [*of_sizes, ("gelu", "kernel_7", -0.5)]


def test_a_step_that_names_itself_as_its_parent_has_none(tmp_path):
    write_run(tmp_path, "own", parent="own")
    (group,) = groups_of(tmp_path)
    assert (group.rows[0].parent, group.rows[0].gain, group.missing) == (None, None, ())


def test_the_short_table_of_gains_says_what_each_is_compared_with(tmp_path):
    for cell in ("gelu", "fewer_activations", "gelu+without_mixup"):
        write_run(tmp_path, cell.partition("+")[0], cell=cell, variant="without_mixup" if "+" in cell else None)
    collected = collect([tmp_path])
    lines = [line.split() for line in to_text(aggregate(collected.runs), collected).splitlines()]
    table = lines[lines.index(["Gains"]) :]
    assert table[1][:4] == ["step", "compared", "with", "gain"]
    assert [row[:3] for row in table[2:4]] == [
        [cell, "gelu", "+0.00"] for cell in ("fewer_activations", "gelu+without_mixup")
    ]


def test_gains_over_seeds_are_welchs_and_holm_counts_every_step_of_the_study(tmp_path):
    tops = {step: np.random.default_rng(i).normal(50 + i, 0.4, 3) for i, step in enumerate(CHAIN)}
    for step, values in tops.items():
        seeds(tmp_path, step, values)
    groups = groups_of(tmp_path)
    found = [statistics.welch(tops[step], tops[parent]) for parent, step in itertools.pairwise(CHAIN)]
    gains = [cell_of(groups, step).gain for step in CHAIN[1:]]
    assert [gain.over_seeds for gain in gains] == [item.interval for item in found]
    assert [gain.p_holm for gain in gains] == statistics.holm([item.p for item in found])
    assert gains[0].p_holm > gains[0].p


def test_holm_counts_the_regimes_of_a_study_together_and_other_studies_apart(tmp_path):
    for study, regime in (("a", "tiny"), ("a", "base"), ("b", "tiny")):
        seeds(tmp_path, "resnet", (50.0, 50.4, 50.3), study=study, regime=regime)
        seeds(tmp_path, "enhanced_recipe", (51.0, 51.1, 51.5), study=study, regime=regime)
    groups = groups_of(tmp_path)
    adjusted = {(g.study, g.regime): g.rows[1].gain.p_holm / g.rows[1].gain.p for g in groups}
    assert adjusted == pytest.approx({("a", "tiny"): 2, ("a", "base"): 2, ("b", "tiny"): 1})


def test_one_seed_gives_no_interval_over_seeds_and_says_so(tmp_path):
    seeds(tmp_path, "resnet", (50.0, 50.5, 50.2))
    seeds(tmp_path, "enhanced_recipe", (51.0,))
    collected = collect([tmp_path])
    groups = aggregate(collected.runs)
    gain = groups[0].rows[1].gain
    assert (gain.over_seeds, gain.p, gain.p_holm, gain.seeds_needed) == (None,) * 4
    text = to_markdown(groups, collected, findings(groups)).decode()
    assert "none: one seed" in text
    assert "seeds are equal" not in text
    assert "1 of 1 gain rests on one seed of a row" in text and "nano, digits): 2 cells, 1 to 3 seeds" in text
    assert "significant" not in text


def test_equal_seeds_have_no_spread_and_say_so(tmp_path):
    seeds(tmp_path, "resnet", (50.0, 50.0))
    seeds(tmp_path, "enhanced_recipe", (51.0, 51.0))
    collected = collect([tmp_path])
    groups = aggregate(collected.runs)
    assert "none: all seeds equal" in to_markdown(groups, collected).decode()
    (text,) = findings(groups)
    assert "No interval over seeds is known for enhanced_recipe: in each of both rows all seeds are equal." in text
    assert "one seed" not in text and "significant" not in text


def nets(n: int, level: float, seed: int) -> list[np.ndarray]:
    hard = np.random.default_rng(99).random(2_000)
    return [hard + 0.15 * np.random.default_rng([seed, i]).normal(size=2_000) < level for i in range(n)]


def test_gains_over_images_pair_the_same_images_and_need_every_net_of_both_rows(tmp_path):
    ours, theirs = nets(2, 0.72, 1), nets(3, 0.70, 2)
    for seed, correct in zip((0, 3), ours, strict=True):
        write_run(tmp_path, "enhanced_recipe", seed, correct=correct, data_fingerprint="f")
    for seed, correct in zip((1, 2, 3), theirs, strict=True):
        write_run(tmp_path, "resnet", seed, correct=correct, data_fingerprint="f")
    gain = cell_of(groups_of(tmp_path), "enhanced_recipe").gain
    assert gain.over_images == statistics.image_bootstrap(np.stack(ours), np.stack(theirs))
    assert gain.over_images.low < gain.gain < gain.over_images.high
    assert (gain.only_this, gain.only_parent) == (int((ours[1] & ~theirs[2]).sum()), int((theirs[2] & ~ours[1]).sum()))
    assert gain.mcnemar_p == statistics.mcnemar(ours[1], theirs[2]).p
    assert gain.changes.seeds == 1
    (tmp_path / "roadmap" / "nano-digits" / "resnet" / "seed2" / "correct.npy").unlink()
    gain = cell_of(groups_of(tmp_path), "enhanced_recipe").gain
    assert (gain.over_images, gain.mcnemar_p) == (None, None)


def test_a_pair_that_points_the_other_way_than_the_means_says_so(tmp_path):
    for step, levels in (("resnet", (0.72, 0.60, 0.60)), ("enhanced_recipe", (0.68, 0.70, 0.70))):
        for seed, level in enumerate(levels):  # the lowest common seed is the one that is compared
            (correct,) = nets(1, level, seed)
            write_run(tmp_path, step, seed, correct=correct)
    collected = collect([tmp_path])
    groups = aggregate(collected.runs)
    gain = cell_of(groups, "enhanced_recipe").gain
    assert gain.gain > 0 and gain.only_this < gain.only_parent
    (text,) = findings(groups)
    assert "The pair points in the other direction than the means over seeds in enhanced_recipe." in text
    assert f"{gain.only_this} / {gain.only_parent}, against the gain" in to_markdown(groups, collected).decode()


def test_means_that_differ_in_their_last_bits_alone_contradict_no_pair():
    for noise in (-1.4e-14, 1.4e-14):
        assert not Gain("parent", 3, noise, only_this=30, only_parent=20).contradicted
        assert not Gain("parent", 3, noise, only_this=20, only_parent=30).contradicted
    assert Gain("parent", 3, -0.01, only_this=30, only_parent=20).contradicted


def test_seeds_needed_are_a_range_for_the_test_of_the_whole_study(tmp_path):
    for step, tops in zip(CHAIN, ((50, 50.5, 50.2), (51, 51.3, 51.4), (51, 51.3, 51.1), (55, 58), (60,)), strict=True):
        seeds(tmp_path, step, tops)
    collected = collect([tmp_path])
    groups = aggregate(collected.runs)
    gain = cell_of(groups, "enhanced_recipe").gain
    effect = statistics.welch((51, 51.3, 51.4), (50, 50.5, 50.2)).effect
    assert gain.seeds_needed == statistics.seeds_needed(effect, 3, 3, gain.significant)  # one seed is no test
    needed = gain.seeds_needed
    assert f"| {needed.likely} ({needed.low} to {needed.high}) |" in to_markdown(groups, collected).decode()
    fewer = cell_of(groups, "patchify_stem").gain
    assert (fewer.significant, fewer.seeds_needed.low) == (False, 3)  # two seeds have not told it
    unsure = cell_of(groups, "stage_ratio").gain
    assert (unsure.significant, unsure.seeds_needed.high) == (False, None)
    row = list(csv.DictReader(csv_files(groups)["table.csv"].decode().splitlines()))[2]
    assert (row["seeds_needed"], row["seeds_needed_high"]) == (str(unsure.seeds_needed.likely), "")


def test_nets_that_agree_on_every_image_have_no_interval(tmp_path):
    (correct,) = nets(1, 0.7, 1)
    for step in ("resnet", "enhanced_recipe"):
        write_run(tmp_path, step, correct=correct)
    gain = cell_of(groups_of(tmp_path), "enhanced_recipe").gain
    assert (gain.over_images, gain.mcnemar_p, gain.only_this, gain.only_parent) == (None, None, 0, 0)


def test_the_papers_gain_has_welchs_interval_of_its_printed_spreads(tmp_path):
    write_roadmap(tmp_path, "tiny", "imagenet", seeds=1, epochs=1)
    groups = groups_of(tmp_path)
    gain = cell_of(groups, "stage_ratio").gain
    assert gain.paper_gain == pytest.approx(79.36 - 78.82)
    # Welch of (78.82, 0.07) and (79.36, 0.07), n = 3 each: t(0.975, 4) = 2.7764, standard error 0.07 sqrt(2/3)
    half = 2.7764451 * 0.07 * (2 / 3) ** 0.5
    assert (gain.paper_interval.low, gain.paper_interval.high) == pytest.approx((0.54 - half, 0.54 + half))
    assert cell_of(groups, "enhanced_recipe").gain.paper_interval is None  # the paper has one resnet


def variant(runs, name, top1, study="leave_one_out", **more):
    step = "separate_downsampling"
    write_run(runs, step, top1=top1, study=study, cell=f"{step}+{name}", variant=name, **more)


def test_a_variant_is_compared_with_its_plain_step_in_another_study_only_where_all_else_is_the_same(tmp_path):
    variant(tmp_path, "without_gelu", 49.0, code_hash="aaaa")
    write_run(tmp_path, "separate_downsampling", top1=50.0, study="roadmap", code_hash="aaaa")
    write_run(tmp_path / "other", "separate_downsampling", top1=51.0, study="newer", code_hash="bbbb")
    write_run(tmp_path / "longer", "separate_downsampling", top1=52.0, study="longer", epochs=9)
    write_run(tmp_path / "larger", "separate_downsampling", top1=53.0, study="larger", regime="tiny")

    def gain(*studies):
        groups = groups_of(*(tmp_path / study for study in (*studies, "leave_one_out")))
        return cell_of(groups, "separate_downsampling+without_gelu").gain

    for studies in (("roadmap",), ("roadmap", "other")):  # of several the one of the same code
        assert (gain(*studies).parent, gain(*studies).gain) == ("separate_downsampling of study roadmap", -1.0)
    assert gain("other").parent == "separate_downsampling of study newer, of other code or hardware"
    assert gain("longer") is gain("larger") is None
    write_run(tmp_path / "twin", "separate_downsampling", top1=50.5, study="twin", code_hash="aaaa")
    assert gain("roadmap", "twin") is None  # of two alike none is chosen


def test_a_variant_is_not_compared_with_a_step_that_another_recipe_trained(tmp_path):
    def gains(study, **recipes):
        usual = {"epochs": 3, "lr": 0.004}
        for name, recipe in {"": usual, **recipes}.items():
            config = yaml.safe_dump({"recipe": usual | recipe})
            if name:
                variant(tmp_path / study, name, 49.0, config=config)
            else:
                write_run(tmp_path / study, "separate_downsampling", top1=50.0, config=config)
        groups = groups_of(tmp_path / study)
        return [cell_of(groups, f"separate_downsampling+{name}").gain for name in recipes]

    # The study sets a rate for all of its variants; only one of them, or each, sets its own; one is alone.
    assert gains("a", without_gelu={"lr": 0.001}, without_mixup={"lr": 0.001, "mixup": 0.0}) == [None, None]
    assert all(gains("b", without_gelu={}, without_mixup={"mixup": 0.0}))
    assert all(gains("c", half={"lr": 0.002}, quarter={"lr": 0.001}))
    assert all(gains("d", half={"lr": 0.002}))
    for step in ("gelu", "kernel_7"):  # one variant of several steps
        write_run(tmp_path / "e", step, top1=50.0, config=yaml.safe_dump({"recipe": {"epochs": 3, "lr": 0.004}}))
        config = yaml.safe_dump({"recipe": {"epochs": 3, "lr": 0.004, "mixup": 0.0}})
        variant_of = {"study": "ablate", "cell": f"{step}+without_mixup", "variant": "without_mixup"}
        write_run(tmp_path / "e", step, top1=49.0, config=config, **variant_of)
    groups = groups_of(tmp_path / "e")
    assert all(cell_of(groups, f"{step}+without_mixup").gain for step in ("gelu", "kernel_7"))


def test_findings_say_what_is_told_from_zero_and_what_is_not(tmp_path):
    seeds(tmp_path, "resnet", (50.0, 50.1, 50.2))
    seeds(tmp_path, "enhanced_recipe", (60.0, 60.1, 60.2))
    seeds(tmp_path, "stage_ratio", (60.1, 60.2, 60.0))
    seeds(tmp_path, "patchify_stem", (40.1, 40.2, 40.0))
    (text,) = findings(groups_of(tmp_path))
    assert "Over seeds, 2 of 3 gains are significant (Welch" in text
    assert "): patchify_stem −20.00 points (−20.23 to −19.77, p < 0.001); enhanced_recipe +10.00 points (" in text
    assert "Not significant: stage_ratio." in text


def test_findings_name_a_run_whose_accuracy_fell_by_more_than_half(tmp_path):
    for step, seed in (("resnet", 0), ("enhanced_recipe", 0), ("enhanced_recipe", 1)):
        folder = write_run(tmp_path, step, seed, top1=60.0, epochs=4)
    ledger = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    evaluations = [row for row in rows if row["kind"] == "val"]
    for first, second, is_named in ((30.0, 15.1, False), (30.0, 14.9, True), (29.0, 2.0, False)):  # at last a start
        for row, top1 in zip(evaluations, (first, second, 45.0, 60.0), strict=True):
            row["val/top1"] = top1
        ledger.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (text,) = findings(groups_of(tmp_path))
        assert ("Caution: top-1 fell by more than half" in text) == is_named
        assert ("in enhanced_recipe seed 1 (epoch 2: from 30.0 to 14.9 %). A step" in text) == is_named


def test_a_p_that_is_significant_does_not_read_as_5_percent():
    assert [p_text(p) for p in (0.0004, 0.0123, 0.0498, 0.0502, 0.051, None)] == [
        "< 0.001", "0.012", "0.0498", "0.0502", "0.051", ""
    ]  # fmt: skip


def test_findings_count_one_as_one(tmp_path):
    (correct,) = nets(1, 0.7, 1)
    write_run(tmp_path, "resnet", correct=correct)
    assert "digits): 1 cell, 1 seed per cell." in findings(groups_of(tmp_path))[0]
    write_run(tmp_path, "enhanced_recipe", correct=~correct)
    (text,) = findings(groups_of(tmp_path))
    assert "On the same images, 1 of 1 pair of networks differs significantly (McNemar" in text


def test_findings_hold_the_papers_gain_against_our_interval(tmp_path):
    seeds(tmp_path, "enhanced_recipe", (78.8, 78.9, 78.7), regime="tiny", data="imagenet")
    seeds(tmp_path, "stage_ratio", (79.3, 79.4, 79.5), regime="tiny", data="imagenet")
    seeds(tmp_path, "patchify_stem", (90.3, 90.4, 90.5), regime="tiny", data="imagenet")
    (text,) = findings(groups_of(tmp_path))
    assert "lies within our interval in 1 of 2 steps; outside it in patchify_stem." in text


@pytest.mark.parametrize(("slope", "where", "words"), [
    (1, {}, " agree more"),
    (-1, {}, "disagree more"),
    (0, {}, "no evidence that this scale orders the rows as ImageNet does."),
    (0, {"regime": "tiny", "data": "imagenet"}, "no evidence that the two orders agree."),
    (0, {"regime": "mini", "data": "imagenet"}, "no evidence that this scale orders the rows as ImageNet does."),
])  # fmt: skip
def test_the_order_of_a_study_is_held_against_the_papers(tmp_path, slope, where, words):
    rng = np.random.default_rng(1)
    from roadmap import paper

    for row in paper.rows("tiny").values():  # the reference is no step, and not ranked
        write_run(tmp_path, row.step, top1=50 + slope * (row.top1 - 79) + rng.normal(0, 0.3), epochs=1, **where)
    (text,) = findings(groups_of(tmp_path))
    assert "The order of 17 rows compared with the paper's (tiny): Spearman's rho" in text
    assert ("rho −0.9" in text) == (slope < 0) and " -" not in text
    assert words in text


def test_too_few_rows_or_synthetic_images_are_not_ranked(tmp_path):
    for number, step in enumerate(CHAIN):
        write_run(tmp_path, step, top1=50.0 + number, data="synthetic")
        if step != "resnet":
            write_run(tmp_path, step, top1=50.0 + number)
    assert "The order of" not in " ".join(findings(groups_of(tmp_path)))
    write_run(tmp_path, "resnet", top1=50.0)
    assert ["The order of 5 rows" in text for text in findings(groups_of(tmp_path))] == [True, False]


def test_every_column_of_the_tables_says_what_it_means(tmp_path):
    for column in gain_columns():
        assert column.about or column.heading == "compared with", column.heading
    write_roadmap(tmp_path, "tiny", "imagenet", seeds=3, epochs=1)
    collected = collect([tmp_path])
    groups = aggregate(collected.runs)
    text = to_markdown(groups, collected).decode()
    for column in (column for table in tables_of(groups[0]) for column in table.columns):
        assert not column.about or f"- {column.heading}: " in text


def test_the_csv_keeps_a_very_small_p(tmp_path):
    seeds(tmp_path, "resnet", (10.0, 10.1, 10.2))
    seeds(tmp_path, "enhanced_recipe", (90.0, 90.1, 90.2))
    groups = groups_of(tmp_path)
    row = list(csv.DictReader(csv_files(groups)["table.csv"].decode().splitlines()))[1]
    assert 0 < float(row["p"]) == pytest.approx(groups[0].rows[1].gain.p)


def test_the_json_holds_every_number_and_null_for_what_is_not_known(tmp_path):
    seeds(tmp_path, "resnet", (50.0,))
    seeds(tmp_path, "enhanced_recipe", (51.0, 52.0))
    collected = collect([tmp_path])
    groups = aggregate(collected.runs)
    report = json.loads(to_json(groups, collected, findings(groups)))
    one, two = report["groups"][0]["cells"]
    assert (one["top1_mean"], one["top1_std"], one["n"]) == (50.0, None, 1)
    assert two["top1_std"] == pytest.approx(0.5**0.5)
    assert [run["top1"] for run in two["runs"]] == [51.0, 52.0]


HOSTILE = [
    "=cmd()", "$\\frac{1$", "<script>alert(1)</script>", "\u202egnp", "x" * 5_000, "\\input{/etc/passwd}",
    "50 % & # _ ^ ~ {}",
]  # fmt: skip


def test_hostile_labels_are_harmless_in_latex(tmp_path):
    for i, label in enumerate(HOSTILE):
        write_run(tmp_path, f"own{i}", parent="gelu", label=label)
    text = to_tex(groups_of(tmp_path)).decode()
    assert text.isascii()
    frame = {"begin", "end", "input", "toprule", "midrule", "bottomrule", "usepackage"}
    commands = set(re.findall(r"\\([A-Za-z]+)", text)) - frame
    assert commands <= {"textbackslash", "textless", "textgreater", "textasciicircum", "textasciitilde", "dots", "pm"}
    assert text.count("\\input") == 1  # our own comment
    assert for_tex('"patchify" stem, 3"') == "``patchify'' stem, 3''"
    assert for_tex("$\\frac{1$") == r"\$\textbackslash{}frac\{1\$"
    plain = re.sub(r"\\.", "", text)
    assert plain.count("{") == plain.count("}")
