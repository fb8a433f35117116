"""A study's cells as job arrays, one for all of the same resources, through submitit.

A task of an array is a cell, its processes `python run.py ...`.

submitit's process becomes the run (`exec`): no handler of submitit's is left, and the run's signals and exit code are
its own. Pickles hold that command line and nothing else. What is submitted is recorded before and after, so that a
submission that was interrupted, or whose answer was lost, is found again by its name.
"""

import secrets
import shlex
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from roadmap.errors import DONE, ConfigError, StoppedEarly
from roadmap.files import disk_errors
from roadmap.runs.provenance import git_state_of
from roadmap.sweep import slurm_queue, snapshot
from roadmap.sweep.cell_states import pending_jobs, slurm_jobs
from roadmap.sweep.sbatch import give_work, has_work, submit_commands
from roadmap.sweep.slurm_settings import Config
from roadmap.sweep.study import Cell
from roadmap.sweep.study_dir import Row, StudyDir
from roadmap.sweep.submit import Selection, Submission, Task, choose_cells, on_gpu

LAST_TASKS_S = 180  # after the first process has ended; one that hangs must not hold its GPUs
RUNS_FILE = "runs.txt"
FOLDER = "slurm"  # of submitit's files, below the study's notes
NO_REPORT = (
    "no job draws the chart: {}; make roadmap tries again while cells are in the queue, and make report draws it"
)


def require() -> None:
    """Raise ConfigError where there is no Slurm."""
    if shutil.which("sbatch") is None:
        raise ConfigError("CLUSTER=slurm: there is no Slurm here (no sbatch); CLUSTER=local runs the study here")


def check_gpu_types(cells: Iterable[Config]) -> None:
    """Raise ConfigError where cells that want GPUs, each with its settings, could land on different types of them."""
    unnamed = [cell for cell in cells if not (cell.gpu_type or cell.constraint or cell.mixed_gpus)]
    types = sorted({kind for name in {cell.partition for cell in unnamed} for kind in slurm_queue.gpu_types(name)})
    if len(types) > 1:
        raise ConfigError(
            f"cluster.gpu_type=null: the study could be spread over {', '.join(types)}; name one, "
            "or cluster.mixed_gpus=true to mix them"
        )


def ranks(cells: Sequence[Cell], config: Config) -> int:
    """Return the processes of one cell."""
    return config.per_cell


def launch(selections: Sequence[Selection], config: Config, echo: Callable[[str], None]) -> int:
    """Start every study's cells, one job array a study; return 0. Raises ConfigError, Busy, DiskError."""
    for selection in selections:
        if on_gpu(selection.cells):
            check_gpu_types([config.of_cell(cell.key) for cell in selection.cells])
    for selection in selections:
        name = selection.study.name
        echo(f"{name}: {submit(selection, config)}")
        echo(f"  make status STUDY={name}; the runs are in {selection.directory.path}")
    return DONE


def submit(selection: Selection, config: Config) -> Submission:
    """Start the cells that are neither done nor at work, as a job array.

    Raises ConfigError, StoppedEarly (no answer), Busy, DiskError.
    """
    directory = selection.directory
    directory.make()
    code = snapshot.take_snapshot(directory, selection.study.file)
    with directory.lock():
        recover_pending(directory)
        submission, tasks = choose_cells(selection, code)
        if tasks:
            jobs, submission.note = submit_tasks(directory, tasks, code, config, on_gpu(selection.cells))
            submission.job = ", ".join(jobs)
        elif config.report and {"queued", "running"} & submission.left.keys():  # one that was interrupted lacks it
            submission.note = submit_report(directory, code, config)
    return submission


def submit_tasks(
    study: StudyDir, tasks: Sequence[Task], code: Path, config: Config, use_gpus: bool, by: str = "roadmap"
) -> tuple[list[str], str]:
    """Submit tasks as arrays, of the same resources and of the size that Slurm allows, and the report behind them;
    return the arrays' ids, and why there is no report.

    Call it with the study locked. Raises ConfigError with Slurm's own message, StoppedEarly (no answer), DiskError.
    """
    size = (slurm_queue.max_array_size() if len(tasks) > 1 else None) or len(tasks)
    groups: dict[str, tuple[Config, list[Task]]] = {}
    for task in tasks:
        of_task = config.of_cell(task.key)
        groups.setdefault(repr(of_task), (of_task, []))[1].append(task)
    arrays: list[str] = []
    note = ""
    try:
        for of_group, same in groups.values():
            for start in range(0, len(same), size):
                after = arrays[-1:] if config.max_running else []  # which Slurm counts within one array
                arrays.append(submit_array(study, same[start : start + size], code, of_group, use_gpus, by, after))
    except ConfigError as error:
        if not arrays:
            raise
        raise ConfigError(f"{error}; queued before that: {', '.join(arrays)}; make roadmap adds the rest") from None
    finally:
        if arrays and config.report:
            note = submit_report(study, code, config)
    return arrays, note


def submit_array(
    study: StudyDir, tasks: Sequence[Task], code: Path, config: Config, use_gpus: bool, by: str, after: Sequence[str]
) -> str:
    """Submit one array, which waits for those in `after`, and record its jobs; return its id.

    Raises ConfigError, DiskError; StoppedEarly for a lost answer: the submission stays pending.
    """
    name = f"{study.name}-{secrets.token_hex(4)}"
    folder = study.notes / FOLDER
    runs_file = folder / name / RUNS_FILE
    with disk_errors(folder):
        # Closed to the world, and open to a group that may write the study.
        mode = 0o770 if study.notes.stat().st_mode & stat.S_IWGRP else 0o700
        for each in (folder, runs_file.parent):
            each.mkdir(mode=mode, exist_ok=True)
        runs_file.write_text("".join(f"{study.path / task.key}\n" for task in tasks), encoding="utf-8")
    shared = {"kind": "slurm", "name": name, "by": by, "snapshot": code.name, "on_gpu": use_gpus}
    shared |= {"runs": str(study.path.parent)}
    shared |= {"cluster": config.values(), **git_state_of(code)}
    rows: list[Row] = [{"cell": task.key, "step": task.global_step, "line": task.args, **shared} for task in tasks]
    study.set_pending({"name": name, "rows": rows})
    parameters = array_parameters(name, code, runs_file, config, use_gpus)
    parameters |= {"dependency": f"afterany:{':'.join(after)}"} if after else {}
    try:
        jobs = submit_commands(folder, parameters, [run_command(code, row) for row in rows])
    except ConfigError:  # Slurm's refusal: nothing is queued
        study.set_pending(None)
        raise
    except StoppedEarly as error:
        hint = "make status shows what there is, make roadmap completes it"
        raise StoppedEarly(f"{study.name}: {error}; {hint}") from None
    record_jobs(study, rows, jobs)
    return jobs[0].split("_")[0]


def run_command(code: Path, row: Row) -> list[str]:
    """Return the command that a recorded job runs."""
    return [sys.executable, str(code / "run.py"), *row["line"]]


def record_jobs(study: StudyDir, rows: Iterable[Row], jobs: Iterable[str]) -> None:
    """Record the jobs of a submission, which is then complete."""
    logs = (f"{FOLDER}/{job}_0_log.out" for job in jobs)  # what a job's first process writes
    study.append_jobs({**row, "job": job, "log": log} for row, job, log in zip(rows, jobs, logs, strict=True))
    study.set_pending(None)


def recover_pending(study: StudyDir) -> list[Row]:
    """Complete what an interrupted submission left, or one without an answer: give the jobs that Slurm has of it their
    work, and record them; return their rows.

    Raises ConfigError where Slurm does not answer: nobody knows then what is queued.
    """
    pending = study.pending()
    if pending is None:
        return []
    answer = slurm_queue.query([pending["name"]])
    if not answer.answered:
        raise ConfigError(
            f"{study.name}: an earlier submission was interrupted, and Slurm does not answer ({answer.error}); "
            "try again"
        )
    folder, found = study.notes / FOLDER, []
    for row, job in pending_jobs(pending, answer):
        if not has_work(folder, job) and job in answer.in_state(*slurm_queue.ACTIVE):
            give_work(folder, job, run_command(study.notes / snapshot.FOLDER / row["snapshot"], row))
        if has_work(folder, job):
            found.append((row, job))
    rows = [row for row, _ in found]
    record_jobs(study, rows, [job for _, job in found])
    return rows


def submit_report(study: StudyDir, code: Path, config: Config) -> str:
    """Queue the report behind all of a study's jobs, however they end: one that waits already waits for these too.

    Return why there is none, in a line; nothing where there is one. Raises DiskError.
    """
    names, folder = array_names(study), study.notes / FOLDER
    queue = slurm_queue.query(names)
    arrays = sorted({job.split("_")[0] for job in queue.in_state(*slurm_queue.ACTIVE)}, key=int)
    if not arrays:
        return NO_REPORT.format(queue.error or "Slurm has no job of the study to wait for")
    behind = f"afterany:{':'.join(arrays)}"
    command = [sys.executable, "-m", "roadmap.report", str(study.path), "--out", str(study.path / "report")]
    for job in waiting_reports(study):  # the first may be of another user
        if slurm_queue.run("scontrol", "update", f"JobId={job}", f"Dependency={behind}")[0] is not None:
            if not has_work(folder, job):  # sbatch had not answered
                give_work(folder, job, command)
            return ""
    parameters = placement(config) | {
        "constraint": None,
        "job_name": f"{names[-1]}-report",
        "wckey": None,
        "time": 60,
        "nodes": 1,
        "ntasks_per_node": 1,
        "dependency": behind,
        "setup": [f"export PYTHONPATH={shlex.quote(str(code))}", f"cd {shlex.quote(str(code))}"],
        "stderr_to_stdout": True,
        "additional_parameters": config.flags("sbatch"),
        "srun_args": srun_words(config),
    }
    try:
        submit_commands(folder, parameters, [command])
    except (ConfigError, StoppedEarly) as error:
        return NO_REPORT.format(error)
    return ""


def waiting_reports(study: StudyDir) -> list[str]:
    """Return the jobs that wait to draw a study's report."""
    return slurm_queue.query(f"{name}-report" for name in array_names(study)).in_state(*slurm_queue.PENDING)


def array_names(study: StudyDir) -> list[str]:
    """Return the names of a study's arrays in the order of their submission; Slurm knows them by these."""
    rows = (row for rows in study.jobs().values() for row in slurm_jobs(rows))
    return list(dict.fromkeys(str(row["name"]) for row in sorted(rows, key=lambda row: str(row.get("time")))))


def array_parameters(name: str, code: Path, runs_file: Path, config: Config, use_gpus: bool) -> dict[str, object]:
    """Return the parameters of submitit's executor."""
    tasks = config.per_cell // config.nodes
    gpus = {"gres": f"gpu:{config.gpu_type}:{tasks}" if config.gpu_type else f"gpu:{tasks}"} if use_gpus else {}
    return {
        **placement(config),
        **gpus,
        "job_name": name,
        "time": config.minutes,
        "nodes": config.nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": config.cpus_per_rank,
        "mem": f"{round(config.mem_gb * 1024)}M" if config.mem_gb else None,
        "signal_delay_s": config.notice_s,
        "array_parallelism": config.max_running or 100_000,
        "wckey": None,  # submitit's own label, which a cluster that checks them would refuse
        "stderr_to_stdout": True,
        "additional_parameters": {**config.flags("sbatch"), "requeue": True},
        # A killed rank's peers notice it by themselves and still write why; only one that hangs is ended.
        "srun_args": [*srun_words(config), "--kill-on-bad-exit=0", f"--wait={LAST_TASKS_S}"],
        "setup": [
            *config.setup,
            "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}",  # since 22.05 srun no longer takes it from the job
            "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}",
        ],
        "teardown": ["code=$?", requeue_command(code, runs_file), "exit $code"],
    }


def srun_words(config: Config) -> list[str]:
    """Return the options of srun that were named, as words."""
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in config.flags("srun").items()]


def requeue_command(code: Path, runs_file: Path) -> str:
    """Return the shell's line that may queue the job again, with the code of the snapshot."""
    python, runs = shlex.quote(sys.executable), shlex.quote(str(runs_file))
    return f"cd {shlex.quote(str(code))} && {python} -m roadmap.sweep.requeue $code {runs}"


def placement(config: Config) -> dict[str, object]:
    """Return where Slurm may run a job."""
    return {key: getattr(config, key) for key in ("partition", "account", "qos", "constraint")}
