"""The cells of the study `tuned`: each row at several learning rates with images held out, then at the best on all.

Which rate a row takes is known once its first phase has ended: what is read are the runs' own records, and a training
that was not finite counts as the worst. `TUNING` in the study's notes keeps the choice with the numbers it rests on.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, PrivateAttr, model_validator

from roadmap.config.fields import Float, Int, key, shown
from roadmap.config.schema import Config
from roadmap.errors import ConfigError, NonFiniteError
from roadmap.files import disk_errors, write_json
from roadmap.runs.rate_choice import at_edge, choose_rate
from roadmap.runs.run_dir import run_path
from roadmap.runs.schema import STATUS, SUMMARY, Split, Status, Summary, read_or_empty
from roadmap.steps.hydra_errors import HYDRA_ERRORS
from roadmap.sweep.generators import Generator, Words
from roadmap.sweep.study_dir import TUNING

if TYPE_CHECKING:  # studies have generators
    from roadmap.sweep.plan import Row
    from roadmap.sweep.study import Study

RATE = "recipe.lr"
ABOUT_EDGE = "the edge of the grid, so the best may lie beyond: tuned.factors=LIST widens it"
CHOSEN = {RATE: "tuned.factors=LIST says among which rates", "data.holdout": "tuned.holdout=SHARE says how much"}


def _as_list(value: Any) -> Any:
    """Return the items of `0.5,1,2`, or of one number."""
    return value.split(",") if isinstance(value, str) else (value,) if isinstance(value, int | float) else value


@dataclass(frozen=True)
class Choice:
    """What a row has come to: its held-out accuracies in percent by rate, None where a training was not finite."""

    row: Words  # the overrides of a row without its seed
    seeds: list[Words]  # of its second phase
    own: float  # the recipe's rate
    accuracies: dict[float, float | None]
    ended: bool  # whether all of its runs have
    runs: dict[float, list[str]]  # by rate: what the accuracies rest on, below the study's folder

    @property
    def name(self) -> str:
        """Return the row's overrides but for its folders."""
        return " ".join(word for word in self.row if not word.startswith(("paths.", "data.root=")))

    @property
    def rate(self) -> float | None:
        """Return the rate that the row takes; None until all have ended, or where none was finite."""
        return choose_rate(self.accuracies, self.own) if self.ended else None

    @property
    def at_edge(self) -> bool:
        """Tell whether the best may lie beyond the grid."""
        return self.rate is not None and at_edge(self.rate, self.accuracies)


def rows_of(grid: Iterable[Words]) -> dict[Words, list[Words]]:
    """Return the rows of a grid, each with the words of its seeds. Raises ConfigError for what the study chooses."""
    rows: dict[Words, list[Words]] = {}
    for words in grid:
        for word in words:
            if hint := CHOSEN.get(word.partition("=")[0].lstrip("+~")):
                raise ConfigError(f"{word}: the study chooses it; {hint}")
        seed = tuple(word for word in words if word.startswith("seed="))
        rows.setdefault(tuple(word for word in words if word not in seed), []).append(seed)
    return rows


def tried_words(settings: "TunedRates", row: Words, own: float) -> dict[float, list[Words]]:
    """Return the overrides of a row's first phase, by rate, a seed each; rates have six digits."""
    tried = {}
    for factor in sorted(set(settings.factors)):
        rate = own if factor == 1 else float(f"{own * factor:.6g}")
        extra = (f"++data.holdout={settings.holdout!r}", *([] if factor == 1 else [f"{RATE}={rate!r}"]))
        tried[rate] = [(*row, f"seed={seed}", *extra) for seed in settings.seeds]
    return tried


def choice_of(row: Words, seeds: list[Words], own: float, tried: Mapping[float, Sequence[Config]]) -> Choice:
    """Return what the runs of a row's first phase have come to by their own records."""
    found = {rate: [heldout_top1(config) for config in configs] for rate, configs in tried.items()}
    ended = all(top1 is not None for top1s in found.values() for top1 in top1s)
    means = {rate: fmean(top1 for top1 in top1s if top1 is not None) for rate, top1s in found.items()} if ended else {}
    finite = {rate: mean if math.isfinite(mean) else None for rate, mean in means.items()}
    runs = {rate: ["/".join(run_path(config).parts[-3:]) for config in configs] for rate, configs in tried.items()}
    return Choice(row, seeds, own, dict.fromkeys(found) | finite, ended, runs)


def heldout_top1(config: Config) -> float | None:
    """Return a run's accuracy in percent, minus infinity where it was not finite; None where it has not ended."""
    path = run_path(config)
    status = read_or_empty(Status, path / STATUS)
    if status.state == "failed" and status.exit_code == NonFiniteError.code:
        return -math.inf
    summary = read_or_empty(Summary, path / SUMMARY)
    return summary.top1 if status.state == "done" and summary.split == Split.holdout else None


class TunedRates(Generator):
    """Both phases of each row: at several rates, then at the best of them."""

    is_staged = True
    prefix = "tuned."

    factors: Annotated[tuple[Float, ...], BeforeValidator(_as_list)] = key(
        (0.25, 0.5, 1.0, 2.0, 4.0), about="numbers above 0 that include 1, such as 0.5,1,2"
    )
    holdout: Float = key(0.1, gt=0, le=0.9, about="share of the training images that chooses the rates")
    seeds: Annotated[tuple[Int, ...], BeforeValidator(_as_list)] = key(
        (0,), about="whole numbers from 0, such as 0,1: the seeds of the runs that choose"
    )

    _choices: list[Choice] = PrivateAttr(default_factory=list)  # of the cells that were made last

    @model_validator(mode="after")
    def _check(self) -> "TunedRates":
        factors, seeds = self.factors, self.seeds
        if not 2 <= len(set(factors)) <= 100 or 1 not in factors or not all(1e-6 <= f <= 1e6 for f in factors):
            allowed = "two numbers or more from 1e-6 to 1e6 that include 1"
            raise ConfigError(f"tuned.factors={shown(factors)}: must be {allowed}")
        if not seeds or len(seeds) > 100 or not all(0 <= seed < 2**31 for seed in seeds):
            raise ConfigError(f"tuned.seeds={shown(seeds)}: must be whole numbers from 0")
        return self

    def cells(self, grid: Sequence[Words], compose: Callable[[Words], Config]) -> Iterator[Words]:
        """Yield the overrides of the first phase, and of the second as far as the rows' rates are known.

        Raises ConfigError for an override that the study itself chooses.
        """
        self._choices.clear()
        for row, seeds in rows_of(grid).items():
            try:
                own = compose((*row, f"seed={self.seeds[0]}")).recipe.lr
            except (ConfigError, *HYDRA_ERRORS):  # as of toggles that exclude each other: composing it again says so
                yield (*row, *seeds[0])
                continue
            tried = tried_words(self, row, own)
            yield from (words for each in tried.values() for words in each)
            configs = {rate: list(map(compose, each)) for rate, each in tried.items()}
            self._choices.append(choice_of(row, seeds, own, configs))
        for choice in self._choices:
            if choice.rate is not None:
                rate = () if choice.rate == choice.own else (f"{RATE}={choice.rate!r}",)
                yield from ((*choice.row, *seed, *rate) for seed in choice.seeds)

    def outlook(self, study: "Study", rows: Sequence["Row"] = ()) -> Iterator[str]:
        """Yield what the second phase adds to the plan, as far as its cells are not among the `rows`."""
        waiting = [choice for choice in self._choices if choice.rate is None]
        later = sum(len(choice.seeds) for choice in waiting)
        first = sum(cell.config.data.holdout > 0 for cell in study.cells)
        second = len(study.cells) - first
        yield (
            f"phase 1: {first} cells, {len(self.factors)} rates per row on {1 - self.holdout:.3g} of the training "
            f"images; phase 2: {second + later} cells on all of them, {second} listed, {later} once their rows "
            "have rates"
        )
        hours = {row.key: row.hours for row in rows}
        costs = [
            of_one * len(choice.seeds) / (1 - self.holdout)
            for choice in waiting
            if (of_one := hours.get(choice.runs[choice.own][0])) is not None
        ]
        if costs:
            yield f"these {later} cells: about {sum(costs):.3g} hours more"

    def news(self) -> Iterator[str]:
        """Yield which rates the rows take, and where the grid was too narrow."""
        done = [choice for choice in self._choices if choice.ended]
        yield f"{len(done)} of {len(self._choices)} rows have ended their first phase"
        for choice in done:
            if choice.rate is None:
                yield f"{choice.name}: no rate gave a finite result, so there is no second phase"
                continue
            edge = f"; {ABOUT_EDGE}" if choice.at_edge else ""
            yield f"{choice.name}: rate {choice.rate:g}, {choice.rate / choice.own:.3g} times the recipe's own{edge}"

    def is_result(self, config: Config, exit_code: int | None) -> bool:
        """Tell whether a cell is a rate that gave no finite training: the worst."""
        return config.data.holdout > 0 and exit_code == NonFiniteError.code

    def record(self, notes: Path) -> None:
        """Write the choices, with the numbers that they rest on, into a study's notes. Raises DiskError."""
        rows = [
            {
                "row": choice.name,
                "own": choice.own,
                "rate": choice.rate,
                "at_edge": choice.at_edge,
                "ended": choice.ended,
                "heldout_top1": {f"{rate!r}": top1 for rate, top1 in choice.accuracies.items()},
                "runs": {f"{rate!r}": runs for rate, runs in choice.runs.items()},
            }
            for choice in self._choices
        ]
        with disk_errors(notes / TUNING):
            write_json(notes / TUNING, {"schema": 1, **self.values(), "rows": rows})
