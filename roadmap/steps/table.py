"""`python -m roadmap.steps`: every row of a regime with the paper's numbers, the tree of the rows, and what changes
from one to another."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from roadmap import paper
from roadmap.config import Config
from roadmap.config.toggles import NetConfig
from roadmap.errors import ConfigError
from roadmap.steps.compose import compose
from roadmap.steps.tree import step_folders, step_tree
from roadmap.text import ArgumentParser, command_line, flatten, markdown_table, plain_table

COLUMNS = ("step", "label", "gmacs", "macts", "params_m", "paper_gmacs", "paper_top1", "note")
NUMBERS = range(2, 7)  # the columns of numbers


@dataclass(frozen=True)
class Row:
    """One row of the table; `gmacs` and `macts` at the regime's own image size (224 but for nano and mini)."""

    step: str
    label: str
    gmacs: float
    macts: float
    params_m: float
    paper_gmacs: float | None
    paper_top1: float | None
    note: str


def rows(regime: str, config_dir: str | None = None) -> list[Row]:
    """Return every step of a regime, in the roadmap's order. Raises ConfigError."""
    from roadmap.net import cost

    table, settings_of = [], dict[str | None, dict[str, Any]]()
    for name, step in step_tree(step_folders(config_dir)).items():
        try:
            config = compose(name, regime, config_dir=config_dir)
        except ConfigError:
            if step.is_reference:
                continue  # only tiny and base have a reference net
            raise
        classes = config.data.num_classes or 1000
        settings_of[name] = settings(config)
        same = settings_of[name] == settings_of.get(step.parent) and f"changes nothing of {step.parent}"
        printed, size = paper.rows(regime).get(name), cost(config.model, classes, config.data.image_size)
        table.append(
            Row(
                step=name,
                label=config.label,
                **asdict(size),
                paper_gmacs=printed.gmacs if printed else None,
                paper_top1=printed.top1 if printed else None,
                note=same or paper.SLIPS.get((regime, name)) or ("" if name in paper.order() else paper.BEYOND),
            )
        )
    return table


def cells(row: Row) -> list[str]:
    """Return a row as text: GMACs as the paper prints them where they are its size."""
    digits = 2 if row.gmacs >= 1 else 4
    numbers = [f"{row.gmacs:.{digits}f}", f"{row.macts:.{digits}f}", f"{row.params_m:.2f}"]
    printed = ["" if v is None else f"{v:.2f}" for v in (row.paper_gmacs, row.paper_top1)]
    return [row.step, row.label, *numbers, *printed, row.note]


def as_tree(table: Sequence[Row], config_dir: str | None = None) -> str:
    """Return the rows as a tree, from parent to child, each with its GMACs and what sets it apart."""
    tree, known = step_tree(step_folders(config_dir)), {row.step: row for row in table}
    lines: list[list[str]] = []
    for drawing in branches({name: tree[name].parent for name in known}):
        name = drawing.split()[-1]
        if lines and tree[name].parent is None:
            lines.append([""] * 4)
        _, label, gmacs, *_ = cells(known[name])
        lines.append([drawing, gmacs, label, paper.remark(name, tree[name].adopted)])
    return plain_table([["step", "gmacs", "label", ""], *lines], right=(1,))


def branches(parents: Mapping[str, str | None]) -> list[str]:
    """Return a line a step, in the manner of `git log --graph`: what leads to it, and its name.

    `parents` holds the steps in the roadmap's order. The line continues with the child that has the most
    descendants, the first of equals; the other children branch off before it, in their order.
    """
    children: dict[str | None, list[str]] = {}
    for name, parent in parents.items():
        children.setdefault(parent, []).append(name)
    return [line for root in children.get(None, []) for line in _line(root, "", children)]


def _line(name: str, margin: str, children: Mapping[str | None, Sequence[str]]) -> Iterator[str]:
    """Yield the drawing of a step and of its descendants, after a margin."""
    yield f"{margin}* {name}"
    below = children.get(name, ())
    if not below:
        return
    following = max(below, key=lambda child: _count(child, children))
    for child in below:
        if child != following:
            first, *rest = _line(child, "", children)
            yield f"{margin}|-{first}"
            yield from (f"{margin}| {line}" for line in rest)
    yield from _line(following, margin, children)


def _count(name: str, children: Mapping[str | None, Sequence[str]]) -> int:
    """Return the number of a step's descendants."""
    return sum(1 + _count(child, children) for child in children.get(name, ()))


def as_csv(table: Sequence[Row]) -> str:
    """Return CSV with full precision."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in asdict(row).items()} for row in table)
    return out.getvalue().rstrip("\n")


def as_markdown(table: Sequence[Row]) -> str:
    """Return a Markdown table."""
    lines = [[text.replace("|", "\\|") for text in cells(row)] for row in table]
    return markdown_table([COLUMNS, *lines], right=NUMBERS)


FORMATS: dict[str, Callable[[Sequence[Row]], str]] = {
    "table": lambda table: plain_table([COLUMNS, *map(cells, table)], right=NUMBERS),
    "csv": as_csv,
    "markdown": as_markdown,
}


def diff(before: Config, after: Config) -> str:
    """Return what changes from one step to another: config keys, parameters of the net, and what it costs."""
    from roadmap.net import cost

    classes = before.data.num_classes or 1000
    sizes = [cost(config.model, classes, config.data.image_size) for config in (before, after)]
    a, b = settings(before), settings(after)
    changed = [f"  {key}: {a.get(key)} -> {b.get(key)}" for key in a | b if a.get(key) != b.get(key)]
    parts = [
        f"{before.step} -> {after.step} ({before.regime.name})",
        "config:",
        *(changed or ["  nothing"]),
        *layer_changes(before.model, after.model, classes),
        moved("GMACs", sizes[0].gmacs, sizes[1].gmacs),
        moved("activations (M)", sizes[0].macts, sizes[1].macts),
        moved("parameters (M)", sizes[0].params_m, sizes[1].params_m),
    ]
    return "\n".join(parts)


def settings(config: Config) -> dict[str, Any]:
    """Return what a step may change, by key."""
    return flatten({group: getattr(config, group).values() for group in ("model", "recipe", "data")})


def layer_changes(before: NetConfig, after: NetConfig, num_classes: int) -> list[str]:
    """Return which parameters of the net are added, removed or reshaped: a line that counts them, then a line each."""
    from roadmap.net import describe

    nets = [describe(model, num_classes) for model in (before, after)]
    a, b = ({name: shape(sizes) for name, sizes in net.items()} for net in nets)
    added = {name: b[name] for name in b if name not in a}
    removed = {name: a[name] for name in a if name not in b}
    reshaped = {name: f"{a[name]} -> {b[name]}" for name in a if name in b and a[name] != b[name]}
    return [
        f"parameters of the net: {len(added)} added, {len(removed)} removed, {len(reshaped)} reshaped",
        *folded("+", added),
        *folded("-", removed),
        *folded("~", reshaped),
    ]


def moved(name: str, before: float, after: float) -> str:
    """Return `GMACs: 4.146 -> 4.456 (+0.3099)`."""
    return f"{name}: {before:.4g} -> {after:.4g} ({after - before:+.4g})"


def folded(sign: str, changes: dict[str, str]) -> list[str]:
    """Return a line per change; blocks of a stage that change alike share one (`stages.2.block1-8.conv1.weight`)."""
    alike: dict[tuple[str, str], list[int]] = {}
    for name, text in changes.items():
        block = re.search(r"block(\d+)", name)
        alike.setdefault((re.sub(r"block\d+", "block{}", name), text), []).extend([int(block[1])] if block else [])
    lines = []
    for (name, text), blocks in alike.items():
        whole = len(blocks) > 1 and blocks == list(range(blocks[0], blocks[-1] + 1))
        numbers = f"{blocks[0]}-{blocks[-1]}" if whole else ",".join(map(str, blocks))
        lines.append(f"  {sign} {name.format(numbers)} {text}")
    return lines


def shape(sizes: tuple[int, ...]) -> str:
    """Return `96x1x7x7`."""
    return "x".join(map(str, sizes)) or "scalar"


@command_line
def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = ArgumentParser(
        prog="python -m roadmap.steps", description="All rows of a regime, their tree, or what changes between two."
    )
    parser.add_argument("--regime", default="tiny", help="nano, mini, tiny (default), small, base, large or xlarge")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--format", choices=tuple(FORMATS), default="table")
    shown.add_argument("--tree", action="store_true", help="which step follows which")
    shown.add_argument("--diff", nargs=2, metavar=("A", "B"), help="what changes from step A to step B")
    parser.add_argument("--config-dir", "-cd", metavar="FOLDER", help="with steps of your own (FOLDER/step/NAME.yaml)")
    args = parser.parse_args(words)
    if args.diff:
        print(diff(*(compose(name, args.regime, config_dir=args.config_dir) for name in args.diff)))
        return 0
    table = rows(args.regime, args.config_dir)
    print(as_tree(table, args.config_dir) if args.tree else FORMATS[args.format](table))
    return 0
