"""A study's cells as one job array, through submitit. A task of the array is a cell; each of its processes is `python run.py WORDS`.

submitit's process becomes the run (`exec`): from then on no handler of submitit's is left, and the run's signals and exit code
are its own. Pickles hold that command line and nothing else.
"""

import contextlib
import io
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor

from roadmap.errors import ConfigError, DiskError
from roadmap.sweep import queue
from roadmap.sweep.cluster import SlurmConfig

LAST_TASKS_S = 180  # after the first process has ended; one that hangs must not hold its GPUs
RUNS_FILE = "runs.txt"


def require_slurm() -> None:
    """Raise ConfigError where there is no Slurm."""
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "CLUSTER=slurm: there is no Slurm here (no sbatch); CLUSTER=local runs the study on this machine"
        )


def check_gpu_types(config: SlurmConfig, on_gpu: bool) -> None:
    """Raise ConfigError where the cells could land on different GPU types."""
    if not on_gpu or config.gpu_type or config.constraint or config.mixed_gpus:
        return
    types = queue.gpu_types(config.partition)
    if len(types) > 1:
        raise ConfigError(
            f"cluster.gpu_type=null: the study could be spread over {', '.join(types)}; name one, or cluster.mixed_gpus=true to mix them"
        )


def submit(
    folder: Path,
    name: str,
    snapshot: Path,
    lines: Sequence[Sequence[str]],
    runs: Sequence[Path],
    config: SlurmConfig,
    on_gpu: bool,
) -> list[str]:
    """Submit one array with a task for each command line; return the job ids, `12_0` and so on, or `12` for a single one.

    `runs` are the run directories, which say after the end how it went. Raises ConfigError with Slurm's own message.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)  # submitit writes files that anyone may read
        notes = folder / name
        notes.mkdir(mode=0o700, exist_ok=True)
        (notes / RUNS_FILE).write_text("".join(f"{run}\n" for run in runs), encoding="utf-8")
    except OSError as error:
        raise DiskError(f"{folder}: cannot be written ({error.strerror})") from None
    executor = SlurmExecutor(folder)
    executor.update_parameters(**parameters(name, snapshot, notes, config, on_gpu))
    commands = [[sys.executable, str(snapshot / "run.py"), *line] for line in lines]
    return _submitted(executor, commands)


def submit_report(
    folder: Path, name: str, snapshot: Path, words: Sequence[str], after: str, config: SlurmConfig
) -> None:
    """Queue the chart behind an array, however its tasks end. Where Slurm does not take it, `make report` is left to a person."""
    executor = SlurmExecutor(folder)
    executor.update_parameters(
        **{key: value for key, value in _where(config).items() if key != "constraint"},
        job_name=report_name(name),
        wckey=None,
        time=60,
        nodes=1,
        ntasks_per_node=1,
        dependency=f"afterany:{after}",
        setup=[f"export PYTHONPATH={shlex.quote(str(snapshot))}", f"cd {shlex.quote(str(snapshot))}"],
        stderr_to_stdout=True,
    )
    with contextlib.suppress(ConfigError):
        _submitted(executor, [[sys.executable, "-m", "roadmap.report", *words]])


def report_name(name: str) -> str:
    """Return the name of the job that draws the chart behind an array."""
    return f"{name}-report"


def parameters(name: str, snapshot: Path, notes: Path, config: SlurmConfig, on_gpu: bool) -> dict[str, object]:
    """Return what submitit's executor is told."""
    tasks = config.per_cell // config.nodes
    gpus = {} if not on_gpu else {"gres": f"gpu:{config.gpu_type}:{tasks}" if config.gpu_type else f"gpu:{tasks}"}
    python, code = shlex.quote(sys.executable), shlex.quote(str(snapshot))
    return {
        **_where(config),
        **gpus,
        "job_name": name,
        "time": max(1, round(config.time_h * 60)),  # minutes
        "nodes": config.nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": config.cpus_per_rank,
        "mem": f"{round(config.mem_gb * 1024)}M" if config.mem_gb else None,
        "signal_delay_s": config.notice_s,
        "array_parallelism": config.max_running or 100_000,
        "wckey": None,  # submitit's own label, which a cluster that checks them would refuse
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True},
        # A killed rank's peers notice it by themselves and still write why; only one that hangs is ended.
        "srun_args": ["--kill-on-bad-exit=0", f"--wait={LAST_TASKS_S}"],
        "setup": [
            *config.setup,
            "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}",  # since 22.05 srun no longer takes it from the job
            "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}",
        ],
        "teardown": [
            "code=$?",
            f"cd {code} && {python} -m roadmap.sweep.after $code {shlex.quote(str(notes / RUNS_FILE))}",
            "exit $code",
        ],
    }


def _where(config: SlurmConfig) -> dict[str, object]:
    return {key: getattr(config, key) for key in ("partition", "account", "qos", "constraint")}


def _submitted(executor: SlurmExecutor, commands: Sequence[Sequence[str]]) -> list[str]:
    """Let submitit submit `exec COMMAND` jobs. Raises ConfigError with what Slurm says."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):  # submitit echoes Slurm's words
            jobs: list[submitit.Job[None]] = executor.map_array(
                os.execv, [command[0] for command in commands], list(commands)
            )
    except (FailedJobError, FailedSubmissionError) as error:
        raise ConfigError(
            f"Slurm refuses the study: {queue.first_line(str(error)) or queue.first_line(said.getvalue())}"
        ) from None
    return [str(job.job_id) for job in jobs]


def log_of(folder: Path, job: str) -> Path:
    """Return the file that a job's first process writes to."""
    return folder / f"{job}_0_log.out"
