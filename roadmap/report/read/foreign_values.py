"""Values of records that anybody may have written: as texts, or as the numbers that they are."""

import re
from typing import Any

from roadmap.runs.recorded_run import Suspect
from roadmap.runs.schema import CONFIG
from roadmap.text import clean, flatten


def config_texts(config: dict[str, Any]) -> dict[str, str]:
    """Return every value of a config by its dotted key, as text. Raises Suspect."""
    try:
        return {key: config_text(value) for key, value in flatten(config).items()}
    except RecursionError:
        raise Suspect(f"{CONFIG}: is nested without end") from None


def config_text(value: Any) -> str:
    """Return a config's value as text, the same from YAML and from JSON: `0.002`, `true`, `null`, `[1, 1, 3, 1]`."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(config_text, value))}]"
    if value is None or isinstance(value, bool):
        return str({None: "null", True: "true", False: "false"}[value])
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def number(value: Any) -> float | None:
    """Return a finite number from 0 on as a float, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e300:
        return None
    return float(value)


def whole(value: Any) -> int | None:
    """Return a whole number from 1 to 999,999,999, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**9 else None


def decimal(text: str) -> float | None:
    """Return the finite number from 0 on that a config's text stands for, else None."""
    try:
        return number(float(text))
    except ValueError:
        return None


def digits(text: str) -> int | None:
    """Return the whole number of up to nine digits that a text is, else None."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def line(value: Any) -> str:
    """Return a string, or the plain values of a dictionary or a list, as one line."""
    if isinstance(value, dict):
        value = ", ".join(f"{key} {item}" for key, item in sorted(value.items()) if isinstance(item, str | int | float))
    if isinstance(value, list):
        value = ", ".join(item for item in value if isinstance(item, str))
    return clean(value) if isinstance(value, str) else ""
