"""Which cells of a study are started, and how: finished ones are skipped, those queued or running left alone, the others started.

All is decided and noted while the study is held, so that the same command typed twice at once makes no job twice.
"""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from roadmap.config.choices import DataName, Device
from roadmap.config.schema import Config
from roadmap.errors import ConfigError, DataError, Refused
from roadmap.files import read_json
from roadmap.runs.provenance import code_hash
from roadmap.runs.run_dir import differences, identity, run_path
from roadmap.runs.schema import CHECKPOINTS, CONFIG, STATUS
from roadmap.sweep import queue, slurm, snapshot
from roadmap.sweep.cluster import SlurmConfig
from roadmap.sweep.folder import Record, StudyDir
from roadmap.sweep.status import CellState, look
from roadmap.sweep.study import Cell, Study, quoted
from roadmap.training.grad_accumulation import check_micro_batch

START = ("planned", "stopped", "failed")  # what a person's command starts again
EMBEDDED = (DataName.digits, DataName.synthetic)  # sets that need no folder
PLACES = ("paths.runs", "data.root")
SLURM = "slurm"  # the folder of submitit's files, below the study's notes


@dataclass
class Begun:
    """What a submission did."""

    started: list[str] = field(default_factory=list)  # keys
    restarted: list[str] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)  # how many cells were left alone, by state
    job: str = ""

    def __str__(self) -> str:
        left = ", ".join(f"{number} {state}" for state, number in self.left.items())
        what = f"{len(self.started)} cells begin, {len(self.restarted)} go on" + (
            f" as Slurm's job {self.job}" if self.job else ""
        )
        return what + (f"; left alone: {left}" if left else "")


def check_cells(study: Study, cells: Sequence[Cell], *, ranks: int = 1, mixed: bool = False) -> None:
    """Check what a cell needs besides its config, before anything is queued: its images' folder, and what its run directory holds.

    Raises DataError, Refused (with the fields that have changed), and ConfigError for a batch that `ranks` cannot share and for
    cells on different GPU types, unless they may be `mixed`.
    """
    types = sorted({name for cell in cells if (name := _hardware(cell)) and not name.startswith("CPU")})
    if len(types) > 1 and not mixed:
        raise ConfigError(
            f"{study.name}: its cells ran on {', '.join(types)}; cluster.mixed_gpus=true lets a study be spread over them"
        )
    for cell in cells:
        data = cell.config.data
        if data.name not in EMBEDDED and not data.root:
            raise DataError(f"data={data.name} needs a folder: ARGS=data.root=FOLDER, or ROADMAP_DATA")
        if data.root and not data.download and not Path(data.root).expanduser().is_dir():
            raise DataError(f"data.root={data.root}: no such folder")
        try:
            check_micro_batch(cell.config.recipe, ranks)
        except ConfigError as error:
            raise ConfigError(f"cluster.per_cell={ranks}: {cell.key}: {error}") from None
        _check_run(study, cell)


def _hardware(cell: Cell) -> str | None:
    try:
        return str(read_json(run_path(cell.config) / STATUS).get("hardware") or "")
    except (OSError, ValueError):
        return None


def _check_run(study: Study, cell: Cell) -> None:
    run = run_path(cell.config)
    try:
        before, status = load_yaml(run / CONFIG), read_json(run / STATUS)
    except (OSError, ValueError, yaml.YAMLError):
        return  # no run, or one that cannot be read: the run itself says what to do about that
    if changes := differences(identity(before), identity(cell.config.values())):
        raise Refused(
            f"{study.name}: {cell.key} has run with another config ({'; '.join(changes[:5])}); give the study another name, "
            f"or move {run} away"
        )
    begun = status.get("state") != "done" and any((run / CHECKPOINTS).glob("step-*.pt"))
    if begun and not cell.config.allow_drift and status.get("code_hash") not in (None, code_hash()):
        raise Refused(
            f"{study.name}: {cell.key} was begun with other code ({status['code_hash']} -> {code_hash()}); go back to "
            f"{str(status.get('git_commit'))[:12]}, or ARGS=allow_drift=true, which the report shows"
        )


def load_yaml(path: Path) -> Any:
    """Read a YAML file, with the fast parser where there is one."""
    return yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def command_line(study: Study, words: Sequence[str], config: Config, code: Path) -> list[str]:
    """Return the words of `python run.py` that run a cell from a snapshot; every path in them is absolute."""
    own = [word for word in words if word.lstrip("+").split("=")[0] not in PLACES]
    places = [f"paths.runs={quoted(str(Path(config.paths.runs).expanduser().absolute()))}"]
    if config.data.root:
        places.append(f"data.root={quoted(str(Path(config.data.root).expanduser().absolute()))}")
    return ["-cd", str(snapshot.config_dir(code, study.file)), "-cn", study.name, "hydra.mode=RUN", *own, *places]


def on_gpu(cells: Iterable[Cell]) -> bool:
    """Tell whether cells want GPUs: all but those with device=cpu."""
    return any(cell.config.device != Device.cpu for cell in cells)


def submit(study: Study, directory: StudyDir, chosen: Sequence[Cell], config: SlurmConfig) -> Begun:
    """Start the cells of a study that are neither done nor at work, as one job array; return what was done.

    Raises ConfigError with Slurm's message, Busy, DiskError.
    """
    directory.make()
    code = snapshot.take(directory.notes / "snapshots", study.file)
    with directory.lock():
        settle(directory)
        directory.write_cells(study)
        states = certain_states(directory)
        begun, todo = choose(chosen, states)
        if todo:
            lines = [command_line(study, cell.words, cell.config, code) for cell in todo]
            begun.job = send(directory, [cell.key for cell in todo], lines, code, config, on_gpu(todo), states)
    return begun


def certain_states(directory: StudyDir) -> dict[str, CellState]:
    """Return every cell's state by key. Raises ConfigError where Slurm does not answer: what looks stopped may be queued."""
    states, answer = look(directory)
    if not answer.answered:
        raise ConfigError(
            f"{directory.name}: Slurm gives no answer ({answer.trouble}), so nobody knows what is queued; try again"
        )
    return {state.key: state for state in states}


def choose(cells: Iterable[Cell], states: dict[str, CellState]) -> tuple[Begun, list[Cell]]:
    """Return which cells a person's command starts, and what it leaves alone."""
    begun, todo = Begun(), []
    for cell in cells:
        state = states[cell.key]
        if state.state not in START:
            begun.left[state.state] = begun.left.get(state.state, 0) + 1
            continue
        todo.append(cell)
        (begun.started if state.global_step is None else begun.restarted).append(cell.key)
    return begun, todo


def send(
    directory: StudyDir,
    keys: Sequence[str],
    lines: Sequence[Sequence[str]],
    code: Path,
    config: SlurmConfig,
    gpus: bool,
    states: dict[str, CellState],
    by: str = "roadmap",
) -> str:
    """Submit an array, and the chart behind it, and note its jobs, while the study is held; return its id. Raises ConfigError."""
    name = f"{directory.name}-{secrets.token_hex(4)}"
    rows: list[Record] = [
        {
            "cell": key, "kind": "slurm", "name": name, "by": by, "step": states[key].global_step, "line": list(line),
            "snapshot": code.name, "on_gpu": gpus, "cluster": config.values(), **snapshot.facts(code),
        }
        for key, line in zip(keys, lines, strict=True)
    ]  # fmt: skip
    directory.set_pending({"name": name, "rows": rows})
    try:
        runs = [directory.path / key for key in keys]
        jobs = slurm.submit(directory.notes / SLURM, name, code, lines, runs, config, gpus)
    except ConfigError:  # Slurm's refusal: nothing is queued
        directory.set_pending(None)
        raise
    note_jobs(directory, rows, jobs)
    array = jobs[0].split("_")[0]
    if config.report:
        words = [str(directory.path), "--out", str(directory.path / "report")]
        slurm.submit_report(directory.notes / SLURM, name, code, words, array, config)
    return array


def note_jobs(directory: StudyDir, rows: Iterable[Record], jobs: Iterable[str]) -> None:
    """Note the jobs of a submission, which is then complete."""
    logs = Path(SLURM)
    directory.note(
        [{**row, "job": job, "log": str(slurm.log_of(logs, job))} for row, job in zip(rows, jobs, strict=True)]
    )
    directory.set_pending(None)


def settle(directory: StudyDir) -> None:
    """Complete what an interrupted submission left: note the jobs that Slurm has of it, cancel those that cannot run.

    Raises ConfigError where Slurm does not answer: nobody knows then what is queued.
    """
    pending = directory.pending()
    if pending is None:
        return
    answer = queue.ask([pending["name"]])
    if not answer.answered:
        raise ConfigError(
            f"{directory.name}: an earlier submission was interrupted, and Slurm gives no answer ({answer.trouble}); try again"
        )
    alive = {job for job, state in answer.states.items() if queue.waits(state) or queue.goes(state)}
    whole = {job for job in answer.states if (directory.notes / SLURM / f"{job}_submitted.pkl").exists()}
    if alive - whole:  # submitit had not yet given them their work
        queue.cancel(sorted(alive - whole))
    by_index = {int(job.partition("_")[2] or 0): job for job in whole}
    found = [(row, by_index[index]) for index, row in enumerate(pending["rows"]) if index in by_index]
    note_jobs(directory, [row for row, _ in found], [job for _, job in found])
