"""The steps as a drawing of plain text, in the manner of `git log --graph`: a line runs on, side branches leave it."""

from collections.abc import Iterator, Mapping, Sequence


def branches(parents: Mapping[str, str | None]) -> list[str]:
    """Return a line a step: what leads to it, and its name. `parents` holds the steps in the roadmap's order.

    Of several children the one from which the most follows goes on with the line, the first of equals; the others leave
    it before, in their order.
    """
    children: dict[str | None, list[str]] = {}
    for name, parent in parents.items():
        children.setdefault(parent, []).append(name)
    return [line for root in children.get(None, []) for line in _line(root, "", children)]


def _line(name: str, margin: str, children: Mapping[str | None, Sequence[str]]) -> Iterator[str]:
    """Yield the drawing of a step and of all that follows, the line at a margin."""
    yield f"{margin}* {name}"
    below = children.get(name, ())
    if not below:
        return
    following = max(below, key=lambda child: _count(child, children))
    for child in below:
        if child != following:
            first, *rest = _line(child, "", children)
            yield f"{margin}|-{first}"
            yield from (f"{margin}| {line}" for line in rest)
    yield from _line(following, margin, children)


def _count(name: str, children: Mapping[str | None, Sequence[str]]) -> int:
    """Return how many steps follow one."""
    return sum(1 + _count(child, children) for child in children.get(name, ()))
