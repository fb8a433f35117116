"""What the tables show of a row: the numbers of `table.csv`, and the columns that people read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from roadmap import paper
from roadmap.report.analyse.cells import MARK, Cell, Gain, Group
from roadmap.report.analyse.formats import accuracy, between, count, p_text, signed
from roadmap.report.analyse.statistics import MOST_SEEDS, Seeds
from roadmap.runs.schema import QUANTITIES, Quantity
from roadmap.text import shorten

NAMED = 3  # classes of a row in its table
CSV_KEYS = {"top1": "top1_mean", "top5": "top5_mean"}  # other numbers have the keys of the summary


@dataclass(frozen=True)
class Number:
    """One number of a row: its key in `table.csv`, and its value."""

    key: str
    name: str
    unit: str
    value: Callable[[Cell], float | None]
    about: str  # in one line, under the table


@dataclass(frozen=True)
class Column:
    """One column for people: its heading, the text of a row, the number to sort by, and its meaning in one line."""

    heading: str
    text: Callable[[Any], str]  # of a cell, or of whatever the rows of its table are
    sort: Callable[[Any], float | None] | None = None  # None: by the text
    about: str = ""


def at(path: str) -> Callable[[Cell], Any]:
    """Return what gives `gain.over_seeds.low` of a cell; None where a part of the path is None."""

    def value(cell: Cell) -> Any:
        found: Any = cell
        for name in path.split("."):
            found = None if found is None else getattr(found, name)
        return found

    return value


def _recorded(quantity: Quantity) -> Number:
    key = CSV_KEYS.get(quantity.key, quantity.key)
    return Number(key, quantity.title, quantity.unit, lambda c: c.numbers.get(quantity.key), quantity.about)


def _ends(key: str, name: str, unit: str, path: str, about: str) -> tuple[Number, Number]:
    low = Number(f"{key}_low", f"{name} from", unit, at(f"{path}.low"), about)
    return low, Number(f"{key}_high", f"{name} to", unit, at(f"{path}.high"), about)


ABOUT_SEEDS = (
    "per row, for this gain to become significant (Welch's test, 5 % over all steps of the study, power 80 %) if gain "
    "and spread are as measured; in brackets over the 95 % interval of their ratio"
)
ABOUT_FIXED = "correct here and wrong in the parent's net of the same seed, mean over the seeds that both have"
ABOUT_BY_SEED = "images that one seed of a row classifies correctly and another one does not: mean of both rows"
ABOUT_CLASSES = (
    "change of the class's top-1 in points; in brackets p over seeds (Welch), then over its images (sign-flip test of "
    "these trained nets), both adjusted by Benjamini and Hochberg for all classes of all steps of the study"
)
SPREAD = (
    Number("top1_std", "std. dev.", "points", at("top1_std"), "over seeds, with n - 1; none for one seed"),
    *_ends("top1", "95 %", "%", "interval", "t interval of the mean over seeds"),
)
COMPARED = (
    Number("gain", "gain", "points", at("gain.gain"), "top-1 of the row minus that of its parent"),
    *_ends("gain", "gain", "points", "gain.over_seeds", "Welch's 95 % interval over seeds"),
    Number("p", "p", "", at("gain.p"), "Welch's test over seeds, two-sided, of this step alone"),
    Number("p_holm", "p (Holm)", "", at("gain.p_holm"), "the same, adjusted by Holm for all steps of the study"),
    *_ends("boot", "bootstrap", "points", "gain.bootstrap", "expanded percentile bootstrap over 8 seeds or more"),
    Number("seeds_needed", "seeds needed", "", at("gain.seeds_needed.likely"), ABOUT_SEEDS),
    Number("seeds_needed_low", "seeds needed from", "", at("gain.seeds_needed.low"), ABOUT_SEEDS),
    Number("seeds_needed_high", "seeds needed to", "", at("gain.seeds_needed.high"), ABOUT_SEEDS),
    *_ends("images", "images", "points", "gain.over_images", "bootstrap over images, for these trained nets"),
    Number(
        "mcnemar_p",
        "McNemar p",
        "",
        at("gain.mcnemar_p"),
        "one net of each row (the lowest common seed) on the same images",
    ),
    Number(
        "mcnemar_p_holm",
        "McNemar p (Holm)",
        "",
        at("gain.mcnemar_p_holm"),
        "adjusted by Holm for all steps of the study",
    ),
    Number("fixed", "images fixed", "", at("gain.changes.fixed"), ABOUT_FIXED),
    Number("broken", "images broken", "", at("gain.changes.broke"), "the same, the other way around"),
    Number("by_seed", "by a seed alone", "", at("gain.changes.by_seed"), ABOUT_BY_SEED),
    Number("paper_top1", "paper top-1", "%", at("paper.top1"), "as printed in Tables 10 and 11"),
    Number("paper_top1_std", "paper std. dev.", "points", at("paper.top1_std"), "as printed, over three seeds"),
    Number("paper_gmacs", "paper MACs", "G", at("paper.gmacs"), "as printed"),
    Number("paper_gain", "paper gain", "points", at("gain.paper_gain"), "difference of the printed means"),
    *_ends("paper_gain", "paper", "points", "gain.paper_interval", "Welch's interval of the printed spreads, n = 3"),
)


def numbers() -> dict[str, Number]:
    """Return every number of a row by its key: what the runs record, then what was computed of it."""
    top1, *others = map(_recorded, QUANTITIES.values())
    return {number.key: number for number in (top1, *SPREAD, *others, *COMPARED)}


@dataclass(frozen=True)
class Table:
    """One table of a group as texts, without the columns that are empty in every row."""

    title: str
    columns: list[Column]
    cells: list[Any]  # what its rows are made of
    texts: list[list[str]]  # a list a row

    @property
    def headings(self) -> list[str]:
        """Return the headings of its columns."""
        return [column.heading for column in self.columns]

    @property
    def right(self) -> list[int]:
        """Return the positions of the columns of numbers."""
        return [i for i, column in enumerate(self.columns) if column.sort]


def row_columns(group: Group) -> list[Column]:
    """Return the columns of a row on its own; every number that runs record has one."""
    known = numbers()
    top1, *recorded = group.quantities.values()
    return [
        STEP,
        Column("label", lambda cell: shorten(cell.label, 40)),
        Column(
            "adopted",
            lambda cell: cell.adopted if cell.step in paper.order() else f"{cell.adopted}, {paper.BEYOND}",
            about="yes: kept by the paper; no: tried and not kept; reference: not a step",
        ),
        Column(top1.heading, lambda cell: accuracy(cell.top1, cell.top1_std), lambda cell: cell.top1, ABOUT_TOP1),
        Column("n", lambda cell: str(cell.n), lambda cell: cell.n, "seeds"),
        Column(
            "95 % interval", _interval, known["top1_low"].value, "t interval of the mean over seeds; none for one seed"
        ),
        *(_quantity_column(quantity) for quantity in recorded),
        Column("epochs", lambda cell: str(cell.epochs or ""), lambda cell: cell.epochs),
        Column(
            "paper top-1", _paper, known["paper_top1"].value, "as printed, ± its standard deviation over three seeds"
        ),
        _column(known["paper_gmacs"], group.macs.text, heading=f"paper {group.macs.heading}"),
    ]


def gain_columns() -> list[Column]:
    """Return the columns of a row beside its parent."""
    known = numbers()
    only = (
        "images that only this net or only its parent has right, one net of each (the lowest common seed); against the "
        "gain: this pair points the other way than the means over seeds"
    )
    return [
        STEP,
        Column("compared with", _gain(lambda gain: gain.parent)),
        _column(known["gain"], signed),
        Column(
            "95 % over seeds",
            _over_seeds,
            known["gain_low"].value,
            "Welch's interval; seeds of different nets are no pairs",
        ),
        _column(known["p_holm"], p_text),
        Column(
            "bootstrap", _gain(lambda gain: between(gain.bootstrap)), known["boot_low"].value, known["boot_low"].about
        ),
        Column("seeds needed", _gain(lambda gain: _seeds(gain.seeds_needed)), known["seeds_needed"].value, ABOUT_SEEDS),
        Column(
            "95 % over images",
            _gain(lambda gain: between(gain.over_images)),
            known["images_low"].value,
            known["images_low"].about,
        ),
        Column("only right here / there", _gain(_only_right), at("gain.only_this"), only),
        _column(known["mcnemar_p_holm"], p_text),
        _column(known["paper_gain"], signed, heading="paper gain"),
        Column(
            "paper 95 %",
            _gain(lambda gain: between(gain.paper_interval)),
            known["paper_gain_low"].value,
            known["paper_gain_low"].about,
        ),
    ]


def change_columns() -> list[Column]:
    """Return the columns of what a row changes image by image and class by class."""
    known = numbers()
    return [
        STEP,
        Column("compared with", _gain(lambda gain: gain.parent)),
        *(_column(known[key], count) for key in ("fixed", "broken", "by_seed")),
        Column("helped most", _gain(lambda gain: _classes(gain, 1)), about=ABOUT_CLASSES),
        Column("hurt most", _gain(lambda gain: _classes(gain, -1)), about=ABOUT_CLASSES),
    ]


def _classes(gain: Gain, sign: int) -> str:
    """Return the classes that a step helped or hurt most, each with its tests."""
    found = gain.changes.classes if gain.changes else None
    if found is None:
        return ""
    texts = []
    for i in found.most(sign, NAMED):
        p = "; ".join(p_text(value) or "none" for value in (found.p_seeds_adjusted[i], found.p_images_adjusted[i]))
        texts.append(f"{shorten(found.names[i], 30)} {signed(found.change[i])} ({p})")
    return ", ".join(texts)


ABOUT_TOP1 = "last epoch, mean over n seeds ± standard deviation (n - 1); one seed has no spread"
STEP = Column(
    "step",
    lambda cell: f"{cell.cell} {MARK}" if cell.marks else cell.cell,
    about=f"{MARK} counts runs that differ from most of the study: see the notes",
)
# Rows, then gains.
ON_TERMINAL = (
    *("step", "top-1 (%)", "n", "MACs (G)", "MACs (M)", "parameters (M)", "epochs", "paper top-1"),
    *("toggle", "worth (points)", "95 % over orders and seeds", "its step", "step's p (Holm)", "left out"),
    *("gain (points)", "95 % over seeds", "p (Holm)", "95 % over images", "McNemar p (Holm)", "paper gain"),
    *("images fixed", "images broken", "by a seed alone"),
    *("own rate", "factor", "edge", "gain, one recipe", "gain, own rates", "verdict"),
)


def _quantity_column(quantity: Quantity) -> Column:
    return _column(_recorded(quantity), quantity.text)


def _column(number: Number, text: Callable[[Any], str], heading: str = "") -> Column:
    heading = heading or (f"{number.name} ({number.unit})" if number.unit else number.name)
    return Column(heading, lambda cell: text(number.value(cell)), number.value, number.about)


def _gain(text: Callable[[Gain], str]) -> Callable[[Cell], str]:
    return lambda cell: text(cell.gain) if cell.gain else ""


def _interval(cell: Cell) -> str:
    return f"{cell.interval.low:.2f} to {cell.interval.high:.2f}" if cell.interval else ""


def _paper(cell: Cell) -> str:
    return accuracy(cell.paper.top1, cell.paper.top1_std) if cell.paper else ""


def _over_seeds(cell: Cell) -> str:
    """Return Welch's interval, or in words why there is none."""
    if cell.gain is None or cell.gain.over_seeds:
        return between(cell.gain.over_seeds) if cell.gain else ""
    return "none: one seed" if min(cell.n, cell.gain.parent_n) < 2 else "none: all seeds equal"


def _seeds(needed: Seeds | None) -> str:
    if needed is None:
        return ""
    if needed.likely >= MOST_SEEDS:
        return f"{needed.low} or more"
    if needed.low == needed.high:
        return str(needed.likely)
    return f"{needed.likely} ({needed.low} {f'to {needed.high}' if needed.high else 'or more'})"


def _only_right(gain: Gain) -> str:
    against = ", against the gain" if gain.contradicted else ""
    return "" if gain.only_this is None else f"{gain.only_this} / {gain.only_parent}{against}"
