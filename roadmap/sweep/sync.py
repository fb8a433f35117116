"""Send to W&B what it lacks of a study: offline runs, and rows that the network swallowed. The ledger is the truth, each row goes once.

What W&B has is asked of W&B, so that a second call sends nothing. Runs that are queued or at work are left to themselves.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from roadmap.config.choices import WandbMode
from roadmap.config.schema import Config
from roadmap.errors import StoppedEarly
from roadmap.files import read_json
from roadmap.runs.metrics import read_metrics
from roadmap.runs.schema import CONFIG, METRICS, STATUS, SUMMARY
from roadmap.runs.wandb_logger import WandbLogger
from roadmap.sweep.folder import StudyDir
from roadmap.sweep.status import look
from roadmap.sweep.submit import load_yaml

if TYPE_CHECKING:
    from wandb import Api

# A row is known by what every row of its kind has.
ROW_KEYS = {"train": ("global_step", "train/lr"), "val": ("epoch", "val/top1")}


def sync(directory: StudyDir, say: Callable[[str], None]) -> int:
    """Send what W&B lacks; return how many rows that were. Raises StoppedEarly where W&B does not answer, DataError without a study."""
    cells, _ = look(directory)
    api, sent = connect(), 0
    for cell in cells:
        run = directory.path / cell.key
        if cell.state in ("queued", "running", "planned") or not (run / METRICS).exists():
            continue
        number = sync_run(run, api, say)
        sent += number
        say(f"{cell.key}: {number} rows sent" if number else f"{cell.key}: W&B has every row")
    return sent


def connect() -> "Api":
    """Return W&B's interface for reading. Raises StoppedEarly where there is no login or no answer."""
    import wandb

    try:
        api = wandb.Api(timeout=30)
        api.viewer  # noqa: B018 - asks the server who we are
    except Exception as error:  # the client raises what its layers raise
        raise StoppedEarly(
            f"W&B does not answer ({said(error)}); log in, or try again where there is a network"
        ) from None
    return api


def sync_run(run: Path, api: "Api", say: Callable[[str], None]) -> int:
    """Send what W&B lacks of one run; return the number of rows. Raises StoppedEarly where it goes offline meanwhile."""
    status, config = read_json(run / STATUS), config_of(run)
    there = rows_there(api, config, str(status["wandb_id"]))
    rows = [
        row for row in read_metrics(run / METRICS).rows if (row["kind"], row[ROW_KEYS[row["kind"]][0]]) not in there
    ]
    if not rows:
        mark_fragments(run)
        return 0
    config.wandb.mode = WandbMode.online
    mirror = WandbLogger(config, run, str(status["wandb_id"]), load_yaml(run / CONFIG), say)
    if mirror.run is None or mirror.mode != "online":
        mirror.finish({}, 1)
        raise StoppedEarly(f"{run}: W&B does not take it; try again")
    for row in rows:
        mirror.run.log({key: value for key, value in row.items() if key != "kind" and value is not None})
    summary = read_json(run / SUMMARY) if (run / SUMMARY).exists() else {}
    mirror.finish(summary, int(status.get("exit_code") or 0))
    mark_fragments(run)
    return len(rows)


def rows_there(api: "Api", config: Config, run_id: str) -> set[tuple[str, int]]:
    """Return the rows that W&B has of a run, as kind and number; none for a run that it does not know."""
    entity = config.wandb.entity or api.default_entity
    try:
        return set(_numbers(api.run(f"{entity}/{config.wandb.project}/{run_id}")))
    except ValueError:  # its RunNotFoundError
        return set()
    except Exception as error:
        raise StoppedEarly(f"W&B does not answer ({said(error)}); try again") from None


def said(error: Exception) -> str:
    """Return an error of the client's in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _numbers(run: Any) -> Iterator[tuple[str, int]]:
    for kind, keys in ROW_KEYS.items():
        for row in run.scan_history(keys=list(keys), page_size=10_000):
            yield kind, int(row[keys[0]])


def config_of(run: Path) -> Config:
    """Return the config of a run directory."""
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), load_yaml(run / CONFIG)))
    assert isinstance(config, Config)
    return config


def mark_fragments(run: Path) -> None:
    """Mark a run's offline records as sent, in `wandb sync`'s own way: it would send their rows a second time."""
    for record in run.glob("wandb/offline-run-*/run-*.wandb"):
        record.with_name(f"{record.name}.synced").touch()
