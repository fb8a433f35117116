"""Slurm: one job array a study. Returns at once."""

from collections.abc import Callable, Sequence

from roadmap.errors import DONE
from roadmap.sweep.cluster import SlurmConfig as Config
from roadmap.sweep.slurm import check_gpu_types
from roadmap.sweep.slurm import require_slurm as require
from roadmap.sweep.study import Cell
from roadmap.sweep.submit import Selection, on_gpu, submit

__all__ = ["Config", "launch", "ranks", "require"]


def ranks(cells: Sequence[Cell], config: Config) -> int:
    """Return the ranks of a cell."""
    return config.per_cell


def launch(selections: Sequence[Selection], config: Config, echo: Callable[[str], None]) -> int:
    """Submit each study. Raises ConfigError with Slurm's message, Busy, DiskError."""
    if any(on_gpu(selection.cells) for selection in selections):
        check_gpu_types(config)
    for selection in selections:
        name = selection.study.name
        echo(f"{name}: {submit(selection, config)}")
        echo(f"  make status STUDY={name}; the runs are in {selection.directory.path}")
    return DONE
