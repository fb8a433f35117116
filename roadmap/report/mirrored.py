"""What W&B keeps of a run, turned back into its record. Used for runs at W&B and for its offline directories."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from roadmap.report.folder import History, order_problem

OURS = frozenset({"step", "cell", "study", "regime", "seed", "recipe", "data"})  # keys of every config of ours
SUMMARIES = frozenset(
    {"last", "min", "max", "mean", "best", "none"}
)  # what define_metric(summary=...) makes of a value
OF_THE_CLIENT = re.compile(r"_.*")


def is_ours(config: dict[str, Any]) -> bool:
    """Tell whether a run's config is one of this roadmap."""
    return config.keys() >= OURS and isinstance(config["step"], str) and isinstance(config["cell"], str)


def own_config(config: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
    """Return the config without the facts of the start (versions, code, sizes) that went up with it."""
    return {
        key: value for key, value in config.items() if key != "_wandb" and not (key in status and status[key] == value)
    }


def own_summary(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the summary with each value once: the last one, where `define_metric` keeps several; never the best."""
    told = {}
    for key, value in summary.items():
        if OF_THE_CLIENT.fullmatch(key):
            continue
        if isinstance(value, dict) and value and value.keys() <= SUMMARIES:
            value = value.get("last")
        told[key] = value
    return told


def status_of(summary: dict[str, Any], state: str) -> dict[str, Any]:
    """Return what stands for a `status.json` that did not go up: the summary says `done` only where the run did."""
    done = state == "finished" and summary.get("state") == "done"
    words = {
        "finished": "ended without its record",
        "running": "running",
        "crashed": "stopped",
        "killed": "stopped",
        "failed": "failed",
    }
    return {**summary, "state": "done" if done else words.get(state, "stopped")}


def history_of(rows: Iterable[dict[str, Any]]) -> History:
    """Return the evaluations among the rows that were logged; a row that went up twice alike counts once."""
    steps: dict[str, list[int]] = defaultdict(list)
    evaluations: list[dict[str, Any]] = []
    seen: dict[tuple[str, int], str] = {}
    for row in rows:
        kind = "val" if "val/loss" in row or "val/top1" in row else "train" if "train/loss" in row else None
        step = row.get("global_step")
        if kind is None or not isinstance(step, int):
            continue
        logged = {key: value for key, value in row.items() if not OF_THE_CLIENT.fullmatch(key) and key != "time_s"}
        text = json.dumps(logged, sort_keys=True)
        if seen.get((kind, step)) == text:
            continue
        seen[kind, step] = text
        steps[kind].append(step)
        evaluations += [{"kind": kind, **row}] if kind == "val" else []
    return History(tuple(evaluations), order_problem(steps))
