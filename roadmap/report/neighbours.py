"""What is suspect about a run only beside its neighbours: other code, config, data, hardware or batch than most of them.

One rule: what is suspect is listed and left out of every number; `--allow KIND` takes it in, marked. Used by
`roadmap.report.runs`.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from roadmap import paper
from roadmap.report.find import Finding
from roadmap.report.record import Run

# What `--allow` takes in, and what each word means.
KINDS = {
    "override": "went on although code or data had changed (allow_drift=true)",
    "code": "ran with other code than most runs of its study",
    "data": "ran on other images than most runs of its study",
    "hardware": "ran on other hardware than most runs of its study",
    "batch": "had another total batch than most runs of its recipe",
    "config": "had another config than the other seeds of its cell, or than most runs of its recipe",
}
IDENTITY = ("model.", "recipe.", "data.")
FREE = ("data.root", "data.download", "data.workers")
NOT_COMPARED = (
    "recipe.batch_size",
    "recipe.epochs",
    "data.image_size",
)  # compared apart, under the names of the summary
OF_THE_NET = ("recipe.layer_scale", "recipe.init", "recipe.drop_path")  # a reference net has its own
Reason = tuple[str, str]  # kind, text
Place = Callable[[Run], Hashable | None]  # the neighbourhood of a run; None where it has none


def one_of_each(runs: Sequence[Run]) -> tuple[list[Run], list[Finding]]:
    """Count a run that is there several times once if all agree, and not at all if they do not."""
    places: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        places[run.study, run.regime, run.data, run.cell, run.seed].append(run)
    kept, findings = [], []
    for same in places.values():
        if all(run == same[0] for run in same):
            kept.append(same[0])
            findings += [Finding(run.path, f"a copy of {same[0].path}: counted once") for run in same[1:]]
        else:
            values = ", ".join(f"{run.top1:.2f}" for run in same)
            reason = f"the same cell and seed is there {len(same)} times (top-1 {values}): none is counted"
            findings += [Finding(run.path, reason) for run in same]
    return kept, findings


def like_the_others(runs: Sequence[Run], allowed: Collection[str] = ()) -> tuple[list[Run], list[Finding]]:
    """Leave out the runs that differ from their neighbours, unless every way in which they differ is allowed."""
    reasons: dict[int, list[Reason]] = defaultdict(list)
    for run in runs:
        if run.drift:
            reasons[id(run)].append(("override", f"went on although this had changed: {run.drift}"))
    sound = [run for run in runs if not run.drift or "override" in allowed]
    for places in ((_study, _recipe), (_cell,)):  # seeds are compared among those that are like the other rows
        like = [run for run in sound if not reasons[id(run)] or run.drift]
        for kind, run, text in (*_other_values(like, places), *_other_configs(like, places)):
            reasons[id(run)].append((kind, text))
    kept, findings = [], []
    for run in runs:
        why = reasons[id(run)]
        kinds = tuple(dict.fromkeys(kind for kind, _ in why))
        text = "; ".join(text for _, text in why)
        if set(kinds) <= set(allowed):
            kept.append(replace(run, marks=kinds) if kinds else run)
            findings += [Finding(run.name, f"counted because it is allowed: {text}")] if kinds else []
        else:
            findings.append(Finding(run.name, text))
    return kept, findings


def _rules() -> Iterable[tuple[str, str, Place, Callable[[Run], Any]]]:
    """Yield kind, words, the neighbourhood and the value that is compared."""
    yield "code", "code", _study, lambda run: run.code
    yield "data", "images", _study, lambda run: run.images
    yield "data", "image_size", _study, lambda run: run.image_size
    yield "hardware", "hardware", _study, lambda run: run.hardware
    yield "batch", "batch_size", _recipe, lambda run: run.batch_size
    yield "config", "epochs", _recipe, lambda run: run.epochs
    yield "batch", "batch_size", _cell, lambda run: run.batch_size
    yield "config", "epochs", _cell, lambda run: run.epochs
    yield "config", "recipe", _cell, lambda run: run.recipe
    yield "config", "gmacs", _cell, lambda run: None if run.gmacs is None else float(f"{run.gmacs:.4g}")


def _study(run: Run) -> Hashable:
    return run.study, run.regime, run.data


def _recipe(run: Run) -> Hashable | None:
    """Return the runs that share a recipe: the paper's rows. A step, variant or override of one's own may change it on purpose."""
    plain = run.cell == run.step and run.variant is None and run.step in paper.order()
    return (*_study(run), run.recipe) if plain else None  # type: ignore[misc]


def _cell(run: Run) -> Hashable:
    return *_study(run), run.cell  # type: ignore[misc]


def _unusual(runs: Sequence[Run], place: Place, value: Callable[[Run], Any]) -> Iterable[tuple[Run, Any]]:
    """Yield the runs whose value is not that of most of their neighbours, with the usual value."""
    neighbours: dict[Hashable, list[Run]] = defaultdict(list)
    for run in runs:
        if (key := place(run)) is not None:
            neighbours[key].append(run)
    for same in neighbours.values():
        counts = Counter(map(value, same))
        if len(counts) > 1:
            longest = {v: max(run.epochs or 0 for run in same if value(run) == v) for v in counts}
            usual = max(counts, key=lambda v: (counts[v], longest[v], str(v)))  # of two equal parts the longer training
            yield from ((run, usual) for run in same if value(run) != usual)


def _other_values(runs: Sequence[Run], places: Collection[Place]) -> Iterable[tuple[str, Run, str]]:
    """Yield the runs of which something that is known differs from their neighbours in some places."""
    for kind, what, place, value in _rules():
        if place in places:
            for run, usual in _unusual([run for run in runs if value(run)], place, value):
                yield kind, run, _said(what, value(run), usual, place)


def _other_configs(runs: Sequence[Run], places: Collection[Place]) -> Iterable[tuple[str, Run, str]]:
    """Yield the runs whose resolved config differs, key by key, from the other seeds of the cell or from most of their recipe."""
    prefixes = {_cell: IDENTITY, _recipe: ("recipe.", "data.")}
    for place in prefixes.keys() & set(places):
        for key in sorted(
            {key for run in runs for key in run.config if key.startswith(prefixes[place])}.difference(
                FREE, NOT_COMPARED
            )
        ):

            def value(run: Run, key: str = key) -> str:
                return run.config.get(key, "absent")

            for run, usual in _unusual(runs, place, value):
                if not (place is _recipe and run.adopted == "reference" and key in OF_THE_NET):
                    yield "config", run, _said(key, value(run), usual, place)


def _said(what: str, value: Any, usual: Any, place: Place) -> str:
    whose = (
        "the other seeds of its cell"
        if place is _cell
        else f"most runs of its {'study' if place is _study else 'recipe'}"
    )
    return f"{what}={_short(value)}, not {_short(usual)} like {whose}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:40]}…"
