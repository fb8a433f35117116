"""`python -m roadmap.report SOURCE [SOURCE ...] --out DIR`: charts, tables and a page, from run directories or W&B."""

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from roadmap.errors import DONE, ConfigError, DataError
from roadmap.files import atomic_write, deny_others, disk_errors
from roadmap.report.analyse.cells import Group
from roadmap.report.analyse.collect import Collected, aggregate, collect
from roadmap.report.analyse.comparability import KINDS
from roadmap.report.analyse.findings import findings
from roadmap.report.draw.gallery import gallery
from roadmap.report.draw.style import image
from roadmap.report.read.wandb import PREFIX
from roadmap.report.write.csv_files import csv_files
from roadmap.report.write.page import page
from roadmap.report.write.results_json import to_json
from roadmap.report.write.summary_run import require_login, send_summaries
from roadmap.report.write.tables import to_markdown, to_tex, to_text
from roadmap.runs.archive import SUFFIX
from roadmap.runs.permissions import require_folder
from roadmap.text import ArgumentParser, clean, command_line, first_few, redact

FORMATS = ("png", "svg", "pdf")


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    """Write the report and return the exit code: 0, 64, 65 without one usable run, 74 where DIR cannot be written."""
    deny_others()
    parser = ArgumentParser(
        prog="python -m roadmap.report",
        description="Write figures, tables and a page from run directories, archives or W&B.",
        epilog="Kinds of runs: " + "; ".join(f"{kind}: {about}" for kind, about in KINDS.items()) + ".",
    )
    source = "a run, a study or any folder of runs; an archive of them; or wandb:ENTITY/PROJECT[?group=STUDY]"
    parser.add_argument("runs", nargs="+", metavar="SOURCE", help=source)
    parser.add_argument("--out", required=True, metavar="DIR", help="where to write the report")
    allow: dict[str, Any] = {"nargs": "+", "action": "extend", "default": [], "metavar": "KIND"}
    parser.add_argument("--allow", **allow, help="include runs of these kinds, marked †")
    parser.add_argument("--tables-only", action="store_true", help="only tables and findings, no figures and page")
    parser.add_argument("--wandb", action="store_true", help="also send charts and tables to a summary run per study")
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without ± must not end the report
    args = parser.parse_args(argv)
    if wrong := [kind for kind in args.allow if kind not in KINDS]:
        raise ConfigError(f"--allow {clean(wrong[0])}: there is no such kind; allowed: {', '.join(KINDS)}")
    out = require_folder(args.out)
    if args.wandb:
        require_login()
    report(args.runs, out, args.allow, figures=not args.tables_only, to_wandb=args.wandb)
    return DONE


def report(
    sources: Sequence[str], out: Path, allow: Collection[str] = (), figures: bool = True, to_wandb: bool = False
) -> None:
    """Collect, draw, then write: no file before all is drawn. Raises ConfigError, DataError and DiskError, and at the
    end StoppedEarly where W&B does not take the summaries."""
    for source in sources:
        if source.startswith(PREFIX) or sys.stderr.isatty():  # W&B may take a minute, and more without an answer
            print(f"Reading {clean(source, 200)} ...", file=sys.stderr, flush=True)
    collected = collect(sources, allow)
    if not collected.runs:
        raise DataError(_nothing(sources, collected))
    groups = aggregate(collected.runs)
    files = tables(groups, collected, there={path.name for path in out.glob("*.csv")})
    if figures:
        files |= figures_and_page(groups, collected)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            atomic_write(out / name, data)
    print(to_text(groups, collected))
    if not any(group.rows for group in groups):
        print("No finished run of a plain step (without variant or override): there is no chart of the roadmap.")
    print(_written(out, files))
    earlier = sorted(path.name for path in out.glob("*.*") if path.suffix[1:] in FORMATS and path.name not in files)
    if earlier:
        print(f"Left over from an earlier report: {clean(', '.join(earlier))}")
    sys.stdout.flush()
    if to_wandb:
        print("Sending charts and tables to W&B ...", file=sys.stderr, flush=True)
        print(*send_summaries(groups, sources), sep="\n")


def tables(groups: Sequence[Group], collected: Collected, there: Collection[str] = ()) -> dict[str, bytes]:
    """Return the tables and the findings by file name; `there` are those of an earlier report."""
    sentences = findings(groups)
    files = {
        "table.md": to_markdown(groups, collected, sentences),
        "table.tex": to_tex(groups),
        "report.json": to_json(groups, collected, sentences),
        "findings.txt": ("\n\n".join(sentences) + "\n").encode(),
        **csv_files(groups, there),
    }
    return {name: redact(data.decode()).encode() for name, data in files.items()}


def figures_and_page(groups: Sequence[Group], collected: Collected) -> dict[str, bytes]:
    """Return the figures in three formats, and the page that shows them, by file name."""
    files: dict[str, bytes] = {}
    shown = []
    for drawing in gallery(groups):
        files |= {f"{drawing.name}.{kind}": image(drawing.figure, kind) for kind in FORMATS}
        shown.append((drawing, files[f"{drawing.name}.svg"]))
    html = page(groups, collected, findings(groups), shown)
    return files | {"index.html": redact(html.decode()).encode()}


def _written(out: Path, names: Collection[str]) -> str:
    """Return where the files are: the page first, then the names of the others, figures without their formats."""
    figures = sorted({name.rsplit(".", 1)[0] for name in names if name.endswith(FORMATS)})
    others = ", ".join(sorted(name for name in names if not name.endswith((*FORMATS, ".html"))))
    lines = [f"Page:    {out / 'index.html'}"] if "index.html" in names else []
    lines += [f"Figures: {', '.join(figures)} ({', '.join(FORMATS)})"] if figures else []
    return "\n".join(clean(line, 1_000) for line in [f"Written to {out}", *lines, f"Tables:  {others}"])


def _nothing(sources: Sequence[str], collected: Collected) -> str:
    where = clean(", ".join(sources), 200)
    lines = [f"no finished, undamaged run under {where}: there is nothing to report"]
    found = [*collected.suspect, *collected.unfinished]
    if found:
        lines.append(f"{found[0]}" + (f" (and {len(found) - 1} more)" if len(found) > 1 else ""))
    elif collected.foreign:
        runs = f"{collected.foreign} run{'s' * (collected.foreign > 1)}"
        lines.append(f"the project holds {runs}, none of this roadmap")
    elif packed := [clean(path, 80) for source in sources for path in sorted(Path(source).glob(f"*{SUFFIX}"))]:
        lines.append(f"archives count where they are named themselves: {first_few(packed)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
