"""The tables of each group, as Markdown, as LaTeX, and in short for the terminal. Writes no file."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from roadmap import paper
from roadmap.escape import for_markdown, for_tex
from roadmap.report.analyse.cells import Group
from roadmap.report.analyse.collect import Collected
from roadmap.report.write import columns
from roadmap.runs.search import Problem
from roadmap.text import clean, markdown_table, plain_table, shorten

LISTED = 20  # problems on the terminal; the Markdown file has all
HOLDOUTS = "Evaluated on held-out training images: not accuracies on the validation images"
# Columns that a terminal has room for.
ON_TERMINAL = (
    *("step", "top-1 (%)", "n", "MACs (G)", "MACs (M)", "parameters (M)", "epochs", "paper top-1"),
    *("toggle", "mean gain (points)", "95 % over orders and seeds", "its step", "step's p (Holm)", "left out"),
    *("compared with", "gain (points)", "95 % over seeds", "p (Holm)", "95 % over images", "McNemar p (Holm)"),
    "paper gain",
    *("images fixed", "images broken", "by a seed alone"),
    *("own rate", "factor", "edge", "gain, one recipe", "gain, own rates", "verdict"),
)


def tables_of(group: Group) -> list[columns.Table]:
    """Return the tables of a group that have a row."""
    compared = [cell for cell, _ in group.compared]
    changed = [cell for cell, gain in group.compared if gain.changes]
    worths = group.attribution.worths if group.attribution else ()
    rates, holdouts = (group.tuning.rows, ()) if group.tuning else ((), group.holdouts)
    parts: tuple[tuple[str, Sequence[Any], Sequence[columns.Column]], ...] = (
        ("Rows", group.rows, columns.row_columns(group)),
        ("Mean gains over the sampled orders", worths, columns.WORTH_COLUMNS),
        ("Own learning rates", rates, columns.RATE_COLUMNS),
        ("Other cells", group.others, columns.row_columns(group)),
        ("Gains", compared, columns.gain_columns()),
        (HOLDOUTS, holdouts, columns.row_columns(group)),
        ("Images and classes", changed, columns.change_columns()),
    )
    return [columns.table(title, cells, of_table) for title, cells, of_table in parts if cells]


def to_markdown(groups: Sequence[Group], collected: Collected, findings: Sequence[str] = ()) -> bytes:
    """Return what was left out, the findings, then the tables of each group, as Markdown."""
    parts = ["# Roadmap: results", ""]
    for title, items in listed_problems(groups, collected):
        parts += [f"**{for_markdown(title)}**", "", *(f"- {for_markdown(item)}" for item in items), ""]
    for text in findings:
        parts += [*(f"- {for_markdown(line, 5_000)}" for line in text.splitlines()), ""]
    for group in groups:
        parts += [f"## {for_markdown(heading(group))}", ""]
        parts += [f"**{for_markdown(group.caution)}**", ""] if group.caution else []
        parts += [] if group.rows else ["No finished run of a plain step.", ""]
        for table in tables_of(group):
            parts += [f"### {table.title}", ""]
            rows = [table.headings, *([for_markdown(text) for text in row] for row in table.texts)]
            parts += [markdown_table(rows, table.right), ""]
            parts += [f"- {c.heading}: {for_markdown(c.about)}" for c in table.columns if c.about] + [""]
        parts += [f"- {for_markdown(note)}" for note in (*group.notes, *slips(group))]
        parts += [f"- made with {for_markdown(line)}" for line in group.made_with[:LISTED]] + [""]
    return ("\n".join(parts).rstrip("\n") + "\n").encode()


def to_tex(groups: Sequence[Group]) -> bytes:
    """Return the tables of each group as LaTeX `tabular`s; every text is escaped."""
    parts = [r"% \input{table.tex} inside a table environment; needs \usepackage{booktabs}."]
    for group in groups:
        parts += ["", f"% {for_tex(heading(group))}"]
        for table in tables_of(group):
            texts = [[for_tex(text) for text in row] for row in table.texts]
            escaped = pd.DataFrame(texts, columns=[for_tex(name) for name in table.headings])
            letters = "".join("r" if i in table.right else "l" for i in range(len(table.columns)))
            parts.append(escaped.to_latex(index=False, escape=False, column_format=letters))
    return ("\n".join(parts).rstrip("\n") + "\n").encode()


def to_text(groups: Sequence[Group], collected: Collected) -> str:
    """Return the short form for a terminal: what was left out, then the tables of each group."""
    parts: list[str] = []
    for title, items in listed_problems(groups, collected):
        parts += [title, *(f"  {item}" for item in items[:LISTED])]
        parts += [f"  and {len(items) - LISTED} more: see table.md"] if len(items) > LISTED else []
        parts.append("")
    for group in groups:
        parts += [heading(group), *([f"! {group.caution}"] if group.caution else [])]
        for table in tables_of(group):
            places = [i for i, name in enumerate(table.headings) if name in ON_TERMINAL]
            rows = [[shorten(clean(row[i]), 40) for i in places] for row in (table.headings, *table.texts)]
            right = [place for place, i in enumerate(places) if i in table.right]
            parts += [table.title, *("  " + line for line in plain_table(rows, right).splitlines())]
        parts += [*(f"note: {clean(note)}" for note in group.notes), ""]
    return "\n".join(parts)


def heading(group: Group) -> str:
    """Return the title of a group."""
    return f"{group.study}: regime {group.regime}, data {group.data}"


def slips(group: Group) -> list[str]:
    """Return which printed numbers of the paper are known slips, among the rows of a group."""
    found = {row.cell: paper.SLIPS.get((group.regime, row.step)) for row in group.rows if row.paper}
    return [f"paper GMACs of {cell}: {why}" for cell, why in found.items() if why]


def listed_problems(groups: Sequence[Group], collected: Collected) -> list[tuple[str, list[str]]]:
    """Return what does not count, what counts although it differs, and what is missing, each with a title."""
    missing = [Problem(f"{g.study} ({g.regime}, {g.data})", text) for g in groups for text in g.missing]
    parts = (
        ("Suspect, left out of every number", collected.suspect),
        ("Suspect, but counted because it was allowed, and marked †", collected.allowed),
        ("Computed with other code, hardware or versions: counted, and marked †", collected.rounding),
        ("Not finished, not counted", collected.unfinished),
        ("Missing", missing),
    )
    found = [(f"{title} ({len(items)}):", [str(item) for item in items]) for title, items in parts if items]
    if collected.foreign:
        found.append((f"Runs of the project that are not of this roadmap, not read: {collected.foreign}", []))
    return found
