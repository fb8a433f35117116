"""What the roadmap's charts hold, before they are drawn: which there are, their rows, sections, limits and heads."""

import hashlib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

from roadmap import catalog, paper
from roadmap.report.analyse.cells import MARK, NO_RUN, Cell, Group
from roadmap.report.analyse.formats import accuracy
from roadmap.report.draw.style import drawable

MOST_HEAD_LINES = 8
# The headings of Section 2 of the paper; a step of one's own stands under its parent's.
SECTIONS = {
    **dict.fromkeys(("stage_ratio", "patchify_stem"), "Macro design"),
    **dict.fromkeys(("depthwise", "increase_width"), "ResNeXt"),
    "inverted_bottleneck": "Inverted bottleneck",
    **dict.fromkeys(("move_up_depthwise", "kernel_5", "kernel_7", "kernel_9", "kernel_11"), "Large kernel"),
    **dict.fromkeys(("gelu", "fewer_activations", "fewer_norms", "layer_norm"), "Micro design"),
    "separate_downsampling": "Micro design",
    "grn": "ConvNeXt V2",
}


@dataclass(frozen=True)
class ChartRow:
    """One row of the chart: a step, and its cell in each group (None where a group has none)."""

    step: str
    label: str
    section: str
    cells: tuple[Cell | None, ...]


def chart_rows(groups: Sequence[Group]) -> list[ChartRow]:
    """Return the common rows of some groups in the roadmap's order."""
    by_step = [{row.step: row for row in group.rows} for group in groups]
    parents = {row.step: row.parent for group in groups for row in group.rows}
    rows = []
    for step in sorted(parents, key=lambda step: paper.position(step, parents)):
        cells = tuple(found.get(step) for found in by_step)
        there = [cell for cell in cells if cell]
        label = there[0].label
        if len({cell.label for cell in there}) > 1:
            label = (paper.label(step, "") if step in paper.order() else "") or label  # one name for both regimes
        mark = f" {MARK}" if any(cell.marks for cell in there) else ""
        rows.append(ChartRow(step, drawable(label, step) + mark, _section(step, parents), cells))
    return rows


def _section(step: str, parents: dict[str, str | None]) -> str:
    seen: set[str] = set()
    while step not in SECTIONS and step not in seen:
        seen.add(step)
        parent = parents.get(step)
        if parent is None or step in paper.order():
            return ""
        step = parent
    return SECTIONS.get(step, "")


def limits(groups: Sequence[Group]) -> tuple[float, float]:
    """Return where the axis of the accuracies begins and ends, in percent: around all that is drawn."""
    results = [result for group in groups for row in group.rows for result in (row, row.paper) if result]
    ends = [result.top1 + sign * (result.top1_std or 0) for result in results for sign in (-1, 1)]
    ends += [group.paper_reference.top1 for group in groups if group.paper_reference]
    low, high = min(ends), max(ends)
    room = 0.06 * max(high - low, 1.0)
    return max(low - room, min(low, 0.0) - 1.0), high + room


def value_text(cell: Cell, group: Group, spread: bool = True) -> str:
    """Return the accuracy of a row as text, with n where the rows of the group differ in it."""
    alike = len({row.n for row in group.rows}) == 1
    return accuracy(cell.top1, cell.top1_std if spread else None) + ("" if alike else f"  n = {cell.n}")


def head_lines(group: Group, limit: int) -> list[str]:
    """Return the lines above a panel: regime, data, epochs, seeds, and what must not be read out of it."""
    low, high = min(row.n for row in group.rows), max(row.n for row in group.rows)
    seeds = f"n = {low} seed" + "s" * (low > 1) if low == high else f"n = {low} to {high} seeds"
    seeds += " per row, so no spread is known" if high == 1 else ""
    lines = [f"regime {group.regime}, {catalog.title(group.data)}", f"study {group.study}: {_epochs(group)}; {seeds}"]
    lines += [group.caution] if group.caution else []
    absent = [text for text in group.missing if text.startswith(NO_RUN)]
    notes = sorted(group.notes, key=lambda note: not note.startswith(MARK))  # what explains a mark in the chart first
    wrapped = [textwrap.wrap(line, limit) for line in [*lines, *absent, *notes]]
    ends = list(accumulate(map(len, wrapped)))
    if ends[-1] <= MOST_HEAD_LINES:
        return list(chain.from_iterable(wrapped))
    whole = sum(end < MOST_HEAD_LINES for end in ends)  # a note is shown to its end, or left to the table
    return [*chain.from_iterable(wrapped[:whole]), "and more notes: see the table"]


def _epochs(group: Group) -> str:
    lengths: dict[str, set[int]] = {}
    for row in group.rows:
        if row.epochs is not None:
            lengths.setdefault(row.recipe, set()).add(row.epochs)
    texts = {recipe: " to ".join(map(str, sorted({min(n), max(n)}))) for recipe, n in lengths.items()}
    if len(set(texts.values())) == 1:
        length = next(iter(texts.values()))
        return f"{length} epoch" + "s" * (length != "1")
    return ", ".join(f"{recipe} recipe {text} epochs" for recipe, text in texts.items()) or "epochs not recorded"


def charts(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Return the groups of each chart by file name: one each, but tiny and base on the same data side by side."""
    waiting = [group for group in groups if group.rows]
    parts: list[list[Group]] = []
    while waiting:
        group = waiting.pop(0)
        other = _other_regime(group, waiting, groups)
        parts.append([group, other] if other else [group])
        waiting = [item for item in waiting if item is not other]
    if len(parts) == 1:
        return {"roadmap": parts[0]}
    names: list[str] = []
    for part in parts:
        words = ["roadmap", *dict.fromkeys(g.study for g in part), *(g.regime for g in part), part[0].data]
        names.append(file_name("-".join(words), names))
    return dict(zip(names, parts, strict=True))


def file_name(name: str, taken: Sequence[str]) -> str:
    """Return a name like none that is taken, also on a disk that knows no case, and not too long for one."""
    if len(name) <= 120 and name.casefold() not in map(str.casefold, taken):
        return name
    return f"{name[:100]}-{hashlib.sha256(f'{name}{len(taken)}'.encode()).hexdigest()[:8]}"


def _other_regime(group: Group, waiting: Sequence[Group], groups: Sequence[Group]) -> Group | None:
    """Return the base group that belongs beside a tiny one (or the other way round): of its study, or the only one."""
    pair = {"tiny": "base", "base": "tiny"}
    fitting = [item for item in waiting if item.regime == pair.get(group.regime) and item.data == group.data]
    same_study = [item for item in fitting if item.study == group.study]
    rivals = [item for item in groups if item.rows and item.data == group.data and item.regime in pair]
    return same_study[0] if same_study else fitting[0] if fitting and len(rivals) == 2 else None
