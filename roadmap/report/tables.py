"""The tables of the report: a data frame, CSV, Markdown, LaTeX and the short one for the terminal. Writes no file."""

from collections.abc import Callable, Sequence

import pandas as pd

from roadmap import paper
from roadmap.report.cells import Cell, Group
from roadmap.report.columns import GAINS, GAINS_ON_TERMINAL, ON_TERMINAL, ROWS, Column, filled
from roadmap.report.find import Finding
from roadmap.report.quantities import QUANTITIES
from roadmap.report.runs import Collected
from roadmap.report.text import clean, for_csv, for_markdown, for_tex, shorten

Value = str | float | int | None
# Column of the data frame and of table.csv -> the value of a row. The numbers follow from `quantities`.
COLUMNS: dict[str, Callable[[Group, Cell], Value]] = {
    "study": lambda group, cell: group.study,
    "regime": lambda group, cell: group.regime,
    "data": lambda group, cell: group.data,
    "cell": lambda group, cell: cell.cell,
    "step": lambda group, cell: cell.step,
    "variant": lambda group, cell: cell.variant,
    "label": lambda group, cell: cell.label,
    "parent": lambda group, cell: cell.parent,
    "adopted": lambda group, cell: cell.adopted,
    "n": lambda group, cell: cell.n,
    "seeds": lambda group, cell: " ".join(map(str, cell.seeds)),
    "recipe": lambda group, cell: cell.recipe,
    "epochs": lambda group, cell: cell.epochs,
    "image_size": lambda group, cell: cell.image_size,
    "compared_with": lambda group, cell: cell.gain.parent if cell.gain else None,
    "allowed": lambda group, cell: " ".join(cell.marks),
    "caution": lambda group, cell: group.caution,
}
WHOLE = ("n", "epochs", "image_size", "seeds_needed")
LISTED = 20  # findings on the terminal; the Markdown file has all


def frame(groups: Sequence[Group], others: bool = False) -> pd.DataFrame:
    """Return one line a cell in the roadmap's order: the plain steps, or with `others` the variants and overrides."""
    lines = []
    for group in groups:
        for cell in group.others if others else group.rows:
            lines.append(values(group, cell))
    table = pd.DataFrame(lines, columns=[*COLUMNS, *QUANTITIES])
    for name in QUANTITIES:
        if name not in WHOLE:
            table[name] = table[name].astype(float)
    return table.astype(dict.fromkeys(WHOLE, "Int64"))


def values(group: Group, cell: Cell) -> dict[str, Value]:
    """Return all that is known of a row, by column."""
    told = {name: value(group, cell) for name, value in COLUMNS.items()}
    return told | {key: quantity.value(cell) for key, quantity in QUANTITIES.items()}


def to_csv(groups: Sequence[Group], others: bool = False) -> bytes:
    """Return `frame` as CSV in UTF-8; empty where a value is not known, no text that a spreadsheet would compute."""
    table = frame(groups, others)
    for name in table.select_dtypes(exclude="number").columns:
        table[name] = [for_csv(value) if isinstance(value, str) else "" for value in table[name]]
    return table.to_csv(index=False, lineterminator="\n", float_format="%.8g").encode()


def to_markdown(groups: Sequence[Group], collected: Collected, findings: Sequence[str] = ()) -> bytes:
    """Return what was left out, the findings, then the tables of each group, as Markdown."""
    parts = ["# Roadmap: results", ""]
    for title, items in left_out(groups, collected):
        parts += [f"**{for_markdown(title)}**", "", *(f"- {for_markdown(item)}" for item in items), ""]
    parts += [line for text in findings for line in (for_markdown(text, 5_000), "")]
    for group in groups:
        parts += [f"## {for_markdown(heading(group))}", ""]
        parts += [f"**{for_markdown(group.caution)}**", ""] if group.caution else []
        parts += _markdown(group.rows, ROWS) if group.rows else ["No finished run of a plain step.", ""]
        if group.others:
            parts += ["### Other cells", "", *_markdown(group.others, ROWS)]
        if compared := [cell for cell in group.cells if cell.gain]:
            parts += ["### Gains", "", *_markdown(compared, GAINS)]
        parts += [f"- {for_markdown(note)}" for note in (*group.notes, *slips(group))]
        parts += [f"- made with {for_markdown(line)}" for line in group.made_with[:LISTED]] + [""]
    return ("\n".join(parts).rstrip("\n") + "\n").encode()


def to_tex(groups: Sequence[Group]) -> bytes:
    """Return the tables of each group as LaTeX `tabular`s, which need no package; every text is escaped."""
    parts = [r"% \input{table.tex} inside a table environment; needs no package."]
    for group in groups:
        parts += ["", f"% {for_tex(heading(group))}"]
        for cells, columns in ((group.cells, ROWS), ([cell for cell in group.cells if cell.gain], GAINS)):
            if cells:
                found = filled(cells, columns)
                parts += [rf"\begin{{tabular}}{{{''.join('r' if c.sort else 'l' for c, _ in found)}}}", r"\hline"]
                parts += [" & ".join(for_tex(c.heading) for c, _ in found) + r" \\", r"\hline"]
                parts += [
                    " & ".join(for_tex(text) for text in texts) + r" \\"
                    for texts in zip(*(texts for _, texts in found), strict=True)
                ]
                parts += [r"\hline", r"\end{tabular}", ""]
    return ("\n".join(parts).rstrip("\n") + "\n").encode()


def to_text(groups: Sequence[Group], collected: Collected) -> str:
    """Return the short form for a terminal: what was left out, then the tables of each group."""
    parts: list[str] = []
    for title, items in left_out(groups, collected):
        parts += [title, *(f"  {item}" for item in items[:LISTED])]
        parts += [f"  and {len(items) - LISTED} more: see table.md"] if len(items) > LISTED else []
        parts.append("")
    for group in groups:
        parts += [heading(group), *([f"! {group.caution}"] if group.caution else [])]
        parts += _text(group.rows, ROWS, ON_TERMINAL) if group.rows else []
        parts += ["Other cells", *_text(group.others, ROWS, ON_TERMINAL)] if group.others else []
        compared = [cell for cell in group.cells if cell.gain]
        parts += ["Gains over the step before", *_text(compared, GAINS, GAINS_ON_TERMINAL)] if compared else []
        parts += [*(f"note: {clean(note)}" for note in group.notes), ""]
    return "\n".join(parts)


def heading(group: Group) -> str:
    """Return the title of a group."""
    return f"{group.study}: regime {group.regime}, data {group.data}"


def slips(group: Group) -> list[str]:
    """Return which printed numbers of the paper are known slips, among the rows of a group."""
    found = {row.cell: paper.SLIPS.get((group.regime, row.step)) for row in group.rows if row.paper}
    return [f"paper GMACs of {cell}: {why}" for cell, why in found.items() if why]


def left_out(groups: Sequence[Group], collected: Collected) -> list[tuple[str, list[str]]]:
    """Return what a reader must know before the numbers: titles, each with its lines."""
    missing = [
        Finding(f"{group.study} ({group.regime}, {group.data})", text) for group in groups for text in group.missing
    ]
    parts = (
        ("Suspect, left out of every number", collected.suspect),
        ("Suspect, but counted because it was allowed, and marked †", collected.allowed),
        ("Not finished, no number yet", collected.unfinished),
        ("Missing", missing),
    )
    found = [(f"{title} ({len(items)}):", [str(item) for item in items]) for title, items in parts if items]
    if collected.foreign:
        found.append((f"Runs of the project that are none of ours, not read: {collected.foreign}", []))
    return found


def _markdown(cells: Sequence[Cell], columns: Sequence[Column]) -> list[str]:
    found = filled(cells, columns)
    lines = [
        "| " + " | ".join(c.heading for c, _ in found) + " |",
        "|" + "|".join("---:" if c.sort else "---" for c, _ in found) + "|",
    ]
    for texts in zip(*(texts for _, texts in found), strict=True):
        lines.append("| " + " | ".join(for_markdown(text) for text in texts) + " |")
    return [
        *lines,
        "",
        *(f"- {column.heading}: {for_markdown(column.about)}" for column, _ in found if column.about),
        "",
    ]


def _text(cells: Sequence[Cell], columns: Sequence[Column], names: Sequence[str]) -> list[str]:
    found = filled(cells, [column for column in columns if column.heading in names])
    texts = [[column.heading, *(shorten(clean(text), 40) for text in texts)] for column, texts in found]
    widths = [max(map(len, column)) for column in texts]
    return [
        "  "
        + "  ".join(t.ljust(w) if i == 0 else t.rjust(w) for i, (t, w) in enumerate(zip(line, widths, strict=True)))
        for line in zip(*texts, strict=True)
    ]
