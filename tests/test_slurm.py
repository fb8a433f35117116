"""A study on a real Slurm: submitted, preempted, killed, requeued, reconciled, cancelled, and bit-equal in the end.

The tests start their own Slurm (`tests/real_slurm.py`). Where that cannot be they are skipped; in CI that fails.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from roadmap.files import read_json
from roadmap.runs.metrics import read_metrics
from roadmap.sweep.cell_states import cell_states
from roadmap.sweep.study_dir import StudyDir
from tests.conftest import ROOT
from tests.real_slurm import RealSlurm, missing, until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
RANKS = 2  # of a cell, gloo on the CPU
EPOCHS = 60
STUDY = """\
# A study of the tests.
defaults:
  - config
  - _self_
study: {name}
data:
  train_images: 128
  val_images: 40
recipe:
  batch_size: 32
  micro_batch: 16
  epochs: {epochs}
  warmup_epochs: 1
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      +step: {steps}
      seed: {seeds}
"""
WORDS = ("device=cpu", "wandb.mode=disabled", "checkpoint.every_min=0.03")
CLUSTER = (f"cluster.per_cell={RANKS}", "cluster.cpus_per_rank=1", "cluster.time_h=1", "cluster.report=false")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Return a Slurm of this module's own, with two nodes of two CPUs."""
    if why := missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no real Slurm: {why}")
    running = RealSlurm(tmp_path_factory.mktemp("slurm"))
    try:
        running.start()
        yield running
    finally:
        running.stop()


class Lab:
    """A study of the tests on the cluster, as a user types it."""

    def __init__(self, slurm, folder):
        self.slurm, self.folder, self.runs, self.root = slurm, folder, folder / "runs", ROOT

    def write(self, name="trial", steps="gelu", seeds="0", epochs=EPOCHS):
        path = self.folder / "studies" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(STUDY.format(name=name, steps=steps, seeds=seeds, epochs=epochs))
        return str(path)

    def start(self, verb, *words, env=None):
        cells = ["--", *WORDS, *CLUSTER, *(w for w in words if "=" in w)] if verb == "submit" else []
        command = [sys.executable, "-m", "roadmap.sweep", verb, *(w for w in words if "=" not in w)]
        command += ["--runs", str(self.runs), *cells]
        env = {**self.slurm.env, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1", **(env or {})}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=self.root, env=env)

    def call(self, verb, *words, code=0, env=None):
        process = self.start(verb, *words, env=env)
        out, told = process.communicate(timeout=120)
        assert process.returncode == code, (verb, process.returncode, out, told)
        return out + told

    def cells(self, name="trial"):
        """Return what `make status` says, without a process of its own: the tests ask often."""
        with pytest.MonkeyPatch.context() as patch:
            for key in ("SLURM_CONF", "PATH"):
                patch.setenv(key, self.slurm.env[key])
            return {cell.key.split("/", 1)[1]: asdict(cell) for cell in cell_states(StudyDir(self.runs, name))[0]}

    def until_steps(self, name="trial", cell="gelu/seed0", steps=8):
        until(lambda: (self.cells(name)[cell]["global_step"] or 0) >= steps, 180, lambda: self.told(name))

    def until_states(self, *states, name="trial", seconds=300):
        until(
            lambda: {cell["state"] for cell in self.cells(name).values()} <= set(states),
            seconds,
            lambda: self.told(name),
        )

    def told(self, name="trial"):
        logs = sorted((self.runs / name / ".study" / "slurm").glob("*_log.out"))
        tails = [f"== {log.name}\n{log.read_text()[-1500:]}" for log in logs]
        return "\n".join([self.call("status", name), *tails, str(self.slurm.states())])

    def run(self, cell="gelu/seed0", name="trial"):
        return self.runs / name / "nano-digits" / cell

    def status(self, cell="gelu/seed0", name="trial"):
        return read_json(self.run(cell, name) / "status.json")

    def restarts(self, job):
        return int(re.search(r"Restarts=(\d+)", self.slurm.run("scontrol", "show", "job", job))[1])

    def processes(self, job):
        """Return the processes that train for a job: those of its step, told by their environment."""
        raw = re.search(r"JobId=(\d+)", self.slurm.run("scontrol", "show", "job", job))[1]
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                env = place.joinpath("environ").read_bytes().split(b"\0")
                words = place.joinpath("cmdline").read_bytes()
                if f"SLURM_JOB_ID={raw}".encode() in env and b"run.py" in words and b"SLURM_PROCID=" in b" ".join(env):
                    rank = next(item.partition(b"=")[2] for item in env if item.startswith(b"SLURM_PROCID="))
                    found[int(place.name)] = int(rank)
        return found


@pytest.fixture
def lab(slurm, tmp_path):
    """Return a study's place on a cluster with nothing queued."""
    yield Lab(slurm, tmp_path)
    slurm.clear()


@pytest.fixture(scope="module")
def calm(slurm, tmp_path_factory):
    """Return the record of a run that nobody disturbed: every interrupted one must end bit-equal to it."""
    lab = Lab(slurm, tmp_path_factory.mktemp("calm"))
    lab.call("submit", lab.write())
    lab.until_states("done")
    return record(lab.run())


def record(run):
    """Return what a run must have in common with one that was never stopped: every row's numbers, and the weights."""
    names = ("kind", "epoch", "global_step", "train/loss", "val/top1", "val/loss")
    rows = [{name: row.get(name) for name in names} for row in read_metrics(run / "metrics.jsonl").rows]
    newest = max((run / "checkpoints").glob("step-*.pt"))
    return rows, torch.load(newest, weights_only=True)["net"], read_json(run / "summary.json")["top1"]


def assert_same(found, expected):
    """Fail unless two records agree to the bit."""
    assert found[0] == expected[0]
    assert all(torch.equal(found[1][key], value) for key, value in expected[1].items())
    assert found[2] == expected[2]


def test_a_preempted_study_ends_bit_equal_and_charted(lab, calm):
    told = lab.call("submit", lab.write(seeds="0,1"), "cluster.report=true")
    job = re.search(r"job (\d+)", told)[1]
    assert "2 cells to start" in told
    assert lab.run().parents[2].joinpath(".study", "slurm").stat().st_mode & 0o777 == 0o700
    for seed in (0, 1):
        lab.until_steps(cell=f"gelu/seed{seed}")
    preempt(lab, job)
    until(lambda: all(lab.restarts(f"{job}_{task}") == 1 for task in (0, 1)), 120, lab.told)
    lab.until_states("done")
    assert_same(record(lab.run()), calm)
    cells = lab.cells()
    assert [cell["restarts"] for cell in cells.values()] == [1, 1]
    assert [cell["job"] for cell in cells.values()] == [f"{job}_0", f"{job}_1"]
    assert "2 done" in lab.call("status", "trial")
    assert json.loads(lab.call("status", "trial", "--json"))["totals"] == {"done": 2}
    report = lab.run().parents[2] / "report"
    until(lambda: (report / "table.md").exists() and (report / "roadmap.png").exists(), 120, lab.told)
    before = lab.slurm.states()
    assert "0 cells to start, 0 to resume; left alone: 2 done" in lab.call("submit", lab.write(seeds="0,1"))
    assert lab.slurm.states() == before


def preempt(lab, _):
    lab.slurm.run("sbatch", "-p", "urgent", "-N2", "-n4", "-o", "/dev/null", "--wrap", "true")


def notify(lab, job):
    lab.slurm.run("scancel", "--signal=USR2", job)  # what Slurm itself sends `notice_s` before the end


def requeue(lab, job):
    lab.slurm.run("scontrol", "requeue", job)


@pytest.mark.parametrize(("interrupt", "partition"), [(preempt, "grace"), (notify, "main"), (requeue, "main")])
def test_what_is_preempted_notified_or_requeued_is_queued_again_once_and_goes_on(lab, calm, interrupt, partition):
    job = re.search(r"job (\d+)", lab.call("submit", lab.write(), f"cluster.partition={partition}"))[1]
    lab.until_steps()
    interrupt(lab, job)
    until(lambda: lab.restarts(job) == 1, 120, lab.told)
    lab.until_states("done")
    assert lab.restarts(job) == 1
    assert_same(record(lab.run()), calm)


def test_a_killed_rank_is_restarted_by_reconcile_alone(lab, calm):
    job = re.search(r"job (\d+)", lab.call("submit", lab.write(steps="gelu,depthwise")))[1]
    lab.until_steps(steps=30)
    victims = {pid: rank for pid, rank in lab.processes(f"{job}_0").items() if rank == RANKS - 1}
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    until(lambda: lab.slurm.states()[f"{job}_0"] == "FAILED", 120, lab.told)
    cell = lab.cells()["gelu/seed0"]
    assert cell["state"] in ("failed", "stopped"), cell
    told = lab.call("reconcile", "trial")
    assert "1 restarted: nano-digits/gelu/seed0" in told
    assert "0 restarted" in lab.call("reconcile", "trial")  # it is queued: nothing more to do
    lab.until_states("done")
    assert_same(record(lab.run()), calm)
    assert lab.cells()["depthwise/seed0"]["restarts"] == 0
    assert "0 restarted" in lab.call("reconcile", "trial")


def test_a_lost_node_is_noticed_and_its_cells_go_on_elsewhere(lab, calm):
    job = re.search(r"job (\d+)", lab.call("submit", lab.write()))[1]
    lab.until_steps()
    node = lab.slurm.run("squeue", "-h", "-j", job, "-o", "%N").strip()
    try:
        lab.slurm.lose_node(node, lab.processes(job))
        until(lambda: lab.restarts(job) == 1, 180, lab.told)
        lab.until_states("done")
    finally:
        lab.slurm.start_node(node)
        until(lab.slurm.is_idle, 60, lab.slurm.logs)
    assert_same(record(lab.run()), calm)


def test_a_dead_controller_makes_nothing_look_dead(lab, calm):
    file = lab.write(seeds="0,1,2")  # two nodes: one of the three waits
    lab.call("submit", file)
    lab.until_steps()
    lab.slurm.end("slurmctld")
    try:
        cell = lab.cells()["gelu/seed0"]
        assert cell["state"] in ("running", "done", "unknown"), cell
        assert "does not answer" in lab.call("status", "trial")
        assert "nothing is restarted" in lab.call("reconcile", "trial")
        assert "nothing is cancelled" in lab.call("cancel", "trial", code=64)
        assert "it is not known what is queued" in lab.call("submit", file, code=64)
    finally:
        lab.slurm.start_controller()
    lab.until_states("done")
    assert lab.cells()["gelu/seed0"]["restarts"] == 0
    assert_same(record(lab.run()), calm)


def test_what_a_person_cancelled_waits_for_a_person(lab, calm):
    lab.call("submit", lab.write(seeds="0,1"))
    lab.until_steps()
    assert "2 cancelled" in lab.call("cancel", "trial")
    lab.until_states("stopped", "planned")
    assert "0 restarted" in lab.call("reconcile", "trial")
    told = lab.call("submit", lab.write(seeds="0,1"))
    counts = re.search(r"(\d+) cells to start, (\d+) to resume, as", told)
    assert counts and int(counts[2]) >= 1 and int(counts[1]) + int(counts[2]) == 2, told
    lab.until_states("done")
    assert_same(record(lab.run()), calm)


def test_options_by_name_and_resources_of_a_row_are_what_slurm_has(lab):
    comment = """it's "#1" $HOME"""
    words = ["cluster.rows.resnet.time_h=2", f"cluster.sbatch.comment={comment}", "cluster.srun.label=true"]
    told = lab.call("submit", lab.write(steps="gelu,resnet", epochs=2), *words, "cluster.sbatch.nice=7")
    jobs = re.search(r"job (\d+), (\d+)", told).groups()
    shown = [lab.slurm.run("scontrol", "show", "job", job) for job in jobs]
    assert [re.search(r"TimeLimit=(\S+)", text)[1] for text in shown] == ["01:00:00", "02:00:00"]
    assert all(f"Comment={comment}" in text and "Nice=7" in text for text in shown)
    lab.until_states("done")
    log = lab.run().parents[2] / ".study" / "slurm" / f"{jobs[0]}_0_log.out"
    assert "0: gelu: starting" in log.read_text().splitlines()
    told = lab.call("submit", lab.write("other", epochs=2), "cluster.sbatch.reservation=nobodys", code=64)
    assert "(cluster.sbatch.reservation=nobodys)" in told


def test_two_people_who_type_at_once_make_no_job_twice(lab):
    file = lab.write(steps="gelu,depthwise", seeds="0,1", epochs=2)
    both = [lab.start("submit", file) for _ in range(2)]
    told = sorted(process.communicate(timeout=120)[0] for process in both)
    assert "0 cells to start, 0 to resume; left alone: " in told[0] and "4 cells to start" in told[1]
    assert len([job for job, state in lab.slurm.states().items() if state in ("PENDING", "RUNNING")]) == 4
    lab.until_states("done")


def test_slurms_refusal_is_shown_and_nothing_is_left_behind(lab):
    told = lab.call("submit", lab.write(epochs=2), "cluster.partition=nowhere", code=64)
    assert "Slurm refuses the job: invalid partition specified: nowhere" in told
    assert "(cluster.partition=nowhere)" in told
    assert "Traceback" not in told
    assert lab.cells()["gelu/seed0"]["state"] == "planned"
    assert "1 cells to start" in lab.call("submit", lab.write(epochs=2))
    lab.until_states("done")


def test_an_interrupted_submission_is_completed_by_typing_again(lab, tmp_path):
    wrapper = tmp_path / "bin" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\n{shutil.which("sbatch")} "$@"\nkill -9 $PPID\n')
    wrapper.chmod(0o755)
    path = {"PATH": f"{wrapper.parent}:{lab.slurm.env['PATH']}"}
    file = lab.write(steps="gelu,depthwise", epochs=2)
    lab.call("submit", file, code=-9, env=path)
    found = {job for job, state in lab.slurm.states().items() if state in ("PENDING", "RUNNING")}
    assert len(found) == 2
    assert "its submission got no answer" in lab.call("status", "trial")
    assert "0 cells to start, 0 to resume; left alone: " in lab.call("submit", file)
    lab.until_states("done")
    assert {cell["job"] for cell in lab.cells().values()} == found
    assert all(cell["restarts"] == 0 for cell in lab.cells().values())


def test_what_can_never_start_says_so_and_says_so_when_it_is_cancelled(lab):
    seeds = ",".join(map(str, range(21)))  # more than an array of this Slurm's holds
    told = lab.call("submit", lab.write(seeds=seeds), "cluster.partition=short", "cluster.report=true")
    assert "21 cells to start" in told and re.search(r"job \d+, \d+", told)
    until(lambda: "21 of them can never start as submitted" in lab.call("status", "trial"), 60, lab.told)
    found = json.loads(lab.call("status", "trial", "--json"))
    assert {cell["slurm_reason"] for cell in found["cells"]} == {"PartitionTimeLimit"}
    assert lab.slurm.run("squeue", "-h", "-o", "%j").count("-report") == 1
    assert "21 cancelled" in lab.call("cancel", "trial")
    lab.until_states("stopped", seconds=60)
    assert {(cell["reason"], cell["log"]) for cell in lab.cells().values()} == {("cancelled before it started", None)}
    assert "-report" not in lab.slurm.run("squeue", "-h", "-o", "%j")


def test_one_failing_cell_neither_stops_nor_hides_the_others(lab):
    lab.call("submit", lab.write(steps="gelu,resnet", epochs=3), "recipe.lr=1e-3,1000")
    lab.until_states("done", "failed")
    cells = lab.cells()
    for step in ("gelu", "resnet"):
        assert cells[f"{step},recipe.lr=0.001/seed0"]["state"] == "done"
    failed = [cell for cell in cells.values() if cell["state"] == "failed"]
    assert failed and all("not finite" in cell["reason"] and cell["exit_code"] == 70 for cell in failed)
    told = lab.call("reconcile", "trial")
    assert "0 restarted" in told and "fix it, then make roadmap" in told


def test_a_study_runs_the_code_of_its_submission(lab, tmp_path):
    lab.root = tmp_path / "checkout"
    for part in ("roadmap", "conf", "sweeps"):
        shutil.copytree(ROOT / part, lab.root / part)
    shutil.copyfile(ROOT / "run.py", lab.root / "run.py")
    lab.slurm.run("scontrol", "update", "partitionname=main", "state=down")  # jobs wait
    try:
        lab.call("submit", lab.write(epochs=2))
        (lab.root / "run.py").write_text("raise SystemExit('edited after the submission')\n")
        shutil.rmtree(lab.root / "roadmap" / "net")
    finally:
        lab.slurm.run("scontrol", "update", "partitionname=main", "state=up")
    lab.until_states("done")
