"""Collect the runs of some sources: those that count, those not finished, and what is suspect.

A source is a folder, or `wandb:ENTITY/PROJECT[?group=STUDY]`. Used by `python -m roadmap.report` and the notebook.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from roadmap.report.find import Finding, find_runs
from roadmap.report.folder import RunFolder, Suspect
from roadmap.report.neighbours import like_the_others, one_of_each
from roadmap.report.offline import find_offline_runs
from roadmap.report.record import Run, Source, Unfinished, read_run

WANDB = "wandb:"
LONG = 2**28  # bytes of ledgers, from which on more processes are worth their start of a second
MOST_PROCESSES = 8


@dataclass(frozen=True)
class Collected:
    """All that the sources hold: the runs that count, those not finished, and what is suspect and left out."""

    runs: tuple[Run, ...]
    unfinished: tuple[Finding, ...]
    suspect: tuple[Finding, ...]
    allowed: tuple[Finding, ...] = ()  # suspect, but counted because the user said so
    foreign: int = 0  # runs of other people's code in a W&B project


def collect(sources: Iterable[str | Path], allow: Collection[str] = ()) -> Collected:
    """Read every run of some sources; never raises for a bad run.

    `allow` names kinds of suspect runs that count nevertheless (`roadmap.report.neighbours.KINDS`).
    Raises ConfigError where a W&B source is misnamed; what W&B does not give is listed.
    """
    named = [str(source) for source in sources]
    places, suspect = find_runs(source for source in named if not source.startswith(WANDB))
    found: list[Source] = [RunFolder(place) for place in places if not place.offline]
    offline, foreign, problems = find_offline_runs([place for place in places if place.offline])
    found += offline
    suspect += problems
    for project in dict.fromkeys(source for source in named if source.startswith(WANDB)):
        from roadmap.report.wandb_source import (
            find_wandb_runs,  # its client takes half a second that folders need not wait
        )

        of_wandb, others, problems = find_wandb_runs(project)
        found += of_wandb
        foreign += others
        suspect += problems
    runs: list[Run] = []
    unfinished: list[Finding] = []
    for got in _read_all(found):
        if isinstance(got, Run):
            runs.append(got)
        else:
            finding, finished = got
            (suspect if finished else unfinished).append(finding)
    runs, copies = one_of_each(runs)
    runs, unlike = like_the_others(runs, allow)
    marked = {run.name for run in runs if run.marks}
    return Collected(
        runs=tuple(sorted(runs, key=lambda run: (run.study, run.regime, run.data, run.cell, run.seed))),
        unfinished=tuple(unfinished),
        suspect=(*suspect, *copies, *(finding for finding in unlike if finding.path not in marked)),
        allowed=tuple(finding for finding in unlike if finding.path in marked),
        foreign=foreign,
    )


def _read_all(sources: Sequence[Source]) -> Iterator[Run | tuple[Finding, bool]]:
    """Read every source, in order; many long ledgers in several processes, since each takes a tenth of a second and more."""
    folders = [source for source in sources if isinstance(source, RunFolder)]
    processes = min(len(os.sched_getaffinity(0)), MOST_PROCESSES)
    if processes > 1 and sum(folder.size() for folder in folders) > LONG:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            yield from pool.map(_read, folders, chunksize=4)
        yield from map(_read, (source for source in sources if not isinstance(source, RunFolder)))
    else:
        yield from map(_read, sources)


def _read(source: Source) -> Run | tuple[Finding, bool]:
    """Read one source: a run that counts, or why it gives no number, and whether that is suspect."""
    try:
        return read_run(source)
    except Unfinished as reason:
        return Finding(source.shown, str(reason)), False
    except Suspect as reason:
        return Finding(source.shown, str(reason)), True
    except OSError as error:
        return Finding(source.shown, f"cannot be read ({error.strerror or type(error).__name__})"), True
