"""Values of a config that anybody may have written: as texts, or as the numbers that they are."""

import re
from typing import Any

from roadmap.runs.recorded_run import Suspect
from roadmap.runs.schema import CONFIG
from roadmap.text import flatten


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


def decimal(text: str) -> float | None:
    """Return the finite number from 0 on that a config's text stands for, else None."""
    try:
        return value if 0 <= (value := float(text)) < 1e300 else None
    except ValueError:
        return None


def digits(text: str) -> int | None:
    """Return the whole number of up to nine digits that a text is, else None."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None
