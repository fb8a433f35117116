"""A study on this machine: as many cells beside each other as its GPUs, or its CPU cores, hold.

Stays in the foreground. Asked to stop, or its terminal closed, it passes that on: what has started is saved,
and the same command continues later. If it is killed, the kernel asks its runs to stop: none trains on unseen. On GPUs
the seeds of a row of small nets share one, trained side by side in one process (`roadmap.training.group`).
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from roadmap.config import Config as RunConfig
from roadmap.config.choices import Device, When
from roadmap.distributed.cores import usable_cores
from roadmap.errors import ConfigError
from roadmap.files import expand
from roadmap.runs.process import process_start
from roadmap.runs.provenance import git_state_of
from roadmap.sweep.cluster import ClusterConfig
from roadmap.sweep.local_scheduler import LocalTask, Scheduler, Slot
from roadmap.sweep.snapshot import take_snapshot
from roadmap.sweep.study import Cell
from roadmap.sweep.study_dir import Row
from roadmap.sweep.submit import Selection, choose_cells, on_gpu

MAX_AHEAD = 4  # groups that prepare themselves behind one that trains
CORES_A_GROUP = 4  # each of which compiles
# Images of a run, over all its epochs, from which on compiling pays where it is done while another row trains.
COMPILED_IMAGES = 300_000


class Config(ClusterConfig):
    """How one machine runs cells beside each other."""


def require() -> None:
    """Every machine can run a study."""


def ranks(cells: Sequence[Cell], config: Config) -> int:
    """Return the processes of one cell: one on CPU cores."""
    return config.per_cell if on_gpu(cells) and visible_gpus() else 1


def launch(selections: Sequence[Selection], config: Config, echo: Callable[[str], None]) -> int:
    """Run studies on this machine, cell beside cell; return the worst exit code. Raises ConfigError, StoppedEarly."""
    use_gpus = on_gpu(cell for selection in selections for cell in selection.cells)
    cores = usable_cores()
    slots = cut_slots(config, visible_gpus(), cores, use_gpus=use_gpus)
    shared = bool(slots[0].gpus) and config.per_cell == 1
    tasks: list[LocalTask] = []
    for selection in selections:
        submission, chosen = claim_cells(selection, shared=shared)
        beside = ", the seeds of a row side by side" if any(task.row for task in chosen) else ""
        echo(f"{selection.study.name}: {submission}; {len(slots)} at once{beside}")
        tasks += chosen
    several_fit = {*nvidia_smi("compute_mode")} == {"Default"}  # an administrator may have made a GPU exclusive
    ahead = min(MAX_AHEAD, max(1, len(cores) // CORES_A_GROUP // len(slots))) if shared and several_fit else 0
    return Scheduler(slots, echo, ahead).run(tasks)


def visible_gpus() -> dict[str, str]:
    """Return the names of this machine's GPUs by index; {} without any. CUDA_VISIBLE_DEVICES narrows them.

    As CUDA does, up to the first that is none: `-1` and Slurm's `NoDevFiles` hide all.
    """
    found = dict(line.split(", ", 1) for line in nvidia_smi("index,name") if ", " in line)
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return found
    named = takewhile(re.compile(r"\d+|(GPU|MIG)-.*").fullmatch, map(str.strip, wanted.split(",")))
    return {index: found.get(index, "?") for index in named}


def nvidia_smi(query: str) -> list[str]:
    """Return what the driver says of each GPU, a line each; [] without any."""
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.strip().splitlines()


def cut_slots(config: Config, gpus: dict[str, str], cores: Sequence[int], *, use_gpus: bool) -> list[Slot]:
    """Return the shares of the machine that run cells at once. Raises ConfigError where not even one cell fits."""
    size, use_gpus = config.per_cell, use_gpus and bool(gpus)
    kinds = sorted(set(gpus.values()))
    if use_gpus and len(kinds) > 1 and not config.mixed_gpus:
        raise ConfigError(
            f"this machine has {', '.join(kinds)}: choose with CUDA_VISIBLE_DEVICES, "
            "or cluster.mixed_gpus=true to mix them"
        )
    number = len(gpus if use_gpus else cores)
    shares = [slice(start, start + size) for start in range(0, number - size + 1, size)]
    if not shares:
        raise ConfigError(f"cluster.per_cell={size}: there are {number} {'GPUs' if use_gpus else 'CPU cores'} here")
    slots = [Slot(gpus=tuple(gpus)[s]) if use_gpus else Slot(cores=tuple(cores)[s]) for s in shares]
    return slots[: config.max_running]


def claim_cells(selection: Selection, *, shared: bool) -> tuple[str, list[LocalTask]]:
    """Take the cells that are neither done nor at work, and record that; return what was done, and the tasks.

    With `shared` small nets may share a GPU.
    """
    directory = selection.directory
    directory.make()
    code = take_snapshot(directory, selection.study.file)
    with directory.lock():
        submission, chosen = choose_cells(selection, code)
        command = [sys.executable, str(code / "run.py")]
        tasks = [LocalTask(directory, task.key, [*command, *task.args], code=code) for task in chosen]
        if shared:
            configs = {cell.key: cell.config for cell in selection.cells}
            tasks = [sharing(task, configs[task.key]) for task in tasks]
        directory.append_jobs(job_row(task, code) for task in tasks)
    return str(submission), tasks


def sharing(task: LocalTask, config: RunConfig) -> LocalTask:
    """Return a task that is trained beside those of its row, where its net is small."""
    values = config.values()
    if root := values["data"]["root"]:
        values["data"]["root"] = str(expand(root).absolute())
    return replace(task, row=row_of(config), run={"config": values, "compile": compiles_ahead(config)})


def row_of(config: RunConfig) -> str | None:
    """Return what is equal for the cells that may share a GPU; None for one that fills it, or wants none."""
    if config.has_large_images or config.cuda_graph == When.never or config.device == Device.cpu:
        return None
    return json.dumps({**config.values(), "seed": None}, sort_keys=True)


def compiles_ahead(config: RunConfig) -> bool:
    """Tell whether to compile a row while others train: a small net that trains long, if the user left it open."""
    known = config.data.known.num_images.get("train")
    images = config.recipe.epochs * (config.data.train_images or known or 0)
    return config.compile == "auto" and not config.has_large_images and images >= COMPILED_IMAGES


def job_row(task: LocalTask, code: Path) -> Row:
    """Return what is recorded of a cell that this process takes."""
    row: Row = {
        "cell": task.key,
        "kind": "local",
        "job": "local",
        "log": str(task.log.relative_to(task.directory.notes)),
    }
    row |= {"pid": os.getpid(), "born": process_start(os.getpid())}
    return row | {"snapshot": code.name, **git_state_of(code)}
