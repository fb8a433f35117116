"""`python -m roadmap.report SOURCE [SOURCE ...] --out DIR`: charts, tables and a page, from run directories or from W&B."""

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Never

from roadmap.errors import DONE, ConfigError, DataError, DiskError, RoadmapError
from roadmap.files import atomic_write
from roadmap.report.as_json import to_json
from roadmap.report.cells import Group
from roadmap.report.findings import findings
from roadmap.report.gains import aggregate
from roadmap.report.neighbours import KINDS
from roadmap.report.runs import Collected, collect
from roadmap.report.tables import to_csv, to_markdown, to_tex, to_text
from roadmap.report.text import clean

SOURCES = "a folder of runs, a study, one run directory, or wandb:ENTITY/PROJECT[?group=STUDY]"
ALLOW = "count suspect runs of these kinds, marked †"
FORMATS = ("png", "svg", "pdf")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors end with our code for a bad command instead of argparse's 2."""

    def error(self, message: str) -> Never:
        self.exit(ConfigError.code, f"{self.prog}: {clean(message, 400)}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report and return the exit code: 0, 64, 65 without one usable run, 74 where DIR cannot be written."""
    parser = Parser(
        prog="python -m roadmap.report",
        description="Charts, tables and a page of the roadmap, from run directories or from W&B.",
        epilog="Kinds of suspect runs: " + "; ".join(f"{kind}: {about}" for kind, about in KINDS.items()) + ".",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="SOURCE",
        help="a folder of runs, a study, one run, or wandb:ENTITY/PROJECT[?group=STUDY]",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where to write; made if it is not there")
    parser.add_argument(
        "--allow",
        nargs="+",
        action="extend",
        default=[],
        metavar="KIND",
        help="count suspect runs of these kinds, marked †",
    )
    parser.add_argument("--tables-only", action="store_true", help="tables and findings, without figures and page")
    args = parser.parse_args(argv)
    if wrong := [kind for kind in args.allow if kind not in KINDS]:
        parser.error(f"--allow {wrong[0]}: there is no such kind; allowed: {', '.join(KINDS)}")
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without ± must not end the report
    try:
        report(args.runs, Path(args.out), args.allow, figures=not args.tables_only)
    except RoadmapError as error:
        print(error, file=sys.stderr)
        return error.code
    except BrokenPipeError:  # `| head` has read enough; the files are written by then
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def report(sources: Sequence[str], out: Path, allow: Collection[str] = (), figures: bool = True) -> None:
    """Collect, draw, then write: nothing is written before all is drawn. Raises ConfigError, DataError and DiskError."""
    collected = collect(sources, allow)
    if not collected.runs:
        raise DataError(_nothing(sources, collected))
    groups = aggregate(collected.runs)
    files = tables(groups, collected)
    if "other_cells.csv" not in files and (out / "other_cells.csv").exists():
        files["other_cells.csv"] = to_csv(groups, others=True)  # what an earlier report left there is no longer true
    if figures:
        files |= batches(groups, collected)
    _write(out, files)
    print(to_text(groups, collected))
    if not any(group.rows for group in groups):
        print("No finished run of a plain step (without variant or override): there is no chart of the roadmap.")
    print("Written:", *(f"  {clean(out / name, 500)}" for name in sorted(files)), sep="\n")
    earlier = sorted(path.name for path in out.glob("*.*") if path.suffix[1:] in FORMATS and path.name not in files)
    if earlier:
        print(f"Of an earlier report, not written now: {clean(', '.join(earlier))}")
    sys.stdout.flush()


def tables(groups: Sequence[Group], collected: Collected) -> dict[str, bytes]:
    """Return the tables and the findings by file name."""
    said = findings(groups)
    files = {
        "table.csv": to_csv(groups),
        "table.md": to_markdown(groups, collected, said),
        "table.tex": to_tex(groups),
        "report.json": to_json(groups, collected, said),
        "findings.txt": ("\n\n".join(said) + "\n").encode(),
    }
    if any(group.others for group in groups):
        files["other_cells.csv"] = to_csv(groups, others=True)
    return files


def batches(groups: Sequence[Group], collected: Collected) -> dict[str, bytes]:
    """Return the figures in three formats, and the page that shows them, by file name."""
    from roadmap.report.gallery import gallery  # drawing takes a second that tables need not wait
    from roadmap.report.page import page
    from roadmap.report.style import image

    figures = gallery(groups)
    files = {f"{name}.{kind}": image(figure, kind) for name, figure in figures.items() for kind in FORMATS}
    shown = {name: files[f"{name}.svg"] for name in figures}
    return files | {"index.html": page(groups, collected, findings(groups), shown)}


def _nothing(sources: Sequence[str], collected: Collected) -> str:
    where = clean(", ".join(sources), 200)
    lines = [f"no finished, sound run under {where}: there is nothing to report"]
    found = [*collected.suspect, *collected.unfinished]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        lines.append(f"{found[0]}{more}")
    elif collected.foreign:
        lines.append(f"the project holds {collected.foreign} runs, none of this roadmap")
    return "\n".join(lines)


def _write(out: Path, files: dict[str, bytes]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            atomic_write(out / name, data)
    except OSError as error:
        raise DiskError(f"--out {clean(out, 300)}: cannot be written ({error.strerror or error})") from None


if __name__ == "__main__":
    sys.exit(main())
