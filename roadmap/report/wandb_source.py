"""Runs at Weights & Biases as a source: `wandb:ENTITY/PROJECT[?group=STUDY]`, read through W&B's own API client.

The whole history is scanned, never sampled; bits and status are the files that the run sent. What cannot be read is listed.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from roadmap.errors import ConfigError
from roadmap.files import read_json
from roadmap.report.find import Finding
from roadmap.report.folder import MAX_BITS, MAX_RECORD, History, Suspect, read_bits
from roadmap.report.mirrored import history_of, is_ours, own_config, own_summary, status_of
from roadmap.report.text import clean
from roadmap.runs.schema import CORRECT, STATUS

if TYPE_CHECKING:
    from wandb.apis.public import Run as ApiRun

SOURCE = re.compile(r"wandb:([^/?#\s]+)/([^/?#\s]+)(?:\?(.*))?")
PAGE, TIMEOUT_S = 50, 60
RETRIES = {
    "max": 4,
    "wait_min_seconds": 0.5,
    "wait_max_seconds": 30.0,
}  # of one request; Retry-After is kept by the client
SECRET = re.compile(r"[0-9a-zA-Z_-]{32,}")  # a key never reaches the report, whatever an error quotes


@dataclass(frozen=True)
class Project:
    """What `wandb:ENTITY/PROJECT[?group=STUDY]` names."""

    entity: str
    name: str
    group: str | None

    def __str__(self) -> str:
        return f"wandb:{self.entity}/{self.name}" + (f"?group={self.group}" if self.group else "")


def parse(text: str) -> Project:
    """Read a source's name. Raises ConfigError."""
    found = SOURCE.fullmatch(text)
    options = dict(parse_qsl(found[3] or "", keep_blank_values=True)) if found else {}
    if found is None or options.keys() - {"group"} or options.get("group") == "":
        raise ConfigError(
            f"source {clean(text, 120)}: not of the form wandb:ENTITY/PROJECT or wandb:ENTITY/PROJECT?group=STUDY"
        )
    return Project(found[1], found[2], options.get("group"))


def find_wandb_runs(text: str) -> tuple[list["WandbRun"], int, list[Finding]]:
    """Return the roadmap's runs of a project, how many others it holds, and what could not be listed. Raises ConfigError."""
    project = parse(text)
    found: list[WandbRun] = []
    foreign = 0
    try:
        with plainly():
            for run in _client().runs(
                f"{project.entity}/{project.name}",
                filters={"group": project.group} if project.group else {},
                per_page=PAGE,
                lazy=False,
            ):
                if is_ours(dict(run.config)):
                    found.append(WandbRun(project, run))
                else:
                    foreign += 1
    except Suspect as error:
        return found, foreign, [Finding(str(project), f"{error}; {len(found)} runs were listed before")]
    return found, foreign, []


def _client() -> Any:
    """Return W&B's API client, which asks for no login and gives up in time."""
    import wandb

    settings = {
        f"x_{what}_retry_{key}": value for what in ("graphql", "file_transfer") for key, value in RETRIES.items()
    }
    wandb.setup(wandb.Settings(silent=True, **settings))  # type: ignore[arg-type]
    if not sys.stdin.isatty() or not sys.stdout.isatty():
        os.environ.setdefault("WANDB_SILENT", "true")
    return wandb.Api(timeout=TIMEOUT_S)


@contextmanager
def plainly() -> Iterator[None]:
    """Turn every error of W&B's client into a Suspect of one plain line."""
    import requests
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        yield
    except (
        wandb.Error,
        WandbApiFailedError,
        requests.RequestException,
        ValueError,
        TypeError,
        KeyError,
        OSError,
    ) as error:
        raise Suspect(f"W&B: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    text = SECRET.sub("...", " ".join(str(error).split()))
    told = getattr(getattr(error, "response", None), "http_status", None) or _number(text)
    words = {
        401: "refused: this login is not known (401); wandb login, or WANDB_API_KEY",
        403: "refused: this login may not read the project (403)",
        404: "there is no such entity, project or run (404)",
        429: "too many requests (429), also after waiting; try again later",
    }
    if told in words:
        return words[told]
    if told and told >= 500:
        return f"the server failed ({told}), also after trying again"
    if "Could not find project" in text:
        return "there is no such entity or project, or this login may not see it"
    if re.search(r"No (authentication|API key) configured", text):
        return "no login: wandb login, or WANDB_API_KEY"
    if "onnect" in text or "timed out" in text.lower() or "deadline" in text.lower():
        return f"the server cannot be reached ({clean(text, 160)})"
    return clean(text, 200) or type(error).__name__


def _number(text: str) -> int | None:
    found = re.search(r"\b(?:HTTP|status(?: code)?:?) ([45][0-9]{2})\b", text)
    return int(found[1]) if found else None


@dataclass(frozen=True)
class WandbRun:
    """The record of one run at W&B. Every method raises Suspect."""

    project: Project
    run: "ApiRun" = field(repr=False, compare=False)

    named = None

    @property
    def shown(self) -> str:
        """Return the address of the run in short."""
        return f"wandb:{self.project.entity}/{self.project.name}/{clean(self.run.id, 64)}"

    @cached_property
    def _status(self) -> dict[str, Any]:
        data = self._file(STATUS, MAX_RECORD)
        if data is None:
            return status_of(self._summary, str(self.run.state))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, STATUS)
            path.write_bytes(data)
            try:
                return read_json(path)
            except ValueError as error:
                raise Suspect(str(error).replace(str(path), STATUS)) from None

    @cached_property
    def _summary(self) -> dict[str, Any]:
        with plainly():
            return own_summary(dict(self.run.summary._json_dict))

    def status(self) -> dict[str, Any]:
        """Return the `status.json` that the run sent; what W&B says of it where there is none."""
        return self._status

    def summary(self) -> dict[str, Any] | None:
        """Return the summary, each value once."""
        return self._summary if self._summary.get("state") == "done" else None

    def config(self) -> dict[str, Any]:
        """Return the resolved config."""
        with plainly():
            return own_config(dict(self.run.config), self._status)

    def history(self) -> History:
        """Return the evaluations of the whole history."""
        with plainly():
            return history_of(self.run.scan_history())

    def bits(self) -> bytes | None:
        """Return the packed bits that the run sent; None where it sent none."""
        data = self._file(CORRECT, MAX_BITS)
        return None if data is None else read_bits(data)

    def _file(self, name: str, limit: int) -> bytes | None:
        with plainly(), tempfile.TemporaryDirectory() as folder:
            for file in self.run.files(names=[name]):
                if file.name == name:
                    if file.size > limit:
                        raise Suspect(f"{name} is too large to be a run's ({file.size} bytes)")
                    file.download(root=folder, replace=True).close()
                    return Path(folder, name).read_bytes()
        return None
