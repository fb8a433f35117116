"""`python -m roadmap.bench sweep`: what a study costs besides training: submitting, its status, a cell's start and end.

`sbatch` and `squeue` are shell scripts that answer at once, so that the time is ours: 108 cells, both tables of the
paper with three seeds. The cell is one of scale=demo with a single step.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from roadmap.bench.process import Usage, machine
from roadmap.files import write_json
from roadmap.runs.metrics import append_metrics
from roadmap.runs.schema import METRICS, STATUS
from roadmap.sweep.study_dir import StudyDir
from roadmap.text import ArgumentParser

STUDIES = ("roadmap_tiny", "roadmap_base")
SCHEDULER = {
    "sbatch": "#!/bin/sh\necho Submitted batch job $$\n",
    "srun": "#!/bin/sh\nexit 1\n",
    "sinfo": "#!/bin/sh\n",
    "sacct": "#!/bin/sh\nexit 1\n",
    "squeue": '#!/bin/sh\ncat "$(dirname "$0")/jobs"\n',
}
STEPS, STEPS_PER_EPOCH = 5000, 1251  # of a cell at work: four epochs of ImageNet
ONE_STEP = (
    "data.train_images=32", "data.val_images=32", "recipe.batch_size=32", "recipe.epochs=1", "recipe.warmup_epochs=0",
    "wandb.mode=disabled", "device=cpu",
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Measure and print. Returns an exit code."""
    parser = ArgumentParser(prog="python -m roadmap.bench sweep", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args(argv).repeats
    submit, status, cell = Usage(), Usage(), Usage()
    print(f"{machine()}, n = {repeats}")
    for _ in range(repeats):
        with TemporaryDirectory() as folder:
            env, runs = write_scheduler(Path(folder)), f"{folder}/runs"
            sweep = [sys.executable, "-m", "roadmap.sweep"]
            submit.run([*sweep, "submit", *STUDIES, "--runs", runs], env)
            cells = start_cells(Path(folder))
            status.run([*sweep, "status", *STUDIES, "--runs", runs], env)
            cell.run([sys.executable, "run.py", "+step=gelu", *ONE_STEP, f"paths.runs={folder}/single"])
    print(f"submitting {cells} cells: {submit}", flush=True)
    print(f"status of {cells} cells at work: {status}")
    print(f"a cell of one step, from the process's start to its end: {cell}")
    return 0


def write_scheduler(folder: Path) -> dict[str, str]:
    """Write Slurm's commands as scripts; return an environment in which they are found."""
    scripts = folder / "bin"
    scripts.mkdir()
    (scripts / "jobs").touch()
    for name, text in SCHEDULER.items():
        (scripts / name).write_text(text)
        (scripts / name).chmod(0o755)
    return {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "ROADMAP_DATA": str(folder)}


def start_cells(folder: Path) -> int:
    """Make every submitted cell look as if it were at work; return how many there are."""
    studies = [StudyDir(folder / "runs", name) for name in STUDIES]
    jobs = [rows[-1]["job"] for study in studies for rows in study.jobs().values()]
    (folder / "bin" / "jobs").write_text("".join(f"{job}|RUNNING|None\n" for job in jobs))
    row = {"kind": "train", "epoch": 4, "time_s": 9.0, "train/lr": 0.001, "train/loss": 6.9}
    row |= {"train/images_per_s": 1000.0, "train/grad_norm": 1.234567}
    rows = [row | {"global_step": step} for step in range(1, STEPS + 1)]
    evaluated = {"kind": "val", "epoch": 3, "global_step": 3 * STEPS_PER_EPOCH, "time_s": 9.0, "val/top1": 1.0}
    rows.insert(3 * STEPS_PER_EPOCH, evaluated)
    status = {"state": "running", "epoch": 4, "step": STEPS, "starts": 1, "steps_per_epoch": STEPS_PER_EPOCH}
    for run in [study.path / cell["key"] for study in studies for cell in study.cells()]:
        run.mkdir(parents=True)
        write_json(run / STATUS, status | {"host": "n1", "pid": 1})
        append_metrics(run / METRICS, rows)
    return len(jobs)
