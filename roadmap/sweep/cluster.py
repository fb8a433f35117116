"""A launcher's settings: `conf/cluster/NAME.yaml`, then `conf/local/cluster/NAME.yaml`, then `cluster.KEY=VALUE`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import field_validator

from roadmap.config import Affects
from roadmap.config.fields import Float, Int, Section, Text, key, shown
from roadmap.errors import ConfigError
from roadmap.files import MAX_YAML, read_regular
from roadmap.parsing import AS_WRITTEN, parse_yaml
from roadmap.steps.tree import CONF
from roadmap.text import nearest, one_line

FIRST = ""  # stands for a study's first row


class ClusterConfig(Section):
    """The settings that every launcher has."""

    prefix = "cluster."
    affects = Affects.place
    literal: ClassVar[tuple[str, ...]] = ()  # keys below which a value is text, not parsed as YAML

    per_cell: Int = key(1, ge=1, le=1024, about="GPUs per cell, or CPU cores where there is no GPU")
    max_running: Int | None = key(None, ge=1, le=1024, about="cells at once; null: as many as fit")
    mixed_gpus: bool = key(False, about="let a study's cells run on different GPU types")
    images_per_s: dict[str, Float] = key({}, about="for a plan: of one device, of the first row or {STEP: SPEED}")
    bench: Text | None = key(None, about="for a plan: a file of `bench net --json`, by which speeds are inferred")

    @field_validator("images_per_s", mode="before")
    @classmethod
    def _check_speeds(cls, value: Any) -> Any:
        values = value if isinstance(value, dict) else {} if value is None else {FIRST: value}
        for speed in values.values():
            try:
                wrong = not 0 < float(speed) < 1e9
            except (TypeError, ValueError):
                wrong = True
            if wrong:
                form = "must be a number above 0, of the first row or {STEP: SPEED}"
                raise ConfigError(f"cluster.images_per_s={shown(speed)}: {form}")
        return {str(name): speed for name, speed in values.items()}

    def check_rows(self, known: Iterable[str]) -> None:
        """Raise ConfigError for settings of a row that is none of the `known` steps and cells."""
        names = list(known)
        for name in self.images_per_s:
            if name not in (FIRST, *names):
                hint = nearest(name, names, 20)
                raise ConfigError(f"cluster.images_per_s.{shown(name)}: there is no such row; {hint}")


C = TypeVar("C", bound=ClusterConfig)


def is_cluster_key(override: str) -> bool:
    """Tell whether an override is one of the cluster (`cluster.KEY=VALUE`), and none of the cells."""
    return override.startswith("cluster.")


def load_cluster(kind: type[C], name: str, overrides: Sequence[str] = ()) -> C:
    """Read the settings of a launcher, the later ones winning. Raises ConfigError for what cannot be."""
    values: dict[str, Any] = {}
    for path in (CONF / "cluster" / f"{name}.yaml", CONF / "local" / "cluster" / f"{name}.yaml"):
        if path.exists():
            values |= read_settings(path)
            try:
                kind(**values)
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None
    for override in filter(is_cluster_key, overrides):
        key, equals, text = override.removeprefix("cluster.").partition("=")
        *sections, last = key.split(".")
        if not equals:
            raise ConfigError(f"{override}: cannot be read as cluster.KEY=VALUE")
        try:
            value = word_value(text, is_text=not {*kind.literal}.isdisjoint(sections))
        except ValueError:
            raise ConfigError(f"{override}: cannot be read as cluster.KEY=VALUE") from None
        place = values
        for section in sections:  # cluster.sbatch.reservation=NAME is one option more
            inner = place.get(section)
            place[section] = dict(inner) if isinstance(inner, dict) else {}
            place = place[section]
        place[last] = value
    return kind(**values)


def read_settings(path: Path) -> dict[str, Any]:
    """Return a file's `KEY: VALUE` lines. Raises ConfigError."""
    try:
        body = parse_as_written(read_regular(path, MAX_YAML).decode()) or {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({one_line(error)})") from None
    if not isinstance(body, dict):
        raise ConfigError(f"{path}: must hold KEY: VALUE lines")
    return body


def word_value(text: str, *, is_text: bool) -> Any:
    """Return the value of a word of the command line. Raises ValueError for no YAML, unless any text will do."""
    try:
        value = parse_as_written(text)
    except ValueError:
        if is_text:
            return text
        raise
    return text if is_text and not isinstance(value, str) else value


def parse_as_written(text: str) -> Any:
    """Return what YAML makes of a text, its values texts as they are written (30:00 is no number of minutes) or None.

    Raises ValueError.
    """
    return _without_nulls(parse_yaml(text, AS_WRITTEN))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items()}
    return None if value in ("", "~", "null") else value
