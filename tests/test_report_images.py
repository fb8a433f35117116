"""What a step changes image by image and class by class: counts by hand, tests by other people's code, the page."""

import csv
import itertools

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import confusion_matrix
from statsmodels.stats.contingency_tables import mcnemar

from roadmap.report import aggregate, collect, findings, gallery
from roadmap.report.__main__ import main
from roadmap.report.analyse import image_changes as changes_of
from roadmap.report.analyse.image_changes import changed_by_seed, class_changes, confusion, sign_flip
from roadmap.report.analyse.statistics import false_discovery, welch_of_columns
from roadmap.report.read.image_classes import ImageClasses
from roadmap.report.write import csv_files as written
from roadmap.report.write.tables import to_markdown
from roadmap.runs import schema
from tests.fabricate import groups_of, write_run
from tests.test_report import edit
from tests.test_report_page import Page
from tests.test_report_suspect import shorten_file

NAMES = ["cat", "dog", "ox"]
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2])
PARENT = np.array([[0, 0, 1, 1, 1, 1, 0, 2], [0, 1, 1, 1, 1, 0, 0, 0]])  # which class came first, a row a seed
CHILD = np.array([[0, 0, 0, 1, 1, 0, 0, 2], [0, 0, 0, 1, 1, 1, 0, 2]])


def classes_of(labels, names=()):
    data = np.asarray(labels).astype("<u4").tobytes()
    return ImageClasses(int(np.max(labels)) + 1, tuple(names), data, data)


def rows(runs, parent=PARENT, child=CHILD, labels=LABELS, names=NAMES, **more):
    for step, nets in (("resnet", parent), ("enhanced_recipe", child)):
        for seed, predicted in enumerate(nets):
            write_run(runs, step, seed, by_image=(predicted, labels), epochs=1, **({"classes": names} | more))


def drawn(seed, num_nets, num_classes=5, num_images=2_000, level=0.7):
    """Draw labels, and nets that are right by an image's difficulty and their own luck."""
    rng = np.random.default_rng(7)
    labels, hard = rng.integers(0, num_classes, num_images), rng.random(num_images)
    rng = np.random.default_rng(seed)
    right = hard + 0.15 * rng.normal(size=(num_nets, num_images)) < level
    others = (labels + rng.integers(1, num_classes, (num_nets, num_images))) % num_classes
    return np.where(right, labels, others), labels


# Counts.


def test_images_are_fixed_and_broken_by_seed_as_counted_by_hand(tmp_path):
    rows(tmp_path)
    gain = groups_of(tmp_path)[0].rows[1].gain
    # Seed 0: image 2 fixed, image 5 broken. Seed 1: images 1, 2, 5 and 7 fixed, none broken.
    assert (gain.changes.seeds, gain.changes.fixed, gain.changes.broke) == (2, 2.5, 0.5)
    assert gain.gain == pytest.approx(100 * (2.5 - 0.5) / 8)
    # Two seeds of the child differ in image 5 alone, of the parent in 1, 5 and 7: (0.5 + 1.5) / 2.
    assert gain.changes.by_seed == 1.0
    classes = gain.changes.classes
    assert classes.numbers.tolist() == [0, 1, 2]
    assert classes.images.tolist() == [4, 3, 1]
    assert classes.fixed.tolist() == [1.5, 0.5, 0.5]
    assert classes.broke.tolist() == [0.0, 0.5, 0.0]
    assert classes.top1 == pytest.approx([75, 50, 100])
    assert classes.parent_top1 == pytest.approx([37.5, 50, 50])
    assert classes.most(1, 3) == [2, 0]  # the dog is as before
    assert classes.most(-1, 3) == []


def test_only_seeds_that_both_rows_have_are_paired_and_older_runs_have_no_classes(tmp_path):
    rows(tmp_path)
    write_run(tmp_path, "enhanced_recipe", 5, by_image=(CHILD[0], LABELS), epochs=1)
    gain = groups_of(tmp_path)[0].rows[1].gain
    assert (gain.changes.seeds, gain.changes.fixed) == (2, 2.5)
    assert gain.changes.classes.names == ("cat", "dog", "ox")  # although one run knows no names
    for name in (schema.PREDICTIONS, schema.LABELS):
        (tmp_path / "roadmap" / "nano-digits" / "resnet" / "seed1" / name).unlink()
    collected = collect([tmp_path])
    assert not collected.suspect
    gain = aggregate(collected.runs)[0].rows[1].gain
    assert (gain.changes.fixed, gain.changes.classes) == (2.5, None)


@pytest.mark.parametrize("num_nets", [2, 3, 7])
def test_what_a_seed_alone_changes_is_the_mean_over_all_ordered_pairs(num_nets):
    bits = np.random.default_rng(num_nets).random((num_nets, 500)) < 0.6
    counted = [int((a & ~b).sum()) for a, b in itertools.permutations(bits, 2)]
    assert changed_by_seed(bits) == pytest.approx(np.mean(counted))
    assert changed_by_seed(bits[:1]) is None


# Tests, by scipy and statsmodels.


def test_with_one_seed_the_test_over_images_is_mcnemars_exact_one():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random((2, 1, 600)) < [[[0.7]], [[0.6]]]
    labels = rng.integers(0, 6, 600)
    found = class_changes(ours, theirs, classes_of(labels))
    for number in range(6):
        a, b = ours[0][labels == number], theirs[0][labels == number]
        table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
        assert found.p_images[number] == pytest.approx(mcnemar(table, exact=True).pvalue, rel=1e-12)


def test_with_several_seeds_it_is_scipys_exact_permutation_test_of_paired_samples():
    rng = np.random.default_rng(1)
    for _ in range(5):
        ours, theirs = rng.random((2, 3, 12)) < [[[0.7]], [[0.4]]]
        labels = np.zeros(12, int)
        (p,) = class_changes(ours, theirs, classes_of(labels)).p_images
        sums = (ours.sum(0), theirs.sum(0))
        settings = {"permutation_type": "samples", "n_resamples": 10_000}
        told = scipy.stats.permutation_test(sums, lambda a, b, axis: (a - b).sum(axis=axis), **settings)
        assert p == pytest.approx(told.pvalue, rel=1e-9)


def test_beyond_its_reach_the_test_goes_over_into_the_normal_one(monkeypatch):
    counts, total = (700, 300, 200), 130
    exact = sign_flip(total, counts)
    monkeypatch.setattr(changes_of, "EXACT_REACH", 100)
    assert sign_flip(total, counts) == pytest.approx(exact, rel=0.06)
    one = mcnemar([[0, 415], [285, 0]], exact=False, correction=False).pvalue
    assert sign_flip(130, (700,)) == pytest.approx(one)


def test_where_nothing_differs_there_is_no_p():
    bits = np.ones((3, 4), bool)
    found = class_changes(bits, bits, classes_of([0, 0, 1, 1]))
    assert np.isnan(found.p_images).all()
    assert np.isnan(found.p_seeds).all()


def test_over_seeds_it_is_welchs_test_of_each_class():
    rng = np.random.default_rng(3)
    ours, theirs = rng.random((4, 5)), rng.random((3, 5))
    ours[:, 0], theirs[:, 0] = 0.5, 0.25
    told = [scipy.stats.ttest_ind(a, b, equal_var=False).pvalue for a, b in zip(ours.T[1:], theirs.T[1:], strict=True)]
    found = welch_of_columns(ours, theirs)
    assert np.isnan(found[0])
    assert found[1:] == pytest.approx(told)
    assert np.isnan(welch_of_columns(ours[:1], theirs)).all()


def test_all_classes_of_all_steps_of_a_study_are_adjusted_together(tmp_path):
    for number, step in enumerate(("resnet", "enhanced_recipe", "stage_ratio")):
        nets, labels = drawn(number, 3, level=0.6 + 0.02 * number)
        for seed, predicted in enumerate(nets):
            write_run(tmp_path, step, seed, by_image=(predicted, labels))
    found = [row.gain.changes.classes for row in groups_of(tmp_path)[0].rows if row.gain]
    for name in ("p_seeds", "p_images"):
        raw = np.concatenate([getattr(classes, name) for classes in found])
        adjusted = np.concatenate([getattr(classes, f"{name}_adjusted") for classes in found])
        assert len(raw) == 10
        assert adjusted == pytest.approx(scipy.stats.false_discovery_control(raw))


def test_adjusting_leaves_out_what_is_not_known():
    p = np.array([0.01, np.nan, 0.04, 0.5])
    adjusted = false_discovery(p)
    assert np.isnan(adjusted[1])
    assert adjusted[[0, 2, 3]] == pytest.approx(scipy.stats.false_discovery_control(p[[0, 2, 3]]))


def test_equal_nets_are_told_apart_in_no_more_classes_than_the_level_allows():
    """Nets of one kind, 40 pairs of rows of 3 seeds, images that differ in difficulty: p below 5 % in 5 % at most."""
    below = []
    for seed in range(40):
        nets, labels = drawn(100 + seed, 6)
        found = class_changes(nets[:3] == labels, nets[3:] == labels, classes_of(labels))
        below.append([found.p_images < 0.05, found.p_seeds < 0.05])
    assert np.mean(below, axis=(0, 2)) == pytest.approx([0.05, 0.05], abs=0.04)


# Confusion.


def test_the_confusion_matrix_is_sklearns(tmp_path):
    nets, labels = drawn(0, 3)
    for seed, predicted in enumerate(nets):
        write_run(tmp_path, "gelu", seed, by_image=(predicted, labels))
    found = confusion(collect([tmp_path]).runs)
    told = np.mean([confusion_matrix(labels, predicted) for predicted in nets], axis=0)
    assert found.matrix == pytest.approx(told)
    assert found.seeds == 3
    off = told - np.diag(np.diag(told))
    true, chosen = np.unravel_index(off.argmax(), off.shape)
    pair = found.pairs[0]
    assert (pair.true, pair.taken_for, pair.images) == (str(true), str(chosen), pytest.approx(off.max()))
    assert pair.share == pytest.approx(100 * off.max() / told[true].sum())


def test_many_classes_have_their_most_confused_pairs_and_no_matrix(tmp_path):
    nets, labels = drawn(0, 2, num_classes=300)
    for seed, predicted in enumerate(nets):
        write_run(tmp_path, "gelu", seed, by_image=(predicted, labels))
    assert np.load(tmp_path / "roadmap/nano-digits/gelu/seed0" / schema.LABELS).dtype == np.uint16
    found = confusion(collect([tmp_path]).runs)
    told = sum(confusion_matrix(labels, predicted) for predicted in nets) / 2
    np.fill_diagonal(told, 0)
    assert found.matrix is None
    assert [pair.images for pair in found.pairs] == sorted(told.ravel())[: -len(found.pairs) - 1 : -1]
    assert len(found.pairs) == 30


# What is suspect.


def spoiled(change):
    def spoil(run):
        for name in (schema.PREDICTIONS, schema.LABELS):
            array = np.load(run / name)
            if (new := change(name, array)) is not array:
                np.save(run / name, new)

    return spoil


def swapped(name, array):
    return np.roll(array, 1) if name == schema.PREDICTIONS else array


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda run: (run / schema.LABELS).unlink(), "labels.npy is missing beside predictions.npy"),
        (lambda run: (run / schema.PREDICTIONS).unlink(), "predictions.npy is missing beside labels.npy"),
        (lambda run: (run / schema.CORRECT).unlink(), "correct.npy is missing beside predictions.npy"),
        (lambda run: np.save(run / schema.LABELS, np.zeros(8)), "labels.npy: does not contain class numbers"),
        (lambda run: np.save(run / schema.LABELS, np.zeros(8, np.int8)), "labels.npy: does not contain class numbers"),
        (
            lambda run: np.save(run / schema.LABELS, np.zeros((8, 1), "u1")),
            "labels.npy: does not contain class numbers",
        ),
        (lambda run: (run / schema.LABELS).write_bytes(b"PK\x03\x04"), "labels.npy: does not contain class numbers"),
        (lambda run: shorten_file(run / schema.LABELS, 1), "labels.npy: cannot be read (7 bytes instead of 8)"),
        (spoiled(lambda _, a: a[:7]), "predictions.npy: holds the classes of 7 images, not of 8"),
        (spoiled(lambda _, a: a[:0]), "predictions.npy: holds the classes of 0 images, not of 8"),
        (spoiled(lambda n, a: a + 1 if n == schema.LABELS else a), "labels.npy: class 3, the set has 3, from 0 up"),
        (spoiled(swapped), "otherwise than correct.npy whether they are right"),
        (lambda run: edit(run / schema.SUMMARY, num_classes=None), "num_classes=None is no number of classes"),
        *((lambda run, n=n: edit(run / schema.SUMMARY, classes=n), "classes=") for n in ("cat", {"a": 1}, 3)),
        (lambda run: edit(run / schema.SUMMARY, num_classes=10**12), "num_classes=1000000000000 is not"),
    ],
)
def test_classes_that_do_not_fit_are_suspect_by_file_and_reason(tmp_path, damage, reason):
    run = write_run(tmp_path, "gelu", by_image=(CHILD[0], LABELS))
    assert not collect([tmp_path]).suspect
    damage(run)
    collected = collect([tmp_path])
    assert not collected.runs
    assert reason in collected.suspect[0].reason


@pytest.mark.parametrize("names", [["cat", "dog"], None])
def test_names_that_are_not_one_a_class_are_numbers(tmp_path, names):
    write_run(tmp_path, "gelu", by_image=(CHILD[0], LABELS))
    edit(tmp_path / "roadmap/nano-digits/gelu/seed0" / schema.SUMMARY, classes=names)
    (run,) = collect([tmp_path]).runs
    assert [run.classes.name(i) for i in range(3)] == ["0", "1", "2"]


# What is written.


def told_study(runs, classes=5, seeds=4, names=None):
    """Write a step that helps class 1 and no other, in every seed alike."""
    for step, gain in (("resnet", 0), ("enhanced_recipe", 80)):
        nets, labels = drawn(1 + gain, seeds, num_classes=classes)
        (ids,) = np.nonzero(labels == 1)
        for seed, predicted in enumerate(nets):
            predicted[ids] = 0
            predicted[ids[: 100 + gain + seed % 2]] = 1
            names_of = names or [f"class {i}" for i in range(classes)]
            write_run(runs, step, seed, by_image=(predicted, labels), classes=names_of, num_classes=classes)


def test_findings_name_the_classes_that_a_test_tells_from_zero(tmp_path):
    told_study(tmp_path)
    groups = groups_of(tmp_path)
    classes = groups[0].rows[1].gain.changes.classes
    assert np.flatnonzero(classes.significant).tolist() == [1]
    (text,) = findings(groups)
    assert "1 of 5 differences is significant over seeds (Welch's test, adjusted by Benjamini and Hochberg" in text
    assert f"enhanced_recipe class 1 +{classes.change[1]:.2f} points." in text
    assert "this holds for these trained networks only." in text


def test_findings_say_nothing_of_classes_where_no_test_does(tmp_path):
    rows(tmp_path)
    assert "lass" not in findings(groups_of(tmp_path))[0]


def test_the_tables_have_images_and_classes_with_both_tests(tmp_path):
    rows(tmp_path)
    collected = collect([tmp_path])
    text = to_markdown(aggregate(collected.runs), collected).decode()
    assert "| resnet | 2.5 | 0.5 | 1 |" in text
    # Over seeds 0.205, 1 and 0.5 before they are adjusted. Over images: the cat's differ by 1 and 2, of one sign in 2
    # of 4 cases, so 0.5; the dog's not at all; the ox has one image, so 1.
    assert "ox +50.00 (0.750; 1.000), cat +37.50 (0.614; 1.000)" in text


def test_classes_csv_has_a_line_for_every_class_of_every_step_and_computes_nothing(tmp_path, monkeypatch):
    rows(tmp_path / "runs", names=["=cmd()", "dog", "ox"])
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--tables-only"]) == 0
    lines = list(csv.DictReader((tmp_path / "out" / "classes.csv").read_text().splitlines()))
    assert {line["cell"] for line in lines} == {"enhanced_recipe"}
    assert [(line["class"], line["name"]) for line in lines] == [("0", "'=cmd()"), ("1", "dog"), ("2", "ox")]
    assert (lines[0]["images"], lines[0]["fixed"], lines[0]["broken"], lines[0]["change"]) == ("4", "1.5", "0", "37.5")
    monkeypatch.setattr(written, "MOST_CLASS_LINES", 2)
    assert "classes.csv" not in written.csv_files(groups_of(tmp_path / "runs"))


def test_older_runs_have_images_and_no_classes(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for step in ("resnet", "enhanced_recipe"):
        write_run(tmp_path / "runs", step, correct=rng.random(200) < 0.6)
    monkeypatch.setattr("roadmap.report.__main__.FORMATS", ("svg",))  # what the page shows
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    written_files = {path.name for path in (tmp_path / "out").iterdir()}
    assert "images.svg" in written_files
    assert not {"classes.csv", "classes.svg"} & written_files
    html = (tmp_path / "out" / "index.html").read_text()
    assert "images fixed, " in html
    assert "confusion matrix" not in html


HOSTILE = ["<script>window.hacked = 1</script>", '"><img src=x onerror=alert(1)>', "\u202e{{ 7 * 7 }}", "a", "b"]


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Return a function: the report of a study with so many classes, and the elements of its page."""
    pages = {}

    def read(classes):
        if classes not in pages:
            folder = tmp_path_factory.mktemp("images")
            told_study(folder / "runs", classes, seeds=2, names=HOSTILE if classes == 5 else None)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("roadmap.report.__main__.FORMATS", ("svg", "pdf") if classes == 5 else ("svg",))
                assert main([str(folder / "runs"), "--out", str(folder / "out")]) == 0
            pages[classes] = folder / "out"
        html = (pages[classes] / "index.html").read_text(encoding="utf-8")
        return pages[classes], html, Page(html)

    return read


def test_a_few_classes_have_a_matrix_a_row_with_every_image_in_it(reported):
    folder, html, page = reported(5)
    assert html.count("its confusion matrix</summary>") == 2  # a row each
    shades = [str(attributes.get("style")) for tag, attributes in page.elements if tag == "td"]
    assert len([shade for shade in shades if shade.startswith("--share: ")]) == 2 * 25
    assert "49" not in {text.strip() for text in page.texts}  # {{ 7 * 7 }} is a text
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert not [tag for tag, attributes in page.elements if tag == "img" or "onerror" in attributes]
    assert "window.hacked = 1" in html
    assert (folder / "classes.pdf").exists()


def test_many_classes_have_the_most_changed_and_the_most_confused(reported):
    _, html, page = reported(200)
    assert "its confusion matrix" not in html
    assert html.count("the classes it confuses most</summary>") == 2
    assert "180 classes that changed less are in classes.csv." in html
    assert [text for text in page.texts if text.startswith("Compared with resnet: ")]


def test_the_classes_of_more_rows_than_a_page_takes_are_left_out_and_said(tmp_path, monkeypatch):
    from roadmap.report.write import page

    monkeypatch.setattr(page, "MOST_ROWS", 1)
    monkeypatch.setattr("roadmap.report.__main__.FORMATS", ("svg",))
    rows(tmp_path / "runs")
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    html = (tmp_path / "out" / "index.html").read_text()
    assert html.count("its confusion matrix</summary>") == 1
    assert "The classes of the last 1 rows are not on this page." in html


def test_the_figures_name_the_ends_and_say_what_a_seed_alone_changes(tmp_path):
    told_study(tmp_path)
    drawings = {drawing.name: drawing.figure for drawing in gallery(groups_of(tmp_path))}
    words = [text.get_text() for text in drawings["images"].legends[0].get_texts()]
    assert words == ["fixed: right here, wrong before", "broken", "what another seed alone changes"]
    gids = [artist.get_gid() for artist in drawings["classes"].axes[0].lines if artist.get_gid()]
    assert any("class 1: +" in gid for gid in gids)
    assert "filled: significant" in drawings["classes"].legends[0].get_title().get_text()
