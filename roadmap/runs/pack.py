"""`python -m roadmap.runs.pack FOLDER --out FILE.zip`: the run directories below a folder as one file.

Each with all that is recorded of it but its checkpoints; the same runs make the same bytes. What is not of a run's
record (locks, W&B's folders, submitted jobs) stays where it is.
"""

import json
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, LargeZipFile, ZipFile, ZipInfo

from roadmap.errors import DONE, ConfigError, DataError
from roadmap.files import atomic_file, deny_others, disk_errors
from roadmap.runs.archive import MAX_RATIO, SMALL, SUFFIX, list_archive
from roadmap.runs.metrics import without_steps
from roadmap.runs.recorded_run import RecordedRun
from roadmap.runs.result import hash_of
from roadmap.runs.schema import LOG, METRICS, RECORD, SUMMARY, Summary, check_record, checksum
from roadmap.runs.search import find_run_directories
from roadmap.text import ArgumentParser, clean, command_line, printable_lines, redact

DEPTH = 4  # folders that name a run: study, regime-data, cell, seed
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every member: the oldest time that a zip knows
MODE = 0o100644 << 16


def pack(folder: str, out: Path, *, steps: bool = True) -> tuple[int, int, int]:
    """Write an archive of the runs below a folder; return how many, the bytes of their files, and its own.

    Without `steps` the ledgers of finished runs have their evaluations alone. Raises DataError where there is no run,
    two have one name, or a file cannot be packed; ConfigError for a wrong name of the archive, DiskError.
    """
    runs, problems = find_run_directories([folder])
    if problems:
        raise DataError(str(problems[0]))
    if not runs:
        raise DataError(f"{clean(folder)}: holds no run")
    named: dict[str, RecordedRun] = {}
    for run in runs:
        first = named.setdefault("/".join(run.folder.parts[-DEPTH:]), run)
        if first is not run:
            raise DataError(f"{clean(first.shown)} and {clean(run.shown)} would have one name in the archive")
    if out.suffix != SUFFIX or out.is_dir():
        raise ConfigError(f"--out {clean(out)}: an archive is a file, and its name ends with {SUFFIX}")
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with disk_errors(out), atomic_file(out) as file:
            with ZipFile(file, "w", ZIP_DEFLATED, allowZip64=False, compresslevel=9) as archive:
                for name in sorted(named):
                    add_run(archive, name, named[name], {} if steps else evaluations(named[name]))
            file.flush()
            written, folders = list_archive(Path(file.name))  # what cannot be read back is not kept
            members = [(name, member) for files in folders.values() for name, member in files.items()]
            total = sum(len(written.read(member, RECORD[name])) for name, member in members)
    except LargeZipFile as error:
        raise DataError(f"{clean(folder)}: is more than one archive may hold ({clean(error)})") from None
    return len(runs), total, out.stat().st_size


def evaluations(run: RecordedRun) -> dict[str, bytes]:
    """Return ledger and summary of a finished run without its lines of training; no report reads those.

    Nothing for a run whose ledger is not, by a hash, the one that it ended with: what is wrong with it must be seen.
    """
    try:
        summary = run.summary() or {}
        hashes = check_record(Summary, summary, SUMMARY).sha256 or {}
        if METRICS not in hashes or run.changed(summary):
            return {}
        ledger = without_steps(run.read(METRICS))
    except (ValueError, OSError):
        return {}
    summary |= {"sha256": {**hashes, METRICS: hash_of(ledger)}, "steps_left_out": True}
    summary["checksum"] = checksum(summary)
    return {METRICS: ledger, SUMMARY: (json.dumps(summary, indent=2) + "\n").encode()}


def add_run(archive: ZipFile, name: str, run: RecordedRun, instead: dict[str, bytes]) -> None:
    """Add the files of a run that are there, its status first: what is written meanwhile is newer than it says.

    `instead` has the bytes of some of them. Raises DataError for a file that no run writes, or that holds a secret of
    this machine.
    """
    for file in filter(run.has, RECORD):
        if (run.folder / file).is_symlink():  # it might lead to any file of this machine
            raise DataError(f"{clean(run.shown)}: {file} is a link, as no run writes it, and is not packed")
        try:
            data = instead[file] if file in instead else run.read(file)
        except OSError as error:
            raise DataError(f"{clean(run.shown)}: {file} cannot be packed ({error.strerror or error})") from None
        if file == LOG:
            data = redact(data.decode(errors="replace")).encode()
        elif not file.endswith(".npy") and redact(text := data.decode(errors="replace")) != text:
            raise DataError(f"{clean(run.shown)}: {file} holds a secret of this machine, and is not packed")
        # What would be packed too tightly to be read back (a large set's labels, in their order) is not packed.
        tight = len(data) > SMALL and len(zlib.compress(data, 1)) * MAX_RATIO < 2 * len(data)
        member = ZipInfo(f"{name}/{file}", EPOCH)
        member.compress_type = ZIP_STORED if tight else ZIP_DEFLATED
        member.external_attr, member.create_system = MODE, 3
        archive.writestr(member, data)


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    deny_others()
    parser = ArgumentParser(
        prog="python -m roadmap.runs.pack", description="Pack the records of runs into one file, without checkpoints."
    )
    parser.add_argument("folder", metavar="FOLDER", help="a study, or any folder of runs")
    parser.add_argument("--out", metavar="FILE", help="the archive to write or replace (default: FOLDER.zip)")
    about = "leave out the training steps of finished runs: a tenth of the size or less"
    parser.add_argument("--no-steps", action="store_true", help=about)
    args = parser.parse_args(argv)
    out = Path(args.out or f"{args.folder.rstrip('/')}{SUFFIX}")
    count, total, size = pack(args.folder, out, steps=not args.no_steps)
    print(printable_lines(f"{out}: {count} runs, {total / 1e6:.2f} MB in {size / 1e6:.2f} MB, without checkpoints"))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
