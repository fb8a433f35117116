"""Where in a file of weights the net's tensors are: the containers and key prefixes that training code adds."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import torch

from roadmap.errors import DataError
from roadmap.text import nearest, printable, shorten

# A key that only the nets of this format have: by it a format is found.
SIGNS = {
    "torchvision resnet": "layer1.0.conv1.weight",
    "torchvision convnext": "features.1.0.layer_scale",
    "torchvision swin": "features.1.0.attn.qkv.weight",
    "timm": "stages.0.blocks.0.conv_dw.weight",
    "official": "downsample_layers.0.0.weight",
    "our own": "stages.0.block0.conv1.weight",
}
# What torch.compile, FSDP and activation checkpointing put in the middle of keys.
WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
AVERAGES = re.compile(r"(?<![a-z])(?:ema|swa|avg|averaged?|shadow|teacher|momentum)(?![a-z])")
DEPTH = 8  # containers within each other
MAX_NETS = 100  # in one container: each is looked for among all its keys


@dataclass(frozen=True)
class FoundWeights:
    """The tensors of one net in a file: their format, where they are, what else there is."""

    name: str  # of the containers, by dots, with a prefix of the keys where one container holds several nets
    fmt: str
    tensors: dict[str, Any]  # a stray number among them does no harm
    others: tuple[str, ...] = ()  # names of the other weights of the file
    unread: tuple[str, ...] = ()  # keys beside these in their container

    @property
    def origin(self) -> str:
        """Return format and place in words, and what was not taken."""
        notes = [f"not {' or '.join(self.others)}, weights_key=NAME chooses"] if self.others else []
        notes += [f"{len(self.unread)} other tensors not read, {self.unread[0]} the first"] if self.unread else []
        taken = f" of {self.name or 'the top'}" if self.others else ""
        return f"{self.fmt} format" + (f" ({', '.join([f'taken{taken}', *notes])})" if notes else "")


def find_weights(loaded: Mapping[Any, Any], name: str | None = None) -> FoundWeights:
    """Find the weights of a net of known format wherever they lie in nested containers.

    Of several, those called `name`, or else the first that are not a moving average. Raises DataError if there are
    none, or none of this name.
    """
    holders = list(_holders(loaded))
    found = [each for path, tensors in holders for each in _nets(path, tensors)]
    if not found:
        raise DataError(_unknown(holders))
    names = [each.name for each in found]
    if name is None:
        chosen = next((each for each in found if not AVERAGES.search(each.name.lower())), found[0])
    elif name in names:
        chosen = found[names.index(name)]
    else:
        raise DataError(f"hold no weights {shorten(printable(name), 80)} (weights_key); {nearest(name, names)}")
    others = tuple(each for each in names if each != chosen.name)
    return FoundWeights(chosen.name, chosen.fmt, chosen.tensors, others, chosen.unread)


def _holders(loaded: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield the path and the entries of every container with a tensor in it; one that contains itself counts once."""
    seen = {id(loaded)}
    todo: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), loaded)]
    while todo:
        path, container = todo.pop(0)
        if any(isinstance(value, torch.Tensor) for value in container.values()):
            keys = {key: WRAPPERS.sub("", key) for key in map(str, container)}
            once = len(set(keys.values())) == len(keys)  # else two keys would become one
            yield path, {keys[str(key)] if once else str(key): value for key, value in container.items()}
        for key, value in container.items():
            if isinstance(value, Mapping) and id(value) not in seen and len(path) < DEPTH:
                seen.add(id(value))
                todo.append(((*path, str(key)), value))


def _nets(path: tuple[str, ...], entries: dict[str, Any]) -> Iterator[FoundWeights]:
    """Yield the nets whose keys are in a container, each behind a prefix of its own, such as `module.` or none."""
    prefixes = {
        key.removesuffix(sign): fmt
        for fmt, sign in SIGNS.items()
        for key in entries
        if key == sign or key.endswith("." + sign)
    }
    if len(prefixes) > MAX_NETS:
        raise DataError(f"weights: hold {len(prefixes)} nets in one container, at most {MAX_NETS}")
    inner = [key for key in entries if key.startswith(tuple(filter(None, prefixes)))]
    for prefix, fmt in prefixes.items():
        name = ".".join([*path, *([prefix.rstrip(".")] if len(prefixes) > 1 and prefix else [])])
        tensors = {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}
        tensors.pop("n_averaged", None)
        beside = set(entries) - set(inner) - {"n_averaged"} if prefix else set()
        unread = tuple(key for key in entries if key in beside and isinstance(entries[key], torch.Tensor))
        yield FoundWeights(name, fmt, tensors, unread=unread)


def _unknown(holders: list[tuple[tuple[str, ...], dict[str, Any]]]) -> str:
    """Describe a file whose weights have no known format, and name the nearest format."""
    if not holders:
        return "weights: hold no tensors"
    path, entries = max(holders, key=lambda holder: sum(isinstance(v, torch.Tensor) for v in holder[1].values()))
    first = ", ".join(shorten(printable(key), 60) for key in list(entries)[:3]) + (", ..." if len(entries) > 3 else "")
    keys = list(entries)[:200]
    parts = {part for key in keys for part in key.split(".") if not part.isdigit() and part != "weight"}
    likeness = {
        fmt: (len(parts & set(sign.split("."))), max(SequenceMatcher(None, sign, key).ratio() for key in keys))
        for fmt, sign in SIGNS.items()
    }
    near = max(SIGNS, key=likeness.__getitem__)
    where = f" in {shorten(printable('.'.join(path)), 60)}" if path else ""
    return (
        f"weights: the format is unknown ({len(entries)} keys{where}: {first}); "
        f"the nearest is {near}, which has {SIGNS[near]}"
    )
