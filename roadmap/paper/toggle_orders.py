"""The paper's toggles, the orders in which they could have come, and the names of the nets on the way.

A net on the way is a set of toggles on top of ResNet with the enhanced recipe. Two toggles that need others have no net
of a comparable cost without them: a dense conv of an inverted bottleneck, or of 7x7, costs many times the block's.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from roadmap.paper import rows

FIRST, LAST = "enhanced_recipe", "separate_downsampling"
# Toggle -> what must have come before it. Sec. 2.3 to 2.5: only a depthwise conv may be wide, large, or moved up.
NEEDS = {
    "inverted_bottleneck": ("depthwise",),
    "kernel_7": ("depthwise",),
    "move_up_depthwise": ("depthwise", "inverted_bottleneck"),
}
# In the name of a net with several toggles: all twelve by their steps' names would be too long for a folder.
SHORT = {
    "stage_ratio": "ratio", "patchify_stem": "stem", "depthwise": "dw", "increase_width": "width",
    "inverted_bottleneck": "inv", "move_up_depthwise": "up", "kernel_7": "k7", "gelu": "gelu",
    "fewer_activations": "act1", "fewer_norms": "norm1", "layer_norm": "ln", "separate_downsampling": "ds",
}  # fmt: skip
LONG = {short: toggle for toggle, short in SHORT.items()}
WITH, WITHOUT = "with_", "without_"  # of the variants that put a toggle in, or take it out

Net = frozenset[str]  # the toggles that are in it
Order = tuple[str, ...]


@cache
def toggles() -> Order:
    """Return the steps that the paper adopted on the way from ResNet with the enhanced recipe, in its own order."""
    table = rows("tiny")
    return tuple(s for s, row in table.items() if row.adopted == "yes" and row.order > table[FIRST].order)


def unmet(order: Sequence[str]) -> tuple[str, str] | None:
    """Return the first toggle of an order that comes before one that it needs, and that one; None in a legal order."""
    for i, toggle in enumerate(order):
        for needed in NEEDS.get(toggle, ()):
            if needed not in order[:i]:
                return toggle, needed
    return None


@cache
def sampled_order(number: int) -> Order:
    """Return a legal order, drawn uniformly: a function of its number alone, so that more of them keep the earlier.

    Orders are drawn until one is legal, one of eight. They depend on SHA-256, not on a library's generator.
    """
    attempt = 0
    while True:
        drawn = {t: hashlib.sha256(f"{number}/{attempt}/{t}".encode()).digest() for t in toggles()}
        order = tuple(sorted(toggles(), key=drawn.__getitem__))
        if unmet(order) is None:
            return order
        attempt += 1


def nets(order: Sequence[str]) -> list[Net]:
    """Return the nets on the way of an order, from none of its toggles to all."""
    return [frozenset(order[:n]) for n in range(len(order) + 1)]


def choice(net: Net) -> tuple[str, tuple[str, ...]]:
    """Return the step and the variants that make a net: the paper's own step; one toggle taken out of the whole net;
    else those put in, on top of `stage_ratio` where it is among them (its step sets a width, too)."""
    order = toggles()
    if net == frozenset(order[: len(net)]):
        return (FIRST, *order)[len(net)], ()
    if len(net) == len(order) - 1:
        return LAST, tuple(WITHOUT + toggle for toggle in order if toggle not in net)
    step = order[0] if order[0] in net else FIRST
    return step, tuple(WITH + toggle for toggle in order if toggle in net and toggle != step)


def net_of(step: str, variant: str | None) -> Net | None:
    """Return the net of a step with a variant, as a record names it; None where it is none of these."""
    order = toggles()
    if step != FIRST and step not in order:
        return None
    net = frozenset(order[: (FIRST, *order).index(step)])
    for name in split_variant(variant or ""):
        if name.removeprefix(WITH) in order:
            net |= {name.removeprefix(WITH)}
        elif name.removeprefix(WITHOUT) in order:
            net -= {name.removeprefix(WITHOUT)}
        else:
            return None
    return net


def join_variants(names: Sequence[str]) -> str:
    """Return one name for several variants: `with_dw+gelu` where each puts in a toggle, else `NAME+NAME`."""
    put_in = [name.removeprefix(WITH) for name in names]
    if len(names) > 1 and [WITH + toggle for toggle in put_in if toggle in SHORT] == list(names):
        return WITH + "+".join(SHORT[toggle] for toggle in put_in)
    return "+".join(names)


def split_variant(text: str) -> list[str]:
    """Return the variants that a name stands for: the inverse of `join_variants`."""
    names = text.split("+") if text else []
    first, *others = names or [""]
    shorts = [first.removeprefix(WITH), *others]
    if others and first.startswith(WITH) and all(short in LONG for short in shorts):
        return [WITH + LONG[short] for short in shorts]
    return names


def variant_words(names: Sequence[str]) -> list[str]:
    """Return the words of a command line that choose variants: none, `+variant=A` or `+variant=[A,B]`."""
    several = f"[{','.join(names)}]" if len(names) > 1 else "".join(names)
    return [f"+variant={several}"] if names else []


def is_several(variant: str | None) -> bool:
    """Tell whether a variant's name stands for several."""
    return "+" in (variant or "")


def training_seeds(orders: Iterable[Order]) -> Iterator[tuple[Net, int]]:
    """Yield the nets of some orders with the number of seeds of each, once, as they first come.

    The ends and every fourth net between them have two, so that what seeds do can be told from what orders do; more
    orders change none of the earlier ones. The paper's own order comes last, with one seed: it is beside the others.
    """
    whole = frozenset(toggles())
    seen = {frozenset[str](): 2, whole: 2}
    for order in orders:
        for net in nets(order):
            seen.setdefault(net, 2 if len(seen) % 4 == 2 else 1)
    yield from seen.items()
    yield from ((net, 1) for net in nets(toggles()) if net not in seen)
