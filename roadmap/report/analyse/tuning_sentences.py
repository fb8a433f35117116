"""What the findings say of a study in which every row has its own learning rate."""

from collections.abc import Sequence

from roadmap.report.analyse.formats import first_few, p_text, signed
from roadmap.report.analyse.tuning import TunedRow, Tuning
from roadmap.text import clean

NAMED = 8  # rows named one by one in a sentence
# By verdict: what is said of the steps' gains that have it.
VERDICTS = {
    "survives": "Gains that survive (significant with the one recipe and, in the same direction, with own rates)",
    "lost": "Gains significant with the one recipe, and not with own rates (no proof that they are zero)",
    "turns": "Gains significant with both, in opposite directions",
    "appears": "Gains significant with own rates only",
    "open": "Gains significant with neither",
}


def tuning_sentences(tuning: Tuning) -> list[str]:
    """Return what the held-out images chose, and which gains survive it."""
    rows = tuning.rows
    own = [row for row in rows if row.factor is not None and abs(row.factor - 1) < 1e-6]
    parts = [
        f"Each row has its own learning rate, chosen on held-out training images and never on the validation images "
        f"({_seeds(rows)}): {len(own)} of {len(rows)} rows take the recipe's own."
    ]
    edge = [row for row in rows if row.at_edge]
    if edge:
        parts.append(f"The grid is too narrow for {_names(edge)}: its edge was chosen, so the best may lie beyond.")
    if lacking := [row for row in rows if row.lacking]:
        parts.append(f"Without a result at some rates (not finite, or not finished): {_names(lacking)}.")
    if waiting := [row for row in rows if row.tuned is None]:
        parts.append(f"Not yet trained on the whole set at their rates: {_names(waiting)}.")
    return parts + _verdicts(tuning)


def _verdicts(tuning: Tuning) -> list[str]:
    found: dict[str, list[TunedRow]] = {verdict: [] for verdict in VERDICTS}
    for row in tuning.rows:
        if verdict := row.verdict:
            found[verdict].append(row)
    tested = sum(map(len, found.values()))
    if not tested:
        both = any(all(row.gains) for row in tuning.rows)
        why = "no interval over seeds is known" if both else "no step and its parent are there with both"
        return [f"Which gains survive own rates cannot be told: {why}."]
    parts = [
        f"{VERDICTS[verdict]}, {len(rows)} of {tested}: {_listed(rows)}." for verdict, rows in found.items() if rows
    ]
    return [*parts, "Both by Welch's test, adjusted by Holm over the steps of each roadmap, 5 %."]


def _listed(rows: Sequence[TunedRow]) -> str:
    texts = []
    for row in rows:
        plain, tuned = row.gains
        assert plain is not None
        assert tuned is not None
        ps = f"p {p_text(plain.p_holm)} and {p_text(tuned.p_holm)}"
        texts.append(f"{clean(row.step, 60)} {signed(plain.gain)} and {signed(tuned.gain)} points ({ps})")
    return first_few(texts, NAMED, "; ")


def _names(rows: Sequence[TunedRow]) -> str:
    return first_few([clean(row.step, 60) for row in rows], NAMED)


def _seeds(rows: Sequence[TunedRow]) -> str:
    least, rates = min(row.n for row in rows), max(len(row.accuracies) for row in rows)
    return f"{rates} rates a row, {least} seed{'s' * (least > 1)} each"
