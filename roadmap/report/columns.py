"""The columns that people read: several quantities of a row in one text. Markdown, LaTeX, terminal and page show the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from roadmap.report.cells import Cell, Gain
from roadmap.report.quantities import QUANTITIES
from roadmap.report.stats import MOST_SEEDS, Interval
from roadmap.report.text import shorten

MARK = " †"  # a row that counts suspect runs because it was allowed
MINUS = "−"


@dataclass(frozen=True)
class Column:
    """One column: its heading, the text of a row, the number to sort by, and its meaning in one line."""

    heading: str
    text: Callable[[Cell], str]
    sort: Callable[[Cell], float | None] | None = None  # None: by the text
    about: str = ""


def accuracy(mean: float, std: float | None) -> str:
    """Return `78.82 ± 0.07`, or the mean alone where there is no spread."""
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def small(value: float | None) -> str:
    """Return two decimals, or three digits where two decimals would show too few."""
    if value is None:
        return ""
    return f"{value:.2f}" if value >= 1 or value == 0 else f"{value:#.3g}"


def signed(value: float | None) -> str:
    """Return `+0.52` or `−1.23`, empty for nothing."""
    if value is None:
        return ""
    return f"{value:+.2f}".replace("-", MINUS)


def between(interval: Interval | None) -> str:
    """Return `+0.10 to +0.94`, empty for nothing."""
    return f"{signed(interval.low)} to {signed(interval.high)}" if interval else ""


def p_text(p: float | None) -> str:
    """Return `0.034` or `< 0.001`, empty for nothing."""
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def over_seeds(cell: Cell) -> str:
    """Return Welch's interval, or in words why there is none."""
    gain = cell.gain
    if gain is None:
        return ""
    if gain.over_seeds:
        return between(gain.over_seeds)
    return "none: one seed" if min(cell.n, gain.parent_n) < 2 else "none: all seeds equal"


def needed(cell: Cell) -> str:
    """Return how many seeds a row this gain would need."""
    seeds = cell.gain.seeds_needed if cell.gain else None
    if seeds is None:
        return ""
    return f"{seeds} or more" if seeds >= MOST_SEEDS else str(seeds)


def _of(key: str, text: Callable[[float | None], str]) -> Column:
    quantity = QUANTITIES[key]
    return Column(quantity.heading, lambda cell: text(quantity.value(cell)), quantity.value, quantity.about)


def _gain(text: Callable[[Gain], str]) -> Callable[[Cell], str]:
    return lambda cell: text(cell.gain) if cell.gain else ""


STEP = Column(
    "step", lambda cell: cell.cell + (MARK if cell.marks else ""), about="† counts suspect runs, because it was allowed"
)
ROWS = (
    STEP,
    Column("label", lambda cell: shorten(cell.label, 40)),
    Column(
        "adopted",
        lambda cell: cell.adopted,
        about="yes: kept by the paper; no: tried and not kept; reference: not a step",
    ),
    Column(
        QUANTITIES["top1_mean"].heading,
        lambda cell: accuracy(cell.top1, cell.top1_std),
        QUANTITIES["top1_mean"].value,
        "last epoch, mean over n seeds ± standard deviation (n - 1); one seed has no spread",
    ),
    Column("n", lambda cell: str(cell.n), lambda cell: cell.n, "seeds"),
    Column(
        "95 % interval",
        lambda cell: f"{cell.interval.low:.2f} to {cell.interval.high:.2f}" if cell.interval else "",
        QUANTITIES["top1_low"].value,
        "t interval of the mean over seeds; none for one seed",
    ),
    _of("top5_mean", lambda value: "" if value is None else f"{value:.2f}"),
    _of("gmacs", small),
    _of("params_m", small),
    _of("train_images_per_s", lambda value: "" if value is None else f"{value:.0f}"),
    _of("gpu_hours", small),
    _of("peak_memory_gb", small),
    Column("epochs", lambda cell: str(cell.epochs or ""), lambda cell: cell.epochs),
    Column(
        "paper top-1",
        lambda cell: accuracy(cell.paper.top1, cell.paper.top1_std) if cell.paper else "",
        QUANTITIES["paper_top1"].value,
        "as printed, ± its standard deviation over three seeds",
    ),
    _of("paper_gmacs", small),
)
GAINS = (
    STEP,
    Column("compared with", _gain(lambda gain: gain.parent)),
    _of("gain", signed),
    Column(
        "95 % over seeds",
        over_seeds,
        QUANTITIES["gain_low"].value,
        "Welch's interval; seeds of different nets are no pairs",
    ),
    _of("p_holm", p_text),
    Column(
        "bootstrap", _gain(lambda g: between(g.bootstrap)), QUANTITIES["boot_low"].value, QUANTITIES["boot_low"].about
    ),
    Column("seeds needed", needed, QUANTITIES["seeds_needed"].value, QUANTITIES["seeds_needed"].about),
    Column(
        "95 % over images",
        _gain(lambda g: between(g.over_images)),
        QUANTITIES["images_low"].value,
        QUANTITIES["images_low"].about,
    ),
    Column(
        "only right here / there",
        _gain(lambda g: "" if g.only_this is None else f"{g.only_this} / {g.only_parent}"),
        lambda cell: cell.gain.only_this if cell.gain else None,
        "images that only this net or only its parent has right, one net of each (the lowest common seed)",
    ),
    _of("mcnemar_p_holm", p_text),
    Column(
        "paper gain",
        _gain(lambda g: signed(g.paper_gain)),
        QUANTITIES["paper_gain"].value,
        QUANTITIES["paper_gain"].about,
    ),
    Column(
        "paper 95 %",
        _gain(lambda g: between(g.paper_interval)),
        QUANTITIES["paper_gain_low"].value,
        QUANTITIES["paper_gain_low"].about,
    ),
)
ON_TERMINAL = ("step", "top-1 (%)", "n", "MACs (G)", "parameters (M)", "epochs", "paper top-1")
GAINS_ON_TERMINAL = (
    "step",
    "gain (points)",
    "95 % over seeds",
    "p (Holm)",
    "95 % over images",
    "McNemar p (Holm)",
    "paper gain",
)


def filled(cells: Sequence[Cell], columns: Sequence[Column]) -> list[tuple[Column, list[str]]]:
    """Return the columns with their texts, without those that are empty in every row."""
    found = [(column, [column.text(cell) for cell in cells]) for column in columns]
    return [(column, texts) for column, texts in found if any(texts)]
