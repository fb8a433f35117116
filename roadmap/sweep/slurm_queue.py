"""What Slurm knows of our jobs: `squeue` first, `sacct` for those that have left the queue, if it is there.

Without an answer nothing is known, and no job counts as dead. Every call has a time limit.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from roadmap.errors import ConfigError

TIMEOUT_S = 30.0
PENDING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
ACTIVE = PENDING + RUNNING
GONE = "GONE"  # Slurm answers, and has forgotten the job
# Why a job can never start, by Slurm's reason.
NEVER = {
    r"PartitionTimeLimit|\w+MaxWallDurationPerJobLimit": "cluster.time_h is above the limit there",
    r"PartitionNodeLimit|\w+MaxNodePerJobLimit": "cluster.nodes is outside the limits there",
    r"BadConstraints": "no node has what cluster.constraint, gpu_type, per_cell and mem_gb ask for",
    r"InvalidAccount|AccountNotAllowed": "cluster.account may not run there",
    r"InvalidQOS|QOSNotAllowed": "cluster.qos may not be used there",
    r"(Assoc|QOS)\w+PerJob\w*": "it asks for more than a job may have",
    r"QOSMin\w+": "it asks for less than a job must have",
    r"DependencyNeverSatisfied": "what it waits for can no longer happen",
}
HELD = {"JobHeldUser": "scontrol release frees it", "JobHeldAdmin": "an administrator holds it"}
# What a user chose for reading the queue, and would hide jobs from us (`SQUEUE_PARTITION`).
OF_DISPLAY = ("SQUEUE_", "SACCT_", "SINFO_")
OF_SITE = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS")  # what Slurm itself needs, job or not


@dataclass(frozen=True)
class Job:
    """What Slurm says of a job; the start, in seconds since 1970, of one that waits is what Slurm expects."""

    state: str
    reason: str = ""
    node: str = ""
    started: float | None = None

    @property
    def never_starts(self) -> str:
        """Return why a job that waits can never start; nothing where it may."""
        if self.state not in PENDING:
            return ""
        return next((why for reasons, why in NEVER.items() if re.fullmatch(reasons, self.reason)), "")

    @property
    def waits_for(self) -> str:
        """Return why a job waits, Slurm's word first; nothing where Slurm does not say."""
        if why := self.never_starts:
            return f"{self.reason}: can never start, {why}"
        return ": ".join(filter(None, [self.reason, HELD.get(self.reason, "")]))


@dataclass
class Queue:
    """An answer of Slurm: each job by its id (`12` or `12_3`), or why there is no answer."""

    jobs: dict[str, Job] = field(default_factory=dict)
    error: str = ""

    @property
    def answered(self) -> bool:
        """Tell whether Slurm gave an answer."""
        return not self.error

    def job(self, job: str) -> Job | None:
        """Return what Slurm says of a job. Tasks that were cancelled before they began are one line, their array's."""
        return self.jobs.get(job) or self.jobs.get(job.partition("_")[0])

    def state(self, job: str) -> str | None:
        """Return Slurm's state of a job, GONE for one it has forgotten, None where it does not answer."""
        found = self.job(job)
        return found.state if found else GONE if self.answered else None

    def in_state(self, *states: str) -> list[str]:
        """Return the ids of the jobs in some states."""
        return sorted(job for job, found in self.jobs.items() if found.state in states)


def query(names: Iterable[str], jobs: Iterable[str] = ()) -> Queue:
    """Ask Slurm for the jobs with some names, and for the ids `jobs` that have left the queue. Never raises."""
    wanted = sorted(set(names))
    queue = squeue(wanted) if wanted else Queue()
    gone = sorted(set(jobs) - queue.jobs.keys())
    if wanted and queue.answered and gone:
        queue.jobs |= sacct(wanted, gone)
    return queue


def squeue(names: list[str]) -> Queue:
    """Return the jobs with some names that are in the queue, or have just left it."""
    out, error = run("squeue", "--noheader", "--array", "--all", "--states=all", f"--name={','.join(names)}",
                     "--format=%i|%T|%r|%N|%S", SLURM_TIME_FORMAT="%s", SLURM_BITSTR_LEN="0")  # fmt: skip
    if out and not out.endswith("\n"):
        return Queue(error="squeue's answer is cut off")
    return Queue(read_jobs(out), error)


def sacct(names: list[str], jobs: list[str]) -> dict[str, Job]:
    """Return what accounting knows of jobs that have left the queue; nothing where there is none.

    Ids are used again, by anybody's jobs: only those with one of the names are ours.
    """
    out, _ = run("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(jobs)}",
                 f"--name={','.join(names)}",
                 "--format=JobID,State,Reason,NodeList,Start", SLURM_TIME_FORMAT="%s")  # fmt: skip
    return read_jobs(out)


def read_jobs(out: str | None) -> dict[str, Job]:
    """Return the jobs in lines of id, state, reason, nodes and time of start."""
    found: dict[str, Job] = {}
    for line in (out or "").splitlines():
        job, state, reason, node, started = [*(part.strip() for part in line.split("|")), *[""] * 4][:5]
        if job and state:
            reason = "" if reason in ("None", "(null)") else reason
            state = state.split()[0]  # of "CANCELLED by 1000"
            found |= dict.fromkeys(task_ids(job), Job(state, reason, node, seconds(started)))
    return found


def task_ids(job: str) -> list[str]:
    """Return the ids of the tasks that share a line, `12_[0,3-5%2]`; of any other line its own id."""
    array, _, tasks = job.partition("_[")
    spans = re.findall(r"(\d+)(?:-(\d+))?", tasks.partition("%")[0])
    return [f"{array}_{n}" for first, last in spans for n in range(int(first), int(last or first) + 1)] or [array]


def seconds(text: str) -> float | None:
    """Return a time of Slurm's, None for one that is not known."""
    return float(text) if text.isdigit() else None


def scancel(jobs: list[str]) -> dict[str, str]:
    """Cancel jobs, those that have ended do not matter; return by id why Slurm leaves some, as another user's.

    Raises ConfigError with Slurm's own message where it cancels none.
    """
    left: dict[str, str] = {}
    for start in range(0, len(jobs), 200):  # a command line has an end
        _, error = run("scancel", *jobs[start : start + 200], message=str)
        found = dict(re.findall(r"job id (\S+): (.+)", error))
        if error and not found and "Invalid job id" not in error:
            raise ConfigError(f"scancel: {error_line(error)}")
        left |= {job: why for job, why in found.items() if "Invalid job id" not in why}
    return left


def gpu_types(partition: str | None) -> list[str]:
    """Return the GPU types of a partition, as Slurm names them (`a100` of `gpu:a100:8`); [] where it does not say."""
    out, _ = run("sinfo", "--noheader", "--Node", "--format=%G", *([f"--partition={partition}"] if partition else []))
    return sorted(set(re.findall(r"gpu:([A-Za-z][\w.-]*)(?::\d+)", out or "")))


def max_array_size() -> int | None:
    """Return how many tasks an array may have; None where Slurm does not say."""
    out, _ = run("scontrol", "show", "config")
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", out or "", re.MULTILINE)
    return max(1, int(found[1])) if found else None


def run(
    *command: str, timeout_s: float = TIMEOUT_S, message: Callable[[str], str] | None = None, **env: str
) -> tuple[str | None, str]:
    """Return what a command of Slurm's prints, or None and why there is nothing: the `message` of its errors."""
    if shutil.which(command[0]) is None:
        return None, f"there is no {command[0]} here"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False,
            env=environment() | env,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, f"{command[0]} does not answer within {timeout_s:.0f} s"
    except OSError as error:
        return None, f"{command[0]}: {error.strerror}"
    if done.returncode < 0:
        return None, f"{command[0]} was killed by signal {-done.returncode}"
    if done.returncode:
        return None, (message or error_line)(done.stderr) or f"{command[0]} failed"
    return done.stdout, ""


def environment() -> dict[str, str]:
    """Return the environment of Slurm's commands: this process's, without what would change an answer or a new job.

    One that is submitted from within a job inherits that job's `SLURM_*`: its cores (`SLURM_CPU_BIND`), its memory, its
    array, by whose number submitit looks for its work.
    """
    drop = (*OF_DISPLAY, "SLURM_") if "SLURM_JOB_ID" in os.environ else OF_DISPLAY
    return {key: value for key, value in os.environ.items() if key in OF_SITE or not key.startswith(drop)}


def error_line(text: str) -> str:
    """Return what a message of Slurm's says: its first error, which names what is wrong, and its last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [re.sub(r"^\w+: (error: )?", "", line) for line in lines if "error:" in line] or lines[:1]
    return "; ".join(dict.fromkeys([*errors[:1], *errors[-1:]]))[:300]
