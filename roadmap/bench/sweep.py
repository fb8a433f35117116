"""What a study costs besides training: submitting it, asking how it stands, and a cell's start-up.

`python -m roadmap.bench sweep [--repeats N]`. The scheduler is a stub (`sbatch` and `squeue` that answer at once), so that the time
is ours: 108 cells, both tables of the paper with three seeds.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from roadmap.files import write_json
from roadmap.runs.metrics import append_metrics
from roadmap.runs.schema import METRICS, STATUS
from roadmap.steps.tree import CONF
from roadmap.sweep.study_dir import StudyDir

STUDIES = ("roadmap_tiny", "roadmap_base")
STUBS = {
    "sbatch": "#!/bin/sh\necho Submitted batch job $$\n",
    "srun": "#!/bin/sh\nexit 1\n",
    "sinfo": "#!/bin/sh\n",
    "sacct": "#!/bin/sh\nexit 1\n",
    "squeue": '#!/bin/sh\ncat "$(dirname "$0")/jobs"\n',
}
LEDGER_ROWS = 5000  # four epochs of ImageNet
STAGES = ("python and Hydra", "composing and checking", "importing torch and the rest", "data, net, first step")


def main(words: Sequence[str]) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m roadmap.bench sweep")
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args(words).repeats
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, n = {repeats}")
    submits, looks, memory, starts, cells = [], [], [], [], 0  # (wall, CPU) seconds, MB, seconds by stage
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as place:
            submit_s, memory_mb, status_s, cells = _study(Path(place))
            submits.append(submit_s)
            memory.append(memory_mb)
            looks.append(status_s)
            starts.append(_start_up(Path(place)))
    _tell(f"submitting {cells} cells", [wall for wall, _ in submits], "s")
    _tell("  of which CPU time", [cpu for _, cpu in submits], "s")
    _tell("peak memory of submitting", memory, "MB")
    _tell(f"status of {cells} cells at work", [wall for wall, _ in looks], "s")
    _tell("  of which CPU time", [cpu for _, cpu in looks], "s")
    _tell("a cell's start-up, process start to first step (demo)", [sum(stages) for stages in starts], "s")
    for number, name in enumerate(STAGES):
        _tell(f"  {name}", [stages[number] for stages in starts], "s")
    return 0


def _tell(what: str, values: Sequence[float], unit: str) -> None:
    spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    print(f"{what}: {statistics.mean(values):.2f}{spread} {unit}", flush=True)


def _study(place: Path) -> tuple[tuple[float, float], float, tuple[float, float], int]:
    """Return the seconds (wall, CPU) of a submission, its peak memory in MB, the seconds of a status, and the number of cells."""
    stubs = place / "bin"
    stubs.mkdir()
    (stubs / "jobs").touch()
    for name, text in STUBS.items():
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    runs = place / "runs"
    env = {**os.environ, "PATH": f"{stubs}:{os.environ['PATH']}", "ROADMAP_DATA": str(place)}
    verb = [sys.executable, "-m", "roadmap.sweep"]
    submit_s, memory_mb = _timed([*verb, "submit", *STUDIES, "--runs", str(runs)], env)
    directories = [StudyDir(runs, name) for name in STUDIES]
    jobs = [rows[-1]["job"] for directory in directories for rows in directory.jobs().values()]
    (stubs / "jobs").write_text("".join(f"{job}|RUNNING|None\n" for job in jobs))
    for directory in directories:
        for cell in directory.cells():
            _begun(directory.path / cell["key"])
    status_s, _ = _timed([*verb, "status", *STUDIES, "--runs", str(runs)], env)
    return submit_s, memory_mb, status_s, len(jobs)


def _begun(run: Path) -> None:
    """Make up a run that is at work."""
    run.mkdir(parents=True)
    status = {
        "state": "running",
        "epoch": 4,
        "step": LEDGER_ROWS,
        "starts": 1,
        "steps_per_epoch": 1251,
        "host": "n1",
        "pid": 1,
    }
    write_json(run / STATUS, status)
    row = {
        "kind": "train",
        "epoch": 4,
        "time_s": 9.0,
        "train/lr": 0.001,
        "train/images_per_s": 1000.0,
        "train/grad_norm": 1.234567,
    }
    rows = [{**row, "global_step": step, "train/loss": 6.9} for step in range(1, LEDGER_ROWS + 1)]
    append_metrics(
        run / METRICS,
        [*rows[:3753], {"kind": "val", "epoch": 3, "global_step": 3753, "time_s": 9.0, "val/top1": 1.0}, *rows[3753:]],
    )


def _timed(words: Sequence[str], env: dict[str, str]) -> tuple[tuple[float, float], float]:
    """Return a command's seconds (wall, CPU) and peak memory in MB."""
    began = time.perf_counter()
    process = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, cwd=CONF.parent)
    _, code, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    return (time.perf_counter() - began, usage.ru_utime + usage.ru_stime), usage.ru_maxrss / 1024


def _start_up(place: Path) -> list[float]:
    """Return the seconds of each stage of a demo cell's start-up."""
    out, words = (
        place / "stages.json",
        ["+step=gelu", "recipe.epochs=1", "recipe.warmup_epochs=0", "wandb.mode=disabled", "device=cpu"],
    )
    command = [
        sys.executable,
        "-c",
        "from roadmap.bench.sweep import traced; traced()",
        str(out),
        *words,
        f"paths.runs={place / 'one'}",
    ]
    began = time.time()
    subprocess.run(command, check=True, capture_output=True, cwd=CONF.parent)
    times = [began, *json.loads(out.read_text())]
    return [later - earlier for earlier, later in pairwise(times)]


def traced() -> None:
    """Do what `run.py` does, and note when each stage of the start-up has ended. The arguments: where to, then the run's words."""
    out, times = Path(sys.argv[1]), []
    sys.argv = ["run.py", *sys.argv[2:]]
    sys.path.insert(0, str(CONF.parent))
    import run

    times.append(time.time())
    compose = run.step_config

    def composed(*args: object) -> object:
        config = compose(*args)  # type: ignore[arg-type]
        times.append(time.time())
        from roadmap.runs.run_logger import RunLogger
        from roadmap.training import train  # noqa: F401 - what the run would import next

        times.append(time.time())
        step = RunLogger.log_step

        def first(self: RunLogger, *args: object, **more: object) -> None:
            times.append(time.time())
            out.write_text(json.dumps(times[:4]))
            RunLogger.log_step = step  # type: ignore[method-assign]
            step(self, *args, **more)  # type: ignore[arg-type]

        RunLogger.log_step = first  # type: ignore[method-assign]
        return config

    run.step_config = composed  # type: ignore[assignment]
    sys.exit(run.main())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
