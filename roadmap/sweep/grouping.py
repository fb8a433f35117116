"""Which cells of a study share a GPU: those of one row that differ in the seed alone, of nets too small to fill it."""

import json
from collections.abc import Iterable
from typing import TypeVar

from roadmap import catalog
from roadmap.config.choices import Capture, Device
from roadmap.config.schema import Config

T = TypeVar("T")
MAX_SEEDS = 8  # of one process: torch has 32 streams, of which a run takes up to three
# Images of a run, over all its epochs, from which on compiling pays where it is done while another row trains.
COMPILED_IMAGES = 300_000


def row_of(config: Config) -> str | None:
    """Return what is equal for the cells that may share a GPU; None for one that fills it, or wants none."""
    if config.has_large_images or config.cuda_graph == Capture.never or config.device == Device.cpu:
        return None
    return json.dumps({**config.values(), "seed": None}, sort_keys=True)


def compiles_ahead(config: Config) -> bool:
    """Tell whether a row is compiled where that takes nobody's time: a small net, long enough, if nobody decided it."""
    known = catalog.find(config.data.name, config.data.kind).num_images.get("train")
    images = config.recipe.epochs * (config.data.train_images or known or 0)
    return config.compile == "auto" and not config.has_large_images and images >= COMPILED_IMAGES


def group_by_row(items: Iterable[tuple[str | None, T]]) -> list[list[T]]:
    """Return items in groups of one row, at most `MAX_SEEDS` each, in the order of their first; None is alone."""
    groups: list[list[T]] = []
    by_row: dict[str, list[T]] = {}
    for row, item in items:
        group = by_row.get(row) if row is not None else None
        if group is None or len(group) == MAX_SEEDS:
            groups.append(group := [])
        if row is not None:
            by_row[row] = group
        group.append(item)
    return groups
