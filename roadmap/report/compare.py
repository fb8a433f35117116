"""`python -m roadmap.report.compare A B`: two runs, or two cells over their seeds, side by side."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from roadmap.config import Affects, Config
from roadmap.errors import DONE
from roadmap.files import atomic_write, deny_others, disk_errors
from roadmap.parsing import parse_yaml
from roadmap.report.analyse.comparison import Comparison, compare, find_side
from roadmap.report.draw.curves import compared_curves
from roadmap.report.draw.style import image
from roadmap.report.write.comparison_page import as_json, as_text
from roadmap.runs.recorded_config import flatten_config, from_flat
from roadmap.runs.recorded_run import RecordedRun
from roadmap.runs.schema import CONFIG
from roadmap.text import ArgumentParser, clean, command_line, printable_lines, redact

FORMATS = ("png", "svg")


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 64 where there is no such run, 65 where none is sound, 74."""
    deny_others()
    parser = ArgumentParser(prog="python -m roadmap.report.compare", description="Compare two runs or two rows.")
    side = "a run, or a folder of its seeds, also in an archive; or a row of SOURCE: gelu, gelu/seed0"
    parser.add_argument("a", metavar="A", help=side)
    parser.add_argument("b", metavar="B", help="the run or row to compare with A")
    parser.add_argument("--within", default="", metavar="SOURCE", help="a study or an archive that contains the rows")
    parser.add_argument("--out", metavar="DIR", help="where to write curves (PNG, SVG), a page and its JSON")
    parser.add_argument("--json", action="store_true", help="print JSON")
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without ± must not end it
    args = parser.parse_args(argv)
    found = compare(*(find_side(name, args.within) for name in (args.a, args.b)))
    layers = layer_lines(found)
    text = printable_lines(as_text(found, layers))
    data = redact(json.dumps(as_json(found, layers), indent=1))
    if args.out:
        write(Path(args.out), found, text, data)
    print(data if args.json else text)
    return DONE


def write(out: Path, found: Comparison, text: str, data: str) -> None:
    """Write the page, its JSON and the curves. Raises DiskError."""
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
    from roadmap.steps.table import layer_changes  # it loads torch

    try:
        a, b = (recorded_config(side.first) for side in (found.a, found.b))
        return layer_changes(a.model, b.model, a.data.num_classes or 1000)
    except (ValueError, OSError, RuntimeError) as error:  # of another version, or made by someone to do harm
        return [f"not known: {clean(error, 200)}"]


def recorded_config(run: RecordedRun) -> Config:
    """Return the checked config of a run. Raises ConfigError, ValueError and OSError."""
    return from_flat(flatten_config(parse_yaml(run.read(CONFIG).decode())))


if __name__ == "__main__":
    sys.exit(main())
