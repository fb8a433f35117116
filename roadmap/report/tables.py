"""The tables of the report: a data frame, CSV, Markdown and the short one for the terminal. Writes no file."""

from collections.abc import Callable, Sequence

import pandas as pd

from roadmap import paper
from roadmap.report.cells import Cell, Group
from roadmap.report.find import Finding
from roadmap.report.runs import Collected
from roadmap.report.text import clean, for_csv, for_markdown, shorten

# Column -> the value of a cell. Accuracies in percent, rates in images per second, `gpu_hours` of one run.
COLUMNS: dict[str, Callable[[Group, Cell], str | float | int | None]] = {
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
    "top1_mean": lambda group, cell: cell.top1,
    "top1_std": lambda group, cell: cell.top1_std,
    "top5_mean": lambda group, cell: cell.top5,
    "gmacs": lambda group, cell: cell.gmacs,
    "params_m": lambda group, cell: cell.params_m,
    "recipe": lambda group, cell: cell.recipe,
    "epochs": lambda group, cell: cell.epochs,
    "image_size": lambda group, cell: cell.image_size,
    "train_images_per_s": lambda group, cell: cell.train_images_per_s,
    "gpu_hours": lambda group, cell: cell.gpu_hours,
    "paper_top1": lambda group, cell: cell.paper.top1 if cell.paper else None,
    "paper_top1_std": lambda group, cell: cell.paper.top1_std if cell.paper else None,
    "paper_gmacs": lambda group, cell: cell.paper.gmacs if cell.paper else None,
    "caution": lambda group, cell: group.caution,
}
WHOLE = ("n", "epochs", "image_size")

# What Markdown and the terminal show: heading -> text of a cell.
SHOWN: dict[str, Callable[[Cell], str]] = {
    "step": lambda cell: cell.cell,
    "label": lambda cell: shorten(cell.label, 40),
    "adopted": lambda cell: cell.adopted,
    "top-1 (%)": lambda cell: accuracy(cell.top1, cell.top1_std),
    "n": lambda cell: str(cell.n),
    "top-5 (%)": lambda cell: "" if cell.top5 is None else f"{cell.top5:.2f}",
    "GMACs": lambda cell: small(cell.gmacs),
    "params (M)": lambda cell: small(cell.params_m),
    "epochs": lambda cell: str(cell.epochs or ""),
    "paper top-1": lambda cell: accuracy(cell.paper.top1, cell.paper.top1_std) if cell.paper else "",
    "paper GMACs": lambda cell: small(cell.paper.gmacs) if cell.paper else "",
}
ON_TERMINAL = ("step", "top-1 (%)", "n", "GMACs", "params (M)", "epochs", "paper top-1")
LISTED = 20  # findings on the terminal; the Markdown file has all


def accuracy(mean: float, std: float | None) -> str:
    """Return `78.82 ± 0.07`, or the mean alone where there is no spread."""
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def small(value: float | None) -> str:
    """Return two decimals, or three digits where two decimals would show too few."""
    if value is None:
        return ""
    return f"{value:.2f}" if value >= 1 or value == 0 else f"{value:#.3g}"


def frame(groups: Sequence[Group], others: bool = False) -> pd.DataFrame:
    """Return one line a cell in the roadmap's order: the plain steps, or with `others` the variants and overrides."""
    cells = [(group, cell) for group in groups for cell in (group.others if others else group.rows)]
    table = pd.DataFrame([{name: value(*pair) for name, value in COLUMNS.items()} for pair in cells], columns=list(COLUMNS))
    return table.astype(dict.fromkeys(WHOLE, "Int64"))


def to_csv(groups: Sequence[Group], others: bool = False) -> bytes:
    """Return `frame` as CSV in UTF-8; empty where a value is not known, no text that a spreadsheet would compute."""
    table = frame(groups, others)
    texts = table.select_dtypes(exclude="number").columns
    for name in texts:
        table[name] = [for_csv(value) if isinstance(value, str) else "" for value in table[name]]
    return table.round(6).to_csv(index=False, lineterminator="\n").encode()


def to_markdown(groups: Sequence[Group], collected: Collected) -> bytes:
    """Return what was left out, then a table a group, then the other cells, as Markdown."""
    parts = ["# Roadmap: results", ""]
    for title, findings in _left_out(collected):
        parts += [f"**{title}**", "", *(f"- {for_markdown(item.path)}: {for_markdown(item.reason)}" for item in findings), ""]
    for group in groups:
        parts += [f"## {for_markdown(heading(group))}", ""]
        parts += [f"**{for_markdown(group.caution)}**", ""] if group.caution else []
        parts += _markdown_table(group.rows) if group.rows else ["No finished run of a plain step.", ""]
        if group.others:
            parts += ["### Other cells", "", *_markdown_table(group.others)]
        parts += [f"- {for_markdown(note)}" for note in group.notes]
        slips = {row.cell: paper.SLIPS.get((group.regime, row.step)) for row in group.rows if row.paper}
        parts += [f"- paper GMACs of {for_markdown(cell)}: {for_markdown(why)}" for cell, why in slips.items() if why]
        parts += [f"- made with {for_markdown(line)}" for line in group.made_with[:LISTED]] + [""]
    parts += ["Top-1 and top-5 of the last epoch: mean over n seeds, ± standard deviation (n - 1); one seed has no spread."]
    return ("\n".join(parts) + "\n").encode()


def to_text(groups: Sequence[Group], collected: Collected) -> str:
    """Return the short form for a terminal: what was left out, then one table a group."""
    parts: list[str] = []
    for title, findings in _left_out(collected):
        parts += [title, *(f"  {item}" for item in findings[:LISTED])]
        parts += [f"  and {len(findings) - LISTED} more: see table.md"] if len(findings) > LISTED else []
        parts.append("")
    for group in groups:
        parts += [heading(group), *([f"! {group.caution}"] if group.caution else [])]
        if group.rows:
            parts += _text_table(group.rows)
        if group.others:
            parts += ["Other cells", *_text_table(group.others)]
        parts += [*(f"note: {clean(note)}" for note in group.notes), ""]
    return "\n".join(parts)


def heading(group: Group) -> str:
    """Return the title of a group."""
    return f"{group.study}: regime {group.regime}, data {group.data}"


def _left_out(collected: Collected) -> list[tuple[str, tuple[Finding, ...]]]:
    parts = [
        (f"Suspect, left out of every number ({len(collected.suspect)}):", collected.suspect),
        (f"Not finished, no number yet ({len(collected.unfinished)}):", collected.unfinished),
    ]
    return [(title, findings) for title, findings in parts if findings]


def _columns(cells: Sequence[Cell], names: Sequence[str]) -> dict[str, list[str]]:
    """Return the texts of the columns, without those that are empty in every row."""
    found = {name: [SHOWN[name](cell) for cell in cells] for name in names}
    return {name: texts for name, texts in found.items() if any(texts)}


def _markdown_table(cells: Sequence[Cell]) -> list[str]:
    columns = _columns(cells, list(SHOWN))
    left = ("step", "label", "adopted")
    lines = ["| " + " | ".join(columns) + " |", "|" + "|".join("---" if name in left else "---:" for name in columns) + "|"]
    lines += ["| " + " | ".join(for_markdown(text) for text in texts) + " |" for texts in zip(*columns.values(), strict=True)]
    return [*lines, ""]


def _text_table(cells: Sequence[Cell]) -> list[str]:
    columns = {name: [name, *map(clean, texts)] for name, texts in _columns(cells, ON_TERMINAL).items()}
    columns["step"] = [shorten(text, 40) for text in columns["step"]]
    widths = {name: max(map(len, texts)) for name, texts in columns.items()}
    lines = zip(*columns.values(), strict=True)
    return [
        "  " + "  ".join(t.ljust(w) if i == 0 else t.rjust(w) for i, (t, w) in enumerate(zip(line, widths.values(), strict=True)))
        for line in lines
    ]
