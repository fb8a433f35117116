"""A Slurm job's last act: it queues itself again where its time was up, or it was preempted, and the run is saved.

`python -m roadmap.sweep.requeue CODE RUNS_FILE`, the last lines of the batch script. A cancelled job never gets here.
Slurm requeues what it preempts at once and what a lost node held; killed runs wait for `make reconcile`.
"""

import os
import re
import sys
from pathlib import Path

from roadmap.errors import DiskError, StoppedEarly
from roadmap.files import disk_errors, read_json_or_empty, write_json
from roadmap.runs.schema import STATUS, Status, read_or_empty
from roadmap.sweep import slurm_queue

MAX_WITHOUT_PROGRESS = 3


def main(args: list[str]) -> int:
    """Requeue this job or leave it; always returns 0, since the run's own exit code is the job's."""
    code, runs_file = int(args[0]), Path(args[1])
    job, task = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_TASK_ID", "0")
    run = Path(runs_file.read_text(encoding="utf-8").splitlines()[int(task)])
    status = read_or_empty(Status, run / STATUS)
    if code != StoppedEarly.code or not time_was_up(status.reason or "", job):
        return 0
    try:
        times = without_progress(runs_file.with_name(f"{task}.json"), status.step)
    except DiskError as full:
        print(f"not queued again: {full}; make reconcile does it", flush=True)
        return 0
    if times >= MAX_WITHOUT_PROGRESS:
        print(f"not queued again: {times} jobs in a row ended without a step of progress", flush=True)
        return 0
    print(f"saved at step {status.step}, queued again", flush=True)
    _, error = slurm_queue.run("scontrol", "requeue", job)
    if error:
        print(f"not queued again: {error}; make reconcile does it", flush=True)
    return 0


def time_was_up(reason: str, job: str) -> bool:
    """Tell whether the notice before the time limit (USR2) stopped the run, or a preemption with a time of grace."""
    if "SIGUSR2" in reason:
        return True
    if "SIGTERM" not in reason:
        return False
    out, _ = slurm_queue.run("scontrol", "show", "job", job)
    return re.search(r"\bPreemptTime=\d", out or "") is not None


def without_progress(path: Path, step: object) -> int:
    """Record at which step a job ended; return how many in a row ended at it. Raises DiskError."""
    earlier = read_json_or_empty(path)
    times = int(earlier.get("times", 0)) + 1 if earlier.get("step") == step else 1
    with disk_errors(path):
        write_json(path, {"step": step, "times": times})
    return times


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
