"""The figures beside the roadmap's chart: which there are, what is on them, and that nothing leaves the page."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.container import BarContainer
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from roadmap import paper
from roadmap.report import gallery, step_gains, trade_offs
from roadmap.report.analyse.cells import MARK
from roadmap.report.analyse.ranking import ranking
from roadmap.report.draw.curves import kernel_curve, rank_agreement, training_curves
from roadmap.report.draw.gallery import suffixes
from roadmap.report.draw.step_gains import leave_one_out, one_at_a_time
from roadmap.report.draw.style import COLUMN, image
from roadmap.report.draw.trade_offs import pareto
from tests.conftest import ROOT
from tests.fabricate import groups_of, write_roadmap, write_run
from tests.test_report_figure import HOSTILE, markers, texts_of


def drawn(groups):
    return {drawing.name: drawing.figure for drawing in gallery(groups)}


def ends(axes, style="-"):
    """Return the ends of the horizontal lines of a style, from above."""
    lines = [line for line in axes.lines if line.get_linestyle() == style and len(line.get_xdata()) == 2]
    return [tuple(line.get_xdata()) for line in lines if len(set(line.get_ydata())) == 1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    write_roadmap(runs, seeds=3, epochs=4, peak_memory_gb=3.0)
    (group,) = groups_of(runs)
    return group


@pytest.fixture(scope="module")
def figures(whole):
    """Return every figure of the whole roadmap by name; tests only read them."""
    return drawn([whole])


def test_a_roadmap_has_every_figure_that_its_data_allow(figures, tmp_path):
    beside = {"gains", "tradeoffs", "curves", "kernel_size", "ranking"}
    assert set(figures) == {"roadmap", "roadmap-column", *beside}
    write_run(tmp_path, "gelu")
    assert set(drawn(groups_of(tmp_path))) == {"roadmap", "roadmap-column", "curves"}


def test_groups_have_files_of_their_own(tmp_path):
    for regime in ("tiny", "base"):
        for step in ("resnet", "enhanced_recipe"):
            write_run(tmp_path, step, regime=regime, data="imagenet")
    groups = groups_of(tmp_path)
    assert suffixes(groups) == ["-roadmap-tiny-imagenet", "-roadmap-base-imagenet"]
    names = set(drawn(groups))
    assert {"roadmap", "roadmap-column-tiny", "roadmap-column-base", "gains-roadmap-tiny-imagenet"} <= names


def test_gains_are_drawn_with_welchs_interval_and_the_papers(whole):
    axes = step_gains(whole).axes[0]
    gains = [row.gain for row in whole.rows if row.gain]
    assert [dot.get_xdata()[0] for dot in markers(axes, "o")] == [gain.gain for gain in gains]
    assert [dot.get_xdata()[0] for dot in markers(axes, "D")] == [gain.paper_gain for gain in gains]
    drawn = set(ends(axes))
    assert {(gain.over_seeds.low, gain.over_seeds.high) for gain in gains} <= drawn
    assert {(gain.paper_interval.low, gain.paper_interval.high) for gain in gains if gain.paper_interval} <= drawn


def test_gains_of_one_seed_have_the_images_interval_dotted_or_say_that_none_is_known(tmp_path):
    for i, step in enumerate(("resnet", "enhanced_recipe")):
        write_run(tmp_path / "bits", step, correct=np.random.default_rng(i).random(200) < 0.5)
        write_run(tmp_path / "none", step, top1=50.0 + i)
        for seed in range(3):
            write_run(tmp_path / "equal", step, seed, top1=50.0 + i)
    (group,) = groups_of(tmp_path / "bits")
    gain = group.rows[1].gain
    figure = step_gains(group)
    assert ends(figure.axes[0], ":") == [(gain.over_images.low, gain.over_images.high)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours, 95 % over images only"]
    for folder in ("none", "equal"):
        without = step_gains(groups_of(tmp_path / folder)[0])
        assert [text.get_text() for text in without.legends[0].get_texts()] == ["ours"]
        assert not ends(without.axes[0], ":")
        assert without.legends[0].get_title().get_text() == "no interval is known (one seed, or all seeds equal)"


def test_gains_beside_the_papers_have_a_handle_of_their_own_without_an_interval(tmp_path):
    for step in ("resnet", "enhanced_recipe"):
        write_run(tmp_path, step, regime="tiny", data="imagenet")
    figure = step_gains(groups_of(tmp_path)[0])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "paper, no spread printed"]


def test_the_papers_gain_is_said_to_have_an_interval_only_where_one_is_drawn(tmp_path):
    """Table 11 prints no spread, Table 10 none of its first row."""
    words = {}
    for regime in ("tiny", "base"):
        write_roadmap(tmp_path / regime, regime, seeds=2)
        legend = step_gains(groups_of(tmp_path / regime)[0]).legends[0]
        words[regime] = {text.get_text() for text in legend.get_texts()} - {"ours, 95 % over seeds", "tried, not kept"}
    assert words == {"tiny": {"paper, 95 % over seeds"}, "base": {"paper, no spread printed"}}


@pytest.mark.parametrize(
    ("draw", "prefix", "step"),
    [(leave_one_out, "without_", "separate_downsampling"), (one_at_a_time, "with_", "enhanced_recipe")],
)
def test_variants_are_bars_of_what_they_change(tmp_path, draw, prefix, step):
    for seed in range(2):
        write_run(tmp_path, step, seed, top1=50.0 + seed)
        write_run(tmp_path, step, seed, top1=49.0 + 2 * seed, cell=f"{step}+{prefix}gelu", variant=f"{prefix}gelu")
        write_run(tmp_path, step, seed, top1=47.0, cell=f"{step}+{prefix}kernel_7", variant=f"{prefix}kernel_7")
    (group,) = groups_of(tmp_path)
    axes = draw(group).axes[0]
    bars = [c.patches[0].get_width() for c in axes.containers if isinstance(c, BarContainer)]
    assert bars == [-0.5, -3.5]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["gelu", "kernel 7"]
    gains = [cell.gain.over_seeds for cell in group.others]
    assert ends(axes)[-2:] == [(interval.low, interval.high) for interval in gains]
    assert "in the tables alone" not in draw(group).legends[0].get_title().get_text()


def test_variants_of_another_row_are_not_said_to_be_of_the_whole_network_and_not_forgotten(tmp_path):
    for step, names in (("gelu", ["without_gelu"]), ("fewer_norms", ["without_gelu", "without_depthwise", "with_grn"])):
        write_run(tmp_path, step)
        for name in names:
            write_run(tmp_path, step, cell=f"{step}+{name}", variant=name)
    drawings = {drawing.name: drawing for drawing in gallery(groups_of(tmp_path))}
    assert "Left out of fewer_norms" in drawings["leave_one_out"].figure.get_suptitle()
    assert "Alone on top of fewer_norms" in drawings["one_at_a_time"].figure.get_suptitle()
    captions = [drawings[name].caption for name in ("leave_one_out", "one_at_a_time")]
    assert captions == [
        "Change in top-1 when one toggle is removed.",
        "Change in top-1 when one toggle is added alone.",
    ]
    words = [drawings[name].figure.legends[0].get_title().get_text() for name in ("leave_one_out", "one_at_a_time")]
    assert ["in the tables alone" in text for text in words] == [True, False]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12), st.booleans())
def test_the_pareto_front_is_what_no_other_point_beats(points, more):
    front = {points[i] for i in pareto(points, more)}
    sign = 1 if more else -1

    def beats(a, b):
        return sign * a[0] >= sign * b[0] and a[1] >= b[1] and a != b

    assert front == {p for p in points if not any(beats(q, p) for q in points)}


def test_trade_offs_have_a_panel_for_each_cost_that_is_known(whole, tmp_path):
    panels = [axes for axes in trade_offs(whole).axes if axes.get_xlabel()]
    measured = ["training speed (images/s)", "GPU-hours (h)", "peak memory (GiB)"]
    assert [axes.get_xlabel() for axes in panels] == ["MACs (G)", "parameters (M)", *measured]
    drawn = [dot.get_xdata()[0] for dot in markers(panels[0], "s") + markers(panels[0], "o")]
    assert sorted(drawn) == sorted(row.numbers["gmacs"] for row in whole.rows)
    for step in ("resnet", "gelu"):
        write_run(tmp_path, step, gpu_hours=None, train_images_per_s=None, peak_memory_gb=None)
    figure = trade_offs(groups_of(tmp_path)[0])
    assert len([axes for axes in figure.axes if axes.get_xlabel()]) == 2


def test_a_front_is_drawn_only_where_the_cost_is_counted_or_was_measured_in_one_way_on_one_kind_of_gpu(tmp_path):
    gpu = {"hardware": "1 x H100", "code_hash": "aaaa", "group_size": 3}
    for folder, other in (
        ("cpu", {"hardware": "CPU (x86_64)"}),
        ("gpu", {}),
        ("two", {"hardware": "1 x A100"}),
        ("code", {"code_hash": "bbbb"}),
        ("alone", {"group_size": None}),
    ):
        for i, step in enumerate(("resnet", "gelu")):
            about = gpu | other if i or folder == "cpu" else gpu
            write_run(tmp_path / folder, step, top1=50.0 + i, gmacs=4.0 + i, **about)
        figure = trade_offs(groups_of(tmp_path / folder)[0])
        fronts = {axes.get_xlabel(): bool(markers(axes, "s")) for axes in figure.axes if axes.get_xlabel()}
        assert fronts.pop("MACs (G)") and fronts.pop("parameters (M)")
        assert set(fronts.values()) == {folder == "gpu"}
        assert ("no front" in figure.legends[0].get_title().get_text()) == (folder != "gpu")


def test_numbers_of_a_trade_off_meet_no_other_and_no_point(whole):
    figure = trade_offs(whole)
    figure.draw_without_rendering()
    lacking = any(len(axes.texts) < len(whole.rows) for axes in figure.axes if axes.get_xlabel())
    assert ("without a number" in figure.legends[0].get_title().get_text()) == lacking
    for axes in (axes for axes in figure.axes if axes.get_xlabel()):
        points = markers(axes, "s") + markers(axes, "o")
        dots = {line.get_label(): axes.transData.transform(line.get_xydata()[0]) for line in points}
        boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
        assert len(boxes) >= 3
        for name, box in boxes.items():
            assert not any(box.contains(*dot) for dot in dots.values())
            assert not any(box.overlaps(other) for key, other in boxes.items() if key != name), name
            middle = np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
            nearest = min(dots, key=lambda key: np.hypot(*(dots[key] - middle)))
            assert np.hypot(*(dots[name] - middle)) <= np.hypot(*(dots[nearest] - middle)) + 3


@pytest.mark.parametrize("name", ["demo", "mini_h100"])
def test_numbers_of_a_trade_off_do_not_run_together_and_no_front_runs_through_them(name):
    (group,) = groups_of(ROOT / f"notebooks/results/{name}.zip")
    figure = trade_offs(group)
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        middles = [Bbox([(b.x0, b.y0 + b.height / 3), (b.x1, b.y1 - b.height / 3)]) for b in boxes]
        wide = [box.padded(figure.dpi / 72, 0) for box in middles]  # a point to both sides
        assert not any(a.overlaps(b) for a, b in itertools.combinations(wide, 2)), axes.get_xlabel()
        fronts = [line for line in axes.lines if line.get_marker() == "None"]
        paths = [axes.transData.transform_path(line.get_path()) for line in fronts]
        assert not any(path.intersects_bbox(box, False) for path in paths for box in middles), axes.get_xlabel()


def test_the_caption_names_only_what_is_drawn(whole, tmp_path):
    captions = {drawing.name: drawing.caption for drawing in gallery([whole])}
    assert "diamonds: the paper's numbers" in captions["roadmap"] and "tried, not kept" in captions["roadmap"]
    write_run(tmp_path, "gelu")
    captions = {drawing.name: drawing.caption for drawing in gallery(groups_of(tmp_path))}
    assert captions["roadmap"] == "Top-1 after the last epoch."


def test_training_curves_have_a_panel_a_row_and_a_line_a_seed(whole):
    panels = training_curves(whole).axes
    assert len(panels) == len(whole.rows)
    for axes, row in zip(panels, whole.rows, strict=True):
        curves = [tuple(top1 for _, top1 in run.curve) for run in row.runs]
        assert [tuple(line.get_ydata()) for line in axes.lines] == curves


def test_the_kernel_curve_leads_from_3_to_11_with_intervals_and_the_papers_dashed(whole):
    axes = kernel_curve(whole).axes[0]
    sizes = {"move_up_depthwise": 3, "kernel_5": 5, "kernel_7": 7, "kernel_9": 9, "kernel_11": 11}
    rows = {row.step: row for row in whole.rows if row.step in sizes}
    curve = axes.lines[0]
    assert list(curve.get_xdata()) == [3, 5, 7, 9, 11]
    assert list(curve.get_ydata()) == [rows[step].top1 for step in sizes]
    (theirs,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert list(theirs.get_ydata()) == [paper.rows("tiny")[step].top1 for step in sizes]
    pairs = [line for line in axes.lines if len(line.get_xdata()) == 2]
    uprights = [tuple(line.get_ydata()) for line in pairs if len(set(line.get_xdata())) == 1]
    assert uprights == [(rows[step].interval.low, rows[step].interval.high) for step in sizes]


def test_the_kernel_curve_says_why_no_interval_is_known(tmp_path):
    for step, seed in itertools.product(("kernel_5", "kernel_7"), range(3)):
        write_run(tmp_path, step, seed)
    words = kernel_curve(groups_of(tmp_path)[0]).legends[0].get_title().get_text()
    assert words.startswith("no interval is known (one seed, or all seeds equal); filled: kept")


def test_the_axis_of_the_kernel_curve_ends_at_100_percent_and_no_lower_than_its_points(whole, tmp_path):
    for step in ("kernel_5", "kernel_7"):
        for seed, top1 in enumerate((98.0, 100.0)):
            write_run(tmp_path, step, seed, top1=top1)
    (group,) = groups_of(tmp_path)
    assert group.rows[0].interval.high > 100
    assert kernel_curve(group).axes[0].get_ylim()[1] == 100
    low, high = kernel_curve(whole).axes[0].get_ylim()
    assert all(low < row.interval.low and row.interval.high < high for row in whole.rows if "kernel" in row.step)


def test_rank_agreement_is_drawn_and_said_with_its_intervals(whole):
    ranks = ranking(whole)
    figure = rank_agreement(whole)
    assert len(markers(figure.axes[0], "o")) == 17
    assert figure.legends[0].get_title().get_text().startswith("\n".join(ranks.lines))
    assert "95 % interval" in ranks.lines[0]


def test_every_figure_says_in_svg_what_the_pointer_rests_on(figures):
    for name, figure in figures.items():
        svg = image(figure, "svg").decode()
        assert "stage ratio" in svg or name == "kernel_size", name
        assert svg.count("<title>") >= 5, name
        assert "hover:" not in svg, name


def test_figures_beside_the_chart_are_as_wide_as_a_column_and_their_text_can_be_read(figures):
    for name, figure in figures.items():
        if name == "roadmap":
            continue
        assert figure.get_size_inches()[0] == pytest.approx(COLUMN, abs=0.02), name
        texts = [t for axes in figure.axes for t in (*axes.texts, axes.title, axes.xaxis.label)]
        assert min(t.get_fontsize() for t in texts if t.get_text()) >= 4.5, name


def outside(figure) -> list[str]:
    """Return the texts of a figure that leave its page."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    width, height = figure.get_size_inches() * figure.dpi
    texts = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
    for axes in filter(lambda axes: axes.axison, figure.axes):
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_yticklabels()]
        low, high = sorted(axes.get_ylim())
        texts = [t for t in texts if t not in axes.get_yticklabels() or low <= t.get_position()[1] <= high]
    texts += [t for legend in figure.legends for t in (*legend.get_texts(), legend.get_title())]
    found = []
    for text in texts:
        box = text.get_window_extent(renderer)
        leaves = box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
        if leaves and text.get_text() and text.get_visible():
            found.append(text.get_text())
    return found


@pytest.mark.parametrize(("rows", "seeds"), [
    (3, 9), (40, 1), pytest.param(3, 1, marks=pytest.mark.slow), pytest.param(40, 9, marks=pytest.mark.slow),
])  # fmt: skip
def test_nothing_leaves_the_page_with_few_or_many_rows_long_labels_one_seed_or_many(tmp_path, rows, seeds):
    steps = [*paper.order(), *(f"own{i}" for i in range(40))][:rows]
    for i, step in enumerate(steps):
        label = {} if step in paper.order() else {"parent": "gelu", "label": HOSTILE[i % len(HOSTILE)]}
        for seed in range(seeds if i % 7 else 1):
            write_run(tmp_path, step, seed, top1=60.0 + i / 3 + seed / 10, epochs=2, **label)
    groups = groups_of(tmp_path)
    for name, figure in drawn(groups).items():
        assert not outside(figure), name
        assert "nan" not in " ".join(texts_of(figure)).split(), name


def test_the_figures_of_real_runs_stay_on_their_pages_and_leave_out_a_cost_that_none_has():
    groups = groups_of(ROOT / "notebooks/results/mini_h100.zip")
    found = drawn(groups)
    assert {"classes", "images", "tradeoffs"} <= found.keys()
    for name, figure in found.items():
        assert not outside(figure), name
    said = {}
    for name, figure in found.items():
        said[name] = " ".join(word for text in figure.findobj(Text) for word in text.get_text().split())
    marked = {name for name, text in said.items() if MARK in text}
    assert marked == found.keys() - {"kernel_size"}  # which names no row
    assert all(text.count("that differ from most of the study") == (name in marked) for name, text in said.items())
    assert "a point without a number stands too close to others" in said["tradeoffs"]
    panels = [axes.get_xlabel() for axes in found["tradeoffs"].axes]
    assert "GPU-hours (h)" in panels and "GPU-hours lost (h)" not in panels
