"""The study `tuned` and its report: which rate a row takes, the second phase that follows, and which gains survive."""

import csv
import io
import itertools
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_ind
from statsmodels.stats.multitest import multipletests

from roadmap.files import write_json
from roadmap.report import collect, findings, gallery
from roadmap.report.__main__ import main as report
from roadmap.report.analyse.cells import Gain
from roadmap.report.analyse.tuning import TunedRow
from roadmap.report.draw.rate_figures import own_rates, rate_sensitivity
from roadmap.runs.rate_choice import at_edge, choose_rate
from roadmap.runs.run_dir import run_path
from roadmap.runs.schema import STATUS, SUMMARY
from roadmap.sweep.study import SWEEPS, read_study
from tests.fabricate import groups_of, write_run
from tests.test_submission import Stub

RATES = [0.5, 1.0, 2.0, 4.0]


@given(st.dictionaries(st.sampled_from(RATES), st.none() | st.sampled_from([70.0, 71.5, 80.0]), min_size=1))
def test_the_best_rate_is_taken_and_of_equal_ones_the_recipes_own_or_the_nearest(accuracies):
    chosen = choose_rate(accuracies, 1.0)
    finite = [rate for rate, top1 in accuracies.items() if top1 is not None]
    if not finite:
        assert chosen is None
        return
    better = [(-accuracies[rate], abs(math.log2(rate)), rate) for rate in finite]
    assert chosen == min(better)[2]
    assert at_edge(chosen, accuracies) == (len(accuracies) > 1 and chosen in (min(accuracies), max(accuracies)))


MINE = """
defaults: [config, _self_]
study: mine
recipe: {micro_batch: 8}
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      tuned.factors: 0.5,1,2
      +step: resnet,gelu
      seed: 0,1
"""


@pytest.fixture
def mine(tmp_path):
    """Return the file of a study of two rows, three rates and two seeds."""
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "mine.yaml").write_text(MINE)
    return str(tmp_path / "studies" / "mine.yaml")


@pytest.fixture
def call(sweep, tmp_path, mine, monkeypatch):
    """Return a function that types a verb for that study, on a Slurm of scripts."""
    monkeypatch.setenv("PATH", f"{Stub(tmp_path / 'bin').folder}:/usr/bin:/bin")

    def type_verb(verb, *words, cluster="slurm"):
        return sweep(verb, mine, "--runs", tmp_path / "runs", "--cluster", cluster, "--", *words)

    return type_verb


def end(cell, top1):
    """Let a cell's run have ended with an accuracy, or with one that is not finite (None)."""
    path = run_path(cell.config)
    path.mkdir(parents=True)
    state = {"state": "done", "exit_code": 0} if top1 is not None else {"state": "failed", "exit_code": 70}
    write_json(path / STATUS, state)
    if top1 is not None:
        write_json(path / SUMMARY, {"top1": top1, "split": "holdout"})


def held_out(mine, tmp_path):
    """Return the cells of the first phase by name."""
    cells = read_study(mine, (), tmp_path / "runs").cells
    return {cell.config.cell: cell for cell in cells if cell.config.data.holdout}


def test_the_second_phase_is_known_row_by_row_once_the_first_has_ended(mine, tmp_path):
    first = held_out(mine, tmp_path)
    rates = {"resnet": (",recipe.lr=0.025", "", ",recipe.lr=0.1"), "gelu": (",recipe.lr=0.001", "", ",recipe.lr=0.004")}
    assert list(first) == [f"{step},data.holdout=0.1{rate}" for step, each in rates.items() for rate in each]
    assert {cell.config.seed for cell in first.values()} == {0}
    for name, top1 in zip(first, (50.0, 60.0, None, 50.0, 40.0), strict=False):
        end(first[name], top1)
    second = [c for c in read_study(mine, (), tmp_path / "runs").cells if not c.config.data.holdout]
    assert [(c.config.cell, c.config.seed) for c in second] == [("resnet", 0), ("resnet", 1)]  # gelu has not ended
    end(first["gelu,data.holdout=0.1,recipe.lr=0.004"], 49.0)
    second = [c for c in read_study(mine, (), tmp_path / "runs").cells if not c.config.data.holdout]
    assert [c.config.cell for c in second[2:]] == ["gelu,recipe.lr=0.001"] * 2
    assert all(c.config.recipe.lr == 0.001 for c in second[2:])


def test_typed_again_it_goes_on_and_a_rate_that_was_not_finite_is_the_worst(call, mine, tmp_path):
    code, told = call("submit")
    assert code == 0
    assert "6 cells to start" in told
    (tmp_path / "bin" / "queue").write_text("")  # all jobs have ended
    cells = held_out(mine, tmp_path)
    for name, top1 in zip(cells, (50.0, 60.0, None, 60.0, 60.0, 55.0), strict=True):
        end(cells[name], top1)
    assert "make roadmap STUDY=mine continues" in call("status")[1]
    plan = call("plan", cluster="local")[1]
    assert "phase 1: 6 cells, 3 rates per row on 0.9 of the training images; phase 2: 4 cells" in plan
    code, told = call("submit")
    assert code == 0
    assert "+step=resnet: rate 0.05, 1 times the recipe's own" in told
    assert "edge" not in told  # the rate above was tried, and gelu's tie goes to the recipe's own
    assert "4 cells to start, 0 to resume, as Slurm job" in told
    assert "5 done, 1 not finite" in told
    notes = json.loads((tmp_path / "runs" / "mine" / ".study" / "tuning.json").read_text())
    by_row = {row["row"]: row for row in notes["rows"]}
    assert by_row["+step=resnet"]["heldout_top1"] == {"0.025": 50.0, "0.05": 60.0, "0.1": None}
    assert by_row["+step=gelu"]["rate"] == by_row["+step=gelu"]["own"] == 0.002
    assert by_row["+step=gelu"]["runs"]["0.004"] == ["nano-digits/gelu,data.holdout=0.1,recipe.lr=0.004/seed0"]
    assert "phase 2, all training images: 0 of 4 done, of the 2 of 2 rows" in call("status")[1]


def test_the_plan_counts_the_phase_that_is_not_known_yet(call):
    told = call("plan", cluster="local")[1]
    assert "phase 2: 4 cells on all of them, 0 listed, 4 once their rows have rates" in told


def test_an_edge_and_a_row_without_a_finite_rate_are_told(call, mine, tmp_path):
    cells = held_out(mine, tmp_path)
    for name, top1 in zip(cells, (50.0, 60.0, 61.0, None, None, None), strict=True):
        end(cells[name], top1)
    told = call("submit")[1]
    assert "+step=resnet: rate 0.1, 2 times the recipe's own; the edge of the grid" in told
    assert "+step=gelu: no rate gave a finite result" in told


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("tuned.factors=0.5,2", "factors=[0.5, 2.0]: must be two numbers or more from 1e-6 to 1e6 that include 1"),
        ("tuned.holdout=0", "tuned.holdout=0"),
        ("tuned.seeds=-1", "tuned.seeds=[-1]"),
        ("recipe.lr=0.1", "the study chooses it; tuned.factors=LIST"),
        ("data.holdout=0.2", "the study chooses it; tuned.holdout=SHARE"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(call, word, told):
    code, said = call("plan", word, cluster="local")
    assert code == 64
    assert told in said
    assert len(said.strip().splitlines()) == 1


def test_the_shipped_study_has_five_rates_a_row(tmp_path):
    study = read_study("tuned", ["+step=resnet,gelu"], tmp_path)
    assert len(study.cells) == 10
    head = (SWEEPS / "tuned.yaml").read_text()
    assert "85 runs of 10 epochs, then 51" in head
    assert "phase 2: 6 cells on all of them" in next(study.generator.outlook(study))  # 51 of 17 rows


CHAIN = ("resnet", "enhanced_recipe", "stage_ratio", "patchify_stem")
OWN = {"resnet": 0.05}
BEST = dict(zip(CHAIN, (1, 2, 1, 4), strict=True))  # the factor that each row takes


def write(runs, study, step, factor, tops, holdout=0.0, named=True):
    """Write the seeds of a row at a factor of its recipe's rate."""
    rate = OWN.get(step, 0.002) * factor
    words = [f"data.holdout={holdout}"] * bool(holdout) + [f"recipe.lr={rate:g}"] * (factor != 1)
    for seed, top1 in enumerate(tops):
        correct = np.arange(500) < round(5 * top1)
        about = {"data_fingerprint": "part" if holdout else "whole", "split": "holdout" if holdout else "val"}
        about |= {"study": study, "cell": ",".join([step, *words]), "config": f"recipe:\n  lr: {rate:g}\n"}
        write_run(runs, step, seed, epochs=1, correct=correct, **about)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return runs of a tuned study and of a plain one, four rows each; tests only read them."""
    folder = tmp_path_factory.mktemp("runs")
    plain = dict(zip(CHAIN, ((50.0, 50.4), (60.0, 60.2), (60.4, 60.0), (62.0, 62.2)), strict=True))
    tuned = dict(zip(CHAIN, ((50.2, 50.0), (55.0, 55.2), (60.2, 60.6), (60.0, 60.4)), strict=True))
    for i, step in enumerate(CHAIN):
        for factor in (0.5, 1, 2, 4):
            if (step, factor) != ("stage_ratio", 4):
                write(folder, "own", step, factor, [70 + i - abs(math.log2(factor / BEST[step]))], holdout=0.1)
        write(folder, "own", step, BEST[step], tuned[step])
        write(folder, "plain", step, 1, plain[step])
    return folder


@pytest.fixture(scope="module")
def group(runs):
    """Return what the report makes of the tuned study."""
    return next(group for group in groups_of(runs) if group.study == "own")


@pytest.fixture(scope="module")
def tuning(group):
    """Return its rows and its two roadmaps."""
    return group.tuning


def test_held_out_accuracies_are_no_cells_of_the_roadmap(runs, group):
    assert {cell.holdout for cell in group.cells} == {0.0}
    assert {cell.holdout for cell in group.holdouts} == {0.1}
    assert len(group.holdouts) == 15
    collected = collect([runs])
    assert not collected.suspect  # other images than the runs on the whole set, and no fault of theirs
    assert len(collected.runs) == 15 + 16


def test_a_gain_survives_in_its_own_direction_alone():
    def verdict(plain, tuned):
        sides = [SimpleNamespace(gain=Gain("resnet", 3, gain, p_holm=0.01)) for gain in (tuned, plain)]
        return TunedRow("gelu", "GELU", 1.0, {1.0: 50.0}, 1, 1.0, *sides).verdict

    found = [verdict(*gains) for gains in ((1.0, 2.0), (-1.0, -2.0), (1.0, -1.0), (-1.0, 1.0))]
    assert found == ["survives", "survives", "turns", "turns"]


def test_each_row_takes_its_best_rate_and_is_beside_the_one_recipe(group, tuning):
    assert [row.factor for row in tuning.rows] == [1.0, 2.0, 1.0, 4.0]
    assert [row.tuned.cell for row in tuning.rows] == [
        *("resnet", "enhanced_recipe,recipe.lr=0.004", "stage_ratio", "patchify_stem,recipe.lr=0.008"),
    ]
    assert not {row.tuned.cell for row in tuning.rows} & {cell.cell for cell in group.others}
    assert {row.plain.study for row in tuning.rows} == {"plain"}
    assert [row.step for row in tuning.rows if row.at_edge] == ["patchify_stem"]
    assert [row.lacking for row in tuning.rows] == [(), (), (4.0,), ()]


def test_gains_are_welchs_adjusted_over_each_roadmap_and_the_verdict_needs_both(tuning):
    for roadmap in (tuning.plain, tuning.tuned):
        rows = {row.step: row for row in roadmap.rows}
        pairs = [(rows[step], rows[parent]) for parent, step in itertools.pairwise(CHAIN)]
        p = [ttest_ind(row.top1s, parent.top1s, equal_var=False).pvalue for row, parent in pairs]
        assert [row.gain.p_holm for row, _ in pairs] == pytest.approx(list(multipletests(p, method="holm")[1]))
        assert [row.gain.gain for row, _ in pairs] == pytest.approx([row.top1 - up.top1 for row, up in pairs])
    significant = [[gain and gain.significant for gain in row.gains] for row in tuning.rows]
    verdicts = {(True, True): "survives", (True, False): "lost", (False, True): "appears", (False, False): "open"}
    assert [row.verdict for row in tuning.rows[1:]] == [verdicts[tuple(pair)] for pair in significant[1:]]
    assert {"survives", "appears"} <= {row.verdict for row in tuning.rows}


def test_the_figures_show_both_roadmaps_on_one_axis_and_a_panel_a_row(group, tuning):
    figure = own_rates(group)
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {"The one recipe", "Each row at its own rate"} <= texts
    spans = {axes.get_xlim() for axes in figure.axes if axes.get_xlabel() == "top-1 (%)"}
    assert len(spans) == 1
    panels = rate_sensitivity(group).axes
    assert len(panels) == 4
    filled = [line.get_xdata()[0] for axes in panels for line in axes.lines if line.get_markersize() == 4]
    assert filled == [row.factor for row in tuning.rows]
    assert [line.get_marker() for line in panels[2].lines].count("x") == 1


def test_no_text_meets_another_where_the_rates_of_two_rows_fill_one_line(group, tuning):
    figure = rate_sensitivity(replace(group, tuning=replace(tuning, rows=tuning.rows[:2])))
    figure.draw_without_rendering()
    label, words = figure._supylabel.get_window_extent(), figure.legends[0].get_title().get_window_extent()
    assert label.y0 > words.y1


def test_the_report_writes_tables_figures_and_sentences(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("roadmap.report.__main__.FORMATS", ("svg",))  # what the page shows
    assert report([str(runs), "--out", str(tmp_path / "out")]) == 0
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "tuning.csv").read_text())))
    assert [line["factor"] for line in lines] == ["1", "2", "1", "4"]
    assert lines[3]["at_edge"] == "yes"
    assert lines[2]["no_result_at"] == "4"
    rates = list(csv.DictReader(io.StringIO((tmp_path / "out" / "rates.csv").read_text())))
    assert len(rates) == 15
    assert sum(line["chosen"] == "yes" for line in rates) == 4
    assert len((tmp_path / "out" / "holdout.csv").read_text().splitlines()) == 16
    table = list(csv.DictReader(io.StringIO((tmp_path / "out" / "table.csv").read_text())))
    assert not any("holdout" in line["cell"] for line in table)
    page = (tmp_path / "out" / "index.html").read_text()
    assert 'data-name="roadmap-rates-own-nano-digits"' in page
    assert 'data-name="rates-own-nano-digits"' in page
    assert "Own learning rates" in page
    told = (tmp_path / "out" / "findings.txt").read_text()
    assert "2 of 4 rows take the recipe's own" in told
    assert "The grid is too narrow for patchify_stem" in told
    assert "Gains that survive" in told
    assert "Without a result at some rates (not finite, or not finished): stage_ratio" in told
    assert json.loads((tmp_path / "out" / "report.json").read_text())["groups"][0]["tuning"]


def test_two_rates_are_a_choice_also_where_a_rows_own_rate_is_not_known(tmp_path):
    write(tmp_path, "own", "resnet", 0.5, [50.0, 52.0], holdout=0.1)
    write(tmp_path, "own", "resnet", 1, [55.0], holdout=0.1)
    for factor, top1 in ((0.5, 60.0), (2, 61.0), (4, 59.0)):
        write(tmp_path, "own", "enhanced_recipe", factor, [top1], holdout=0.1)
    (group,) = groups_of(tmp_path)
    resnet, enhanced = group.tuning.rows
    assert (resnet.own, resnet.n, resnet.accuracies) == (0.05, 1, {0.025: 51.0, 0.05: 55.0})
    assert (enhanced.own, enhanced.factor, enhanced.rate) == (None, None, 0.004)
    assert group.tuning.factors == ()
    assert (resnet.at_edge, enhanced.at_edge) == (True, False)


def test_without_a_plain_study_the_tuned_one_gives_what_it_has(tmp_path):
    for factor in (0.5, 1, 2):
        write(tmp_path, "own", "resnet", factor, [60 - factor], holdout=0.1)
        write(tmp_path, "own", "enhanced_recipe", factor, [60 - abs(factor - 1)], holdout=0.1)
    write(tmp_path, "own", "enhanced_recipe", 1, [61.0, 61.2])
    (group,) = groups_of(tmp_path)
    resnet, enhanced = group.tuning.rows
    assert (resnet.tuned, resnet.plain) == (None, None)
    assert enhanced.tuned.cell == enhanced.plain.cell == "enhanced_recipe"
    (text,) = findings([group])
    assert "Not yet trained on the whole set at their rates: resnet" in text
    assert "Which gains survive own rates is unknown" in text
    assert "rates" in {drawing.name for drawing in gallery([group])}


def test_a_single_rate_on_held_out_images_is_listed_apart_and_marked(tmp_path, capsys):
    write(tmp_path / "runs", "own", "resnet", 1, [60.0])
    write(tmp_path / "runs", "own", "resnet", 2, [70.0], holdout=0.1)
    assert report([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--tables-only"]) == 0
    told = capsys.readouterr().out
    assert "Evaluated on held-out training images: not accuracies on the validation images" in told
    assert not (tmp_path / "out" / "tuning.csv").exists()


@pytest.mark.parametrize(("holdout", "split"), [("0.1", "val"), ("0", "holdout"), ("nan", "holdout"), ("x", "val")])
def test_a_record_that_contradicts_itself_is_suspect(tmp_path, holdout, split):
    write_run(tmp_path, "resnet", config=f"  holdout: {holdout}\n", split=split)
    (problem,) = collect([tmp_path]).suspect
    assert "data.holdout=" in problem.reason
