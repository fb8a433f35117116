"""Which cells of a study are started: finished ones are skipped, those queued or running left alone.

All is decided and recorded while the study is locked, so that the same command typed twice at once makes no job twice.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from roadmap.config.choices import Device
from roadmap.config.schema import Config
from roadmap.errors import ConfigError, DataError, NonFiniteError, Refused
from roadmap.files import expand, nearby, read_yaml
from roadmap.runs.provenance import code_hash
from roadmap.runs.recorded_config import differences, identity
from roadmap.runs.run_dir import run_path
from roadmap.runs.schema import CHECKPOINTS, CONFIG, STATUS, Status, read_or_empty
from roadmap.runs.weights_source import library_weights
from roadmap.steps.hydra_errors import quote
from roadmap.sweep.cell_states import cell_states, known_states
from roadmap.sweep.snapshot import config_dir
from roadmap.sweep.study import Cell, Study
from roadmap.sweep.study_dir import StudyDir

START = ("planned", "stopped", "failed")  # what a person's command starts again
PATHS = ("paths.runs", "data.root", "weights", "initial_weights")


class Selection(NamedTuple):
    """The cells of a study that somebody asks for."""

    study: Study
    directory: StudyDir
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Task:
    """A cell to be run: its words of `python run.py`, and the optimizer step that it had reached."""

    key: str
    args: list[str]
    global_step: int | None


@dataclass
class Submission:
    """What a submission did: cells by key, and how many were left alone, by state."""

    started: list[str] = field(default_factory=list)
    restarted: list[str] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    job: str = ""
    note: str = ""  # what is to be told beside it

    def __str__(self) -> str:
        left = ", ".join(f"{number} {state}" for state, number in self.left.items())
        text = f"{len(self.started)} cells to start, {len(self.restarted)} to resume"
        text += (f", as Slurm job {self.job}" if self.job else "") + (f"; left alone: {left}" if left else "")
        return text + (f"\n  {self.note}" if self.note else "")


def check_cells(study: Study, cells: Sequence[Cell], *, ranks: int = 1, mixed: bool = False) -> None:
    """Check what a cell needs besides its config and images, before anything is queued: devices, and its earlier run.

    Raises Refused (with the fields that have changed), and ConfigError for a batch that `ranks` cannot share
    and for cells on different GPU types, unless they may be `mixed`.
    """
    statuses = {cell.key: read_or_empty(Status, run_path(cell.config) / STATUS) for cell in cells}
    hardware = {status.hardware or "CPU" for status in statuses.values()}
    types = sorted(name for name in hardware if not name.startswith("CPU"))
    if len(types) > 1 and not mixed:
        raise ConfigError(
            f"{study.name}: its cells ran on {', '.join(types)}; "
            "cluster.mixed_gpus=true lets a study be spread over them"
        )
    for cell in cells:
        try:
            cell.config.recipe.check_passes(ranks)
        except ConfigError as error:
            raise ConfigError(f"cluster.per_cell={ranks}: {cell.key}: {error}") from None
        if statuses[cell.key].state is not None:
            check_earlier_run(study, cell)
    check_code(study, cells, statuses)


def check_images_folder(config: Config) -> None:
    """Raise DataError where a set's folder is not given, or is not there."""
    data = config.data
    if data.known.needs_root and not data.root:
        raise DataError(f"data={data.name} needs a folder: ARGS=data.root=FOLDER, or ROADMAP_DATA")
    if data.root and not data.download and not expand(data.root).is_dir():
        raise DataError(f"data.root={data.root}: no such folder{nearby(expand(data.root))}")


def check_earlier_run(study: Study, cell: Cell) -> None:
    """Raise Refused where a cell's directory holds a run of another config."""
    run = run_path(cell.config)
    try:
        before = identity(read_yaml(run / CONFIG))
    except (OSError, ValueError):
        return  # the run itself says what to do about a record that cannot be read
    if changes := differences(before, identity(cell.config.values())):
        raise Refused(
            f"{study.name}: {cell.key} ran with another config ({'; '.join(changes[:5])}); "
            f"give the study another name, or move {run} away"
        )


def check_code(study: Study, cells: Sequence[Cell], statuses: Mapping[str, Status]) -> None:
    """Raise Refused for a cell that would go on with other code than it was begun with: one that is queued or at work
    keeps its own."""
    begun = {
        cell.key: status
        for cell in cells
        if (status := statuses[cell.key]).state not in (None, "done")
        and not cell.config.allow_drift
        and status.code_hash not in (None, code_hash())
        and any((run_path(cell.config) / CHECKPOINTS).glob("step-*.pt"))
    }
    directory = StudyDir(cells[0].config.paths.runs, study.name)
    known = cell_states(directory)[0] if begun and directory.earlier_cells() else []
    left = {state.key for state in known if state.state not in START}
    for key, status in begun.items():
        if key not in left:
            raise Refused(
                f"{study.name}: {key} was started with other code ({status.code_hash} -> {code_hash()}); go back to "
                f"{(status.git_commit or 'that code')[:12]}, or ARGS=allow_drift=true, which the report shows"
            )


def check_queued(study: Study, directory: StudyDir) -> None:
    """Raise Refused where a cell is queued or at work with another config than the study's file has by now: it would
    train as it was submitted, under the name of the new one."""
    before = {cell["key"]: cell["config"] for cell in directory.earlier_cells()}
    changed = {
        cell.key: changes
        for cell in study.cells
        if cell.key in before and (changes := differences(identity(before[cell.key]), identity(cell.config.values())))
    }
    for state in known_states(directory) if changed else ():
        if state.key in changed and state.state not in (*START, "done"):
            raise Refused(
                f"{study.name}: {state.key} is {state.state} with another config "
                f"({'; '.join(changed[state.key][:5])}); make cancel STUDY={study.name} first, "
                "or give the study another name"
            )


def choose_cells(selection: Selection, code: Path) -> tuple[Submission, list[Task]]:
    """Record the study's cells; return what is started, and what is left alone. Call it with the study locked.

    Raises Refused where a cell is queued with another config.
    """
    study, directory, cells = selection
    check_queued(study, directory)
    directory.write_cells(study)
    study.generator.record(directory.notes)
    states = {state.key: state for state in known_states(directory)}
    submission, tasks = Submission(), []
    for cell in cells:
        state = states[cell.key]
        ended = "not finite" if study.generator.is_result(cell.config, state.exit_code) else state.state
        if ended not in START:
            submission.left[ended] += 1
            continue
        (submission.started if state.global_step is None else submission.restarted).append(cell.key)
        tasks.append(Task(cell.key, run_args(study, cell, code), state.global_step))
    return submission, tasks


def only_results(selection: Selection) -> bool:
    """Tell whether the trainings that were not finite are all such results."""
    codes = ((cell, read_or_empty(Status, run_path(cell.config) / STATUS).exit_code) for cell in selection.cells)
    is_result = selection.study.generator.is_result
    return all(is_result(cell.config, code) for cell, code in codes if code == NonFiniteError.code)


def run_args(study: Study, cell: Cell, code: Path) -> list[str]:
    """Return the arguments of `python run.py` that run a cell from a snapshot; every path in them is absolute."""
    config = cell.config
    own = [word for word in cell.overrides if word.lstrip("+").split("=")[0] not in PATHS]
    paths = {"paths.runs": config.paths.runs, "data.root": config.data.root}
    paths |= {} if library_weights(config.weights) else {"weights": config.weights}
    given = {key: str(expand(path).absolute()) for key, path in paths.items() if path}
    if config.initial_weights:  # as they are now: what a file becomes later is another run
        given |= {"weights": given.get("weights", str(config.weights)), "initial_weights": config.initial_weights}
    absolute = [f"{key}={quote(str(value))}" for key, value in given.items()]
    return ["-cd", str(config_dir(code, study.file)), "-cn", study.name, "hydra.mode=RUN", *own, *absolute]


def on_gpu(cells: Iterable[Cell]) -> bool:
    """Tell whether cells want GPUs: all but those with device=cpu."""
    return any(cell.config.device != Device.cpu for cell in cells)
