"""Runs at Weights & Biases: `wandb:ENTITY/PROJECT[?group=STUDY]`, read through W&B's own API client.

The whole history is scanned, never sampled; bits and status are the files that the run sent. What cannot be read is
listed.
"""

import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import numpy as np

from roadmap.errors import ConfigError
from roadmap.files import MAX_JSON
from roadmap.runs.metrics import Metrics
from roadmap.runs.recorded_run import Suspect, json_object, read_bits, read_numbers
from roadmap.runs.schema import CORRECT, RECORD, STATUS, Status
from roadmap.runs.search import Problem
from roadmap.runs.wandb_client import import_wandb, start_service
from roadmap.text import clean

if TYPE_CHECKING:
    from wandb.apis.public import Run as ApiRun

PREFIX = "wandb:"
SOURCE = re.compile(r"wandb:([^/?#\s]+)/([^/?#\s]+)(?:\?(.*))?")
PAGE, TIMEOUT_S = 50, 60
# Of one request; Retry-After is respected by the client.
RETRIES = {"max": 4, "wait_min_seconds": 0.5, "wait_max_seconds": 30.0}
SECRET = re.compile(r"[0-9a-zA-Z_-]{32,}")  # a key that an error quotes never reaches the report
ANSWERS = {
    401: "refused: this login is not known (401); wandb login, or WANDB_API_KEY",
    403: "refused: this login may not read the project (403)",
    404: "there is no such entity, project or run (404)",
    429: "too many requests (429), also after waiting; try again later",
}
OUR_KEYS = frozenset({"step", "cell", "study", "regime", "seed", "recipe", "data"})  # in every config of this roadmap
SUMMARY_OF = "summary_of"  # in the config of the run that has the charts of a study
# What define_metric(summary=...) makes of a value.
SUMMARIES = frozenset({"last", "min", "max", "mean", "best", "none"})
STATES = {"finished": ("failed", "ended without its record"), "running": ("running", None), "failed": ("failed", None)}


@dataclass(frozen=True)
class Project:
    """What `wandb:ENTITY/PROJECT[?group=STUDY]` names."""

    entity: str
    name: str
    group: str | None

    def __str__(self) -> str:
        return f"{PREFIX}{self.entity}/{self.name}" + (f"?group={self.group}" if self.group else "")


def parse_project(text: str) -> Project:
    """Read a source's name. Raises ConfigError."""
    found = SOURCE.fullmatch(text)
    options = dict(parse_qsl(found[3] or "", keep_blank_values=True)) if found else {}
    if found is None or options.keys() - {"group"} or options.get("group") == "":
        form = "wandb:ENTITY/PROJECT or wandb:ENTITY/PROJECT?group=STUDY"
        raise ConfigError(f"source {clean(text, 120)}: not of the form {form}")
    return Project(found[1], found[2], options.get("group"))


def find_wandb_runs(text: str) -> tuple[list["WandbRun"], int, list[Problem]]:
    """Return a project's runs of this roadmap, the number of others, and what was not listed. Raises ConfigError."""
    project = parse_project(text)
    filters = {"group": project.group} if project.group else {}
    found: list[WandbRun] = []
    foreign = 0
    try:
        with plain_errors():
            for run in _client().runs(f"{project.entity}/{project.name}", filters=filters, per_page=PAGE, lazy=False):
                if is_ours(dict(run.config)):
                    found.append(WandbRun(project, run))
                else:
                    foreign += SUMMARY_OF not in run.config
    except Suspect as error:
        return found, foreign, [Problem(str(project), f"{error}; {len(found)} runs were listed before")]
    return found, foreign, []


def _client() -> Any:
    """Return W&B's API client, which asks for no login and gives up in time."""
    kinds = ("graphql", "file_transfer")
    retries: dict[str, Any] = {f"x_{kind}_retry_{k}": value for kind in kinds for k, value in RETRIES.items()}
    start_service(**retries)
    return import_wandb().Api(timeout=TIMEOUT_S)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn every error of W&B's client into a Suspect of one plain line."""
    import requests
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    known = (wandb.Error, WandbApiFailedError, requests.RequestException, ValueError, TypeError, KeyError, OSError)
    try:
        yield
    except known as error:
        raise Suspect(f"W&B: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    text = SECRET.sub("...", " ".join(str(error).split()))
    found = re.search(r"\b(?:HTTP|status(?: code)?:?) ([45][0-9]{2})\b", text)
    status = getattr(getattr(error, "response", None), "http_status", None) or (int(found[1]) if found else 0)
    if status in ANSWERS:
        return ANSWERS[status]
    if status >= 500:
        return f"the server failed ({status}), also after trying again"
    if "Could not find project" in text:
        return "there is no such entity or project, or this login may not see it"
    if re.search(r"No (authentication|API key) configured", text):
        return "no login: wandb login, or WANDB_API_KEY"
    if "onnect" in text or "timed out" in text.lower() or "deadline" in text.lower():
        return f"the server cannot be reached ({clean(text, 160)})"
    return clean(text, 200) or type(error).__name__


@dataclass(frozen=True)
class WandbRun:
    """One run at W&B. Every method raises Suspect."""

    project: Project
    run: "ApiRun" = field(repr=False, compare=False)

    named = None  # no folder whose name could contradict the summary

    @property
    def shown(self) -> str:
        """Return the address of the run in short."""
        return f"{PREFIX}{self.project.entity}/{self.project.name}/{clean(self.run.id, 64)}"

    @cached_property
    def _status(self) -> dict[str, Any]:
        data = self._file(STATUS, MAX_JSON)
        return status_of(self._summary, str(self.run.state)) if data is None else json_object(data, STATUS)

    @cached_property
    def _summary(self) -> dict[str, Any]:
        with plain_errors():
            return last_values(dict(self.run.summary._json_dict))

    def status(self) -> dict[str, Any]:
        """Return the `status.json` that the run sent; what W&B says of it where there is none."""
        return self._status

    def summary(self) -> dict[str, Any] | None:
        """Return the summary, each value once."""
        return self._summary if self._summary.get("state") == "done" else None

    def config(self) -> dict[str, Any]:
        """Return the resolved config, without what went up with it from the status (versions, code, sizes)."""
        status = self._status
        with plain_errors():
            config = dict(self.run.config)
        return {k: v for k, v in config.items() if k != "_wandb" and not (k in status and status[k] == v)}

    def metrics(self) -> Metrics:
        """Return the evaluations of the whole history."""
        with plain_errors():
            return metrics_of(self.run.scan_history())

    def changed(self, _: dict[str, Any]) -> list[str]:
        """Return nothing: W&B has values, not the files that the summary has hashes of."""
        return []

    def bits(self) -> bytes | None:
        """Return the packed bits that the run sent; None where it sent none."""
        data = self._file(CORRECT, RECORD[CORRECT])
        return None if data is None else read_bits(data)

    def classes(self, name: str) -> np.ndarray | None:
        """Return the class numbers in `predictions.npy` or `labels.npy`; None where the run sent none."""
        data = self._file(name, RECORD[name])
        return None if data is None else read_numbers(data, name)

    def _file(self, name: str, limit: int) -> bytes | None:
        with plain_errors(), tempfile.TemporaryDirectory() as folder:
            for file in self.run.files(names=[name]):
                if file.name == name:
                    if file.size > limit:
                        raise Suspect(f"{name} is too large to be a run's ({file.size} bytes)")
                    file.download(root=folder, replace=True).close()
                    return Path(folder, name).read_bytes()
        return None


def is_ours(config: dict[str, Any]) -> bool:
    """Tell whether a run's config is one of this roadmap."""
    return config.keys() >= OUR_KEYS and isinstance(config["step"], str) and isinstance(config["cell"], str)


def last_values(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the summary with each value once: the last, never the best, where `define_metric` holds several."""
    values = {}
    for key, value in summary.items():
        if not key.startswith("_"):  # the client's own
            several = isinstance(value, dict) and value and value.keys() <= SUMMARIES
            values[key] = value.get("last") if several else value
    return values


def status_of(summary: dict[str, Any], state: str) -> dict[str, Any]:
    """Return what stands for a `status.json` that did not go up: the summary says `done` only where the run did."""
    done = state == "finished" and summary.get("state") == "done"
    stands, reason = ("done", None) if done else STATES.get(state, ("stopped", None))
    known = {key: value for key, value in summary.items() if key in Status.model_fields and key != "step"}
    return {**known, "state": stands, "reason": reason}


def metrics_of(rows: Iterable[dict[str, Any]]) -> Metrics:
    """Return the evaluations among the rows that were logged; a row that went up twice alike counts once."""
    metrics = Metrics()
    seen: dict[tuple[str, int], str] = {}
    for row in rows:
        kind = "val" if "val/loss" in row or "val/top1" in row else "train" if "train/loss" in row else None
        step = row.get("global_step")
        if kind is None or not isinstance(step, int):
            continue
        logged = {key: value for key, value in row.items() if not key.startswith("_") and key != "time_s"}
        text = json.dumps(logged, sort_keys=True)
        if seen.get((kind, step)) == text:
            continue
        seen[kind, step] = text
        metrics.steps[kind].append(step)
        metrics.rows += [{"kind": kind, **row}] if kind == "val" else []
    return metrics
