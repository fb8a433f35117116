"""Studies whose cells are chosen by a rule, not listed: `hydra.sweeper.params` holds NAME.SETTING for a generator.

A generator is a module with `Settings`, the schema of what it is told; `cells(settings, grid, compose)`, which yields
the overrides of each cell that it makes of the combinations of the file's lists (`compose` gives the config of such
overrides); `outlook(settings, study, grid, rows)`, which yields lines for `make plan`, whose rows there are; and, where
it chooses cells by what others came to, `news(settings, study)`, lines for a submission, and
`record(settings, study, notes)`, which keeps the choice in the study's notes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from roadmap.config.fields import Section
from roadmap.config.schema import Config
from roadmap.errors import ConfigError
from roadmap.parsing import parse_yaml
from roadmap.sweep import sampled_orders, tuned_rates

if TYPE_CHECKING:  # studies have generators
    from roadmap.sweep.plan import Row
    from roadmap.sweep.study import Study

GENERATORS: dict[str, ModuleType] = {"attribution": sampled_orders, "tuned": tuned_rates}


@dataclass(frozen=True)
class Generator:
    """The generator of a study, with its settings: those of the file, and those of the command line over them."""

    module: ModuleType
    settings: Section
    grid: tuple[tuple[str, ...], ...] = ()  # the combinations of the file's lists

    def cells(self, compose: Callable[[Sequence[str]], Config]) -> Iterator[tuple[str, ...]]:
        """Yield every cell's overrides. Raises ConfigError."""
        yield from self.module.cells(self.settings, self.grid, compose)

    def outlook(self, study: "Study", rows: "Sequence[Row]" = ()) -> Iterator[str]:
        """Yield what is to be expected of the study, in lines."""
        yield from self.module.outlook(self.settings, study, self.grid, rows)

    def news(self, study: "Study") -> Iterator[str]:
        """Yield what its choice of cells has come to, in lines; nothing where no cell hangs on another."""
        yield from self.module.news(self.settings, study) if self.is_staged else ()

    def record(self, study: "Study", notes: Path) -> None:
        """Keep that choice in the study's notes. Raises DiskError."""
        if self.is_staged:
            self.module.record(self.settings, study, notes)

    @property
    def is_staged(self) -> bool:
        """Tell whether further cells are known once others have ended."""
        return hasattr(self.module, "record")


def is_setting(word: str) -> bool:
    """Tell whether a key, or a word `KEY=VALUE`, is for a generator and none of the cells."""
    name, dot, _ = word.partition("=")[0].partition(".")
    return bool(dot) and name in GENERATORS


def find_generator(file: Path, params: Mapping[str, Any], overrides: Iterable[str]) -> Generator | None:
    """Return the generator that a study's lists name, or None. Raises ConfigError for a setting that cannot be."""
    names = {key.split(".")[0] for key in params if is_setting(key)}
    if len(names) > 1:
        raise ConfigError(f"{file}: its cells are chosen by {' and '.join(sorted(names))}; one at a time")
    values: dict[str, Any] = {key.partition(".")[2]: value for key, value in params.items() if is_setting(key)}
    for word in filter(is_setting, overrides):
        key, _, text = word.partition("=")
        name, _, setting = key.partition(".")
        if name not in names:
            raise ConfigError(f"{word}: is for the study {name}, and this is {file.stem}")
        try:
            values[setting] = parse_yaml(text)
        except ValueError:
            raise ConfigError(f"{word}: cannot be read as KEY=VALUE") from None
    if not names:
        return None
    module = GENERATORS[names.pop()]
    return Generator(module, module.Settings(**values))
