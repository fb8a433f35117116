"""Job arrays handed to `sbatch`, with submitit's batch script and pickles. The call has a bound, and its answer may be
lost: then it is unknown whether the jobs are queued.

A job waits a minute for its pickle, which is written when its id is known. So a job whose id was never learned does
nothing, until it is found by its name and given its work.
"""

import contextlib
import os
import re
import uuid
from collections.abc import Sequence
from pathlib import Path

from submitit.core.utils import DelayedSubmission, FailedSubmissionError, JobPaths
from submitit.slurm.slurm import SlurmExecutor

from roadmap.errors import ConfigError, StoppedEarly
from roadmap.files import disk_errors
from roadmap.sweep import slurm_queue

TIMEOUT_S = 60.0
# What is in a message about a setting.
NAMED = {name: name for name in ("partition", "account", "qos", "constraint")} | {"feature": "constraint"}
OURS = ("requeue",)  # an option that the user did not give
# What says that a request may have reached Slurm, or will.
NO_ANSWER = re.compile(
    r"(?i)does not answer|killed by signal|timed out|unable to contact|zero bytes|connection|sleeping"
)


def submit_commands(folder: Path, parameters: dict[str, object], commands: Sequence[Sequence[str]]) -> list[str]:
    """Submit a job for each command, several as an array; return their ids, `12` or `12_0` and so on.

    `parameters` are submitit's. Raises ConfigError with what Slurm says where it refuses, StoppedEarly where it does
    not answer, DiskError.
    """
    executor = SlurmExecutor(folder)
    executor.update_parameters(**parameters)
    if len(commands) > 1:
        executor.parameters["map_count"] = len(commands)
    script = folder / f".submission_file_{uuid.uuid4().hex}.sh"
    with disk_errors(script):
        script.write_text(executor._make_submission_file_text(executor._submitit_command_str, ""), encoding="utf-8")
    out, error = slurm_queue.run("sbatch", str(script), timeout_s=TIMEOUT_S)
    if out is None and not NO_ANSWER.search(error):
        script.unlink(missing_ok=True)
        raise ConfigError(f"Slurm refuses the job: {error}{named_settings(error, parameters)}")
    try:
        job = executor._get_job_id_from_submission_command(out or "")
    except FailedSubmissionError:
        reason = error or f"sbatch answers {slurm_queue.error_line(out or '') or 'nothing'}"
        raise StoppedEarly(f"it is not known whether Slurm has queued the job ({reason})") from None
    jobs = [f"{job}_{index}" for index in range(len(commands))] if len(commands) > 1 else [job]
    for each, command in zip(jobs, commands, strict=True):
        give_work(folder, each, command)
    with contextlib.suppress(OSError):
        script.rename(JobPaths(folder, jobs[0]).submission_file)
    return jobs


def give_work(folder: Path, job: str, command: Sequence[str]) -> None:
    """Write what a job does: it becomes the command. Raises DiskError."""
    work = DelayedSubmission(os.execv, command[0], list(command))
    work.set_timeout(0, 0)
    path = JobPaths(folder, job).submitted_pickle
    temporary = path.with_suffix(f".{uuid.uuid4().hex}")
    with disk_errors(path):
        work.dump(temporary)
        os.replace(temporary, path)


def has_work(folder: Path, job: str) -> bool:
    """Tell whether a job was given its work."""
    return JobPaths(folder, job).submitted_pickle.exists()


def named_settings(error: str, parameters: dict[str, object]) -> str:
    """Return the settings that a message of Slurm's is about, as ` (cluster.partition=gpuu)`."""
    names = dict.fromkeys(name for word, name in NAMED.items() if word in error.lower())
    given = [f"cluster.{name}={parameters[name]}" for name in names if parameters.get(name) is not None]
    if "gres" in error.lower() and "gres" in parameters:
        given.append(f"cluster.gpu_type and cluster.per_cell: {parameters['gres']}; ARGS=device=cpu takes no GPU")
    options = parameters.get("additional_parameters")
    for name, value in (options if isinstance(options, dict) else {}).items():
        if name in error.lower() and name not in OURS:
            given.append(f"cluster.sbatch.{name}={'true' if value is True else value}")
    return f" ({', '.join(given)})" if given else ""
