"""Two cells side by side, as a plain page for a terminal and as JSON."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from roadmap.report.analyse.comparison import EFFECTS, Change, Comparison, Side
from roadmap.report.analyse.formats import accuracy, between, p_equals, signed
from roadmap.runs.schema import QUANTITIES
from roadmap.text import clean, plain_table, shorten

VALUE = 44  # columns of one value of a key
LISTED, MOST_KEYS = 30, 100  # lines of what may be many
GAIN = (
    "gain",
    *("over_seeds", "p", "effect", "over_images", "only_this", "only_parent", "mcnemar_p"),
    *("paper_gain", "paper_interval"),
)


def as_text(found: Comparison, layers: Sequence[str]) -> str:
    """Return the page: who, what differs, the nets, what came out, and with what it was made."""
    sides = {"A": found.a, "B": found.b}
    parts = [[_title(letter, side) for letter, side in sides.items()]]
    if left_out := [f"  {letter}: {item}" for letter, side in sides.items() for item in side.left_out]:
        parts.append(["Not counted", *left_out[:LISTED], *_more(left_out)])
    parts.append(["B over A, top-1 in points", *(f"  {line}" for line in _tests(found))])
    parts.append(["Numbers, mean over seeds", *_numbers(found)])
    for effect, title in EFFECTS.items():
        if changes := [change for change in found.keys if change.affects == effect]:
            parts.append([f"Keys that differ, {title}", *_changes(changes)])
    parts += [] if found.keys else [["Keys that differ: none"]]
    parts.append(["Made with", *(f"  {line}" for change in found.provenance for line in _source_lines(change))])
    parts.append(["Layers", *(f"  {line}" for line in layers[:LISTED]), *_more(layers)])
    return "\n\n".join("\n".join(part) for part in parts)


def _more(lines: Sequence[object], most: int = LISTED) -> list[str]:
    return [f"  and {len(lines) - most} more, which --json has"] if len(lines) > most else []


def as_json(found: Comparison, layers: Sequence[str]) -> dict[str, Any]:
    """Return all of the page, for scripts."""
    gain = asdict(found.gain)
    return {
        "a": _side(found.a),
        "b": _side(found.b),
        "keys": [asdict(change) for change in found.keys],
        "provenance": {change.name: [change.a, change.b] for change in found.provenance},
        "layers": list(layers),
        "b_over_a": {key: gain[key] for key in GAIN},
        "paired_seeds": found.paired_seeds,
    }


def _side(side: Side) -> dict[str, Any]:
    cell = side.cell
    return {
        "name": side.name,
        **{key: getattr(cell, key) for key in ("study", "regime", "data", "cell", "step", "seeds")},
        "runs": [run.path for run in cell.runs],
        "top1": cell.top1s,
        "top1_std": cell.top1_std,
        "numbers": cell.numbers,
        "hours": side.hours,
        "curves": {run.seed: run.curve for run in cell.runs},
        "left_out": [str(problem) for problem in side.left_out],
    }


def _title(letter: str, side: Side) -> str:
    cell = side.cell
    if cell.n == 1:
        return f"{letter}: {cell.cell}, seed {cell.seeds[0]}: {clean(cell.runs[0].path, 300)}"
    folder = clean(os.path.dirname(cell.runs[0].path), 300)
    return f"{letter}: {cell.cell}, {cell.n} seeds ({', '.join(map(str, cell.seeds))}): {folder}"


def _source_lines(change: Change) -> list[str]:
    """Return a part of the provenance, once where both sides have the same; of versions only what differs."""
    if change.a == change.b:
        return [f"{change.name}: {change.a}"]
    sides = [text.split(", ") for text in (change.a, change.b)]
    own = [", ".join(part for part in side if part not in other) for side, other in (sides, sides[::-1])]
    return [f"{change.name} of {name}: {text or 'the same, and less'}" for name, text in zip("AB", own, strict=True)]


def _changes(changes: Sequence[Change]) -> list[str]:
    rows = [[f"  {clean(c.name, 60)}", shorten(c.a, VALUE), "->", shorten(c.b, VALUE)] for c in changes[:MOST_KEYS]]
    return [*plain_table(rows).split("\n"), *_more(changes, MOST_KEYS)]


def _numbers(found: Comparison) -> list[str]:
    a, b = found.a.cell, found.b.cell
    rows = [["", "A", "B", "B / A"]]
    for key, quantity in QUANTITIES.items():
        ours, theirs = a.numbers.get(key), b.numbers.get(key)
        texts = [quantity.text(value) for value in (ours, theirs)]
        if key == "top1":
            texts = [accuracy(cell.top1, cell.top1_std) for cell in (a, b)]
        if any(texts):
            ratio = f"{theirs / ours:.3g}" if ours and theirs and key not in ("top1", "top5") else ""
            rows.append([f"  {quantity.heading}", *texts, ratio])
    hours = [side.hours for side in (found.a, found.b)]
    if any(hours):
        ratio = f"{hours[1] / hours[0]:.3g}" if hours[0] and hours[1] else ""
        rows.append(["  time (h)", *("" if h is None else f"{h:#.3g}" for h in hours), ratio])
    return plain_table(rows, right=(1, 2, 3)).split("\n")


def _tests(found: Comparison) -> list[str]:
    """Return what the seeds and the images say of the difference, a line each."""
    gain, a, b = found.gain, found.a.cell, found.b.cell
    lines = [f"{signed(gain.gain)}"]
    if (a.data, a.image_size) != (b.data, b.image_size):
        lines.append("! other data, or another image size: the two do not compare")
    if gain.over_seeds:
        lines.append(
            f"over seeds ({a.n} and {b.n}): {between(gain.over_seeds)} (95 %, Welch), p {p_equals(gain.p)},"
            " not adjusted for other comparisons"
        )
    else:
        lines.append("over seeds: not known; a spread needs two differing seeds per side")
    if found.paired_seeds is None:
        return [*lines, "over images: not known; no bits, or not of the same images"]
    seeds = (
        f"seed {found.paired_seeds[0]}"
        if len(set(found.paired_seeds)) == 1
        else "seeds {} and {}".format(*found.paired_seeds)
    )
    lines.append(f"over images ({seeds}): only A has {gain.only_parent} right, only B {gain.only_this}")
    lines[-1] += f"; p {p_equals(gain.mcnemar_p)} (McNemar)" if gain.mcnemar_p is not None else ""
    if gain.over_images:
        lines.append(f"over images drawn anew, these nets: {between(gain.over_images)} (95 %)")
    if gain.paper_gain is not None:
        lines.append(f"the paper's: {signed(gain.paper_gain)}")
    return lines
