"""The chart: what is on it, for the whole roadmap, for a few rows, and for labels that mean harm. It writes no file."""

import csv
import itertools
import warnings
from dataclasses import replace
from io import BytesIO

import matplotlib
import numpy as np
import pytest
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

from roadmap import paper
from roadmap.report import charts, roadmap_chart
from roadmap.report.analyse.cells import MARK
from roadmap.report.analyse.formats import signed
from roadmap.report.analyse.ranking import ranking
from roadmap.report.draw.chart_rows import limits
from roadmap.report.draw.style import image
from roadmap.report.write.csv_files import csv_files
from roadmap.report.write.tables import tables_of
from tests.fabricate import groups_of, write_roadmap, write_run


def main_axes(figure: Figure):
    return [axes for axes in figure.axes if axes.get_xlabel() == "top-1 (%)"]


def dots_of(axes, papers=False):
    """Return our dots by step, or with `papers` the paper's diamonds."""
    dots = {line.get_label(): line for line in axes.lines if line.get_marker() in ("o", "s", "^", "D")}
    return {name.removeprefix("paper "): dot for name, dot in dots.items() if name.startswith("paper ") == papers}


def at(dot):
    return dot.get_xdata()[0], dot.get_ydata()[0]


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def markers(axes, symbol):
    return [line for line in axes.lines if line.get_marker() == symbol]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    write_roadmap(runs, seeds=3, epochs=1)
    (group,) = groups_of(runs)
    return group, roadmap_chart(group)


def test_every_row_has_a_dot_at_its_mean_from_top_to_bottom(whole):
    group, figure = whole
    (axes,) = main_axes(figure)
    dots = dots_of(axes)
    assert list(dots) == [row.step for row in group.rows] == list(paper.order())
    assert [at(dot)[0] for dot in dots.values()] == pytest.approx([row.top1 for row in group.rows])
    assert [label.get_text() for label in axes.get_yticklabels()] == [row.label for row in group.rows]
    tops = [axes.transData.transform(at(dot))[1] for dot in dots.values()]
    assert tops == sorted(tops, reverse=True)


def test_a_bar_leads_to_each_row_from_its_parent_and_its_gain_is_printed(whole):
    group, figure = whole
    bars = [c.patches[0] for c in main_axes(figure)[0].containers if isinstance(c, BarContainer)]
    tops = {row.step: row.top1 for row in group.rows}
    steps = [row for row in group.rows if row.parent]
    assert [bar.get_x() for bar in bars] == [tops[row.parent] for row in steps]
    assert [bar.get_x() + bar.get_width() for bar in bars] == pytest.approx([row.top1 for row in steps])
    texts = texts_of(figure)
    for row in steps:
        assert signed(row.gain.gain) + ("*" if row.gain.significant else "") in texts
    assert {True, False} == {row.gain.significant for row in steps}
    assert any("significant" in text.get_text() for text in figure.legends[0].get_texts())


def test_only_steps_that_were_kept_are_filled(whole):
    dots = dots_of(main_axes(whole[1])[0])
    hollow = {step for step, dot in dots.items() if dot.get_markerfacecolor() == "white"}
    assert hollow == {"kernel_5", "kernel_9", "kernel_11", "swin"}
    assert dots["swin"].get_marker() == "s"


def test_error_bars_are_one_standard_deviation_of_ours_and_of_the_papers(whole):
    group, figure = whole
    found = [c for c in main_axes(figure)[0].containers if isinstance(c, ErrorbarContainer)]
    ends = [tuple(c.lines[2][0].get_segments()[0][:, 0].round(6)) for c in found]
    ours = {(round(row.top1 - row.top1_std, 6), round(row.top1 + row.top1_std, 6)) for row in group.rows}
    printed = [row for row in paper.rows("tiny").values() if row.top1_std]
    theirs = {(round(row.top1 - row.top1_std, 6), round(row.top1 + row.top1_std, 6)) for row in printed}
    assert set(ends) == ours | theirs


def test_values_and_macs_of_every_row_are_printed_and_drawn(whole):
    group, figure = whole
    texts = texts_of(figure)
    for row in group.rows:
        assert f"{row.top1:.2f} ± {row.top1_std:.2f}" in texts
        assert f"{row.numbers['gmacs']:.2f}" in texts
    macs = next(axes for axes in figure.axes if axes.get_xlabel() == "MACs (G)")
    points = markers(macs, "o") + markers(macs, "s")
    assert [p.get_xdata()[0] for p in points] == pytest.approx([row.numbers["gmacs"] for row in group.rows])
    assert macs.get_xlim()[0] == 0


def test_runs_that_do_not_say_their_macs_have_no_empty_panel_of_them(tmp_path):
    write_run(tmp_path, "resnet", gmacs=None)
    for narrow in (False, True):
        figure = roadmap_chart(groups_of(tmp_path), narrow)
        assert not any("MACs" in text for text in texts_of(figure))
        assert [axes.get_xlabel() for axes in figure.axes if axes.axison] == ["top-1 (%)"]


def test_macs_of_very_small_nets_are_given_in_millions(tmp_path):
    write_run(tmp_path, "resnet", gmacs=0.0018)
    write_run(tmp_path, "gelu", gmacs=None)
    figure = roadmap_chart(groups_of(tmp_path))
    assert {"1.80", "MMACs"} <= set(texts_of(figure))
    (point,) = markers(next(axes for axes in figure.axes if axes.get_xlabel() == "MACs (M)"), "o")
    assert point.get_xdata()[0] == pytest.approx(1.8)


def test_macs_are_joined_from_parent_to_child_along_the_kept_steps(whole):
    macs = next(axes for axes in whole[1].axes if axes.get_xlabel() == "MACs (G)")
    joined = {tuple(map(int, line.get_ydata())) for line in macs.lines if len(line.get_ydata()) == 2}
    order = paper.order()
    assert (order["move_up_depthwise"], order["kernel_7"]) in joined
    assert (order["kernel_7"], order["gelu"]) in joined
    assert not any(order["kernel_9"] in pair or order["swin"] in pair for pair in joined)


def test_the_papers_numbers_are_diamonds_where_they_compare(whole, tmp_path):
    diamonds = dots_of(main_axes(whole[1])[0], papers=True)
    printed = {s: row.top1 for s, row in paper.rows("tiny").items() if s != "swin"}  # Swin's is of another recipe
    assert {step: at(dot)[0] for step, dot in diamonds.items()} == printed
    write_roadmap(tmp_path, "nano", "digits", seeds=1, epochs=1)
    assert not dots_of(main_axes(roadmap_chart(groups_of(tmp_path)))[0], papers=True)


def test_our_swin_is_a_dashed_line_and_else_the_papers(whole, tmp_path):
    group, figure = whole
    ours = next(row.top1 for row in group.rows if row.step == "swin")
    dashed = [line for line in main_axes(figure)[0].lines if list(line.get_ydata()) == [0, 1]]
    assert [set(line.get_xdata()) for line in dashed] == [{ours}]
    write_run(tmp_path, "gelu", regime="base", data="imagenet", top1=82.0)
    assert "Swin-B (paper, its own recipe) 83.50" in texts_of(roadmap_chart(groups_of(tmp_path)))


def test_the_title_says_regime_data_epochs_and_seeds(whole):
    said = " ".join(texts_of(whole[1]))
    assert "regime tiny, ImageNet-1K" in said
    assert "1 epoch; n = 3 seeds" in said
    assert "means nothing" not in said


def test_rows_that_a_roadmap_lacks_are_said_above_the_chart(tmp_path):
    for step in paper.order():
        if step not in ("depthwise", "gelu"):
            write_run(tmp_path, step, regime="tiny", data="imagenet", epochs=1)
    assert "no usable run of: depthwise, gelu" in texts_of(roadmap_chart(groups_of(tmp_path)))


def test_many_notes_leave_room_for_the_chart(tmp_path):
    write_run(tmp_path, "gelu")
    (group,) = groups_of(tmp_path)
    said = texts_of(roadmap_chart(replace(group, notes=tuple(f"note {i}" for i in range(20)))))
    assert [text for text in said if text.startswith("note ")] == [f"note {i}" for i in range(4)]
    assert "and more notes: see the table" in said
    long = "a note of many words " * 20  # what does not fit is not cut off in the middle
    said = texts_of(roadmap_chart(replace(group, notes=("note 0", "note 1", "note 2", long))))
    assert [text for text in said if "note" in text] == ["note 0", "note 1", "note 2", "and more notes: see the table"]
    said = texts_of(roadmap_chart(replace(group, notes=(*(f"note {i}" for i in range(20)), f"{MARK} gelu: differs"))))
    assert f"{MARK} gelu: differs" in said  # what a mark means stands above the chart that has it


@pytest.mark.parametrize(
    ("data", "words"), [("digits", "the order of the rows means nothing"), ("synthetic", "the accuracy means nothing")]
)
def test_a_small_scale_says_that_it_means_nothing(tmp_path, data, words):
    write_run(tmp_path, "gelu", data=data)
    assert any(words in text for text in texts_of(roadmap_chart(groups_of(tmp_path))))


def test_one_seed_has_no_error_bar_and_says_so(tmp_path):
    write_run(tmp_path, "resnet", top1=40.0)
    for seed in range(2):
        write_run(tmp_path, "gelu", seed, top1=50.0 + seed)
    figure = roadmap_chart(groups_of(tmp_path))
    containers = main_axes(figure)[0].containers
    assert sum(isinstance(c, ErrorbarContainer) for c in containers) == 1
    assert {"40.00  n = 1", "50.50 ± 0.71  n = 2"} <= set(texts_of(figure))
    assert any("n = 1 to 2 seeds" in text for text in texts_of(figure))


def test_recipes_of_different_lengths_are_both_named(tmp_path):
    write_run(tmp_path, "resnet", epochs=2)
    write_run(tmp_path, "gelu", epochs=4)
    said = " ".join(texts_of(roadmap_chart(groups_of(tmp_path))))
    assert "original recipe 2 epochs, enhanced recipe 4 epochs" in said


@pytest.mark.parametrize("tops", [(0.0, 0.0), (100.0, 100.0), (78.8, 78.8), (78.8, 78.81), (0.0, 100.0), (99.9, 100.0)])
def test_the_axis_shows_every_dot_and_has_a_width(tmp_path, tops):
    for step, top1 in zip(("resnet", "gelu"), tops, strict=True):
        write_run(tmp_path, step, top1=top1)
    low, high = limits(groups_of(tmp_path))
    assert -6 <= low < min(tops)
    assert max(tops) < high <= 106
    assert high - low >= 0.1


def test_own_steps_are_in_the_figure_behind_their_parent(tmp_path):
    for step in ("kernel_7", "gelu"):
        write_run(tmp_path, step)
    write_run(tmp_path, "mine", parent="kernel_7", label="my own idea", adopted="no")
    (axes,) = main_axes(roadmap_chart(groups_of(tmp_path)))
    assert list(dots_of(axes)) == ["kernel_7", "mine", "gelu"]
    assert [label.get_text() for label in axes.get_yticklabels()][1] == "my own idea"
    assert dots_of(axes)["mine"].get_markerfacecolor() == "white"


def test_a_row_that_is_not_the_papers_has_none_of_its_numbers_and_is_marked(tmp_path):
    write_roadmap(tmp_path)
    for seed in range(3):
        write_run(tmp_path, "grn", seed, top1=82.5, regime="tiny", data="imagenet", parent="separate_downsampling")
    (group,) = groups_of(tmp_path)
    cell = next(row for row in group.rows if row.step == "grn")
    assert [row.step for row in group.rows][-3:] == ["separate_downsampling", "grn", "swin"]
    assert cell.paper is None and cell.gain.paper_gain is None and cell.gain.gain > 0
    assert "grn" not in {row.step for row in ranking(group).rows}
    figure = roadmap_chart(group)
    (axes,) = main_axes(figure)
    assert {step for step, dot in dots_of(axes).items() if dot.get_marker() == "^"} == {"grn"}
    (legend,) = figure.legends
    assert "not of the paper" in [text.get_text() for text in legend.get_texts()]
    assert "ConvNeXt V2" in texts_of(figure)  # where the section is named
    assert axes.get_yticklabels()[-2].get_text() == "GRN (ConvNeXt V2)"
    table, _ = tables_of(group)
    adopted = {row[0]: row[table.headings.index("adopted")] for row in table.texts}
    assert adopted["grn"] == "yes, not of the paper" and adopted["gelu"] == "yes" and adopted["kernel_5"] == "no"


def test_a_long_label_is_wrapped_and_keeps_every_letter(tmp_path):
    write_run(tmp_path, "separate_downsampling", label="separate d.s. conv (ConvNeXt-T)")
    for narrow in (False, True):
        (axes,) = main_axes(roadmap_chart(groups_of(tmp_path), narrow=narrow))
        (label,) = [label.get_text() for label in axes.get_yticklabels()]
        assert label.replace("\n", " ") == "separate d.s. conv (ConvNeXt-T)"
    assert "\n" in label


def test_one_unit_of_macs_holds_for_the_whole_report(tmp_path):
    write_run(tmp_path, "resnet", gmacs=0.0018)
    write_run(tmp_path, "resnet", regime="tiny", data="imagenet", gmacs=4.089)
    groups = groups_of(tmp_path)
    assert [group.macs.unit for group in groups] == ["M", "M"]
    for group, text in zip(groups, ("1.80", "4089.00"), strict=True):
        (table,) = tables_of(group)
        assert table.texts[0][table.headings.index("MACs (M)")] == text
        assert text in texts_of(roadmap_chart(group))
    rows = csv.DictReader(csv_files(groups)["table.csv"].decode().splitlines())
    assert [row["gmacs"] for row in rows] == ["0.0018", "4.089"]


def test_both_regimes_stand_side_by_side_and_a_missing_run_is_said(tmp_path):
    for regime, steps in (("tiny", ("resnet", "gelu", "swin")), ("base", ("resnet", "kernel_7", "swin"))):
        for step in steps:
            top1 = paper.rows(regime)[step].top1
            write_run(tmp_path, step, study=f"roadmap_{regime}", regime=regime, data="imagenet", top1=top1)
    (together,) = charts(groups_of(tmp_path)).values()
    figure = roadmap_chart(together)
    left, right = main_axes(figure)
    assert list(dots_of(left)) == ["resnet", "gelu", "swin"]
    assert list(dots_of(right)) == ["resnet", "kernel_7", "swin"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["ResNet", "kernel size 7", "ReLU to GELU", "Swin"]
    assert texts_of(figure).count("no run") == 2
    assert at(dots_of(right)["kernel_7"])[1] == pytest.approx(at(dots_of(left)["resnet"])[1] + 1)


HOSTILE = [
    "$\\frac{1}{$", "\\undefined{", "\u202egnp.exe\x1b[31m", "日本語のラベル", "<script>", "W" * 5000, "a\ud800b\x00",
    "", "%s {0}", "_^#&~",
]  # fmt: skip


def test_hostile_labels_are_drawn_as_plain_text_and_nothing_overlaps(tmp_path):
    for i, label in enumerate(HOSTILE):
        write_run(tmp_path, f"own{i}", parent="gelu", label=label)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that is missing would warn
        figure = roadmap_chart(groups_of(tmp_path))
        for kind in ("png", "svg", "pdf"):
            assert image(figure, kind)
    labels = {label.get_text() for label in main_axes(figure)[0].get_yticklabels()}
    assert "$\\frac{1}{$" in labels
    assert "own3" in labels  # the font has none of its letters
    assert max(map(len, labels)) <= 37  # of 36 letters, and a line's end


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_no_text_leaves_the_page_or_meets_another(tmp_path, rows):
    steps = [*paper.order(), *(f"own{i}" for i in range(40))]
    for i, step in enumerate(steps[:rows]):
        own = {"parent": "gelu", "label": f"an idea of one's own with a long name, {step}"}
        write_run(tmp_path, step, top1=60.0 + i / 3, epochs=1, **({} if step in paper.order() else own))
    figure = roadmap_chart(groups_of(tmp_path))
    renderer = figure.canvas.get_renderer()
    figure.draw_without_rendering()
    texts = [t for axes in figure.axes for t in (*axes.texts, *(axes.get_yticklabels() if axes.axison else ()))]
    shown = [t for t in texts if t.get_text()]
    boxes = [t.get_window_extent(renderer) for t in shown]
    width, height = figure.get_size_inches() * figure.dpi
    for text, box in zip(shown, boxes, strict=True):
        assert -1 <= box.x0 and -1 <= box.y0 and box.x1 <= width + 1 and box.y1 <= height + 1, text
    for (text, a), (other, b) in itertools.combinations(zip(shown, boxes, strict=True), 2):
        overlap = (min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0))
        assert min(overlap) <= 1, (text, other)


def test_the_png_is_a_picture_and_the_users_settings_do_not_change_it(whole):
    group, figure = whole
    data = image(figure, "png")
    picture = np.asarray(Image.open(BytesIO(data)).convert("L"))
    assert picture.min() < 40 < 250 < picture.max()
    theirs = {"font.size": 30, "axes.grid": True, "hatch.linewidth": 9, "figure.dpi": 33, "svg.hashsalt": None}
    with matplotlib.rc_context(theirs):
        assert image(roadmap_chart(group), "png") == data
    assert matplotlib.rcParams["text.parse_math"]


def test_a_group_without_rows_is_refused_plainly(tmp_path):
    write_run(tmp_path, "gelu", cell="gelu+without_x", variant="without_x")
    with pytest.raises(ValueError, match="no row to draw"):
        roadmap_chart(groups_of(tmp_path))
