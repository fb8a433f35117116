"""From sources to groups: the runs that count, those not finished, what is suspect, and the report's whole arithmetic.

A source is a folder, an archive, a folder in one, or `wandb:ENTITY/PROJECT[?group=STUDY]`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from roadmap.distributed.cores import num_cores
from roadmap.errors import ConfigError
from roadmap.report.analyse.attribution import with_attribution
from roadmap.report.analyse.cells import Group, group_runs
from roadmap.report.analyse.comparability import comparable, count_once, mark_rounding
from roadmap.report.analyse.gains import with_gains
from roadmap.report.analyse.tuning import at_own_rates
from roadmap.report.read import wandb
from roadmap.report.read.run import Run, Unfinished, read_run
from roadmap.runs.recorded_run import RecordedRun
from roadmap.runs.search import Problem, find_run_directories
from roadmap.text import clean, reason

LONG = 2**28  # bytes of ledgers, from which on more processes are worth their start of a second
MOST_PROCESSES = 8
Source = RecordedRun | wandb.WandbRun
# What else some studies are for: each returns a group, one of all, with that; or as it is.
ANALYSES: tuple[Callable[[Group, Sequence[Group]], Group], ...] = (with_attribution, at_own_rates)


@dataclass(frozen=True)
class Collected:
    """All that the sources hold: the runs that count, those not finished, and what is suspect and left out."""

    runs: tuple[Run, ...]
    unfinished: tuple[Problem, ...]
    suspect: tuple[Problem, ...]
    allowed: tuple[Problem, ...] = ()  # suspect, but counted because the user allowed it
    rounding: tuple[Problem, ...] = ()  # counted, though computed with other code, hardware or versions
    foreign: int = 0  # runs of other people's code in a W&B project


def collect(sources: Iterable[str | Path], allow: Collection[str] = ()) -> Collected:
    """Read every run of some sources; never raises for a bad run.

    `allow` names kinds of suspect runs that count nevertheless (`comparability.KINDS`). Raises ConfigError where a
    source is empty or a W&B source is misnamed; what W&B does not give is listed.
    """
    names = [str(source) for source in sources]
    if "" in names:
        raise ConfigError("source '': is empty, perhaps from a variable that is not set; `.` is this folder")
    found: list[Source] = []
    directories, suspect = find_run_directories(name for name in names if not name.startswith(wandb.PREFIX))
    found += directories
    foreign = 0
    for project in dict.fromkeys(name for name in names if name.startswith(wandb.PREFIX)):
        online, others, problems = wandb.find_wandb_runs(project)
        found += online
        foreign += others
        suspect += problems
    runs, unfinished, damaged = read_sources(found)
    suspect += damaged
    runs, doubles = count_once(runs)
    runs, left_out, allowed = comparable(runs, allow)
    runs, rounding = mark_rounding(runs)
    return Collected(
        runs=tuple(sorted(runs, key=lambda run: (run.study, run.regime, run.data, run.cell, run.seed))),
        unfinished=tuple(unfinished),
        suspect=(*suspect, *doubles, *left_out),
        allowed=tuple(allowed),
        rounding=tuple(rounding),
        foreign=foreign,
    )


def read_sources(found: Sequence[Source]) -> tuple[list[Run], list[Problem], list[Problem]]:
    """Return the finished, sound runs of some sources, those not finished, and the damaged ones."""
    runs: list[Run] = []
    unfinished: list[Problem] = []
    damaged: list[Problem] = []
    for source, outcome in zip(found, _read_all(found), strict=True):
        if isinstance(outcome, Run):
            runs.append(outcome)
        else:
            reason, finished = outcome
            (damaged if finished else unfinished).append(Problem(source.shown, reason))
    return runs, unfinished, damaged


def _read_all(sources: Sequence[Source]) -> Iterator[Run | tuple[str, bool]]:
    """Read every source, in order; many long ledgers in several processes: each takes a tenth of a second and more."""
    directories = [source for source in sources if isinstance(source, RecordedRun)]
    processes = min(num_cores(), MOST_PROCESSES)
    if processes > 1 and sum(directory.metrics_size() for directory in directories) > LONG:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            yield from pool.map(_read, directories, chunksize=4)
        yield from map(_read, sources[len(directories) :])  # runs of W&B come last
    else:
        yield from map(_read, sources)


def _read(source: Source) -> Run | tuple[str, bool]:
    """Read one source: a run that counts, or why it gives no number, and whether that is suspect."""
    try:
        return read_run(source)
    except Unfinished as why:
        return str(why), False
    except ValueError as why:
        return str(why), True
    except OSError as error:
        return f"cannot be read ({reason(error)})", True
    except Exception as error:  # made by someone who thought of what we did not: it alone is left out
        return f"its record cannot be read ({type(error).__name__}: {clean(error, 120)})", True


def aggregate(runs: Iterable[Run]) -> list[Group]:
    """Return the groups of some runs, every cell with what it gains over its parent."""
    groups = with_gains(group_runs(runs))
    for add in ANALYSES:
        groups = [add(group, groups) for group in groups]
    return groups
