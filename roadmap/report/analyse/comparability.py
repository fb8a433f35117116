"""Which runs may be compared: each once, and like its neighbours.

What differs in data, recipe, batch or config is left out of every number unless its kind is allowed. What differs in
rounding alone (code, hardware, versions, kernels) counts, is marked, and is listed in a line that counts it.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from roadmap import paper
from roadmap.config import KEYS, Affects, defaults, is_read
from roadmap.report.analyse.formats import share_of
from roadmap.report.read.run import Run, config_text
from roadmap.runs.search import Problem
from roadmap.text import shorten

# What `--allow` takes in, and what each word means. Code and hardware count without it.
KINDS = {
    "override": "continued although code, images, precision or devices had changed (allow_drift=true)",
    "code": "ran with other code than most runs of its study (counts in any case)",
    "data": "ran on other images, or at another size, than most runs of its study",
    "hardware": "ran on other hardware than most runs of its study (counts in any case)",
    "batch": "had another total batch than most runs of its recipe",
    "config": "had another config than the other seeds of its cell, or than most runs of its recipe",
}
SECTIONS = ("model.", "recipe.", "data.")  # in which a key that the schema has lost is taken to affect the result
DEFAULTS = {key: config_text(value) for key, value in defaults().items()}
OF_THE_NET = ("recipe.layer_scale", "recipe.init", "recipe.drop_path")  # a reference net has its own
# What a run was trained with besides its net.
TRAINING = [k for k, key in KEYS.items() if key.affects == Affects.result and "." in k and not k.startswith("model.")]
COMPARED_APART = ("seed", "recipe.batch_size", "recipe.epochs", "data.image_size")  # the sizes as the summary has them
Value = Callable[[Run], Any]  # None or "" where it is not known
Neighbours = Callable[[Run], Hashable | None]  # runs with the same answer are neighbours; None: it has none


def config_value(run: Run, key: str) -> str | None:
    """Return a value of the run's config: the default of a key that it lacks or that nothing read; None without one."""
    if key in KEYS and not is_read(key, run.config):
        return DEFAULTS[key]
    return run.config.get(key, DEFAULTS.get(key))


def count_once(runs: Sequence[Run]) -> tuple[list[Run], list[Problem]]:
    """Count a run that is there several times once if all agree, and not at all if they do not.

    A cell under a redundant name (`gelu,recipe.epochs=20` where 20 is the default) is a copy of the plainly named one.
    """
    by_name: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_name[run.name].append(run)
    counted: list[Run] = []
    problems: list[Problem] = []
    for same in by_name.values():
        if all(run == same[0] for run in same):
            counted.append(same[0])
            problems += [Problem(run.path, f"a copy of {same[0].path}: counted once") for run in same[1:]]
        else:
            values = ", ".join(f"{run.top1:.2f}" for run in same)
            reason = f"the same cell and seed is there {len(same)} times (top-1 {values}): none is counted"
            problems += [Problem(run.path, reason) for run in same]
    plainest: dict[Hashable, Run] = {}
    for run in sorted(counted, key=lambda run: len(run.cell)):
        first = plainest.setdefault(_training(run), run)
        if first is not run:
            problems.append(Problem(run.path, f"a copy of {first.path} under another name: not counted"))
    return [run for run in counted if plainest[_training(run)] is run], problems


def _training(run: Run) -> Hashable:
    """Return what identifies a training, independent of its cell's name."""
    values = [(key, config_value(run, key)) for key in _keys([run], "result")]
    sizes = (run.epochs, run.batch_size, run.image_size, run.images)
    return _study(run), run.step, run.variant, run.seed, run.recipe, sizes, tuple(values)


def comparable(runs: Sequence[Run], allowed: Collection[str] = ()) -> tuple[list[Run], list[Problem], list[Problem]]:
    """Leave out the runs that differ from their neighbours, unless every way in which they differ is allowed.

    Return the runs that count, what is left out, and what would be but for `allowed`.
    """
    reasons: dict[int, list[tuple[str, str]]] = defaultdict(list)  # kind, text
    for run in runs:
        if run.drift:
            reasons[id(run)].append(("override", f"continued although this had changed: {run.drift}"))
    sound = [run for run in runs if not reasons[id(run)] or "override" in allowed]
    for neighbours in ((_study, _recipe), (_cell,)):  # seeds are compared among those that are like the other rows
        like = [run for run in sound if all(kind == "override" for kind, _ in reasons[id(run)])]
        for kind, key, near, value in _rules(like):
            if near in neighbours:
                for run, usual in _unusual(like, near, value):
                    if not (near is _recipe and run.adopted == "reference" and key in OF_THE_NET):
                        reasons[id(run)].append((kind, _difference(key, value(run), usual, near)))
    counted, left_out, taken = [], [], []
    for run in runs:
        kinds = tuple(dict.fromkeys(kind for kind, _ in reasons[id(run)]))
        text = "; ".join(text for _, text in reasons[id(run)])
        if not set(kinds) <= set(allowed):
            left_out.append(Problem(run.name, text))
            continue
        counted.append(replace(run, marks=kinds))
        taken += [Problem(run.name, f"counted because it is allowed: {text}")] if kinds else []
    return counted, left_out, taken


def mark_rounding(runs: Sequence[Run]) -> tuple[list[Run], list[Problem]]:
    """Mark the runs that were computed otherwise than most of their study; return a line for each difference."""
    marks: dict[int, list[str]] = defaultdict(list)
    found: dict[tuple[Hashable, str, str], list[Run]] = defaultdict(list)
    for kind, value in _rounding(runs):
        for run, usual in _unusual(runs, _study, value):
            found[_study(run), kind, f"other {kind} than most ({_short(value(run))}, not {_short(usual)})"].append(run)
    for run in runs:
        if run.rounding:
            found[_study(run), "resumed", "other code, hardware or versions at a later start"].append(run)
    lines = []
    for (study, kind, text), unusual in found.items():
        total = sum(_study(run) == study for run in runs)
        where = f"{unusual[0].study} ({unusual[0].regime}, {unusual[0].data})"
        lines.append(Problem(where, f"{share_of(len(unusual), total, 'run', 'has', 'have')} {text}"))
        for run in unusual:
            marks[id(run)].append(kind)
    return [replace(run, marks=(*run.marks, *marks[id(run)])) for run in runs], lines


def _rounding(runs: Sequence[Run]) -> Iterable[tuple[str, Value]]:
    """Yield what the same run may be computed with, by kind, and its value."""
    yield "code", lambda run: run.code
    yield "hardware", lambda run: run.hardware
    yield "versions", lambda run: run.versions
    yield from ((key, _value_of(key)) for key in _keys(runs, "rounding"))


def _value_of(key: str) -> Value:
    return lambda run: config_value(run, key)


def _rules(runs: Sequence[Run]) -> Iterable[tuple[str, str, Neighbours, Value]]:
    """Yield what is compared: kind, name, among which neighbours, and the value."""
    yield "data", "images", _study, lambda run: run.images
    yield "data", "image_size", _study, lambda run: run.image_size
    for near in (_recipe, _cell):
        yield "batch", "batch_size", near, lambda run: run.batch_size
        yield "config", "epochs", near, lambda run: run.epochs
    yield "config", "recipe", _cell, lambda run: run.recipe
    yield "config", "gmacs", _cell, lambda run: run.numbers.get("gmacs") and float(f"{run.numbers['gmacs']:.4g}")
    for key in _keys(runs, "result"):
        if key not in COMPARED_APART:
            yield "config", key, _cell, _value_of(key)
            if key.startswith(("recipe.", "data.")):
                yield "config", key, _recipe, _value_of(key)


def _keys(runs: Sequence[Run], effect: str) -> list[str]:
    """Return the keys that affect the result, or rounding alone: the schema's, and what it has lost of these."""
    lost = {key for run in runs for key in run.config if key not in KEYS and key.startswith(SECTIONS)}
    known = {key for key, about in KEYS.items() if about.affects == effect}
    return sorted(known | lost if effect == "result" else known)


def _study(run: Run) -> Hashable:
    return run.study, run.regime, run.data, run.holdout  # held-out images are no validation images


def _recipe(run: Run) -> Hashable | None:
    """Return the runs that share a recipe: the paper's rows. A step, variant or override of one's own may change it."""
    return (_study(run), run.recipe) if run.plain and run.step in paper.order() else None


def _cell(run: Run) -> Hashable:
    return _study(run), run.cell


def _unusual(runs: Sequence[Run], near: Neighbours, value: Value) -> Iterable[tuple[Run, Any]]:
    """Yield the runs whose value is known and not that of most of their neighbours, with the usual value."""
    neighbours: dict[Hashable, list[Run]] = defaultdict(list)
    for run in runs:
        if (key := near(run)) is not None and value(run) not in (None, ""):
            neighbours[key].append(run)
    for same in neighbours.values():
        counts = Counter(map(value, same))
        if len(counts) > 1:
            longest = {v: max(run.epochs or 0 for run in same if value(run) == v) for v in counts}
            usual = max(counts, key=lambda v: (counts[v], longest[v], str(v)))  # of two equal parts the longer training
            yield from ((run, usual) for run in same if value(run) != usual)


def _difference(key: str, value: Any, usual: Any, near: Neighbours) -> str:
    others = f"most runs of its {'study' if near is _study else 'recipe'}"
    others = "the other seeds of its cell" if near is _cell else others
    return f"{key}={_short(value)}, not {_short(usual)} like {others}"


def _short(value: Any) -> str:
    return shorten(str(value), 60)
