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
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
GOING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
GONE = "GONE"  # Slurm answers, and has forgotten the job


@dataclass
class Queue:
    """An answer of Slurm: the state of each job by its id (`12` or `12_3`), and why a waiting one waits."""

    answered: bool = False
    states: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    trouble: str = ""  # why there is no answer

    def state(self, job: str) -> str | None:
        """Return Slurm's state of a job, GONE for one it has forgotten, None where it does not answer."""
        if job in self.states:
            return self.states[job]
        return GONE if self.answered else None


def ask(names: Iterable[str], jobs: Iterable[str] = ()) -> Queue:
    """Ask Slurm for the jobs with some names; `jobs` are the ids that somebody wants to know of. Never raises."""
    wanted = sorted(set(names))
    if not wanted:
        return Queue(answered=True)
    queue = _squeue(wanted)
    lost = sorted({job for job in jobs if job not in queue.states})
    if queue.answered and lost:
        queue.states |= _sacct(lost)
    return queue


def _squeue(names: list[str]) -> Queue:
    done, trouble = _run(
        "squeue", "--noheader", "--array", "--all", "--states=all", f"--name={','.join(names)}", "--format=%i|%T|%r"
    )
    if done is None:
        return Queue(trouble=trouble)
    queue = Queue(answered=True)
    for line in done.splitlines():
        job, state, reason = [*line.split("|", 2), "", ""][:3]
        queue.states[job.strip()], queue.reasons[job.strip()] = state.strip(), reason.strip()
    return queue


def _sacct(jobs: list[str]) -> dict[str, str]:
    """Return what accounting knows of jobs that have left the queue; nothing where there is none."""
    done, _ = _run(
        "sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(jobs)}", "--format=JobID,State"
    )
    found: dict[str, str] = {}
    for line in (done or "").splitlines():
        job, _, state = line.partition("|")
        if state:
            found[job] = state.split()[0]  # "CANCELLED by 1000"
    return found


def _run(*words: str) -> tuple[str | None, str]:
    """Return what a command of Slurm's prints, or None and why there is nothing."""
    if shutil.which(words[0]) is None:
        return None, f"there is no {words[0]} here"
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return None, f"{words[0]} does not answer"
    if done.returncode:
        return None, first_line(done.stderr) or f"{words[0]} failed"
    return done.stdout, ""


def first_line(text: str) -> str:
    """Return the line of a message of Slurm's that says why."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [re.sub(r"^\w+: (error: )?", "", line) for line in lines if "error:" in line]
    return (said[-1] if said else lines[0] if lines else "")[:300]


def waits(state: str | None) -> bool:
    """Tell whether a state means that the job has yet to start."""
    return state in WAITING


def goes(state: str | None) -> bool:
    """Tell whether a state means that the job is at work."""
    return state in GOING


def cancel(jobs: list[str]) -> None:
    """Cancel jobs; those that have ended meanwhile do not matter. Raises ConfigError with Slurm's own message."""
    for start in range(0, len(jobs), 200):  # a command line has an end
        try:
            words = ["scancel", *jobs[start : start + 200]]
            done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigError(f"scancel: {first_line(str(error))}") from None
        if done.returncode and "Invalid job id" not in done.stderr:
            raise ConfigError(f"scancel: {first_line(done.stderr)}")


def gpu_types(partition: str | None) -> list[str]:
    """Return the GPU types that a partition has, as Slurm names them (`a100` of `gpu:a100:8`); [] where it does not say."""
    done, _ = _run("sinfo", "--noheader", "--Node", "--format=%G", *([f"--partition={partition}"] if partition else []))
    return sorted(set(re.findall(r"gpu:([A-Za-z][\w.-]*)(?::\d+)", done or "")))
