"""From `conf/` to a checked config: the tree of steps, composing, the names of cells, errors in plain words."""

from roadmap.steps.compose import compose

__all__ = ["compose"]
