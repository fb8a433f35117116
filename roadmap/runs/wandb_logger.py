"""Weights & Biases as a copy of the record: it shows what `metrics.jsonl` says and can never stop or change a run.

Rows go up once they are behind a checkpoint, so that a resumed run does not log a step twice.
"""

from __future__ import annotations

import configparser
import logging
import netrc
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from roadmap.config import KEYS
from roadmap.config.choices import WandbCheckpoints, WandbMode
from roadmap.config.schema import Config
from roadmap.errors import DONE, StoppedEarly
from roadmap.files import finite_or_null
from roadmap.runs.schema import CORRECT, LABELS, METRICS, PREDICTIONS, STATUS
from roadmap.runs.wandb_client import Budget, end_service, import_wandb, quiet_settings, staging_below, start_service
from roadmap.runs.wandb_media import checkpoint_artifact, evaluation_media, git_settings, write_diff
from roadmap.text import clean, netrc_files, one_line, redact

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)
BUDGET_S = 30.0  # all that W&B may cost a run: its start, its end, and whatever it waits for in between
INIT_TIMEOUT_S, FINISH_TIMEOUT_S = 12.0, 12.0
SERVER = "https://api.wandb.ai"
VARIABLES = {"mode": "WANDB_MODE", "project": "WANDB_PROJECT", "entity": "WANDB_ENTITY"}  # conf/ takes the last two
NOT_SENT = {"sha256", "checksum", "classes"}  # as values: they are of files, and a name a class is in the status


def read_settings() -> dict[str, str]:
    """Return W&B's settings from its files, as `wandb login --host` and `wandb init` leave them, the workspace's before
    the user's; {} where there are none."""
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or os.path.expanduser("~/.config/wandb"))
    workspace = Path(os.environ.get("WANDB_DIR") or ".") / "wandb"
    parser = configparser.ConfigParser(interpolation=None)
    with suppress(configparser.Error, OSError, UnicodeDecodeError):
        parser.read([folder / "settings", workspace / "settings"])
    return dict(parser["default"]) if parser.has_section("default") else {}


def wandb_mode(config: Config) -> str:
    """Return `online`, `offline` or `disabled`: by the config or WANDB_MODE, else online where there is a login."""
    if config.wandb.mode != WandbMode.auto:
        return str(config.wandb.mode)
    mode = os.environ.get("WANDB_MODE", "")
    if not mode and os.environ.get("WANDB_DISABLED", "").lower() in {"true", "1", "yes"}:  # W&B's older way
        return "disabled"
    mode = mode or read_settings().get("mode", "")  # `wandb offline` leaves it
    if mode in {"online", "offline", "disabled", "dryrun"}:
        return mode.replace("dryrun", "offline")  # W&B's older word
    return "online" if _logged_in() else "offline"


def warn_of_environment(config: Config, warn: Callable[[str], None]) -> None:
    """Say which of W&B's own variables count for nothing, since the config says otherwise."""
    for key, variable in VARIABLES.items():
        typed, theirs = getattr(config.wandb, key), os.environ.get(variable)
        if theirs and typed not in (theirs, "auto"):
            warn(clean(f"W&B: wandb.{key}={typed} counts, not {variable}={theirs}"))


def _logged_in() -> bool:
    settings = read_settings()
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_BASE_URL") or settings.get("api_key"):
        return True
    host = urlsplit(settings.get("base_url", SERVER)).netloc
    for file in netrc_files():
        try:
            return netrc.netrc(os.path.expanduser(file)).authenticators(host) is not None
        except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
            continue
    return False


def project_of(config: Config) -> str:
    """Return the project that a run goes to: our default only where neither the config nor W&B's settings name one."""
    default = str(KEYS["wandb.project"].default)
    if config.wandb.project != default or os.environ.get("WANDB_PROJECT"):
        return config.wandb.project
    return read_settings().get("project", default)


def log_rows(run: Run, rows: Sequence[dict[str, Any]]) -> bool:
    """Log rows of the ledger at W&B, what is not known left out; return that the client has taken them."""
    for row in finite_or_null(rows):
        run.log({key: value for key, value in row.items() if key != "kind" and value is not None})
    return True


class WandbLogger:
    """One W&B run beside one run directory."""

    def __init__(
        self, config: Config, path: Path, run_id: str, values: dict[str, Any], warn: Callable[[str], None]
    ) -> None:
        """Start the W&B run. `values` is its config; `warn` is called with what goes wrong, once."""
        self.config, self.path, self.warn = config, path, warn
        self.run: Run | None = None
        self.mode = wandb_mode(config)
        self.budget = Budget(BUDGET_S)
        if self.mode == "disabled":
            return
        warn_of_environment(config, warn)
        if self.mode == "online":
            self._go_online(config, run_id, values)
        if self.mode == "offline":
            self.run = self._try(self._start, config, run_id, values)
            if config.wandb.checkpoints != WandbCheckpoints.none:
                warn(f"W&B: offline, so wandb.checkpoints={config.wandb.checkpoints} sends nothing; make sync does")

    @property
    def location(self) -> str:
        """Return where the run goes, with the command that syncs it later; nothing for a run without W&B."""
        if self.run is None:
            return ""
        if self.mode == "offline":
            return f"W&B: offline; later: wandb sync {shlex.quote(str(self.path / 'wandb'))}/offline-run-*"
        url = self._try(getattr, self.run, "url")  # none where a server says nothing of whose run it is
        return f"W&B: {url}" if url else ""

    def _go_online(self, config: Config, run_id: str, values: dict[str, Any]) -> None:
        try:
            self.run = self.budget.call(self._start, config, run_id, values, limit_s=INIT_TIMEOUT_S + 3)
        except Exception as error:
            self.mode = "offline"
            self.warn(f"W&B: offline ({one_line(error)})")
            end_service()  # the client holds on to the run's id

    def _start(self, config: Config, run_id: str, values: dict[str, Any]) -> Run:
        wandb = import_wandb()
        os.environ.setdefault("WANDB_SILENT", "true")  # no run waits for somebody to type a key
        (self.path / "wandb").mkdir(exist_ok=True)
        start_service(self.path / "wandb" / "core.log")
        settings = wandb.Settings(**quiet_settings(INIT_TIMEOUT_S, FINISH_TIMEOUT_S), **git_settings())
        run: Run = wandb.init(
            mode=self.mode,
            entity=config.wandb.entity,
            project=project_of(config),
            id=run_id,
            resume="allow" if self.mode == "online" else None,
            group=config.study,
            job_type=config.cell[:64],
            name=f"{config.regime.name}/{config.cell}/seed{config.seed}",
            tags=[config.step[:64], config.regime.name[:64], str(config.data.name)],
            config={key: value for key, value in values.items() if key not in NOT_SENT},
            dir=self.path,
            settings=settings,
            reinit="create_new",
        )
        for axis in ("epoch", "global_step"):
            run.define_metric(axis)
        run.define_metric("train/*", step_metric="global_step")
        run.define_metric("val/*", step_metric="epoch")
        if diff := write_diff(Path(run.dir)):
            run.save(str(diff), base_path=run.dir, policy="now")
        return run

    def log(self, rows: Sequence[dict[str, Any]]) -> bool:
        """Log rows of the ledger; tell whether the client has taken them.

        One that is killed takes with it what it held in memory: `make sync` finds out, and sends it.
        """
        return self.run is not None and bool(self._try(log_rows, self.run, rows))

    def finish(self, summary: dict[str, Any], exit_code: int, reason: str | None = None) -> bool:
        """End the W&B run with the summary, the last evaluation by class, and the files that a report needs; a run that
        failed is an alert, with the `reason`. Returns whether the client has come to the end of it."""
        ended = self.run is not None and bool(self._try(self._finish, summary, exit_code, reason))
        self.run = None
        return ended

    def _finish(self, summary: dict[str, Any], exit_code: int, reason: str | None) -> bool:
        assert self.run is not None
        if exit_code not in (DONE, StoppedEarly.code):
            name = f"{self.config.study}/{self.config.cell}/seed{self.config.seed}"
            text = clean(redact(f"{name}: {reason or 'failed'}"), 500)
            self.run.alert(title=f"A run failed (exit code {exit_code})", text=text, level="ERROR")
        elif exit_code == DONE:
            with self._not_essential("the last evaluation by class"):
                if media := evaluation_media(import_wandb(), self.path):
                    self.run.log(media)
        self.run.summary.update({k: v for k, v in summary.items() if v is not None and k not in NOT_SENT})
        for name in (STATUS, CORRECT, PREDICTIONS, LABELS):
            if (self.path / name).exists():  # a copy: a link would follow later changes of the file
                copy = shutil.copy(self.path / name, self.run.dir)
                self.run.save(copy, base_path=self.run.dir, policy="end")
        artifact = self._send_checkpoint() if exit_code == DONE and self.mode == "online" else None
        self.run.finish(exit_code=exit_code)  # waits for the artifact, too, as long as it waits for anything
        if artifact is not None:
            with self._not_essential(f"the {self.config.wandb.checkpoints} checkpoint"):
                artifact.wait(timeout=1)
        return True

    def _send_checkpoint(self) -> Any:
        """Begin to send the checkpoint that the config asks for; None for none."""
        assert self.run is not None
        which = self.config.wandb.checkpoints
        if which == WandbCheckpoints.none:
            return None
        with self._not_essential(f"the {which} checkpoint"):
            artifact = checkpoint_artifact(import_wandb(), self.path, which, self.run.id)
            return self.run.log_artifact(artifact, aliases=[str(which)])

    @contextmanager
    def _not_essential(self, what: str) -> Iterator[None]:
        """Say why something did not go up: the rest of the run does."""
        try:
            with staging_below(self.path / "wandb"):
                yield
        except Exception as error:
            self.warn(f"W&B: {what} was not uploaded ({one_line(error)})")

    def _try(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call W&B. An error is shown once and ends the W&B run, never ours."""
        try:
            return self.budget.call(call, *args)
        except Exception as error:
            self.run = None
            end_service()
            self.warn(f"W&B failed, and the run continues without it ({one_line(error)}); {METRICS} has every line")
            log.debug("W&B", exc_info=True)
            return None
