"""What the report shows of a row: key, name, unit, number of digits and value. One table drives tables, page and figures."""

from collections.abc import Callable
from dataclasses import dataclass

from roadmap.report.cells import Cell


@dataclass(frozen=True)
class Quantity:
    """One number of a row. `axis` labels a figure's axis, `heading` a table's column."""

    key: str  # the column of table.csv
    name: str
    unit: str
    value: Callable[[Cell], float | None]
    about: str  # in one line, under the table

    @property
    def heading(self) -> str:
        """Return e.g. `top-1 (%)`."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    axis = heading


def _paper(key: str) -> Callable[[Cell], float | None]:
    return lambda cell: getattr(cell.paper, key) if cell.paper else None


def _of_gain(key: str) -> Callable[[Cell], float | None]:
    return lambda cell: getattr(cell.gain, key) if cell.gain else None


def _end(key: str, end: str) -> Callable[[Cell], float | None]:
    def value(cell: Cell) -> float | None:
        interval = getattr(cell.gain, key) if cell.gain else None
        return getattr(interval, end) if interval else None

    return value


def _low(cell: Cell) -> float | None:
    return cell.interval.low if cell.interval else None


def _high(cell: Cell) -> float | None:
    return cell.interval.high if cell.interval else None


QUANTITIES = {
    quantity.key: quantity
    for quantity in (
        Quantity("top1_mean", "top-1", "%", lambda cell: cell.top1, "accuracy after the last epoch, mean over n seeds"),
        Quantity(
            "top1_std", "std. dev.", "points", lambda cell: cell.top1_std, "over seeds, with n - 1; none for one seed"
        ),
        Quantity("top1_low", "95 % from", "%", _low, "t interval of the mean over seeds"),
        Quantity("top1_high", "95 % to", "%", _high, "t interval of the mean over seeds"),
        Quantity("top5_mean", "top-5", "%", lambda cell: cell.top5, "accuracy after the last epoch, mean over n seeds"),
        Quantity("gmacs", "MACs", "G", lambda cell: cell.gmacs, "multiply-accumulates of one image"),
        Quantity("params_m", "parameters", "M", lambda cell: cell.params_m, "of the net"),
        Quantity(
            "train_images_per_s", "training speed", "images/s", lambda cell: cell.train_images_per_s, "mean over seeds"
        ),
        Quantity(
            "gpu_hours",
            "GPU-hours",
            "h",
            lambda cell: cell.gpu_hours,
            "of one run, all its GPUs together, mean over seeds",
        ),
        Quantity(
            "peak_memory_gb", "peak memory", "GiB", lambda cell: cell.peak_memory_gb, "of one process, mean over seeds"
        ),
        Quantity("gain", "gain", "points", _of_gain("gain"), "top-1 of the row less that of its parent"),
        Quantity("gain_low", "gain from", "points", _end("over_seeds", "low"), "Welch's 95 % interval over seeds"),
        Quantity("gain_high", "gain to", "points", _end("over_seeds", "high"), "Welch's 95 % interval over seeds"),
        Quantity("p", "p", "", _of_gain("p"), "Welch's test over seeds, two-sided, of this step alone"),
        Quantity("p_holm", "p (Holm)", "", _of_gain("p_holm"), "the same, adjusted by Holm for all steps of the study"),
        Quantity(
            "boot_low",
            "bootstrap from",
            "points",
            _end("bootstrap", "low"),
            "expanded percentile bootstrap over 8 seeds or more",
        ),
        Quantity(
            "boot_high",
            "bootstrap to",
            "points",
            _end("bootstrap", "high"),
            "expanded percentile bootstrap over 8 seeds or more",
        ),
        Quantity(
            "seeds_needed",
            "seeds needed",
            "",
            _of_gain("seeds_needed"),
            "a row, to tell this gain from zero (5 %, power 80 %)",
        ),
        Quantity(
            "images_low",
            "images from",
            "points",
            _end("over_images", "low"),
            "bootstrap over images, these trained nets held fixed",
        ),
        Quantity(
            "images_high",
            "images to",
            "points",
            _end("over_images", "high"),
            "bootstrap over images, these trained nets held fixed",
        ),
        Quantity(
            "mcnemar_p",
            "McNemar p",
            "",
            _of_gain("mcnemar_p"),
            "one net of each row (the lowest common seed) on the same images",
        ),
        Quantity(
            "mcnemar_p_holm",
            "McNemar p (Holm)",
            "",
            _of_gain("mcnemar_p_holm"),
            "adjusted by Holm for all steps of the study",
        ),
        Quantity("paper_top1", "paper top-1", "%", _paper("top1"), "as printed in Tables 10 and 11"),
        Quantity("paper_top1_std", "paper std. dev.", "points", _paper("top1_std"), "as printed, over three seeds"),
        Quantity("paper_gmacs", "paper MACs", "G", _paper("gmacs"), "as printed"),
        Quantity("paper_gain", "paper gain", "points", _of_gain("paper_gain"), "difference of the printed means"),
        Quantity(
            "paper_gain_low",
            "paper from",
            "points",
            _end("paper_interval", "low"),
            "Welch's interval of the printed spreads, n = 3",
        ),
        Quantity(
            "paper_gain_high",
            "paper to",
            "points",
            _end("paper_interval", "high"),
            "Welch's interval of the printed spreads, n = 3",
        ),
    )
}
