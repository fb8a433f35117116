"""Send to W&B what it lacks of a study: offline runs, and rows that the network swallowed.

The ledger is the truth, each row goes once: what W&B has is asked of W&B, so that a second call sends nothing. Runs
that are queued or at work are left to themselves.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from roadmap.config.choices import WandbMode
from roadmap.config.schema import Config
from roadmap.errors import DataError, StoppedEarly
from roadmap.files import read_json_or_empty, read_yaml
from roadmap.runs.metrics import read_metrics
from roadmap.runs.recorded_config import from_record
from roadmap.runs.schema import CONFIG, METRICS, STATUS, SUMMARY, Status, read_or_empty, read_record
from roadmap.runs.wandb_client import import_wandb, start_service
from roadmap.runs.wandb_logger import WandbLogger, log_rows, project_of, read_settings, wandb_mode
from roadmap.sweep.cell_states import cell_states, classify
from roadmap.sweep.study_dir import CELLS, StudyDir
from roadmap.text import clean, one_line

if TYPE_CHECKING:
    from wandb import Api

# What every row of a kind has, the first of which numbers it.
ROW_KEYS = {"train": ["global_step", "train/lr"], "val": ["epoch", "val/top1"]}


def sync(study: StudyDir, echo: Callable[[str], None]) -> int:
    """Send what W&B lacks; return the number of rows.

    Raises StoppedEarly where W&B does not answer, and DataError where there is no run, or, at the end, where records
    could not be read.
    """
    found = runs_at_rest(study, echo)
    logged = {key: run for key, run in found.items() if has_logged(run)}
    if silent := len(found) - len(logged):
        echo(f"{study.name}: {silent} run{'s' * (silent > 1)} with W&B turned off (wandb.mode, WANDB_MODE) left out")
    if not logged:
        return 0
    api, sent, left_out = connect(), 0, 0
    for key, run in logged.items():
        try:
            number = sync_run(run, api, echo)
        except (OSError, ValueError) as error:
            echo(f"{clean(key)}: left out, {clean(error, 300)}")
            left_out += 1
            continue
        sent += number
        echo(f"{clean(key)}: {number} rows sent" if number else f"{clean(key)}: W&B has every row")
    if left_out:
        raise DataError(f"{study.name}: {sent} rows sent; {left_out} runs were left out, their records cannot be read")
    return sent


def runs_at_rest(study: StudyDir, echo: Callable[[str], None]) -> dict[str, Path]:
    """Return the runs of a study that are neither queued nor at work, by key; those that nobody submitted, too.

    Raises DataError where there is no run.
    """
    submitted = (study.notes / CELLS).exists()
    states = {cell.key: cell.state for cell in cell_states(study)[0]} if submitted else {}
    runs = {"/".join(run.parts[-3:]): run for run in study.run_directories()}
    for key, run in runs.items():
        states.setdefault(key, classify(read_or_empty(Status, run / STATUS), None, None).name)
    if not states:
        study.cells()  # says that nothing is there
    for key in runs:
        if states[key] == "unknown":
            echo(f"{clean(key)}: skipped, it may be running on another machine")
    return {key: run for key, run in runs.items() if states[key] not in ("queued", "running", "planned", "unknown")}


def has_logged(run: Path) -> bool:
    """Tell whether a run was to log to W&B: its client has begun, or its config, and where that leaves it to the
    environment this one, does not turn it off."""
    with suppress(OSError, ValueError):  # said when it is read to be sent
        begun = (run / "wandb").is_dir() or read_or_empty(Status, run / STATUS).wandb_rows != 0
        return begun or wandb_mode(from_record(read_yaml(run / CONFIG))) != "disabled"
    return True


def connect() -> "Api":
    """Return W&B's interface for reading. Raises StoppedEarly where there is no login or no answer."""
    try:
        start_service()
        api = import_wandb().Api(timeout=30)
        api.viewer  # noqa: B018 - asks the server who we are
    except Exception as error:  # the client raises what its layers raise
        hint = "log in, or try again where there is a network"
        raise StoppedEarly(f"W&B does not answer ({one_line(error)}); {hint}") from None
    return api


def sync_run(run: Path, api: "Api", echo: Callable[[str], None]) -> int:
    """Send what W&B lacks of one run; return the number of rows.

    Raises StoppedEarly where it goes offline, OSError and ValueError for a record that cannot be read.
    """
    status, values = read_record(Status, run / STATUS), read_yaml(run / CONFIG)
    config, run_id = from_record(values), str(status.get("wandb_id"))
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", run_id):
        raise ValueError(f"{STATUS}: wandb_id={clean(run_id, 40)} is none")
    there = rows_there(api, config, run_id)
    ledger = read_metrics(run / METRICS).rows
    rows = [row for row in ledger if (row["kind"], row[ROW_KEYS[row["kind"]][0]]) not in there]
    if rows:
        config.wandb.mode = WandbMode.online
        logger = WandbLogger(config, run, run_id, values, echo)
        if logger.run is None or logger.mode != "online":
            logger.finish({}, StoppedEarly.code)
            raise StoppedEarly(f"{run}: W&B does not take it; try again")
        try:
            log_rows(logger.run, rows)
        except Exception as error:  # its process has died
            raise StoppedEarly(f"{run}: W&B failed ({one_line(error)}); try again") from None
        code, reason = int(status.get("exit_code") or 0), status.get("reason")
        if not logger.finish(read_json_or_empty(run / SUMMARY), code, reason):
            raise StoppedEarly(f"{run}: W&B has not taken all of it; try again")
    mark_synced(run)
    return len(rows)


def rows_there(api: "Api", config: Config, run_id: str) -> set[tuple[str, int]]:
    """Return the rows that W&B has of a run, as kind and number; none for a run that it does not know."""
    entity = config.wandb.entity or read_settings().get("entity") or api.default_entity
    try:
        found = api.run(f"{entity}/{project_of(config)}/{run_id}")
        return {
            (kind, int(row[keys[0]]))
            for kind, keys in ROW_KEYS.items()
            for row in found.scan_history(keys=keys, page_size=10_000)
        }
    except Exception as error:
        if "Could not find run" in str(error):  # a ValueError, which the client wraps in a CommError
            return set()
        raise StoppedEarly(f"W&B does not answer ({one_line(error)}); try again") from None


def mark_synced(run: Path) -> None:
    """Mark a run's offline records as sent, in `wandb sync`'s own way: it would send their rows a second time."""
    for record in run.glob("wandb/offline-run-*/run-*.wandb"):
        record.with_name(f"{record.name}.synced").touch()
