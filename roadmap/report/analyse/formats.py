"""How accuracies, differences, intervals and p values are written, and how several of something are."""

from collections.abc import Sequence

from roadmap.report.analyse.statistics import Interval

MINUS = "−"


def accuracy(mean: float, std: float | None) -> str:
    """Return `78.82 ± 0.07`, or the mean alone where there is no spread."""
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def signed(value: float | None) -> str:
    """Return `+0.52` or `−1.23`, empty for nothing."""
    return "" if value is None else f"{value:+z.2f}".replace("-", MINUS)


def plain(value: float) -> str:
    """Return `0.52` or `−1.23`."""
    return f"{value:z.2f}".replace("-", MINUS)


def count(value: float | None) -> str:
    """Return a mean number of images: `512`, or `5.3`; empty for nothing."""
    return "" if value is None else f"{value:.0f}" if value >= 100 or value == round(value) else f"{value:.1f}"


def between(interval: Interval | None) -> str:
    """Return `+0.10 to +0.94`, empty for nothing."""
    return f"{signed(interval.low)} to {signed(interval.high)}" if interval else ""


def p_text(p: float | None) -> str:
    """Return `0.034` or `< 0.001`, empty for nothing and for NaN; `0.0498` keeps the side of 5 % that it is on."""
    if p is None or p != p:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.4f}" if f"{p:.3f}" == "0.050" else f"{p:.3f}"


def p_equals(p: float | None) -> str:
    """Return `= 0.034` or `< 0.001`, for a sentence."""
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def share_of(part: int, whole: int, noun: str, singular: str, plural: str) -> str:
    """Return `1 of 16 gains is` or `0 of 1 pair of networks differs`; of the noun the first word is counted."""
    first, *rest = noun.split(" ")
    return " ".join(
        [f"{part} of {whole}", first + "s" * (whole != 1), *rest, singular if 1 in (part, whole) else plural]
    )


def listed(items: Sequence[object]) -> str:
    """Return `a, b and c`."""
    return " and ".join(filter(None, [", ".join(map(str, items[:-1])), str(items[-1])]))


def percent(share: float) -> str:
    """Return a share as `21 %`."""
    return f"{100 * share:.0f} %"
