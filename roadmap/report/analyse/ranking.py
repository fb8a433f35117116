"""Does a small-scale study order the steps as the paper does? Rank correlations with their intervals."""

from dataclasses import dataclass

from roadmap import paper
from roadmap.report.analyse.cells import Cell, Group
from roadmap.report.analyse.formats import plain
from roadmap.report.analyse.statistics import Agreement, Interval, agreement


@dataclass(frozen=True)
class Ranking:
    """The rows of a group that the paper has too, the paper's numbers for them, and how well the two orders agree."""

    rows: tuple[Cell, ...]
    paper: tuple[paper.PaperRow, ...]
    table: str  # the regime of the paper's table
    found: Agreement

    @property
    def lines(self) -> tuple[str, str]:
        """Return the two correlations in words."""
        return (
            f"Spearman's rho {plain(self.found.spearman)}{_within(self.found.spearman_interval)}",
            f"Kendall's tau {plain(self.found.kendall)}{_within(self.found.kendall_interval)}",
        )

    @property
    def sentence(self) -> str:
        """Return whether the order here says something about the paper's."""
        interval = self.found.spearman_interval
        if interval is None:
            verdict = ""
        elif interval.low > 0:
            verdict = "; the two orders agree more than by chance"
        elif interval.high < 0:
            verdict = "; the two orders disagree more than by chance"
        else:
            small = not any(row.paper for row in self.rows)
            what = "this scale orders the rows as ImageNet does" if small else "the two orders agree"
            verdict = f"; rho's interval includes zero: no evidence that {what}"
        rows = f"The order of {self.found.n} rows compared with the paper's ({self.table})"
        return f"{rows}: {self.lines[0]}, {self.lines[1]}{verdict}."


def ranking(group: Group) -> Ranking | None:
    """Compare a group's order with the paper's (Table 11 for base, else 10); None under 5 rows, or synthetic data."""
    table = group.regime if group.regime in paper.TABLES else "tiny"
    printed = paper.rows(table)
    rows = [row for row in group.rows if row.step in printed and row.adopted != "reference"]
    theirs = [printed[row.step] for row in rows]
    found = agreement([row.top1 for row in rows], [row.top1 for row in theirs])
    return Ranking(tuple(rows), tuple(theirs), table, found) if found and group.data != "synthetic" else None


def _within(interval: Interval | None) -> str:
    return f" (95 % interval {plain(interval.low)} to {plain(interval.high)})" if interval else ""
