"""Offline directories of Weights & Biases whose run directory is lost, read by W&B's own `wandb leet inspect`.

A run that was started several times left several; together they are its record. Used by `roadmap.report.runs`.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from roadmap.report.find import Finding, Place
from roadmap.report.folder import MAX_BITS, History, Suspect, read_bits, readable, record
from roadmap.report.mirrored import history_of, is_ours, own_config, own_summary, status_of
from roadmap.report.text import clean
from roadmap.runs.schema import CORRECT, STATUS

TIMEOUT_S = 300


@dataclass
class Log:
    """What one offline directory says."""

    place: Place
    run_id: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False

    def add(self, record: dict[str, Any]) -> None:
        """Take in one record of the log; kinds that say nothing about the result are passed over."""
        kind = str(record.get("type"))
        body = _mapping(record.get(kind))
        if kind == "run":
            self.run_id = str(body.get("run_id", ""))
            self.config |= _mapping(_mapping(body.get("config")).get("update"))
        elif kind == "config":
            self.config |= _mapping(body.get("update"))
        elif kind == "summary":
            self.summary |= _mapping(body.get("update"))
        elif kind == "history":
            self.rows.append(_mapping(body.get("item")))
        elif kind == "exit":
            self.ended = body.get("exit_code", 0) == 0


def find_offline_runs(places: Sequence[Place]) -> tuple[list["OfflineRun"], int, list[Finding]]:
    """Return the roadmap's runs among some offline directories, how many others there are, and what could not be read."""
    logs: dict[str, list[Log]] = defaultdict(list)
    findings = []
    foreign = 0
    for place in sorted(places, key=lambda place: place.folder.name):  # a name begins with the time of its start
        try:
            log = read_log(place)
        except Suspect as reason:
            findings.append(Finding(place.shown, str(reason)))
            continue
        if is_ours(log.config):
            logs[log.run_id].append(log)
        else:
            foreign += 1
    return [OfflineRun(tuple(starts)) for starts in logs.values()], foreign, findings


def read_log(place: Place) -> Log:
    """Read the log of an offline directory. Raises Suspect."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(place.folder)]
    quiet = os.environ | {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    try:
        done = subprocess.run(
            command, env=quiet, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Suspect(f"wandb leet inspect: {type(error).__name__}") from None
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").split()
        if "command" in words and "such" in words:
            raise Suspect(
                "this wandb cannot inspect offline directories; a newer one can, and `wandb sync` sends them up"
            )
        raise Suspect(f"wandb leet inspect: {clean(' '.join(words), 200) or done.returncode}")
    log = Log(place)
    for line in done.stdout.splitlines():
        try:
            log.add(json.loads(line))
        except (ValueError, RecursionError, AttributeError):
            raise Suspect("wandb leet inspect: gave a line that is no record") from None
    return log


@dataclass(frozen=True)
class OfflineRun:
    """The record of one run in the offline directories of its starts. Every method raises Suspect and OSError."""

    starts: tuple[Log, ...]

    named = None

    @property
    def shown(self) -> str:
        """Return the name of the last start's directory."""
        return self.starts[-1].place.shown

    @cached_property
    def _summary(self) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for start in self.starts:
            merged |= start.summary
        return own_summary(merged)

    def status(self) -> dict[str, Any]:
        """Return the `status.json` that the last start saved; what its log says where there is none."""
        path = self._file(STATUS)
        return (
            record(path)
            if path.exists()
            else status_of(self._summary, "finished" if self.starts[-1].ended else "crashed")
        )

    def summary(self) -> dict[str, Any] | None:
        """Return the summary, each value once."""
        return self._summary if self._summary.get("state") == "done" else None

    def config(self) -> dict[str, Any]:
        """Return the resolved config."""
        return own_config(self.starts[-1].config, self.status())

    def history(self) -> History:
        """Return the evaluations of all starts."""
        return history_of(row for start in self.starts for row in start.rows)

    def bits(self) -> bytes | None:
        """Return the packed bits that the last start saved; None where there are none."""
        path = self._file(CORRECT)
        if not path.exists():
            return None
        readable(path, MAX_BITS)
        return read_bits(path.read_bytes())

    def _file(self, name: str) -> Path:
        return self.starts[-1].place.folder / "files" / name


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
