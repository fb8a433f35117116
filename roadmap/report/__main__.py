"""`python -m roadmap.report RUNS [RUNS ...] --out DIR`: the roadmap's chart and tables from run directories."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Never

from roadmap.errors import DONE, ConfigError, DataError, DiskError, RoadmapError
from roadmap.report.cells import aggregate
from roadmap.report.figures import image, roadmap_chart
from roadmap.report.lines import charts
from roadmap.report.runs import Collected, collect
from roadmap.report.tables import to_csv, to_markdown, to_text
from roadmap.report.text import clean
from roadmap.runtime.ledger import replace_file

FORMATS = ("png", "svg", "pdf")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors end with our code for a bad command instead of argparse's 2."""

    def error(self, message: str) -> Never:
        self.exit(ConfigError.code, f"{self.prog}: {clean(message, 300)}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report and return the exit code: 0, 65 without one usable run, 74 where DIR cannot be written."""
    parser = Parser(prog="python -m roadmap.report", description="Chart and tables of the roadmap, from run directories.")
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="a folder of runs, a study, or one run directory")
    parser.add_argument("--out", required=True, metavar="DIR", help="where to write; made if it is not there")
    args = parser.parse_args(argv)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without ± must not end the report
    try:
        report(args.runs, Path(args.out))
    except RoadmapError as error:
        print(error, file=sys.stderr)
        return error.code
    except BrokenPipeError:  # `| head` has read enough; the files are written by then
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def report(roots: Sequence[str], out: Path) -> None:
    """Collect, draw, then write: nothing is written before all is drawn. Raises DataError and DiskError."""
    collected = collect(roots)
    if not collected.runs:
        raise DataError(_nothing(roots, collected))
    groups = aggregate(collected.runs)
    files = {"table.csv": to_csv(groups), "table.md": to_markdown(groups, collected)}
    if any(group.others for group in groups) or (out / "other_cells.csv").exists():
        files["other_cells.csv"] = to_csv(groups, others=True)
    for name, together in charts(groups).items():
        figure = roadmap_chart(together)
        files |= {f"{name}.{kind}": image(figure, kind) for kind in FORMATS}
    _write(out, files)
    print(to_text(groups, collected))
    if not any(group.rows for group in groups):
        print("No finished run of a plain step (without variant or override): there is no chart.")
    print("Written:", *(f"  {clean(out / name, 500)}" for name in sorted(files)), sep="\n")
    earlier = sorted(path.name for path in out.glob("roadmap*.*") if path.suffix[1:] in FORMATS and path.name not in files)
    if earlier:
        print(f"Of an earlier report, not written now: {clean(', '.join(earlier))}")
    sys.stdout.flush()


def _nothing(roots: Sequence[str], collected: Collected) -> str:
    where = clean(", ".join(roots), 200)
    lines = [f"no finished, sound run under {where}: there is nothing to report"]
    findings = [*collected.suspect, *collected.unfinished]
    if findings:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        lines.append(f"{findings[0]}{more}")
    return "\n".join(lines)


def _write(out: Path, files: dict[str, bytes]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            replace_file(out / name, data)
    except OSError as error:
        raise DiskError(f"--out {clean(out, 300)}: cannot be written ({error.strerror or error})") from None


if __name__ == "__main__":
    sys.exit(main())
