"""`index.html`: the whole report in one file that needs no network.

Every text goes through the template's autoescaping; the page's policy lets no script run but its own.
"""

import base64
import hashlib
import math
import re
import shlex
from collections.abc import Callable, Sequence
from importlib.resources import files
from xml.etree import ElementTree

import numpy as np
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from roadmap.paper.toggle_orders import split_variant, variant_words
from roadmap.report.analyse.cells import Cell, Group
from roadmap.report.analyse.collect import Collected
from roadmap.report.analyse.formats import count, p_text, signed
from roadmap.report.analyse.gains import parent_of
from roadmap.report.analyse.image_changes import ClassChanges, Confusion, confusion
from roadmap.report.analyse.tuning import HASHED
from roadmap.report.draw import style
from roadmap.report.draw.gallery import Drawing
from roadmap.report.read.run import Run
from roadmap.report.write.columns import Column, Table, column, table
from roadmap.report.write.tables import heading, listed_problems, slips, tables_of
from roadmap.text import clean

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# The figures' colours are the page's variables, so that they are dark where it is; black is an axis or a text.
COLORS = {
    style.INK: "ink", "#000000": "ink", style.QUIET: "quiet", style.BAND: "band", style.KEPT: "gain",
    style.TRIED: "loss", "#ffffff": "back",
}  # fmt: skip
COLOR = re.compile("|".join(COLORS))
REFERENCE = re.compile(r"url\(#([^)]+)\)")
COMPARED = ("model.", "recipe.", "data.")
MOST_ROWS = 100  # with their classes
SHOWN = 10  # classes helped most, and hurt most, of a row
WHOLE = 2 * SHOWN + 10  # classes up to which all are shown
LEVELS = 9  # shades of a matrix
RUN_COLUMNS = (
    column("seed", "seed", str),
    column("top-1 (%)", "top1", "{:.2f}".format),
    column("commit", "commit"),
    column("code", "code"),
    column("starts", "starts", str),
    column("hardware", "hardware"),
    column("versions", "versions"),
    column("allowed", "marks", " ".join),
)


def page(
    groups: Sequence[Group], collected: Collected, findings: Sequence[str], pictures: Sequence[tuple[Drawing, bytes]]
) -> bytes:
    """Return the page in UTF-8; `pictures` are figures with their SVG."""
    names = ("page.html.j2", "page.css.j2", "page.js.j2")
    sources = {name: files("roadmap.report.write").joinpath(name).read_text(encoding="utf-8") for name in names}
    script = sources["page.js.j2"].strip()
    environment = Environment(
        loader=DictLoader(sources), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["clean"] = lambda text: clean(text, 500)
    text = environment.get_template("page.html.j2").render(
        policy=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        script=Markup(script),
        style=Markup(sources["page.css.j2"]),
        warnings=listed_problems(groups, collected),
        findings=findings,
        pictures=[(picture, inline_svg(svg, f"f{i}-", picture.name)) for i, (picture, svg) in enumerate(pictures)],
        groups=_groups(groups),
    )
    return text.encode()


def _groups(groups: Sequence[Group]) -> list[dict[str, object]]:
    """Return what the page shows of each group: the classes of the first rows alone, so that its size has an end."""
    known = [id(cell) for group in groups for cell in group.cells if any(run.classes for run in cell.runs)]
    too_many = set(known[MOST_ROWS:])
    return [
        {
            "heading": heading(group),
            "caution": group.caution,
            "tables": tables_of(group),
            "notes": (*group.notes, *slips(group)),
            "made_with": group.made_with,
            "rows": [_row(cell, group, groups, id(cell) not in too_many) for cell in group.cells],
            "without_classes": sum(id(cell) in too_many for cell in group.cells),
        }
        for group in groups
    ]


def _row(cell: Cell, group: Group, groups: Sequence[Group], with_classes: bool) -> dict[str, object]:
    """Return a row's command, its config, what differs from its parent's, and what it does to classes."""
    found = parent_of(cell, group, groups)
    ours = cell.runs[0].config
    theirs = found[0].runs[0].config if found else ours
    keys = sorted(key for key in ours.keys() | theirs.keys() if key.startswith(COMPARED))
    changes = cell.gain.changes.classes if cell.gain and cell.gain.changes else None
    classes = class_table(changes) if changes and with_classes else None
    confused = confusion(cell.runs) if with_classes else None
    return {
        "cell": cell,
        "command": command(cell.runs[0]),
        "differences": [(k, theirs.get(k, ""), ours.get(k, "")) for k in keys if ours.get(k) != theirs.get(k)],
        "compared_with": found[1] if found else "",
        "config": "\n".join(f"{key}: {clean(value, 300)}" for key, value in ours.items()),
        "runs": table("runs", cell.runs, RUN_COLUMNS),
        "changed": changed_text(cell),
        "classes": classes,
        "left_out": len(changes.images) - len(classes.cells) if changes and classes else 0,
        "pairs": pair_table(confused) if confused and confused.matrix is None and confused.pairs else None,
        "matrix": matrix(confused) if confused else [],
        "seeds": confused.seeds if confused else 0,
    }


def changed_text(cell: Cell) -> str:
    """Return how many images a row fixed and broke, in a sentence; nothing where that is not known."""
    if cell.gain is None or cell.gain.changes is None:
        return ""
    changes = cell.gain.changes
    over = "" if changes.seeds == 1 else f" (mean over {changes.seeds} seeds)"
    text = (
        f"Compared with {cell.gain.parent}: {count(changes.fixed)} images fixed, {count(changes.broke)} broken{over}."
    )
    if changes.by_seed is not None:
        text += f" Another seed of the same network alone changes {count(changes.by_seed)} each way."
    return text


def class_table(classes: ClassChanges) -> Table:
    """Return the table of the classes, from the most helped to the most hurt; of many the ends alone."""

    def numbers(heading: str, values: np.ndarray, text: Callable[[float], str]) -> Column:
        def number(i: int) -> float | None:
            return None if math.isnan(values[i]) else float(values[i])

        return Column(heading, lambda i: "" if number(i) is None else text(values[i]), number)

    columns = [
        Column("class", lambda i: classes.names[i]),
        numbers("images", classes.images, str),
        numbers("top-1 (%)", classes.top1, "{:.2f}".format),
        numbers("of the parent", classes.parent_top1, "{:.2f}".format),
        numbers("change (points)", classes.change, signed),
        numbers("fixed", classes.fixed, count),
        numbers("broken", classes.broke, count),
        numbers("p over seeds (BH)", classes.p_seeds_adjusted, p_text),
        numbers("p over images (BH)", classes.p_images_adjusted, p_text),
    ]
    every = len(classes.images)
    chosen = sorted(range(every), key=lambda i: -classes.change[i])
    if every > WHOLE:
        chosen = [*classes.most(1, SHOWN), *reversed(classes.most(-1, SHOWN))]
    return table("its change in each class", chosen, columns)


def pair_table(found: Confusion) -> Table:
    """Return the table of the classes that are taken for one another most."""
    over = f", mean over {found.seeds} seeds" if found.seeds > 1 else ""
    columns = [
        column("class", "true"),
        column("taken for", "taken_for"),
        column(f"images{over}", "images", count),
        column("of the class (%)", "share", "{:.1f}".format),
    ]
    return table("the classes it confuses most", found.pairs, columns)


def matrix(found: Confusion) -> list[tuple[int, str, list[tuple[str, int]]]]:
    """Return the number and name of each class, and for each that its images were taken for a text and a shade.

    Shades go with the root of the share, so that rare confusions are seen.
    """
    rows = []
    for number, (name, row) in enumerate(zip(found.names, [] if found.matrix is None else found.matrix, strict=True)):
        shades = [math.ceil(LEVELS * math.sqrt(share)) for share in row / max(row.sum(), 1)]
        rows.append((number, name, [(count(v) if v else "", shade) for v, shade in zip(row, shades, strict=True)]))
    return rows


def command(run: Run) -> str:
    """Return the command that trains a run, as far as its record says; a seed's run differs in `seed` alone."""
    words = [f"+step={run.step}"]
    words += variant_words(split_variant(run.variant or ""))
    words += [f"scale={scale}"] if (scale := run.config.get("regime.scale")) else []
    words += [f"regime={run.regime}", f"data={run.data}"]
    head = run.step + (f"+{run.variant}" if run.variant else "")
    changes = run.cell.removeprefix(head).removeprefix(",")
    hashed = HASHED.fullmatch(run.cell) is not None
    words += [] if hashed or not changes else re.split(r",(?=[A-Za-z_][A-Za-z0-9_.]*=)", changes)
    words += [f"study={run.study}", f"seed={run.seed}"]
    note = "  # and the overrides that its name stands for: see the config" if hashed else ""
    return "python run.py " + " ".join(map(shlex.quote, words)) + note


def inline_svg(data: bytes, prefix: str, label: str) -> Markup:
    """Return an SVG file as an element for a page: ids made unique by `prefix`, without style and metadata."""
    for space, uri in (("", SVG), ("xlink", XLINK)):
        ElementTree.register_namespace(space, uri)
    root = ElementTree.fromstring(data)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, prefix + value)
            elif key in ("href", f"{{{XLINK}}}href") and value.startswith("#"):
                element.set(key, f"#{prefix}{value[1:]}")
            else:
                value = REFERENCE.sub(rf"url(#{prefix}\1)", value)
                element.set(key, COLOR.sub(lambda found: f"var(--{COLORS[found[0]]})", value))
    width = root.attrib.pop("width", "")
    root.attrib.pop("height", None)
    root.set("style", f"width:{width}" if re.fullmatch(r"[0-9.]+pt", width) else "")
    root.set("role", "img")
    root.set("aria-label", label)
    return Markup(ElementTree.tostring(root, encoding="unicode"))
