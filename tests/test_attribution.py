"""The worth of toggles over orders: which orders there are, what they need, and what the report makes of their nets."""

import csv
import json
import random
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import combinations
from math import factorial
from pathlib import Path
from statistics import fmean

import pytest
import yaml

from roadmap.errors import ConfigError
from roadmap.paper.toggle_orders import (
    FIRST,
    NEEDS,
    choice,
    join_variants,
    net_of,
    nets,
    sampled_order,
    split_variant,
    toggles,
    training_seeds,
    unmet,
    variant_words,
)
from roadmap.report import aggregate, collect, findings
from roadmap.report.__main__ import main as report_main
from roadmap.report.analyse.attribution import complete_orders, estimate, half_width, seed_spread
from roadmap.report.draw.step_gains import toggle_worths
from roadmap.report.draw.style import NothingToDraw
from roadmap.steps.compose import compose
from roadmap.steps.recorded import read_run_config
from roadmap.sweep.sampled_orders import expected_width
from roadmap.sweep.study import SWEEPS, Cell, read_study
from tests.fabricate import groups_of, write_run

TOGGLES = toggles()
WHOLE = frozenset(TOGGLES)


def orders(number, first=0):
    return [sampled_order(first + k) for k in range(number)]


@cache
def legal_nets():
    """Return all sets of toggles that hold what their toggles need."""
    sets = (frozenset(chosen) for size in range(13) for chosen in combinations(TOGGLES, size))
    return {net for net in sets if all(net.issuperset(NEEDS.get(t, ())) for t in net)}


class TestOrders:
    def test_every_net_has_a_name_of_its_own_that_says_what_is_in_it(self):
        names = set()
        for net in legal_nets():
            step, variants = choice(net)
            text = join_variants(variants)
            assert net_of(step, text or None) == net
            assert split_variant(text) == list(variants)
            names.add((step, text))
            assert len(step) + len(text) < 80
        assert len(names) == 1792

    def test_the_nets_of_the_papers_own_order_and_those_of_other_studies_keep_their_names(self):
        assert [choice(net) for net in nets(TOGGLES)] == [(step, ()) for step in (FIRST, *TOGGLES)]
        assert choice(WHOLE - {"gelu"}) == ("separate_downsampling", ("without_gelu",))
        assert choice(frozenset({"gelu"})) == (FIRST, ("with_gelu",))
        assert join_variants(["with_gelu", "with_90_epochs"]) == "with_gelu+with_90_epochs"
        assert split_variant("with_gelu+with_90_epochs") == ["with_gelu", "with_90_epochs"]

    def test_what_is_none_of_these_nets_has_no_set(self):
        assert net_of("resnet", None) is net_of("kernel_9", None) is net_of("gelu", "without_mixup") is None

    def test_sampled_orders_are_legal_and_uniform(self):
        drawn = orders(2000)
        assert all(unmet(order) is None and set(order) == WHOLE for order in drawn)
        assert unmet(["gelu", "kernel_7", "depthwise"]) == ("kernel_7", "depthwise")
        firsts = Counter(order[0] for order in drawn)
        assert abs(firsts["depthwise"] / 2000 - 4 / 12) < 0.04  # first of its tree of four
        assert all(abs(firsts[t] / 2000 - 1 / 12) < 0.025 for t in TOGGLES if t in firsts and t != "depthwise")

    def test_more_orders_keep_the_earlier_nets_and_seeds(self):
        few, many = dict(training_seeds(orders(5))), dict(training_seeds(orders(20)))
        own = {net: n for net, n in few.items() if net in many}
        assert own.keys() == few.keys()
        assert all(many[net] == n for net, n in few.items() if net not in nets(TOGGLES))
        for found in (few, many):
            assert 5 * sum(n > 1 for n in found.values()) >= len(found)
            assert found.keys() >= {net for order in orders(5) for net in nets(order)} | set(nets(TOGGLES))


@cache
def extensions():
    """Return in how many orders each net can come about, and in how many it can be completed."""
    by_size = sorted(legal_nets(), key=len)
    before, after = {frozenset(): 1}, {WHOLE: 1}
    for net in by_size[1:]:
        before[net] = sum(before.get(net - {t}, 0) for t in net)
    for net in by_size[-2::-1]:
        after[net] = sum(after.get(net | {t}, 0) for t in WHOLE - net)
    assert after[frozenset()] == before[WHOLE] == factorial(12) // 8
    return before, after


def exact(game):
    """Return the mean gain of each toggle over all 59,875,200 legal orders."""
    before, after = extensions()
    worths = dict.fromkeys(TOGGLES, 0.0)
    for net, way in before.items():
        for toggle in WHOLE - net:
            if (larger := net | {toggle}) in after:
                worths[toggle] += way * after[larger] / before[WHOLE] * (game[larger] - game[net])
    return worths


def made_up(interaction, seed=0):
    """Return the accuracies of a made-up game: each toggle has a worth, each pair of them one more."""
    draw = random.Random(seed)
    alone = {t: draw.gauss(0.3, 0.5) for t in TOGGLES}
    pairs = {pair: draw.gauss(0, interaction) for pair in combinations(TOGGLES, 2)}
    pairs |= {("depthwise", "gelu", "layer_norm"): 2 * interaction}
    parts = [({t}, worth) for t, worth in alone.items()] + [(set(p), worth) for p, worth in pairs.items()]
    return {net: 75 + sum(worth for needed, worth in parts if net.issuperset(needed)) for net in legal_nets()}


def trained(game, chosen, spread, draw):
    """Return the top-1 of every seed of the nets that some orders need."""
    return {net: [draw.gauss(game[net], spread) for _ in range(n)] for net, n in training_seeds(chosen)}


def covered(game, number, spread, repeats):
    """Return how often the intervals of all toggles hold the exact worth, over fresh orders and seeds."""
    truth, draw, hits = exact(game), random.Random(1), []
    for repeat in range(repeats):
        chosen = orders(number, number * repeat)
        top1s = trained(game, chosen, spread, draw)
        for mean in estimate(chosen, top1s):
            half = half_width(mean.spread(seed_spread(top1s), top1s))
            hits.append(abs(mean.value - truth[mean.toggle]) <= half)
    return fmean(hits)


class TestEstimate:
    def test_interactions_with_a_known_answer(self):
        """Two free toggles share what they are worth together; one that comes last in a chain takes its part later."""
        both = {net: float({"gelu", "layer_norm"} <= net) for net in legal_nets()}
        assert exact(both)["gelu"] == pytest.approx(0.5)
        needs_first = {net: float({"depthwise", "kernel_7"} <= net) for net in legal_nets()}
        assert exact(needs_first)["kernel_7"] == pytest.approx(1)  # always after depthwise
        game = made_up(0.3)
        assert sum(exact(game).values()) == pytest.approx(game[WHOLE] - game[frozenset()])

    def test_many_orders_come_to_the_exact_worths(self):
        game = made_up(0.3)
        top1s, truth = {net: [value] for net, value in game.items()}, exact(game)
        for mean in estimate(orders(1500), top1s):
            assert mean.value == pytest.approx(truth[mean.toggle], abs=4 * mean.over_orders.variance**0.5)
        assert sum(mean.value for mean in estimate(orders(7), top1s)) == pytest.approx(game[WHOLE] - game[frozenset()])

    def test_where_nothing_interacts_one_order_is_exact(self):
        game = made_up(0.0)
        truth = exact(game)
        for mean in estimate(orders(1), {net: [value] for net, value in game.items()}):
            assert mean.value == pytest.approx(truth[mean.toggle])
            assert mean.over_orders is None

    @pytest.mark.parametrize(("interaction", "spread"), [(0.2, 0.1), (0.05, 0.2)])
    def test_intervals_cover_the_exact_worths(self, interaction, spread):
        assert 0.92 <= covered(made_up(interaction), 8, spread, repeats=60) <= 0.98

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [3, 6, 12, 24])
    @pytest.mark.parametrize(("interaction", "spread"), [(0.3, 0.02), (0.3, 0.1), (0.1, 0.3), (0.0, 0.3)])
    def test_intervals_cover_whatever_the_cause_of_the_spread(self, number, interaction, spread):
        assert 0.92 <= covered(made_up(interaction), number, spread, repeats=400) <= 0.985

    def test_what_a_shared_net_did_is_no_part_of_the_spread_over_orders(self):
        """Orders with the same toggle at the same place in the same net: seeds alone, and they do not average out."""
        draw, game = random.Random(0), made_up(0.0)
        chosen = [order for order in orders(400) if order[0] == "depthwise"][:12]
        means, naive, ours = [], [], []
        for _ in range(60):
            top1s = trained(game, chosen, 1.0, draw)
            mean = next(m for m in estimate(chosen, top1s) if m.toggle == "depthwise")
            means.append(mean.value)
            naive.append(mean.over_orders.variance)
            ours.append(mean.spread(seed_spread(top1s), top1s).variance)
        true = fmean((value - fmean(means)) ** 2 for value in means)
        assert max(naive) < 1e-20
        assert 0.5 < fmean(ours) / true < 2

    def test_incomplete_orders_are_left_out_and_counted(self):
        there = dict.fromkeys(net for net, _ in training_seeds(orders(6)))
        assert complete_orders(there) == (orders(6), 0)
        for order in (orders(6)[2], orders(6)[5]):
            alone = next(n for n in nets(order) if sum(n in nets(other) for other in orders(6)) == 1)
            del there[alone]
        assert complete_orders(there) == ([order for i, order in enumerate(orders(6)) if i not in (2, 5)], 2)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Return the study of one order, composed once."""
    words = ["scale=demo", "attribution.orders=1"]
    return read_study("attribution", words, tmp_path_factory.mktemp("study") / "runs")


def made_of(config, chosen):
    """Yield the configs of the nets of some orders, named as the study names them."""
    for net, seeds in training_seeds(chosen):
        step, variants = choice(net)
        for seed in range(seeds):
            one = config.replace(seed=seed)
            one.step, one.variant = step, join_variants(variants) or None
            one.cell = step + (f"+{one.variant}" if variants else "")
            yield one


def write_nets(runs, chosen, game, spread=0.1, leave_out=(), **more):
    """Write the runs of the nets that some orders need, as a study trains them."""
    draw = random.Random(2)
    for net, seeds in training_seeds(chosen):
        step, variants = choice(net)
        variant = join_variants(variants) or None
        cell = step + (f"+{variant}" if variant else "")
        for seed in range(seeds):
            top1 = round(draw.gauss(game[net], spread), 3)
            if net not in leave_out:
                names = {"study": "attribution", "cell": cell, "variant": variant}
                write_run(runs, step, seed, top1=top1, **{**names, **more})


class TestStudy:
    def test_cells_are_the_nets_of_the_orders_each_once(self, study):
        expected = dict(training_seeds(orders(1)))
        found = Counter(net_of(cell.config.step, cell.config.variant) for cell in study.cells)
        assert found == expected
        assert len({cell.key for cell in study.cells}) == sum(expected.values())
        assert not study.left_out
        several = [cell for cell in study.cells if "+" in (cell.config.variant or "")]
        assert all(cell.config.cell == f"{cell.config.step}+{cell.config.variant}" for cell in several)

    def test_a_net_has_all_that_its_toggles_change_and_nothing_else_in_every_regime(self):
        """The paper's own steps say what a toggle changes; in the large regimes a ratio of stages has its own width."""
        path = [compose(step, "base").model.values() for step in (FIRST, *TOGGLES)]
        changes = {
            toggle: {key: value for key, value in after.items() if value != before[key]}
            for toggle, before, after in zip(TOGGLES, path, path[1:], strict=False)
        }
        for net in random.Random(0).sample(sorted(legal_nets(), key=sorted), 6):
            expected = dict(path[0])
            for toggle in TOGGLES:
                expected |= changes[toggle] if toggle in net else {}
            step, variants = choice(net)
            assert compose(step, "base", variant_words(variants)).model.values() == expected

    def test_the_file_says_how_many_runs_it_is(self):
        found = dict(training_seeds(orders(12)))
        text = (SWEEPS / "attribution.yaml").read_text()
        assert "attribution.orders: 12" in text
        assert f"12 orders are {sum(found.values())} runs" in text

    def test_what_to_expect_is_told_from_what_is_known(self, study):
        assert list(study.generator.outlook(study)) == [
            "1 order: 24 nets, 29 runs, 5 nets with two seeds; the paper's own order is among them, beside the others",
            "no interval: that takes 3 orders (attribution.orders=3)",
        ]
        few, many, runs = orders(3), orders(30), Path(study.cells[0].config.paths.runs)
        wider = replace(study, cells=tuple(Cell((), config) for config in made_of(study.cells[0].config, few)))
        unknown = expected_width(few, dict(training_seeds(few)), wider)
        assert "times the standard deviation over seeds, which is not known here yet" in unknown
        write_nets(runs, few, made_up(0.2))
        widths = [expected_width(chosen, dict(training_seeds(chosen)), wider) for chosen in (few, many)]
        assert all("from the 3 orders that are complete" in text for text in widths)
        three, thirty = (float(re.search(r"([\d.]+) points", text)[1]) for text in widths)
        assert thirty < 0.3 * three

    def test_the_seeds_of_the_paper_are_asked_where_its_numbers_compare(self, study):
        there = replace(study, cells=(Cell((), compose(FIRST, "tiny")),))
        chosen = orders(4)
        assert "0.094, the paper's, Table 10" in expected_width(chosen, dict(training_seeds(chosen)), there)

    @pytest.mark.parametrize(("name", "word", "told"), [
        ("attribution", "attribution.orders=0", "attribution.orders=0: must be at least 1 and at most 500"),
        ("attribution", "attribution.orders=many", "attribution.orders=many: must be a whole number"),
        ("attribution", "attribution.order=3", "did you mean attribution.orders"),
        ("attribution", "seed=3", "seed=3: the orders choose each seed"),
        ("attribution", "+step=gelu", "+step=gelu: the orders choose each step"),
        ("demo", "attribution.orders=3", "attribution.orders=3: is for the study attribution, and this is demo"),
    ])  # fmt: skip
    def test_what_cannot_be_is_refused_in_plain_words(self, name, word, told):
        with pytest.raises(ConfigError) as error:
            read_study(name, ["scale=demo", word])
        assert told in str(error.value)

    def test_plain_hydra_says_how_the_study_is_run(self, command):
        done = command("-cd", "sweeps", "-cn", "attribution", "scale=demo")
        assert done.returncode == 64
        assert "make roadmap STUDY=attribution CLUSTER=local" in done.stderr
        assert len(done.stderr.splitlines()) == 1


class TestSeveralVariants:
    def test_they_have_one_name(self, tmp_path):
        config = compose(FIRST, "nano", ["+variant=[with_depthwise,with_gelu]", "recipe.epochs=4"])
        assert (config.model.depthwise, config.model.activation) == (True, "gelu")
        assert (config.variant, config.cell) == ("with_dw+gelu", f"{FIRST}+with_dw+gelu,recipe.epochs=4")
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.values()))
        assert read_run_config(tmp_path)["variant"] == "with_dw+gelu"

    @pytest.mark.parametrize(("names", "told"), [
        ("with_gelu,with_gelu", "with_gelu is given twice"),
        ("with_gelu,../x", "takes one name"),
        ("with_gelu,with_gleu", "there is no such variant"),
        ("with_gelu,with_move_up_depthwise", "model.depthwise_first=true with model.depthwise=false"),
        ("without_mixup,without_cutmix,without_rand_augment,without_random_erasing,without_adamw", "at most 80"),
    ])  # fmt: skip
    def test_what_cannot_be_is_refused(self, names, told):
        with pytest.raises(ConfigError, match=re.escape(told)):
            compose(FIRST, "nano", [f"+variant=[{names}]"])


def flattering():
    """Return a game in which the paper's order is kind to width: it is worth two points where ratio and stem are in."""
    ready = {"increase_width", "stage_ratio", "patchify_stem", "depthwise"}
    return {net: 75 + 0.4 * ("gelu" in net) + 2 * net.issuperset(ready) for net in legal_nets()}


class TestReport:
    def report(self, tmp_path, number, game=None, **more):
        write_nets(tmp_path, orders(number), game or flattering(), **more)
        (group,) = groups_of(tmp_path)
        return group

    def test_worths_stand_beside_the_papers_order_and_what_is_left_out(self, tmp_path):
        group = self.report(tmp_path, 12, regime="tiny", data="imagenet")
        found, game = group.attribution, flattering()
        assert (found.orders, found.incomplete, found.lacks) == (12, 0, "")
        assert found.seed_std == pytest.approx(0.1, abs=0.03)
        worths = {worth.toggle: worth for worth in found.worths}
        truth = exact(game)
        held = [worth.interval.low <= truth[worth.toggle] <= worth.interval.high for worth in found.worths]
        assert sum(held) >= 10
        width = worths["increase_width"]
        assert width.in_order == pytest.approx(2, abs=0.6)
        assert width.paper_gain == pytest.approx(2.22)
        assert width.left_out == pytest.approx(2, abs=0.6)

    def test_the_findings_name_what_the_papers_order_flatters(self, tmp_path):
        (text,) = findings([self.report(tmp_path, 12, spread=0.02)])
        assert "The paper's order, in these runs, flatters increase_width (+1.93 there, +0.67 over the orders)" in text
        assert "adjusted by Holm for 12 toggles" in text
        assert "as the paper printed it" not in text  # on digits
        assert "usable run" not in text

    def test_few_orders_give_no_interval_and_that_is_told(self, tmp_path):
        group = self.report(tmp_path, 2)
        assert all(worth.interval is None for worth in group.attribution.worths)
        assert "No interval is given for them: that takes 3 orders." in findings([group])[0]
        toggle_worths(group)

    def test_without_second_seeds_there_is_no_interval(self, tmp_path):
        write_nets(tmp_path, orders(4), flattering())
        (group,) = aggregate([run for run in collect([tmp_path]).runs if run.seed == 0])
        assert group.attribution.lacks == "no net has a second seed"

    def test_incomplete_orders_are_counted(self, tmp_path):
        lost = next(net for net in nets(orders(5)[3]) if sum(net in nets(order) for order in orders(5)) == 1)
        group = self.report(tmp_path, 5, leave_out=[lost])
        assert (group.attribution.orders, group.attribution.incomplete) == (4, 1)
        assert "Sampled orders left out because one of their nets has no usable run: 1." in findings([group])[0]

    def test_every_form_of_the_report_has_the_worths(self, tmp_path, monkeypatch):
        monkeypatch.setattr("roadmap.report.__main__.FORMATS", ("svg",))  # what the page shows
        write_nets(tmp_path / "runs", orders(4), flattering(), spread=0.05)
        assert report_main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
        rows = list(csv.DictReader((tmp_path / "out" / "attribution.csv").read_text().splitlines()))
        assert [row["toggle"] for row in rows] == list(TOGGLES)
        assert all(float(row["low"]) < float(row["value"]) < float(row["high"]) for row in rows)
        (group,) = json.loads((tmp_path / "out" / "report.json").read_text())["groups"]
        assert len(group["attribution"]["worths"]) == 12
        assert "Mean gains over the sampled orders" in (tmp_path / "out" / "table.md").read_text()
        page = (tmp_path / "out" / "index.html").read_text()
        assert "Mean gains over the sampled orders" in page
        assert "(attribution)" in page
        assert "+variant=[with_" in page  # the command of a net
        assert (tmp_path / "out" / "attribution.svg").stat().st_size > 1000

    def test_one_order_is_one(self, tmp_path):
        title = toggle_worths(self.report(tmp_path, 1)).get_suptitle()
        assert title.startswith("Mean gain of each toggle over 1 order, ")

    def test_several_changes_at_once_are_no_step(self, tmp_path):
        group = self.report(tmp_path, 3)
        several = [cell for cell in group.others if "+" in cell.variant]
        assert several
        assert not any(cell.gain for cell in several)
        assert group.missing == ()

    def test_other_studies_have_no_worths(self, tmp_path):
        write_run(tmp_path, FIRST)
        write_run(tmp_path, FIRST, variant="with_dw+gelu", cell=f"{FIRST}+with_dw+gelu")  # on the way of some orders
        write_run(tmp_path, FIRST, variant="with_gelu", cell=f"{FIRST}+with_gelu")
        (group,) = groups_of(tmp_path)
        assert group.attribution is None
        with pytest.raises(NothingToDraw):
            toggle_worths(group)

    def test_a_toggle_is_left_out_in_the_study_that_was_trained_alike(self, tmp_path):
        write_nets(tmp_path, orders(3), flattering(), spread=0)
        own = {net for order in orders(3) for net in nets(order)}
        toggle = next(t for t in ("gelu", "layer_norm", "kernel_7", "fewer_norms") if WHOLE - {t} not in own)
        name = f"separate_downsampling+without_{toggle}"
        about = {"cell": name, "variant": f"without_{toggle}"}

        def left_out():
            found = next(g.attribution for g in groups_of(tmp_path) if g.attribution)
            assert found.lacks == ""  # three orders are enough
            return next(worth.left_out for worth in found.worths if worth.toggle == toggle)

        write_run(tmp_path, "separate_downsampling", study="alike", top1=70.0, **about)
        write_run(tmp_path, "separate_downsampling", study="longer", top1=71.0, epochs=9, **about)
        assert left_out() == pytest.approx(flattering()[WHOLE] - 70)
        write_run(tmp_path, "separate_downsampling", study="again", top1=72.0, **about)
        assert left_out() is None  # of two none is the one
