"""What the charts say, before they are drawn: which there are, their rows and sections, limits, the words above them."""

import hashlib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from roadmap import catalog, paper
from roadmap.report.cells import NO_RUN, Cell, Group
from roadmap.report.columns import accuracy
from roadmap.report.style import drawable

HEAD_LIMIT, HEAD_LINES = 95, 8  # characters in a line above the chart, and lines
# The headings of Section 2 of the paper; a step of one's own stands under its parent's.
SECTIONS = {
    "stage_ratio": "Macro design",
    "patchify_stem": "Macro design",
    "depthwise": "ResNeXt",
    "increase_width": "ResNeXt",
    "inverted_bottleneck": "Inverted bottleneck",
    "move_up_depthwise": "Large kernel",
    "kernel_5": "Large kernel",
    "kernel_7": "Large kernel",
    "kernel_9": "Large kernel",
    "kernel_11": "Large kernel",
    "gelu": "Micro design",
    "fewer_activations": "Micro design",
    "fewer_norms": "Micro design",
    "layer_norm": "Micro design",
    "separate_downsampling": "Micro design",
}


@dataclass(frozen=True)
class Line:
    """One line of the chart: a step, and its cell in each group (None where a group has none)."""

    step: str
    label: str
    section: str
    cells: tuple[Cell | None, ...]


def chart_lines(groups: Sequence[Group]) -> list[Line]:
    """Return the common rows of some groups in the roadmap's order."""
    by_step = [{row.step: row for row in group.rows} for group in groups]
    parents = {row.step: row.parent for group in groups for row in group.rows}
    labels = {row.step: row.label for group in reversed(groups) for row in group.rows}
    lines = []
    for step in sorted(parents, key=lambda step: paper.position(step, parents)):
        label = labels[step]
        if len({rows[step].label for rows in by_step if step in rows}) > 1:
            label = (paper.label(step, "") if step in paper.order() else "") or label  # one name for both regimes
        lines.append(
            Line(step, drawable(label, step), _section(step, parents), tuple(rows.get(step) for rows in by_step))
        )
    return lines


def limits(groups: Sequence[Group]) -> tuple[float, float]:
    """Return where the axis of the accuracies begins and ends, in percent, so that the differences can be seen."""
    ends: list[float] = []
    for group in groups:
        for row in group.rows:
            ends += [row.top1 - (row.top1_std or 0), row.top1 + (row.top1_std or 0)]
            ends += (
                [row.paper.top1 - (row.paper.top1_std or 0), row.paper.top1 + (row.paper.top1_std or 0)]
                if row.paper
                else []
            )
        ends += [group.paper_reference.top1] if group.paper_reference else []
    low, high = min(ends), max(ends)
    span = max(high - low, 1.0)
    unit = 1 if span < 20 else 5
    left = (low - 0.35 * span) // unit * unit
    if left < 0.35 * high:
        left = 0.0
    # The end of an error bar needs some room; nothing is better than 100 %, but a bar at 100 % must end inside.
    right = max(high + 0.06 * (high - left), left + 1.0)
    return left, right if high > 99 else min(right, 100.0)


def macs_unit(group: Group) -> tuple[str, float]:
    """Return the unit of a panel's multiply-accumulates, G or (for very small nets) M, and how many of it are one G."""
    most = max((row.gmacs for row in group.rows if row.gmacs is not None), default=1.0)
    return ("M", 1000.0) if most < 0.1 else ("G", 1.0)


def value_text(cell: Cell, group: Group) -> str:
    """Return the accuracy of a row as text, with n where the rows of the group differ in it."""
    alike = len({row.n for row in group.rows}) == 1
    return accuracy(cell.top1, cell.top1_std) + ("" if alike else f"  n = {cell.n}")


def head_lines(group: Group, limit: int = HEAD_LIMIT) -> list[str]:
    """Return the lines above a panel: regime, data, epochs, seeds, and what must not be read out of it."""
    counts = sorted({row.n for row in group.rows})
    seeds = (
        f"n = {counts[0]} seed" + "s" * (counts[0] > 1)
        if len(counts) == 1
        else f"n = {counts[0]} to {counts[-1]} seeds"
    )
    seeds += " a row, so no spread is known" if counts == [1] else ""
    lines = [
        f"regime {group.regime}, {catalog.title(group.data)}",
        f"study {group.study}: {_epochs(group)}; {seeds}",
    ]
    lines += [group.caution] if group.caution else []
    absent = [text for text in group.missing if text.startswith(NO_RUN)]
    wrapped = [part for line in [*lines, *absent, *group.notes] for part in textwrap.wrap(line, limit)]
    return wrapped if len(wrapped) <= HEAD_LINES else [*wrapped[: HEAD_LINES - 1], "and more notes: see the table"]


def _epochs(group: Group) -> str:
    lengths: dict[str, set[int]] = {}
    for row in group.rows:
        lengths.setdefault(row.recipe, set()).update({row.epochs} - {None})  # type: ignore[arg-type]
    texts = {
        recipe: " to ".join(map(str, sorted({min(found), max(found)}))) for recipe, found in lengths.items() if found
    }
    if len(set(texts.values())) == 1:
        length = next(iter(texts.values()))
        return f"{length} epoch" + "s" * (length != "1")
    return ", ".join(f"{recipe} recipe {text} epochs" for recipe, text in texts.items()) or "epochs not recorded"


def _section(step: str, parents: dict[str, str | None]) -> str:
    seen: set[str] = set()
    while step not in SECTIONS and step not in seen:
        seen.add(step)
        parent = parents.get(step)
        if parent is None or step in paper.order():
            return ""
        step = parent
    return SECTIONS.get(step, "")


def charts(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Return the groups of each chart by file name: one chart a group, but tiny and base on the same data side by side."""
    waiting = [group for group in groups if group.rows]
    together: list[list[Group]] = []
    while waiting:
        group = waiting.pop(0)
        other = _other_regime(group, waiting, groups)
        together.append([group, other] if other else [group])
        waiting = [item for item in waiting if item is not other]
    if len(together) == 1:
        return {"roadmap": together[0]}
    return dict(zip(_names(together), together, strict=True))


def _other_regime(group: Group, waiting: Sequence[Group], groups: Sequence[Group]) -> Group | None:
    """Return the base group that belongs beside a tiny one (or the other way round): of its study, or the only one."""
    pair = {"tiny": "base", "base": "tiny"}
    fitting = [item for item in waiting if item.regime == pair.get(group.regime) and item.data == group.data]
    same_study = [item for item in fitting if item.study == group.study]
    rivals = [item for item in groups if item.rows and item.data == group.data and item.regime in pair]
    return same_study[0] if same_study else fitting[0] if fitting and len(rivals) == 2 else None


def _names(together: Sequence[Sequence[Group]]) -> list[str]:
    """Return a file name for each chart, no two the same, none too long for a disk."""
    names: list[str] = []
    for groups in together:
        parts = ["roadmap", *dict.fromkeys(g.study for g in groups), *(g.regime for g in groups), groups[0].data]
        name = "-".join(parts)
        if len(name) > 120 or name.casefold() in map(str.casefold, names):
            name = f"{name[:100]}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:8]}"
        names.append(name)
    return names


def where(group: Group) -> str:
    """Return study, regime and data for a title."""
    return f"{drawable(group.study, 'study', 24)} ({group.regime}, {group.data})"
