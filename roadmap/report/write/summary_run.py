"""A study's charts and tables at W&B: one run for each study, in its group, which a later report brings up to date."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from roadmap.config.schema import Config, WandbConfig
from roadmap.errors import ConfigError, StoppedEarly
from roadmap.report.analyse.cells import Group
from roadmap.report.draw.chart_rows import charts
from roadmap.report.draw.roadmap_figure import roadmap_chart
from roadmap.report.draw.style import image
from roadmap.report.read.wandb import PREFIX, SUMMARY_OF, parse_project
from roadmap.report.write.tables import tables_of
from roadmap.runs.wandb_client import Budget, import_wandb, quiet_settings, start_service
from roadmap.runs.wandb_logger import project_of, wandb_mode
from roadmap.text import clean, one_line, redact

LIMIT_S = 180.0  # of a study, until the client is left
TIMEOUT_S = 60.0  # of its start, and of its end
JOB_TYPE = "summary"


def require_login() -> None:
    """Raise ConfigError where W&B is offline, or off, here."""
    if wandb_mode(Config()) != "online":
        raise ConfigError("--wandb: W&B is offline here; wandb login, or WANDB_API_KEY, and no WANDB_MODE=offline")


def send_summaries(groups: Sequence[Group], sources: Sequence[str]) -> list[str]:
    """Send the charts and tables of each study to its summary run; return a line for each with its address.

    They go to the project of the first source at W&B, else to that of W&B's own settings. Raises StoppedEarly where W&B
    does not take one.
    """
    lines = []
    for study in dict.fromkeys(group.study for group in groups):
        found = [group for group in groups if group.study == study]
        try:
            lines.append(f"W&B: {Budget(LIMIT_S).call(_send, study, found, _config(sources))}")
        except Exception as error:  # the client raises what its layers raise
            why = one_line(error)
            raise StoppedEarly(f"{clean(study)}: W&B does not take the summary ({why}); try again") from None
    return lines


def summary_id(study: str) -> str:
    """Return the id of a study's summary run: the same for every report of it."""
    return f"summary-{hashlib.sha256(study.encode()).hexdigest()[:16]}"


def _config(sources: Sequence[str]) -> Config:
    """Return a config that names the project."""
    for source in sources:
        if source.startswith(PREFIX):
            given = parse_project(source)
            return Config(wandb=WandbConfig(project=given.name, entity=given.entity))
    default = WandbConfig()
    project, entity = os.environ.get("WANDB_PROJECT"), os.environ.get("WANDB_ENTITY")
    return Config(wandb=WandbConfig(project=project or default.project, entity=entity or default.entity))


def _send(study: str, groups: Sequence[Group], config: Config) -> str:
    start_service()
    wandb = import_wandb()
    with tempfile.TemporaryDirectory() as folder:
        run = wandb.init(
            mode="online",
            entity=config.wandb.entity,
            project=project_of(config),
            id=summary_id(study),
            resume="allow",
            group=study,
            job_type=JOB_TYPE,
            name=f"{study}: summary"[:128],
            config={SUMMARY_OF: study},
            dir=folder,
            settings=wandb.Settings(**quiet_settings(TIMEOUT_S, TIMEOUT_S), x_disable_stats=True),
            reinit="create_new",
        )
        run.log(dict(media(wandb, groups, Path(folder))))
        address = str(run.url)
        run.finish()
    return address


def media(wandb: Any, groups: Sequence[Group], folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the roadmap's charts of a study, as PNG by way of a folder, and the tables of its groups, by key."""
    for name, shown in charts(groups).items():
        path = folder / f"{name}.png"
        path.write_bytes(image(roadmap_chart(shown), "png"))
        yield f"report/{name}", wandb.Image(str(path))
    for group in groups:
        for table in tables_of(group):
            texts = [[redact(text) for text in row] for row in table.texts]
            key = f"report/{group.regime}-{group.data}/{table.title}"
            yield key, wandb.Table(columns=table.headings, data=texts)
