"""Studies without a cluster: the plan, the machine's own scheduler, what a cell's state is, settings of the cluster."""

import json
import math
import os
import shutil
import socket
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch

from roadmap.errors import ConfigError, DiskError
from roadmap.files import read_json, write_json
from roadmap.net import cost
from roadmap.runs.metrics import append_metrics, last_rows, seconds_past
from roadmap.runs.process import process_start
from roadmap.runs.provenance import hardware
from roadmap.runs.run_dir import run_path
from roadmap.runs.schema import METRICS, Status
from roadmap.sweep import cluster, launchers, plan, requeue, slurm_queue, study_dir
from roadmap.sweep.cell_states import CellState, add_job, add_pending, add_progress, cell_state, classify
from roadmap.sweep.cluster import load_cluster
from roadmap.sweep.jobs import reason_to_leave
from roadmap.sweep.launchers import local, slurm
from roadmap.sweep.launchers.local import Slot, cut_slots
from roadmap.sweep.requeue import without_progress
from roadmap.sweep.snapshot import take_snapshot
from roadmap.sweep.status import study_left
from roadmap.sweep.study import read_study
from roadmap.sweep.study_dir import StudyDir
from roadmap.sweep.submit import Submission
from roadmap.text import plain_table
from tests.conftest import ROOT, SMALL
from tests.fabricate import write_run

WORDS = (*SMALL, "wandb.mode=disabled", "device=cpu")
THREE = ("+step=resnet,depthwise,gelu",)  # of demo's 17


@pytest.fixture
def no_slurm(monkeypatch):
    """Let this machine have no Slurm, whatever it has."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)


# What a cell's state is.


HERE, BORN = socket.gethostname(), process_start(os.getpid())
SLURM = {"kind": "slurm", "job": "7_0", "host": "login"}
LOCAL = {"kind": "local", "job": "local", "host": HERE, "pid": os.getpid(), "born": BORN}
ALIVE = {"state": "running", "host": HERE, "pid": os.getpid()}
ELSEWHERE = {"state": "running", "host": "n17", "pid": 12}


@pytest.mark.parametrize(("own", "last", "job", "state", "killed"), [
    ({}, None, None, "planned", False),
    ({"state": "done"}, SLURM, None, "done", False),
    ({"state": "done"}, SLURM, "RUNNING", "done", False),
    ({}, SLURM, "PENDING", "queued", False),
    ({"state": "stopped"}, SLURM, "PENDING", "queued", False),  # preempted, or queued again
    ({}, SLURM, "RUNNING", "running", False),
    ({"state": "stopped"}, SLURM, "RUNNING", "running", False),
    (ELSEWHERE, SLURM, "COMPLETING", "running", False),
    ({"state": "stopped"}, SLURM, "FAILED", "stopped", False),
    ({"state": "failed"}, SLURM, slurm_queue.GONE, "failed", False),
    (ELSEWHERE, SLURM, "OUT_OF_MEMORY", "failed", True),
    (ELSEWHERE, SLURM, "NODE_FAIL", "failed", True),
    (ELSEWHERE, SLURM, slurm_queue.GONE, "failed", True),
    ({}, SLURM, "FAILED", "failed", True),
    ({}, SLURM, "CANCELLED", "stopped", False),
    (ELSEWHERE, SLURM, None, "unknown", False),  # no answer is no knowledge
    ({}, SLURM, None, "unknown", False),
    ({"state": "stopped"}, SLURM, None, "stopped", False),
    ({"state": "failed"}, SLURM, None, "failed", False),
    (ALIVE, None, None, "running", False),  # somebody runs it by hand, here
    (ELSEWHERE, None, None, "unknown", False),
    ({**ALIVE, "pid": 2**22 + 1}, None, None, "failed", True),
    ({}, LOCAL, "LOCAL", "queued", False),
    ({**ALIVE, "state": "stopped"}, LOCAL, "LOCAL", "queued", False),  # another cell of its process trains
    ({**ALIVE, "state": "begun"}, LOCAL, slurm_queue.GONE, "running", False),
    (ALIVE, LOCAL, "LOCAL", "running", False),
    (ALIVE, {**LOCAL, "waits": False}, "LOCAL", "running", False),
    (ALIVE, {**LOCAL, "waits": True}, "LOCAL", "queued", False),  # behind the one that trains
    (ALIVE, {**LOCAL, "waits": True}, slurm_queue.GONE, "running", False),
    ({}, LOCAL, slurm_queue.GONE, "planned", False),
    (ALIVE, LOCAL, slurm_queue.GONE, "running", False),  # its scheduler was killed, the run goes on
    (ELSEWHERE, {**LOCAL, "host": "n17"}, None, "unknown", False),
])  # fmt: skip
def test_a_cells_state_is_its_own_word_then_the_queues_and_unknown_is_unknown(own, last, job, state, killed):
    found = classify(Status(**own), last, job)
    assert (found.name, found.killed) == (state, killed)


def test_why_a_run_stopped_is_said_until_it_runs_again():
    for own, told in (("stopped", "preempted"), ("running", "")):
        assert classify(Status(state=own, reason="preempted"), SLURM, "RUNNING") == ("running", told, False)


def test_how_far_a_run_is_comes_from_its_status_or_its_ledger_whichever_is_further(tmp_path):
    rows = [{"kind": "train", "epoch": 2, "global_step": 15, "time_s": 30.0, "train/images_per_s": True}]
    rows[0]["train/loss"] = math.nan
    rows.append({"kind": "val", "epoch": 1, "global_step": 10, "val/top1": 50.0})
    append_metrics(tmp_path / METRICS, rows)
    assert '"train/loss": null}' in (tmp_path / METRICS).read_text()  # NaN is no JSON
    status = Status(state="running", starts=3, epoch=0, step=10, steps_per_epoch=10, world_size=4, group_size=8)
    cell = CellState("k", "gelu", None, 0, "running", epochs=4)
    add_progress(cell, tmp_path, status.model_copy(update={"steps_per_epoch": None}))
    assert (cell.total_s, cell.used_s, cell.left_s, cell.lost_s) == (None, 30.0, None, 0.0)
    add_progress(cell, tmp_path, status)
    assert (cell.restarts, cell.devices, cell.epoch, cell.global_step) == (2, 0.5, 1, 15)
    assert (cell.total_s, cell.used_s, cell.left_s) == (80.0, 30.0, 50.0)
    assert (cell.top1, cell.images_per_s) == (50.0, None)  # true is no number
    add_progress(cell, tmp_path, status.model_copy(update={"epoch": 3, "step": 30}))  # the ledger lags behind
    assert (cell.epoch, cell.global_step) == (3, 30)


GONE_PID = {**LOCAL, "pid": 2**22 + 1}
NEVER_BEGAN = "its job left the queue before it began: cancelled, as a rule; make roadmap starts it"


@pytest.mark.parametrize(("rows", "own", "slurms", "expected"), [
    ([LOCAL, {"kind": "ended", "exit_code": 75}], {}, None, ("stopped", "before its run started", False)),
    ([LOCAL, {"kind": "ended", "exit_code": 143}], {}, None, ("stopped", "before its run started", False)),
    ([LOCAL, {"kind": "ended", "exit_code": 65}], {}, None, ("failed", "exit code 65 before the run started", False)),
    ([LOCAL, {"kind": "ended", "exit_code": None}], {}, None, ("planned", "", False)),
    ([GONE_PID], {}, None, ("planned", "its scheduler was killed", True)),
    ([GONE_PID], {"state": "stopped", "reason": "TERM"}, None, ("stopped", "its scheduler was killed; TERM", True)),
    ([GONE_PID], ALIVE, None, ("running", "", False)),
    ([{**GONE_PID, "run_pid": os.getpid(), "run_born": BORN}], {}, None, ("running", "", False)),
    ([{**LOCAL, "host": "n17"}], {}, None,
     ("unknown", "it is on n17; check there (make cancel GONE=n17 if that machine is gone)", False)),
    ([SLURM], {}, None, ("stopped", NEVER_BEGAN, False)),
    ([SLURM], {}, "FAILED", ("failed", "its job ended before the run started (FAILED)", True)),
    ([SLURM, {"kind": "cancelled"}], {}, None, ("stopped", "cancelled before it started", False)),
])  # fmt: skip
def test_a_cells_state_follows_from_its_record_in_the_study(tmp_path, rows, own, slurms, expected):
    study = StudyDir(tmp_path, "demo")
    cell = {"key": "a/b/seed0", "step": "gelu", "variant": None, "seed": 0, "config": {"recipe": {"epochs": 1}}}
    (study.path / cell["key"]).mkdir(parents=True)
    write_json(study.path / cell["key"] / "status.json", own)
    answer = slurm_queue.Queue({"7_0": slurm_queue.Job(slurms)} if slurms else {})
    found = cell_state(study, cell, [{"log": "x", **row} for row in rows], answer)
    assert (found.state, found.reason, found.killed) == expected


def test_what_slurm_says_of_a_job_takes_nothing_from_what_its_run_said():
    cell = CellState("k", "gelu", None, 0, "running", node="n1", started="2026-11-28T10:00:00Z")
    add_job(cell, slurm_queue.Job("RUNNING", started=1700000600.0))
    assert (cell.slurm_state, cell.node, cell.started) == ("RUNNING", "n1", "2026-11-28T10:00:00Z")
    add_job(cell, slurm_queue.Job("PENDING"))
    assert (cell.slurm_state, cell.reason) == ("PENDING", "")


@pytest.mark.parametrize(("answer", "states"), [
    ("9_0|PENDING\n9_1|PENDING\n9_2|PENDING\n9_3|FAILED\n", ["queued", "done", "running", "failed"]),
    ("", ["planned", "done", "running", "failed"]),
    (None, ["unknown", "done", "running", "unknown"]),
])  # fmt: skip
def test_a_submission_without_an_answer_is_told_of_the_cells_that_wait_for_it(answer, states):
    names = ["planned", "done", "running", "failed"]
    cells = {name: CellState(name, "gelu", None, 0, name) for name in names}
    queue = slurm_queue.Queue(error="down") if answer is None else slurm_queue.Queue(slurm_queue.read_jobs(answer))
    add_pending(cells, {"name": "demo-1", "rows": [{"cell": name} for name in names]}, queue)
    assert [cell.state for cell in cells.values()] == states
    assert [bool(cell.reason) for cell in cells.values()] == [True, False, False, True]


def test_slurms_answer_is_read_and_its_silence_is_no_answer(monkeypatch, tmp_path):
    def fake(name, text):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    fake("squeue", "printf '7_0|RUNNING|None\\n7_1|PENDING|Priority\\n'")
    fake("sacct", "printf '3_0|CANCELLED by 1000\\n3_0.batch|CANCELLED\\n'")
    answer = slurm_queue.query({"demo-1"}, ["7_0", "7_1", "3_0", "4"])
    states = [answer.state(job) for job in ("7_0", "7_1", "3_0", "4")]
    assert states == ["RUNNING", "PENDING", "CANCELLED", slurm_queue.GONE]
    fake("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert slurm_queue.query({"demo-1"}, ["3_0"]).state("3_0") == slurm_queue.GONE
    fake("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1")
    answer = slurm_queue.query({"demo-1"})
    assert answer.state("7_0") is None and "Unable to contact slurm controller" in answer.error
    fake("squeue", "printf '7_0|RUNNING|None\\n7_1|PEND'")
    assert slurm_queue.query({"demo-1"}).error == "squeue's answer is cut off"


@pytest.mark.parametrize("closed", ["status.json", "."])
def test_a_run_that_is_closed_to_this_user_is_unknown_not_planned(closed):
    with tempfile.TemporaryDirectory() as runs:  # tmp_path is closed as a whole
        run = write_run(Path(runs), study="demo", time_s=12.0)
        study = StudyDir(runs, "demo")
        cell = {"key": str(run.relative_to(study.path)), "step": "resnet", "variant": None, "seed": 0}
        cell |= {"config": {"recipe": {"epochs": 3}}}
        found = cell_state(study, cell, [], slurm_queue.Queue())
        assert (found.state, found.epochs, found.total_s, found.used_s, found.left_s) == ("done", 3, 12.0, 12.0, 0.0)
        Path(runs).chmod(0o755)
        (run / closed).chmod(0)
        user = os.geteuid()
        os.seteuid(user or 65534)
        try:
            found, submitted = (
                cell_state(study, cell, rows, slurm_queue.Queue()) for rows in ([], [{**SLURM, "log": "x"}])
            )
        finally:
            os.seteuid(user)
            (run / closed).chmod(0o700)
    for cell in (found, submitted):
        assert (cell.state, cell.reason) == ("unknown", "its status.json belongs to another user and cannot be read")


def test_an_id_that_another_users_job_has_by_now_is_not_ours(monkeypatch, tmp_path):
    for name, text in {
        "squeue": "",
        "sacct": """case "$*" in *--name=demo-1*) ;; *) echo '3_0|RUNNING|None';; esac""",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert slurm_queue.query({"demo-1"}, ["3_0"]).state("3_0") == slurm_queue.GONE


def test_a_line_of_some_tasks_says_nothing_of_the_others_of_their_array():
    jobs = slurm_queue.read_jobs("12_[3-4,6%2]|CANCELLED|None\n12_0|RUNNING|None\n13|FAILED|None\n")
    answer = slurm_queue.Queue(jobs)
    states = [answer.state(job) for job in ("12_0", "12_2", "12_3", "12_4", "12_5", "12_6", "13", "13_7")]
    gone = slurm_queue.GONE
    assert states == ["RUNNING", gone, "CANCELLED", "CANCELLED", gone, "CANCELLED", "FAILED", "FAILED"]


def test_the_last_rows_of_a_long_ledger_are_found_at_its_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as out:
        for step in range(1, 40_001):
            row = {"kind": "train", "epoch": 1 + step // 30_000, "global_step": step, "train/loss": 1.0}
            out.write(json.dumps(row) + "\n")
            if step == 30_000:
                out.write(json.dumps({"kind": "val", "epoch": 1, "global_step": step, "val/top1": 3.0}) + "\n")
        out.write('{"kind": "tra')
    train, val = last_rows(path)
    assert (train["global_step"], val["val/top1"]) == (40_000, 3.0)
    assert last_rows(tmp_path / "none") == ({}, {})
    os.mkfifo(tmp_path / "pipe")
    assert last_rows(tmp_path / "pipe") == ({}, {})
    path.write_text('{"kind": "train", "epoch": 1, "global_step": 1, "time_s": "soon"}\n')
    assert seconds_past(path, 0.0) == 0.0


def test_a_study_lasts_as_long_as_its_work_over_what_runs_at_once():
    def cell(state, left=None, total=None):
        return CellState("k", "gelu", None, 0, state, left_s=left, total_s=total)

    assert study_left([cell("running", 50.0, 100.0), cell("running", 70.0, 100.0), cell("queued")]) == 110.0
    assert study_left([cell("running", 500.0, 1000.0), cell("running", 1.0, 1000.0)]) == 500.0
    assert study_left([cell("queued"), cell("done", 0.0, 100.0)]) is None  # nothing runs
    assert study_left([cell("running")]) is None  # nothing was measured


# What is restarted.

AGAIN = {"by": "reconcile", "step": 9}


@pytest.mark.parametrize(("state", "rows", "job", "left"), [
    ({"state": "failed", "killed": True}, [{}], "FAILED", ""),
    ({"state": "failed", "killed": True}, [{}], slurm_queue.GONE, ""),
    ({"state": "failed", "killed": True}, [{"uid": -1}], slurm_queue.GONE, "another user's"),
    ({"state": "failed", "killed": True, "cancelled": True}, [{}], "FAILED", "cancelled"),
    ({"state": "stopped", "exit_code": 75, "reason": "SIGTERM"}, [{}], "CANCELLED", "cancelled"),
    ({"state": "stopped", "exit_code": 75, "reason": "SIGTERM"}, [{}], "PREEMPTED", ""),
    ({"state": "stopped", "exit_code": 75, "reason": "SIGTERM"}, [{}], slurm_queue.GONE, "for an unknown reason"),
    ({"state": "stopped", "exit_code": 75, "reason": "SIGUSR2"}, [{}], slurm_queue.GONE, ""),
    ({"state": "stopped", "exit_code": 75, "reason": "PeerLost: another rank is gone"}, [{}], slurm_queue.GONE, ""),
    ({"state": "failed", "exit_code": 70, "reason": "not finite"}, [{}], "FAILED", "fix it"),
    ({"state": "failed", "exit_code": 93, "reason": "3 deaths", "killed": False}, [{}], "FAILED", "3 deaths"),
    ({"state": "failed", "killed": True, "global_step": 9}, [{}, *[AGAIN] * 3], "FAILED", "3 restarts"),
    ({"state": "failed", "killed": True, "global_step": 9}, [{}, *[AGAIN] * 2], "FAILED", ""),
    ({"state": "failed", "killed": True, "global_step": 12}, [{}, *[AGAIN] * 3], "FAILED", ""),
])  # fmt: skip
def test_reconcile_restarts_what_died_without_being_asked_at_most_three_times_without_progress(state, rows, job, left):
    why = reason_to_leave(CellState("k", "gelu", None, 0, **state), rows, job)
    assert left in why and bool(why) == bool(left)


def test_jobs_that_end_at_the_same_step_are_counted(tmp_path):
    assert [without_progress(tmp_path / "0.json", step) for step in (5, 5, 5, 6, 6)] == [1, 2, 3, 1, 2]


def test_a_job_that_cannot_note_its_end_is_left_to_reconcile(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path, state="stopped", status={"reason": "stopped by SIGUSR2", "step": 5})
    (tmp_path / "runs").write_text(str(run))
    (tmp_path / "0.json").mkdir()  # as a full disk, nothing can be written there
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert requeue.main(["75", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert "not queued again" in out and "0.json: cannot be written" in out and "make reconcile" in out


# Settings of the cluster.


def test_settings_of_the_cluster_come_from_its_file_then_the_local_one_then_the_command_line(monkeypatch, tmp_path):
    for place, text in (
        ("cluster", "partition: shared\nper_cell: 4\ntime_h: 2\n"),
        ("local/cluster", "partition: ours\nper_cell: 2\n"),
    ):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "slurm.yaml").write_text(text)
    monkeypatch.setattr(cluster, "CONF", tmp_path)
    found = load_cluster(slurm.Config, "slurm", ["cluster.per_cell=1"])
    assert (found.partition, found.per_cell, found.time_h) == ("ours", 1, 2.0)


@pytest.mark.parametrize(("words", "told"), [
    (["cluster.partitoin=x"], "did you mean cluster.partition"),
    (["cluster.per_cell=many"], "cluster.per_cell=many"),
    (["cluster.per_cell=0"], "cluster.per_cell=0: must be at least 1"),
    (["cluster.per_cell=3", "cluster.nodes=2"], "must be a multiple of cluster.nodes=2"),
    (["cluster.setup=[export WANDB_API_KEY=abc]"], "looks like a secret"),
    (["cluster.time_h"], "cannot be read as cluster.KEY=VALUE"),
    (["cluster.setup=["], "cannot be read as cluster.KEY=VALUE"),
    (["cluster.time_h=0.034"], "cluster.time_h=0.034: is no longer than the cluster.notice_s=120 seconds"),
    (["cluster.nodes=1.5"], "cluster.nodes=1.5: must be a whole number"),
    (["cluster.mem_gb=.inf"], "cluster.mem_gb=.inf: must be a number"),
])  # fmt: skip
def test_wrong_settings_of_the_cluster_are_told(words, told):
    with pytest.raises(ConfigError, match=told.replace(".", r"\.")):
        load_cluster(slurm.Config, "slurm", words)


def test_the_files_in_conf_are_the_defaults():
    for name in launchers.names():
        kind = launchers.find(name).Config
        assert load_cluster(kind, name) == kind(), name


LISTING = """
import shlex
from roadmap.sweep.cluster import ClusterConfig
from roadmap.sweep.snapshot import take_snapshot
from roadmap.sweep.submit import choose_cells

class Config(ClusterConfig):
    '''Those that every launcher has.'''

def require():
    pass

def ranks(cells, config):
    return config.per_cell

def launch(selections, config, echo):
    for selection in selections:
        selection.directory.make()
        code = take_snapshot(selection.directory, selection.study.file)
        with selection.directory.lock():
            _, tasks = choose_cells(selection, code)
        for task in tasks:
            echo(shlex.join(["python", str(code / "run.py"), *task.args]))
    return 0
"""


def test_a_launcher_is_a_module_and_its_settings(sweep, monkeypatch, tmp_path):
    """This one prints the command of every cell, for a scheduler that the project does not know."""
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "listing.yaml").write_text("per_cell: 2\n")
    (tmp_path / "listing.py").write_text(LISTING)
    monkeypatch.setattr(cluster, "CONF", tmp_path)
    monkeypatch.setattr(launchers, "__path__", [*launchers.__path__, str(tmp_path)])
    words = ("submit", "demo", "--runs", tmp_path / "runs", "--cluster")
    code, told = sweep(*words, "listing", "--", "+step=resnet,gelu", "device=cpu")
    assert code == 64 and "cluster.per_cell=2: nano-digits/resnet/seed0: recipe.micro_batch=null" in told
    code, told = sweep(*words, "listing", "--", "+step=resnet,gelu", "device=cpu", "cluster.per_cell=1")
    assert code == 0 and [line.split()[0] for line in told.splitlines()] == ["python", "python"]
    assert "run.py -cd " in told and "+step=gelu device=cpu" in told
    code, told = sweep(*words, "list", "--", "+step=gelu")
    assert code == 64 and "invalid choice: 'list'" in told and "listing" in told
    sys.modules.pop("roadmap.sweep.launchers.listing")


@pytest.mark.parametrize("change", [Path.unlink, lambda file: file.write_bytes(b"")], ids=["removed", "emptied"])
def test_a_copy_of_the_code_that_has_changed_is_not_run(tmp_path, change):
    """A machine that lost power may leave files without their contents, and an empty run.py ends with 0."""
    directory = StudyDir(tmp_path, "demo")
    directory.make()
    code = take_snapshot(directory, ROOT / "sweeps" / "demo.yaml")
    assert take_snapshot(directory, ROOT / "sweeps" / "demo.yaml") == code
    change(code / "run.py")
    with pytest.raises(DiskError, match=f"run.py: is not what was copied there; remove {code}, and try again"):
        take_snapshot(directory, ROOT / "sweeps" / "demo.yaml")


@pytest.mark.parametrize("name", ["yaml.py", "roadmap/extra.py", "torch"])
def test_a_copy_of_the_code_with_more_in_it_than_was_copied_is_not_run(tmp_path, name):
    """Python would import such a file before its own module of that name, and a study may be a stranger's."""
    directory = StudyDir(tmp_path, "demo")
    directory.make()
    code = take_snapshot(directory, ROOT / "sweeps" / "demo.yaml")
    compiled = code / "roadmap" / "__pycache__" / "errors.cpython-311.pyc"
    compiled.parent.mkdir()
    compiled.write_bytes(b"anything")
    assert take_snapshot(directory, ROOT / "sweeps" / "demo.yaml") == code
    assert not compiled.exists()
    (code / name).symlink_to(tmp_path) if name == "torch" else (code / name).write_text("")
    with pytest.raises(DiskError, match=f"{name}: was not copied there; remove {code}, and try again"):
        take_snapshot(directory, ROOT / "sweeps" / "demo.yaml")


def test_a_machine_is_cut_into_as_many_shares_as_fit():
    gpus = {str(i): "H100" for i in range(5)}
    slots = cut_slots(local.Config(per_cell=2), gpus, [0, 1], use_gpus=True)
    assert slots == [Slot(gpus=("0", "1")), Slot(gpus=("2", "3"))]
    assert cut_slots(local.Config(per_cell=2, max_running=1), {}, [0, 1, 2, 3], use_gpus=True) == [Slot(cores=(0, 1))]
    assert cut_slots(local.Config(), gpus, [0, 1], use_gpus=False) == [Slot(cores=(0,)), Slot(cores=(1,))]
    with pytest.raises(ConfigError, match=r"cluster\.per_cell=3: there are 2 CPU cores here"):
        cut_slots(local.Config(per_cell=3), {}, [0, 1], use_gpus=True)
    with pytest.raises(ConfigError, match="this machine has A100, H100"):
        cut_slots(local.Config(), {"0": "H100", "1": "A100"}, [], use_gpus=True)
    assert len(cut_slots(local.Config(mixed_gpus=True), {"0": "H100", "1": "A100"}, [], use_gpus=True)) == 2


@pytest.mark.parametrize(
    ("value", "found"),
    [
        *((None, {"0": "H100", "1": "H100"}), ("0, 1", {"0": "H100", "1": "H100"}), ("1,-1,0", {"1": "H100"})),
        *(("", {}), ("-1", {}), ("NoDevFiles", {}), ("GPU-5e,MIG-7a", {"GPU-5e": "?", "MIG-7a": "?"})),
    ],
)
def test_the_gpus_that_cuda_sees_are_used(monkeypatch, value, found):
    monkeypatch.setattr(local, "nvidia_smi", lambda query: ["0, H100", "1, H100"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert local.visible_gpus() == found


# Commands.


def test_without_slurm_that_is_said(sweep, no_slurm, tmp_path):
    code, told = sweep("submit", "demo", "--runs", tmp_path)
    assert code == 64 and "there is no Slurm here" in told and "CLUSTER=local" in told
    assert not list(tmp_path.iterdir())


def test_a_study_that_was_never_submitted_is_told(sweep, tmp_path):
    code, told = sweep("status", "demo", "--runs", tmp_path)
    assert code == 65 and "no study was submitted there; make plan, then make roadmap, with the same STUDY=" in told


def test_a_runs_folder_that_cannot_be_written_is_told(sweep, tmp_path):
    (tmp_path / "runs").write_text("a file")
    words = ("--runs", tmp_path / "runs", "--cluster", "local", "--", "+step=gelu", *WORDS)
    code, told = sweep("submit", "demo", *words)
    assert code == 74 and "cannot be made" in told


def test_a_plan_shows_every_cell_and_infers_what_nobody_measured(sweep, tmp_path):
    write_run(tmp_path, "gelu", study="other", hardware=None, status={})
    path = next(tmp_path.glob("*/*/*/*/summary.json"))
    about = {"image_size": 32, "batch_size": 64, "train_images_per_s": 500.0}
    write_json(path, read_json(path) | about | {"hardware": hardware(torch.device("cpu"))["hardware"]})
    words = ("--runs", tmp_path, "--cluster", "local", "--steps", "gelu resnet")
    code, told = sweep("plan", "demo", *words, "--", *THREE, "device=cpu", "recipe.epochs=36")
    lines = told.splitlines()
    cells = [f"nano-digits/{step},recipe.epochs=36/seed0" for step in ("resnet", "gelu")]
    assert code == 0 and [line.split()[0] for line in lines[1:3]] == cells
    assert "350 inferred, MACs 0.041" in " ".join(lines[1].split())  # 2.606 MMACs beside 1.825
    assert "500 earlier runs 0.0287" in " ".join(lines[2].split())  # 36 epochs of 1437 images at 500 images/s, in hours
    assert "2 cells, 0 done; to do: 2, 0.0698 CPU-hours for 2 of them (1 inferred from the others)" in lines[-1]


def test_a_plan_knows_the_space_of_checkpoints(reference):
    config = reference()
    sizes = [path.stat().st_size for path in (run_path(config) / "checkpoints").glob("*.pt")]
    planned = plan.checkpoint_gb(config, cost(config.model, 10, 32).params_m) * 1e9 / (config.checkpoint.keep + 1)
    assert planned * len(sizes) == pytest.approx(sum(sizes), rel=0.1)


def test_a_study_on_this_machine_runs_cell_beside_cell_and_is_not_run_twice(sweep, tmp_path):
    words = ("demo", "--runs", tmp_path, "--cluster", "local", "--steps", "gelu,depthwise", "--", *THREE, *WORDS)
    code, told = sweep("submit", *words)
    assert code == 0 and "2 cells to start, 0 to resume" in told and "[2/2]" in told
    code, told = sweep("status", "demo", "--runs", tmp_path, "--json")
    cells = {cell["step"]: cell for cell in json.loads(told)["cells"]}
    states = {step: cell["state"] for step, cell in cells.items()}
    assert states == {"resnet": "planned", "depthwise": "done", "gelu": "done"}
    assert cells["gelu"]["top1"] is not None and cells["depthwise"]["top1"] is not None
    code, told = sweep("submit", *words)
    assert code == 0 and str(Submission(left={"done": 2})) in told


def test_two_writers_of_a_study_wait_for_each_other(tmp_path):
    directory, order = StudyDir(tmp_path, "demo"), []

    def second():
        with directory.lock():
            order.append("second")

    with directory.lock():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.5)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_torn_line_of_the_record_costs_nothing_else(tmp_path):
    directory = StudyDir(tmp_path, "demo")
    with directory.lock():
        directory.append_jobs([{"cell": "a", "kind": "ended"}])
        with (directory.notes / "jobs.jsonl").open("a") as out:
            out.write('{"cell": ["b"], "kind": "ended"}\n{"cell": "b", "kind": "local", "job": "local"}\n{"cell": "b')
        directory.append_jobs([{"cell": "c", "kind": "cancelled"}])
    assert {key: rows[0]["kind"] for key, rows in directory.jobs().items()} == {"a": "ended", "c": "cancelled"}


OUTSIDE = {"key": "../../../etc", "step": "a", "variant": None, "seed": 0, "config": {"recipe": {"epochs": 1}}}


@pytest.mark.parametrize(
    "cells", [5, [{"key": 5}], [{"key": "a/b/seed0", "step": "a", "variant": None, "seed": 0}], [OUTSIDE]]
)
def test_a_study_whose_cells_are_none_is_a_plain_line(sweep, tmp_path, cells):
    directory = StudyDir(tmp_path, "demo")
    directory.make()
    write_json(directory.notes / "cells.json", {"schema": 1, "cells": cells})
    code, told = sweep("status", "demo", "--runs", tmp_path)
    assert code == 65 and "cells.json: cannot be read (" in told and len(told.splitlines()) == 1
    assert told.endswith("; move it away: make roadmap with the same STUDY= and ARGS= writes it again\n")


def test_a_study_of_thousands_of_cells_is_read(sweep, tmp_path):
    directory = StudyDir(tmp_path, "demo")
    directory.make()
    config = {"recipe": {"epochs": 1}, "data": {"padding": "x" * 5000}}
    cells = [{**OUTSIDE, "key": f"a/b/seed{seed}", "seed": seed, "config": config} for seed in range(2000)]
    write_json(directory.notes / "cells.json", {"schema": 1, "cells": cells})
    assert "2000 planned" in sweep("status", "demo", "--runs", tmp_path)[1]


def test_a_study_of_more_cells_than_can_be_read_again_is_refused(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(study_dir, "MAX_CELLS", 1)
    words = ("submit", "demo", "--runs", tmp_path, "--cluster", "local", "--", "+step=resnet,gelu", "seed=0")
    code, told = sweep(*words)
    assert code == 64 and told.splitlines()[-1] == "error: demo: has 2 cells; a study has 1 at most"
    assert not (tmp_path / "demo" / ".study" / "cells.json").exists()


def test_cells_of_an_earlier_submission_with_other_overrides_stay_in_the_study(tmp_path):
    directory = StudyDir(tmp_path, "demo")
    with directory.lock():
        for words in (["recipe.epochs=3"], []):
            study = read_study("demo", ["+step=gelu", *words], tmp_path)
            directory.write_cells(study)
            directory.append_jobs([{"cell": study.cells[0].key, "kind": "slurm", "job": "1", "name": "x", "log": "y"}])
    assert {cell["cell"] for cell in directory.cells()} == {"gelu", "gelu,recipe.epochs=3"}


def test_options_are_spelled_in_full(sweep, tmp_path):
    code, told = sweep("status", "demo", "--run", str(tmp_path))
    assert code == 64 and "unrecognized arguments: --run" in told


@pytest.mark.parametrize("options", [[], ["--cluster", "local"]])
def test_an_override_before_the_dashes_is_told_where_it_belongs(sweep, options):
    code, told = sweep("plan", "demo", *options, "recipe.lr=1")
    assert code == 64 and "recipe.lr=1: is no study; overrides for all cells follow after --: -- recipe.lr=1" in told


def test_columns_are_as_wide_as_their_widest_cell_and_no_line_ends_in_spaces():
    assert plain_table([("cell", "n", ""), ("a", "10", "x")], right=[1]) == "cell   n\na     10  x"
