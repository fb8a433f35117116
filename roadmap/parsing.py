"""JSON and YAML of plain values, read within bounds: whoever wrote them may mean harm.

Only sizes, depths and lengths that ours may have; nothing is built of what takes more than its share.
"""

import json
import math
import re
from typing import Any

import yaml

from roadmap.text import one_line

MAX_NODES = 10_000  # values and containers of a YAML file, aliases written out: a config has 300
MAX_DEPTH = 32  # containers within each other; ours have 6
MAX_TEXT = 20_000  # characters of one value of a YAML file
MAX_DIGITS = 40  # of a whole number
# What YAML takes for a whole number, which Python makes and prints in quadratic time.
YAML_INT = re.compile(r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|[0-9][0-9_:]*)")
PLAIN_TAGS = (None, "!", "tag:yaml.org,2002:str")
C_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser, where there is one
AS_WRITTEN = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # every value a text, and no merge keys


def parse_json(data: bytes) -> dict[str, Any]:
    """Read a JSON object; a number that is not finite becomes None. Raises ValueError, also for what is nested too
    deeply."""
    try:
        values = _DECODER.decode(data.decode())
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from None
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        _check_depth(values)
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    return values


def _whole_number(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


_DECODER = json.JSONDecoder(parse_int=_whole_number, parse_float=_finite, parse_constant=lambda _: None)


def _check_depth(values: Any) -> None:
    level = [values]
    for _ in range(MAX_DEPTH + 1):
        parents = [value for value in level if isinstance(value, dict | list)]
        level = [item for value in parents for item in (value.values() if isinstance(value, dict) else value)]
    if level:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")


def parse_yaml(text: str, loader: Any = C_LOADER) -> Any:
    """Read plain values from YAML. Raises ValueError, also for what takes more than its share."""
    try:
        check_yaml(text, loader)
        return yaml.load(text, loader)
    except yaml.YAMLError as error:
        hint = (
            "; a tab is no indentation, spaces are" if "cannot start any token" in str(error) and "\t" in text else ""
        )
        raise ValueError(one_line(error).replace('in "<unicode string>", ', "at ") + hint) from None


def check_yaml(text: str, loader: Any) -> None:
    """Raise ValueError for YAML of other than plain values, or that takes more than its share; yaml.YAMLError for none.

    Counted are events, aliases written out: nothing is built, so that it ends in milliseconds.
    """
    nodes = 0
    sizes: dict[str, tuple[int, int]] = {}  # of anchors: nodes, and containers within each other
    containers: list[tuple[str | None, int, list[int]]] = []  # open ones: anchor, nodes before it, depths within
    for event in yaml.parse(text, loader):
        depth = 0
        if isinstance(event, yaml.CollectionStartEvent):
            containers.append((event.anchor, nodes, []))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before, within = containers.pop()
            depth = 1 + max(within)
            if anchor:
                sizes[anchor] = nodes - before, depth
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, _, _ in containers):
                raise ValueError(f"*{event.anchor} contains itself")
            size, depth = sizes.get(str(event.anchor), (1, 0))
            nodes += size - 1
        elif isinstance(event, yaml.ScalarEvent):
            _check_scalar(event)
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
            if (tag := getattr(event, "tag", None)) not in PLAIN_TAGS:
                raise ValueError(f"holds a tag, {tag}; values are plain")
        if containers:
            containers[-1][2].append(depth)
        if nodes > MAX_NODES:
            raise ValueError(f"holds more than {MAX_NODES} values, what is repeated by aliases written out")
        if len(containers) + depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _check_scalar(event: yaml.ScalarEvent) -> None:
    if len(event.value) > MAX_TEXT:
        raise ValueError(f"holds a value of {len(event.value)} characters, at most {MAX_TEXT}")
    if len(event.value) > MAX_DIGITS and YAML_INT.fullmatch(event.value):
        raise ValueError(f"holds a number of {len(event.value)} digits")


def object_or_none(line: bytes) -> dict[str, Any] | None:
    """Return the object that a line of JSON holds, None where it holds none: its writer died in it."""
    try:
        return parse_json(line)
    except ValueError:
        return None
