"""What a key of the schema is: type, range, default, meaning, and what it affects. All else is derived from these.

A wrong value is a `ConfigError` with one line for each key: the key, its value, what is allowed.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self, get_args

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from roadmap.errors import ConfigError
from roadmap.text import nearest, secrets_here, shorten

MAX_TEXT = 1000  # characters of a text value
MAX_DIGITS = 40  # characters of a number that is written as text


class Affects(StrEnum):
    """What changes when a key does."""

    result = "result"  # which run it is: its name, identity, a refusal on resuming; compared between neighbours
    rounding = "rounding"  # how the same run is computed: noted and marked, never refused
    place = "place"  # where it runs and what it keeps: free


@dataclass(frozen=True)
class Key:
    """One key of the schema, as `keys` lists it by its dotted name."""

    default: Any
    affects: Affects
    evaluation: bool  # whether mode=evaluate reads it
    local: bool  # whether conf/local may set it
    about: str
    allowed: str  # the range or the choices in words; empty where the type says it all
    is_text: bool = False  # any text
    needs: tuple[str, str] | None = None  # another key and the value under which alone this one is read
    cells: bool = True  # whether it may be set for the cells of a study


def key(
    default: Any = None,
    *,
    about: str = "",
    affects: Affects | None = None,
    evaluation: bool | None = None,
    local: bool | None = None,
    one_of: tuple[Any, ...] = (),
    needs: tuple[str, str] | None = None,
    cells: bool = True,
    **limits: Any,
) -> Any:
    """Define a key. `limits` are pydantic's (ge, gt, le, min_length, ...); what is left out is its section's.

    `needs=("recipe.optimizer", "sgd")`: nothing reads it otherwise, so it is not part of a run's identity then.
    `cells=False`: it is set for one run, never for the cells of a study.
    """
    extra: Any = {"affects": affects, "evaluation": evaluation, "local": local, "one_of": one_of, "needs": needs}
    extra["cells"] = cells
    return Field(default, description=about, json_schema_extra=extra, **limits)


def section(kind: type["Section"]) -> Any:
    """Define a section of keys."""
    return Field(default_factory=kind)


def _number(kind: type[int] | type[float], *refused: type) -> BeforeValidator:
    """Return a validator that takes a number, also as text, but no truth value and none of the refused types."""

    def read(value: Any) -> Any:
        try:
            if isinstance(value, (bool, *refused)) or (isinstance(value, str) and len(value) > MAX_DIGITS):
                raise ValueError(value)
            return kind(value) if isinstance(value, str) else value
        except ValueError:
            raise PydanticCustomError(f"{kind.__name__}_type", "not a number") from None

    return BeforeValidator(read)


def _as_text(value: Any) -> Any:
    """Return text for a value that YAML read as a number or a truth value (`study=3`)."""
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        for secret, where in secrets_here().items():
            if secret in value:
                raise PydanticCustomError("secret", "holds the secret of {where}", {"where": where})
    return str(value) if isinstance(value, int | float) else value


Int = Annotated[int, _number(int, float)]  # no 20.5; "20" is 20
Float = Annotated[float, _number(float)]  # finite
Text = Annotated[str, BeforeValidator(_as_text), Len(0, MAX_TEXT)]


class Section(BaseModel):
    """A group of keys. Building one raises ConfigError; unknown keys, infinite numbers and NaN are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)
    prefix: ClassVar[str] = ""  # of the dotted keys, such as `model.`
    affects: ClassVar[Affects] = Affects.result
    evaluation: ClassVar[bool] = False
    local: ClassVar[bool] = False

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError("\n".join(plain_errors(type(self), error))) from None

    @field_validator("*")
    @classmethod
    def _one_of(cls, value: Any, info: ValidationInfo) -> Any:
        one_of = _extra(cls.model_fields[str(info.field_name)])["one_of"]
        if one_of and value not in one_of:
            allowed = ", ".join(map(shown, one_of))
            raise ConfigError(f"{cls.prefix}{info.field_name}={shown(value)}: must be one of {allowed}")
        return value

    @classmethod
    def settable(cls) -> list[str]:
        """Return the dotted keys that a user may set, for messages."""
        return [cls.prefix + name for name in cls.model_fields]

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some values changed, checked like any other. Raises ConfigError."""
        return type(self)(**{**dict(self), **changes})

    def values(self) -> dict[str, Any]:
        """Return plain containers: what config.yaml and W&B hold."""
        return self.model_dump(mode="json")


def keys(kind: type[Section]) -> dict[str, Key]:
    """Return every key of a schema by its dotted name."""
    return dict(_keys(kind))


def _keys(kind: type[Section]) -> Iterator[tuple[str, Key]]:
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _keys(inner)
        else:
            extra = dict(_extra(field))
            one_of = extra.pop("one_of")
            extra |= {k: getattr(kind, k) for k in ("affects", "evaluation", "local") if extra[k] is None}
            default = field.get_default(call_default_factory=True)
            default = list(default) if isinstance(default, tuple) else default
            default = str(default) if isinstance(default, StrEnum) else default  # as a record has it
            allowed = f"one of {', '.join(map(shown, one_of))}" if one_of else _allowed(field)
            kinds = (inner, *get_args(inner))
            is_text = not allowed and any(getattr(k, "__origin__", k) is str for k in kinds)  # Text, or Text | None
            about = field.description or ""
            yield kind.prefix + name, Key(default, **extra, about=about, allowed=allowed, is_text=is_text)


def _extra(field: FieldInfo) -> dict[str, Any]:
    extra: Any = (field if isinstance(field.json_schema_extra, dict) else key()).json_schema_extra
    return extra


def _allowed(field: FieldInfo) -> str:
    """Return the choices or the range of a field in words."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, StrEnum):
            return f"one of {', '.join(kind)}"
    ends = []
    for limit in field.metadata:
        match limit:
            case Ge(ge):
                ends.append(f"at least {ge:g}")
            case Gt(gt):
                ends.append(f"above {gt:g}")
            case Le(le):
                ends.append(f"at most {le}")
            case Lt(lt):
                ends.append(f"below {lt:g}")
    return " and ".join(ends)


def shown(value: Any) -> str:
    """Return a value as a user writes it, shortened."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, tuple | list):
        return f"[{shorten(', '.join(map(str, value)), 80)}]"
    return shorten(str(value), 80)


def plain_errors(kind: type[Section], error: ValidationError) -> list[str]:
    """Return a line for each wrong key of a section."""
    lines: dict[str, str] = {}  # a union complains once for each of its kinds
    for found in error.errors(include_url=False):
        lines.setdefault(".".join(map(str, found["loc"][:1])), _plain_error(kind, found))
    return list(lines.values())


def _plain_error(kind: type[Section], found: ErrorDetails) -> str:
    what, value, name = found["type"], found["input"], str(found["loc"][0]) if found["loc"] else ""
    if what == "value_error":  # our own checks, and those of a section below
        return str(found["ctx"]["error"])
    if what == "extra_forbidden":
        name = shorten(name, 80)
        if "." in name and not kind.prefix:
            return f"{name}: a file sets it below its section, `{name.replace('.', ': {', 1)}: ...}}`"
        return f"{kind.prefix}{name}: there is no such key; {nearest(kind.prefix + name, kind.settable())}"
    field = kind.model_fields[name]
    position = "".join(f"[{i}]" for i in found["loc"][1:] if isinstance(i, int) and what != "missing")
    head = f"{kind.prefix}{name}{position}={shown(value)}"
    if what == "secret":
        return f"{kind.prefix}{name}: {found['msg']}; values are recorded and shown, so take it out"
    if value is None:
        return f"{head}: must not be null"
    if what == "too_long" and isinstance(value, str):
        return f"{head}: is too long, at most {found['ctx']['max_length']} characters"
    if what in _TYPES and len(found["loc"]) == 1:
        return f"{head}: must be {_TYPES[what]}{' or null' if type(None) in get_args(field.annotation) else ''}"
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
        return f"{head}: is a section; set the keys below it"
    if "tuple" in str(field.annotation):
        return f"{head}: must be {field.description}"
    return f"{head}: must be {_allowed(field) or 'another value'}"


_TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
}
