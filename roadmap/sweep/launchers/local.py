"""This machine: as many cells at once as fit. Stays in the foreground."""

from collections.abc import Sequence

from roadmap.sweep.cluster import LocalConfig as Config
from roadmap.sweep.local import run_local as launch
from roadmap.sweep.local import visible_gpus
from roadmap.sweep.study import Cell
from roadmap.sweep.submit import on_gpu

__all__ = ["Config", "launch", "ranks", "require"]


def require() -> None:
    """Need nothing."""


def ranks(cells: Sequence[Cell], config: Config) -> int:
    """Return the ranks of a cell: one a GPU, and one where there is none."""
    return config.per_cell if on_gpu(cells) and visible_gpus() else 1
