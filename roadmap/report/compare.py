"""`python -m roadmap.report.compare A B`: two runs, or two cells over their seeds, side by side."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from roadmap.config import Affects, Config
from roadmap.errors import DONE
from roadmap.files import atomic_write, deny_others, disk_errors
from roadmap.parsing import parse_yaml
from roadmap.report.analyse.comparison import EFFECTS, Change, Comparison, Side, compare, find_side
from roadmap.report.analyse.formats import accuracy, between, p_equals, signed
from roadmap.report.draw.curves import compared_curves
from roadmap.report.draw.style import image
from roadmap.runs.permissions import require_folder
from roadmap.runs.recorded_config import from_record
from roadmap.runs.recorded_run import RecordedRun
from roadmap.runs.schema import CONFIG, QUANTITIES
from roadmap.text import ArgumentParser, clean, command_line, plain_table, printable_lines, redact, shorten

FORMATS = ("png", "svg")
VALUE = 44  # columns of one value of a key
LISTED, MOST_KEYS = 30, 100  # lines of what may be many
GAIN = (
    "gain",
    *("over_seeds", "p", "effect", "over_images", "only_this", "only_parent", "mcnemar_p"),
    *("paper_gain", "paper_interval"),
)


def as_text(found: Comparison, layers: Sequence[str]) -> str:
    """Return the comparison as text: who, what differs, the nets, what came out, and with what it was made."""
    sides = {"A": found.a, "B": found.b}
    parts = [[_title(letter, side) for letter, side in sides.items()]]
    if left_out := [f"  {letter}: {item}" for letter, side in sides.items() for item in side.left_out]:
        parts.append(["Not counted", *left_out[:LISTED], *_more(left_out)])
    parts.append(["B over A, top-1 in points", *(f"  {line}" for line in _tests(found))])
    parts.append(["Numbers, mean over seeds", *_numbers(found)])
    for effect, title in EFFECTS.items():
        if changes := [change for change in found.keys if change.affects == effect]:
            parts.append([f"Keys that differ: {title}", *_changes(changes)])
    parts += [] if found.keys else [["Keys that differ: none"]]
    parts.append(["Made with", *(f"  {line}" for change in found.provenance for line in _source_lines(change))])
    parts.append(["Layers", *(f"  {line}" for line in layers[:LISTED]), *_more(layers)])
    return "\n\n".join("\n".join(part) for part in parts)


def _more(lines: Sequence[object], most: int = LISTED) -> list[str]:
    return [f"  and {len(lines) - most} more (--json lists all)"] if len(lines) > most else []


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
        lines.append("! the data or image sizes differ: the two are not comparable")
    if gain.over_seeds:
        lines.append(
            f"over seeds ({a.n} and {b.n}): {between(gain.over_seeds)} (95 %, Welch), p {p_equals(gain.p)},"
            " not adjusted for other comparisons"
        )
    else:
        lines.append("over seeds: unknown; needs two seeds per side that differ")
    if found.paired_seeds is None:
        return [*lines, "over images: unknown; no record of which images were right, or not the same images"]
    seeds = (
        f"seed {found.paired_seeds[0]}"
        if len(set(found.paired_seeds)) == 1
        else "seeds {} and {}".format(*found.paired_seeds)
    )
    lines.append(f"over images ({seeds}): only A has {gain.only_parent} right, only B {gain.only_this}")
    lines[-1] += f"; p {p_equals(gain.mcnemar_p)} (McNemar)" if gain.mcnemar_p is not None else ""
    if gain.over_images:
        lines.append(f"over images: {between(gain.over_images)} (95 %, bootstrap, for these trained networks)")
    if gain.paper_gain is not None:
        lines.append(f"the paper's: {signed(gain.paper_gain)}")
    return lines


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 64 where there is no such run, 65 where none is sound, 74."""
    deny_others()
    parser = ArgumentParser(prog="python -m roadmap.report.compare", description="Compare two runs or two rows.")
    side = "a run, or a folder of its seeds, also in an archive; or a row of SOURCE: gelu, gelu/seed0"
    parser.add_argument("a", metavar="A", help=side)
    parser.add_argument("b", metavar="B", help="the run or row to compare with A")
    parser.add_argument("--within", default="", metavar="SOURCE", help="a study or an archive that contains the rows")
    parser.add_argument("--out", metavar="DIR", help="where to write this text, its JSON and the curves (PNG, SVG)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without ± must not end it
    args = parser.parse_args(argv)
    out = None if args.out is None else require_folder(args.out)
    found = compare(*(find_side(name, args.within) for name in (args.a, args.b)))
    layers = layer_lines(found)
    text = printable_lines(as_text(found, layers))
    data = redact(json.dumps(as_json(found, layers), indent=1))
    if out:
        write(out, found, text, data)
    print(data if args.json else text)
    return DONE


def write(out: Path, found: Comparison, text: str, data: str) -> None:
    """Write the text, its JSON and the curves. Raises DiskError."""
    figure = compared_curves(found.a.cell, found.b.cell)
    files = {f"compare.{kind}": image(figure, kind) for kind in FORMATS}
    files |= {"compare.txt": f"{text}\n".encode(), "compare.json": f"{data}\n".encode()}
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            atomic_write(out / name, content)


def layer_lines(found: Comparison) -> list[str]:
    """Return which parameters of the nets differ, by the configs that were recorded; torch comes only if any may."""
    if not any(change.affects == Affects.result and change.name.startswith("model.") for change in found.keys):
        return ["the same net"]
    from roadmap.steps.table import layer_changes  # it loads Hydra

    try:
        a, b = (recorded_config(side.first) for side in (found.a, found.b))
        return layer_changes(a.model, b.model, a.data.num_classes or 1000)
    except (ValueError, OSError, RuntimeError) as error:  # of another version, or made by someone to do harm
        return [f"not known: {clean(error, 200)}"]


def recorded_config(run: RecordedRun) -> Config:
    """Return the checked config of a run. Raises ConfigError, ValueError and OSError."""
    return from_record(parse_yaml(run.read(CONFIG).decode()))


if __name__ == "__main__":
    sys.exit(main())
