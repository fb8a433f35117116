"""The worth of toggles over orders: which orders there are, what they need, and what the report makes of their nets."""

import random
from collections import Counter
from functools import cache
from itertools import combinations
from math import factorial
from statistics import fmean

import pytest

from roadmap.paper.toggle_orders import (
    FIRST,
    NEEDS,
    choice,
    join_variants,
    legal_nets,
    net_of,
    nets,
    sampled_order,
    split_variant,
    toggles,
    training_seeds,
    unmet,
)
from roadmap.report.analyse.attribution import complete_orders, estimate, half_width, seed_spread

TOGGLES = toggles()
WHOLE = frozenset(TOGGLES)


def orders(number, first=0):
    return [sampled_order(first + k) for k in range(number)]


class TestOrders:
    def test_the_nets_are_all_sets_that_hold_what_their_toggles_need(self):
        sets = (frozenset(chosen) for size in range(13) for chosen in combinations(TOGGLES, size))
        assert legal_nets() == {net for net in sets if all(net.issuperset(NEEDS.get(t, ())) for t in net)}
        assert len(legal_nets()) == 1792

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
        top1s = {net: [value] for net, value in game.items()}
        for mean in estimate(orders(1500), top1s):
            assert mean.value == pytest.approx(exact(game)[mean.toggle], abs=4 * mean.over_orders.variance**0.5)
        assert sum(mean.value for mean in estimate(orders(7), top1s)) == pytest.approx(game[WHOLE] - game[frozenset()])

    def test_where_nothing_interacts_one_order_is_exact(self):
        game = made_up(0.0)
        for mean in estimate(orders(1), {net: [value] for net, value in game.items()}):
            assert mean.value == pytest.approx(exact(game)[mean.toggle])
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
        draw = random.Random(0)
        chosen = [order for order in orders(400) if order[0] == "depthwise"][:12]
        means, naive, ours = [], [], []
        for _ in range(60):
            top1s = trained(made_up(0.0), chosen, 1.0, draw)
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
