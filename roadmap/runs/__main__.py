"""`python -m roadmap.runs [SOURCE ...]`: every run below some folders and in some archives, a line each."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from roadmap.errors import DONE, ConfigError
from roadmap.files import expand, nearby
from roadmap.runs.archive import find_archive
from roadmap.runs.listing import FILTERS, STATES, as_text, list_runs, select
from roadmap.text import ArgumentParser, clean, command_line, printable_lines


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 64 for a wrong command, 65 where there is no run."""
    parser = ArgumentParser(prog="python -m roadmap.runs", description="List runs: state, accuracy, time and path.")
    source = "folders of runs, archives (default: ROADMAP_RUNS, or runs)"
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help=source)
    for name in FILTERS:
        allowed = f" ({', '.join(STATES)})" if name == "state" else ""
        parser.add_argument(f"--{name}", nargs="+", default=[], metavar="X", help=f"only runs with these{allowed}")
    parser.add_argument("--newest", action="store_true", help="latest change first (default: by study and step)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    default = os.environ.get("ROADMAP_RUNS") or "runs"
    sources = [str(expand(source)) for source in args.sources or [default]]
    for source in sources:
        if not os.path.lexists(source) and not find_archive(Path(source)):
            first = "; the first run makes it: python run.py +step=gelu"
            hint = first if source == str(expand(default)) else nearby(expand(source))
            raise ConfigError(f"{clean(source)}: no such folder or archive{hint}")
    every = list_runs(sources)
    runs = select(every, {name: getattr(args, name) for name in FILTERS})
    if args.newest:
        runs.sort(key=lambda run: run.updated or "", reverse=True)
    text = as_text(runs, len(every), sources[0] if len(sources) == 1 else "")
    print(json.dumps([asdict(run) for run in runs], indent=1) if args.json else printable_lines(text))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
