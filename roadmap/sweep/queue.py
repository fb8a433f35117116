"""What Slurm knows of our jobs: `squeue` first, `sacct` for those that have left the queue, if it is there.

No answer is no knowledge: it never makes a job look dead.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field

from roadmap.errors import ConfigError

TIMEOUT_S = 30.0
PENDING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
GONE = "GONE"  # Slurm answers, and has forgotten the job


@dataclass
class Queue:
    """An answer of Slurm: the state of each job by its id (`12` or `12_3`), or why there is no answer."""

    states: dict[str, str] = field(default_factory=dict)
    error: str = ""

    @property
    def answered(self) -> bool:
        """Tell whether Slurm gave an answer."""
        return not self.error

    def state(self, job: str) -> str | None:
        """Return Slurm's state of a job, GONE for one it has forgotten, None where it does not answer."""
        return self.states.get(job, GONE if self.answered else None)


def query(names: Iterable[str], jobs: Iterable[str] = ()) -> Queue:
    """Ask Slurm for the jobs with some names, and for the ids `jobs` that have left the queue. Never raises."""
    wanted = sorted(set(names))
    queue = squeue(wanted) if wanted else Queue()
    gone = sorted(set(jobs) - queue.states.keys())
    if wanted and queue.answered and gone:
        queue.states |= sacct(gone)
    return queue


def squeue(names: list[str]) -> Queue:
    """Return the jobs with some names that are in the queue, or have just left it."""
    out, error = run("squeue", "--noheader", "--array", "--all", "--states=all", f"--name={','.join(names)}",
                     "--format=%i|%T")  # fmt: skip
    rows = (line.split("|") for line in (out or "").splitlines() if "|" in line)
    return Queue({row[0].strip(): row[1].strip() for row in rows}, error)


def sacct(jobs: list[str]) -> dict[str, str]:
    """Return what accounting knows of jobs that have left the queue; nothing where there is none."""
    out, _ = run("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(jobs)}",
                 "--format=JobID,State")  # fmt: skip
    rows = (line.partition("|") for line in (out or "").splitlines())
    return {job: state.split()[0] for job, _, state in rows if state}  # "CANCELLED by 1000"


def scancel(jobs: list[str]) -> None:
    """Cancel jobs; those that have ended meanwhile do not matter. Raises ConfigError with Slurm's own message."""
    for start in range(0, len(jobs), 200):  # a command line has an end
        _, error = run("scancel", *jobs[start : start + 200])
        if error and "Invalid job id" not in error:
            raise ConfigError(f"scancel: {error}")


def gpu_types(partition: str | None) -> list[str]:
    """Return the GPU types of a partition, as Slurm names them (`a100` of `gpu:a100:8`); [] where it does not say."""
    out, _ = run("sinfo", "--noheader", "--Node", "--format=%G", *([f"--partition={partition}"] if partition else []))
    return sorted(set(re.findall(r"gpu:([A-Za-z][\w.-]*)(?::\d+)", out or "")))


def run(*command: str) -> tuple[str | None, str]:
    """Return what a command of Slurm's prints, or None and why there is nothing."""
    if shutil.which(command[0]) is None:
        return None, f"there is no {command[0]} here"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return None, f"{command[0]} does not answer"
    if done.returncode:
        return None, error_line(done.stderr) or f"{command[0]} failed"
    return done.stdout, ""


def error_line(text: str) -> str:
    """Return the line of a message of Slurm's that says why."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [re.sub(r"^\w+: (error: )?", "", line) for line in lines if "error:" in line]
    return (errors[-1:] or lines[:1] or [""])[0][:300]
