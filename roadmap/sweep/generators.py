"""What makes a study's cells of its lists. A rule that chooses them is told NAME.SETTING in `hydra.sweeper.params`."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from roadmap.config.fields import Section
from roadmap.config.schema import Config

if TYPE_CHECKING:  # studies have generators
    from roadmap.sweep.plan import Row
    from roadmap.sweep.study import Study

Words = tuple[str, ...]  # the overrides of a cell


class Generator(Section):
    """Every combination of the lists. A rule is a class of this form, its fields what it is told."""

    is_staged: ClassVar[bool] = False  # whether further cells are known once others have ended

    def cells(self, grid: Sequence[Words], compose: Callable[[Words], Config]) -> Iterator[Words]:
        """Yield the overrides of each cell, made of the combinations of the lists. Raises ConfigError."""
        yield from grid

    def outlook(self, study: "Study", rows: "Sequence[Row]" = ()) -> Iterator[str]:
        """Yield lines for `make plan`, whose rows there are: what is to be expected of the study."""
        yield from ()

    def news(self) -> Iterator[str]:
        """Yield lines for a submission: what the choice of cells has come to."""
        yield from ()

    def is_result(self, config: Config, exit_code: int | None) -> bool:
        """Tell whether a cell that failed so is an answer, and not tried again."""
        return False

    def record(self, notes: Path) -> None:
        """Keep that choice in the study's notes. Raises DiskError."""
