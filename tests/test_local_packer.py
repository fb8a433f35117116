"""The machine's own scheduler: however it ends, no run trains on unseen, none is started twice, cancel ends them."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from roadmap.config import Config
from roadmap.files import read_json, write_json
from roadmap.runs.process import is_alive, process_start, terminate
from roadmap.runs.provenance import code_hash
from roadmap.sweep import local_scheduler
from roadmap.sweep.cell_states import cell_states
from roadmap.sweep.launchers.local import LocalTask, compiles_ahead, row_of, sharing
from roadmap.sweep.local_scheduler import MAX_SEEDS, Scheduler, Slot, group_by_row
from roadmap.sweep.study import read_study
from roadmap.sweep.study_dir import Journal, StudyDir
from roadmap.sweep.submit import Selection, choose_cells

from .conftest import ROOT, SMALL
from .real_slurm import alive, until

# A run that saves where it is asked to stop, the second one later, and a scheduler of two of them and one that waits.
RUN = """
import os, signal, sys, time
def save(*_):
    time.sleep(0.4 * sys.argv[1].endswith("b"))
    open(sys.argv[1] + ".saved", "w").close()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
with open(sys.argv[1] + ".new", "w") as out:
    out.write(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
signal.pause()
"""
SCHEDULER = """
import os, sys
from functools import partial
from roadmap.errors import RoadmapError
from roadmap.sweep.launchers.local import LocalTask, Scheduler, Slot
from roadmap.sweep.study_dir import StudyDir
study = StudyDir(sys.argv[1], "demo")
tasks = [LocalTask(study, key, [sys.executable, "-c", sys.argv[2], f"{sys.argv[1]}/{key}"]) for key in "abc"]
with study.lock():
    study.append_jobs({"cell": task.key, "kind": "local", "job": "local", "pid": os.getpid(), "log": "x"}
                      for task in tasks)
try:
    code = Scheduler([Slot(), Slot()], partial(print, flush=True)).run(tasks)
except RoadmapError as error:
    code = error.code
os._exit(code)
"""


class Packer:
    """A scheduler at work in a process of its own, on a terminal of its own if that is asked for."""

    def __init__(self, folder, *, terminal=False, nohup=False):
        self.folder, self.terminal = folder, None
        words = [sys.executable, "-c", SCHEDULER, str(folder), RUN]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        if terminal:
            pid, self.terminal = pty.fork()
            if pid == 0:
                os.execve(sys.executable, words, env)
            self.pid = pid
        else:
            ignore = (lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) if nohup else None
            self.pid = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, preexec_fn=ignore).pid
        until(lambda: (folder / "a").exists() and (folder / "b").exists(), 60)
        self.runs = [int((folder / key).read_text()) for key in "ab"]

    def ended(self):
        """Return the exit code, once it has ended and every run has, saved."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if code == -signal.SIGKILL:  # else it has waited for them
            until(lambda: not any(alive(pid) for pid in self.runs), 30)
        assert not any(alive(pid) for pid in self.runs)
        assert all((self.folder / f"{key}.saved").exists() for key in "ab")
        assert not (self.folder / "c").exists()
        if code == 75:
            assert StudyDir(self.folder, "demo").jobs()["c"][-1]["kind"] == "ended"  # given back
        return code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGKILL, -9)])
def test_runs_are_saved_and_end_with_their_scheduler_whatever_ends_it(tmp_path, number, code):
    packer = Packer(tmp_path)
    os.kill(packer.pid, number)
    assert packer.ended() == code


def test_a_closed_terminal_is_a_wish_to_stop(tmp_path):
    packer = Packer(tmp_path, terminal=True)
    os.close(packer.terminal)
    assert packer.ended() == 75


def test_ctrl_z_pauses_the_runs_as_well_and_they_go_on_together(tmp_path):
    packer = Packer(tmp_path, terminal=True)
    pids = [packer.pid, *packer.runs]
    os.write(packer.terminal, b"\x1a")
    until(lambda: all(state(pid) == "T" for pid in pids), 30)
    os.kill(packer.pid, signal.SIGCONT)  # as `fg` does
    until(lambda: not any(state(pid) == "T" for pid in pids), 30)
    os.close(packer.terminal)
    assert packer.ended() == 75


def state(pid):
    """Return the letter of a process's state; T of one that is paused."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_with_nohup_a_closed_terminal_changes_nothing(tmp_path):
    packer = Packer(tmp_path, nohup=True)
    os.kill(packer.pid, signal.SIGHUP)
    os.kill(packer.runs[0], signal.SIGTERM)  # makes room for the third: it still schedules
    until(lambda: (tmp_path / "c").exists(), 60)
    packer.runs.append(int((tmp_path / "c").read_text()))
    os.kill(packer.pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(packer.pid, 0)[1]) == 75


def test_the_run_of_each_cell_is_recorded_with_its_start(tmp_path):
    packer = Packer(tmp_path)
    jobs = StudyDir(tmp_path, "demo").jobs
    until(lambda: all("run_pid" in jobs()[key][-1] for key in "ab"), 30)
    assert [(jobs()[key][-1]["run_pid"], jobs()[key][-1]["run_born"]) for key in "ab"] == [
        (pid, process_start(pid)) for pid in packer.runs
    ]
    os.kill(packer.pid, signal.SIGTERM)
    packer.ended()


def test_a_later_process_of_the_same_number_is_not_asked_to_end():
    born = process_start(os.getpid())
    assert is_alive(os.getpid(), born) and is_alive(os.getpid(), None)
    assert terminate(os.getpid(), born - 1) == "has ended"
    assert terminate(2**22 + 1, None) == "has ended"


def test_an_error_of_the_scheduler_itself_leaves_no_run_behind(tmp_path):
    packer = Packer(tmp_path)
    record = tmp_path / "demo" / ".study" / "jobs.jsonl"
    until(lambda: record.read_text().count("run_pid") == 2, 30)
    record.unlink()
    record.mkdir()  # where the end of a run cannot be recorded
    os.kill(packer.runs[0], signal.SIGTERM)
    packer.ended()


@pytest.mark.parametrize(
    ("script", "ended"),
    [
        ("print('no images'); sys.exit(65)", 3),
        ("print(sys.argv[1]); sys.exit(65)", 6),
        ("print('no images'); sys.exit(65 * (sys.argv[1] != 'a'))", 6),  # one was trained
        ("sys.exit(65)", 6),
    ],
)
def test_cells_that_all_fail_alike_are_not_tried_to_the_last(tmp_path, monkeypatch, script, ended):
    """Images that are not there are told three times, not fifty; what differs from cell to cell says nothing."""
    monkeypatch.setattr(local_scheduler, "POLL_S", 0.02)
    study = StudyDir(tmp_path, "demo")
    tasks = [LocalTask(study, key, [sys.executable, "-c", f"import sys; {script}", key]) for key in "abcdef"]
    with study.lock():
        study.append_jobs({"cell": task.key, "kind": "local", "job": "local", "pid": 1, "log": "x"} for task in tasks)
    told, handler = [], signal.getsignal(signal.SIGTERM)
    assert Scheduler([Slot()], told.append).run(tasks) == 65
    assert signal.getsignal(signal.SIGTERM) == handler
    assert {rows[-1]["kind"] for rows in study.jobs().values()} == {"ended"}  # those that were not started, too
    assert sum(line.startswith("[") for line in told) == ended
    assert ("3 are not started" in told[-1]) == (ended == 3)


def test_only_a_second_press_of_a_key_interrupts_the_runs_and_each_signal_reaches_them_once():
    told, process = [], Mock()
    scheduler = Scheduler([], told.append)
    scheduler.running = [local_scheduler.Job(process, {}, Path("log"))]
    asked, interrupted = [signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]
    for number, sent in (
        (signal.SIGINT, asked), (signal.SIGTERM, asked), (signal.SIGINT, interrupted), (signal.SIGINT, interrupted),
    ):  # fmt: skip
        scheduler._stop(number, None)
        scheduler._pass_on()
        assert [call.args[0] for call in process.send_signal.call_args_list] == sent
    assert len(told) == 1 and "press Ctrl-C again to interrupt them at once" in told[0]


@pytest.mark.timeout(600)
def test_cancel_saves_and_ends_what_it_names_and_the_same_command_goes_on(sweep, tmp_path):
    study, told = StudyDir(tmp_path / "runs", "demo"), tmp_path / "told"
    cells = ["+step=resnet,depthwise,gelu", *SMALL, "wandb.mode=disabled", "device=cpu", "recipe.epochs=2000"]
    words = ["submit", "demo", "--runs", str(study.path.parent), "--cluster", "local", "--"]
    words += [*cells, "cluster.max_running=2"]
    with told.open("w") as out:
        command = [sys.executable, "-m", "roadmap.sweep", *words]
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=out)

    def begun():
        there = (study.notes / "cells.json").exists()
        return there and sum(bool(cell.global_step) for cell in cell_states(study)[0]) >= 2

    def pids():
        return [read_json(path)["pid"] for path in study.path.glob("*/*/*/status.json")]

    until(begun, 250)
    before = pids()
    assert "0 cells to start, 0 to resume; left alone: " in sweep(*words)[1]
    code, said = sweep("cancel", "demo", "--runs", study.path.parent)
    assert code == 0 and "3 cancelled" in said and f"process {process.pid} asked to stop" in said
    assert said.count(": stopped at step ") == 2 and ": planned" in said
    assert process.wait(60) == 75 and "run the same command again to continue" in told.read_text()
    assert not any(alive(pid) for pid in before) and pids() == before
    assert "0 cancelled" in sweep("cancel", "demo", "--runs", study.path.parent)[1]
    found, (code,) = read_study("demo", cells, study.path.parent), (study.notes / "snapshots").iterdir()
    with study.lock():
        assert str(choose_cells(Selection(found, study, found.cells), code)[0]) == "1 cells to start, 2 to resume"


@pytest.fixture
def taken(tmp_path):
    """Return a study of two cells that a scheduler took; by their record it has ended."""
    study, found = StudyDir(tmp_path, "demo"), read_study("demo", ["+step=resnet,gelu"], tmp_path)
    row = {"kind": "local", "job": "local", "pid": 2**22 + 1, "log": "x"}
    with study.lock():
        study.write_cells(found)
        study.append_jobs({"cell": cell.key, **row} for cell in found.cells)
    return study


def test_reconcile_names_the_dead_of_a_killed_scheduler(sweep, taken):
    run = taken.path / taken.cells()[0]["key"]
    run.mkdir(parents=True)
    write_json(run / "status.json", {"state": "stopped", "exit_code": 75, "reason": "stopped by SIGTERM", "step": 3})
    cells = cell_states(taken)[0]
    assert [cell.state for cell in cells] == ["stopped", "planned"]
    assert all(cell.killed and "its scheduler was killed" in cell.reason for cell in cells)
    code, told = sweep("reconcile", "demo", "--runs", taken.path.parent)
    assert code == 0 and "0 restarted" in told
    assert told.count("to continue: make roadmap STUDY=demo CLUSTER=local") == 2


@pytest.mark.parametrize(("code", "state"), [(75, "stopped"), (143, "stopped"), (1, "failed"), (64, "failed")])
def test_a_cell_that_was_stopped_before_its_run_started_has_not_failed(taken, code, state):
    with taken.lock():
        taken.append_jobs([{"cell": taken.cells()[0]["key"], "kind": "ended", "exit_code": code}])
    assert cell_states(taken)[0][0].state == state


def test_runs_of_another_host_are_named_and_left(sweep, taken):
    record = taken.notes / "jobs.jsonl"
    record.write_text(record.read_text().replace(f'"host": "{os.uname().nodename}"', '"host": "n17"'))
    code, told = sweep("cancel", "demo", "--runs", taken.path.parent)
    assert code == 0 and "0 cancelled" in told and f"process {2**22 + 1} is on n17, cancel it there" in told


def test_the_runs_of_a_machine_that_is_gone_go_on_elsewhere_once_that_is_said(sweep, taken):
    """The name of a container that is started again is another."""
    record = taken.notes / "jobs.jsonl"
    record.write_text(record.read_text().replace(f'"host": "{os.uname().nodename}"', '"host": "pod-a"'))
    run = taken.path / taken.cells()[0]["key"]
    run.mkdir(parents=True)
    write_json(run / "status.json", {"state": "running", "host": "pod-a", "pid": 1, "step": 3})
    cells = cell_states(taken)[0]
    assert [cell.state for cell in cells] == ["unknown"] * 2
    assert "make cancel GONE=pod-a if that machine is gone" in cells[0].reason
    for gone, cancelled in (("pod-b", 0), ("pod-a", 2)):
        code, told = sweep("cancel", "demo", "--runs", taken.path.parent, "--gone", gone)
        assert code == 0 and f"{cancelled} cancelled" in told
    assert [(cell.state, cell.killed) for cell in cell_states(taken)[0]] == [("failed", True), ("planned", False)]


# Cells that share a GPU: a process a row, whose seeds train side by side. Without a GPU it trains on the CPU.


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Let `nvidia-smi` know one GPU."""
    script = tmp_path / "bin" / "nvidia-smi"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\ncase "$1" in *mode*) echo Default;; *) echo "0, H100";; esac\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")


def two_rows(tmp_path, *more):
    words = ["submit", "demo", "--runs", str(tmp_path / "runs"), "--cluster", "local", "--", "+step=resnet,gelu"]
    return [*words, "seed=0,1", *SMALL, "wandb.mode=disabled", *more], StudyDir(tmp_path / "runs", "demo")


def by_step(study):
    """Return the status of each cell that has begun, by step and seed."""
    cells = [cell for cell in cell_states(study)[0] if cell.exit_code is not None or cell.started]
    return {(cell.step, cell.seed): read_json(study.path / cell.key / "status.json") for cell in cells}


@pytest.mark.timeout(600)
def test_the_seeds_of_a_row_share_a_gpu_in_one_process(gpu, sweep, tmp_path):
    words, study = two_rows(tmp_path)
    code, told = sweep(*words)
    assert (
        code == 0
        and "4 cells to start, 0 to resume; 1 at once, the seeds of a row side by side" in told
        and "[4/4]" in told
    )
    found = by_step(study)
    assert len(found) == 4 and all(about["state"] == "done" and about["group_size"] == 2 for about in found.values())
    assert {about["code_hash"] for about in found.values()} == {code_hash()}  # else none of them may go on
    assert found["resnet", 0]["pid"] == found["resnet", 1]["pid"] != found["gelu", 0]["pid"] == found["gelu", 1]["pid"]
    for cell in cell_states(study)[0]:
        assert "top-1" in Path(cell.log).read_text().splitlines()[-1]
    lines = told.splitlines()
    assert [line.split()[1].split("/")[1].split(",")[0] for line in lines if line.endswith("started")] == [
        "resnet", "resnet", "gelu", "gelu",
    ]  # fmt: skip
    code, told = sweep(*words)
    assert code == 0 and "0 cells to start, 0 to resume; left alone: 4 done" in told


TRAINS = """
import json, os, sys
assert os.environ["PYTHONPATH"].startswith(sys.argv[4])
sys.stdin.readline()
open(sys.argv[3], "w").close()
print(json.dumps({"run": 0, "code": 0}), flush=True)
open(sys.argv[1], sys.argv[2]).close()
"""


def test_a_row_trains_when_the_last_cell_of_the_one_before_has_ended_not_its_process(tmp_path, monkeypatch):
    """The first process is there until the second one has trained: each waits for the other at a pipe."""
    pipe, directory = tmp_path / "pipe", StudyDir(tmp_path, "demo")
    (tmp_path / "demo" / ".study").mkdir(parents=True)
    os.mkfifo(pipe)

    def command(tasks, share):
        assert share == 0.25
        words = [str(pipe), {"a/0": "r", "b/0": "w"}[tasks[0].key], str(tasks[0].log), "code"]
        return [sys.executable, "-c", TRAINS, *words]

    monkeypatch.setattr(local_scheduler, "group_command", command)
    tasks = [LocalTask(directory, key, [], row=key, code=Path("code")) for key in ("a/0", "b/0")]
    told = []
    assert Scheduler([Slot()], told.append, ahead=2).run(tasks) == 0
    assert [line for line in told if line.endswith("started")] == ["demo: a/0 started", "demo: b/0 started"]
    assert {path.name for path in tasks[0].log.parent.iterdir()} == {"a.log", "a__0.log", "b.log", "b__0.log"}


@pytest.mark.timeout(600)
def test_a_process_that_dies_takes_its_row_alone_and_a_signal_saves_the_next_and_all_go_on(gpu, tmp_path):
    words, study = two_rows(tmp_path, "recipe.epochs=2000")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "roadmap.sweep", *words]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)

    def trains(step, after=0):
        steps = [(cell.global_step, cell.state) for cell in cell_states(study)[0] if cell.step == step]
        return len(steps) == 2 and all((taken or 0) > after and state == "running" for taken, state in steps)

    until(lambda: (study.notes / "cells.json").exists() and trains("resnet"), 250)
    until(lambda: len(by_step(study)) == 4, 250)
    waiting = [(cell.state, cell.reason) for cell in cell_states(study)[0] if cell.step == "gelu"]
    assert waiting == [("queued", "prepares itself while others train")] * 2
    os.kill(by_step(study)["resnet", 0]["pid"], signal.SIGKILL)
    until(lambda: trains("gelu"), 250)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=250)[0]
    assert process.returncode == 75
    assert told.count("(exit code 137; killed, out of memory?; ") == 2
    assert "stopping: running cells save" in told
    states = {(cell.step, cell.seed): (cell.state, cell.killed) for cell in cell_states(study)[0]}
    assert states == {
        ("resnet", 0): ("failed", True), ("resnet", 1): ("failed", True),
        ("gelu", 0): ("stopped", False), ("gelu", 1): ("stopped", False),
    }  # fmt: skip
    assert not any(alive(about["pid"]) for about in by_step(study).values())

    saved = max(about["step"] for about in by_step(study).values())
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    until(lambda: trains("resnet", after=saved), 250)
    process.send_signal(signal.SIGTERM)
    assert "0 cells to start, 4 to resume" in process.communicate(timeout=250)[0]
    assert [about["step"] > 0 and about["starts"] == 2 for about in by_step(study).values()] == [True] * 4


def test_what_a_process_is_told_of_a_cell_is_the_config_that_its_command_composes(tmp_path):
    for cell in read_study("mini", [f"data.root={tmp_path}", "+step=resnet,gelu"], tmp_path).cells:
        told = LocalTask(StudyDir(tmp_path, "mini"), cell.key, [])
        run = json.loads(json.dumps(sharing(told, cell.config).run))
        assert Config(**run["config"]) == cell.config and run["compile"] is True


@pytest.mark.parametrize(
    ("study", "words", "rows", "compiled"),
    [
        ("mini", [], 2, True),
        ("mini", ["compile=false"], 2, False),
        ("mini", ["recipe.epochs=4"], 2, False),
        ("mini", ["cuda_graph=never"], 0, True),
        ("mini", ["device=cpu"], 0, True),
        ("demo", [], 2, False),
        ("roadmap_tiny", [], 0, False),
    ],
)
def test_which_cells_share_a_gpu_and_which_are_compiled_ahead(tmp_path, study, words, rows, compiled):
    found = read_study(study, [*words, f"data.root={tmp_path}", "+step=resnet,gelu", "seed=1,0"], tmp_path)
    assert len({row_of(cell.config) for cell in found.cells} - {None}) == rows
    assert {compiles_ahead(cell.config) for cell in found.cells} == {compiled}


def test_groups_of_one_row_are_told_of_their_own_cells(tmp_path):
    """They are at work at once: a group that has just been started reads its file seconds later."""
    study = StudyDir(tmp_path, "demo")
    study.make()
    tasks = [LocalTask(study, f"nano-digits/gelu/seed{seed}", [], "gelu", {"seed": seed}) for seed in range(4)]
    files = [local_scheduler.group_command(group, 0.5)[-1] for group in (tasks[:2], tasks[2:])]
    assert [[run["seed"] for run in read_json(Path(file))["runs"]] for file in files] == [[0, 1], [2, 3]]


def test_what_cannot_be_recorded_in_a_locked_study_is_recorded_later_and_in_its_order(tmp_path):
    locked, free = studies = [StudyDir(tmp_path, name) for name in ("locked", "free")]
    journal = Journal()
    for study in studies:
        with study.lock():
            study.append_jobs([{"cell": "a", "kind": "local", "job": "local", "pid": 1, "log": "x"}])
        journal.started([(study, "a")], os.getpid(), waits=False)
    with locked.lock():
        journal.write()
        journal.ended(locked, "a", 0)
        journal.write()
        assert [row.get("run_pid") for row in free.jobs()["a"]] == [None, os.getpid()]
        assert len(locked.jobs()["a"]) == 1
    journal.write()
    journal.write()
    assert [(row["kind"], row.get("exit_code")) for row in locked.jobs()["a"]] == [
        ("local", None), ("local", None), ("ended", 0),
    ]  # fmt: skip


ON_ITS_CORES = """
import os, sys, time
while os.sched_getaffinity(0) != {int(sys.argv[1])}:
    time.sleep(0.02)
print("b is trained")
"""


def test_a_cell_whose_log_cannot_be_written_and_one_that_is_killed_fail_alone(tmp_path):
    study, told, core = StudyDir(tmp_path, "demo"), [], min(os.sched_getaffinity(0))
    study.make()
    commands = {"a": ["true"], "b": [sys.executable, "-c", ON_ITS_CORES, str(core)], "c": ["sh", "-c", "kill -9 $$"]}
    tasks = [LocalTask(study, key, command) for key, command in commands.items()]
    tasks[0].log.mkdir(parents=True)
    assert Scheduler([Slot(cores=(core,))], told.append).run(tasks) == 137
    assert [line for line in told if line.startswith("[")] == [
        f"[1/3] error: {tasks[0].log}: cannot be written (Is a directory) (exit code 74; {tasks[0].log})",
        "[2/3] b is trained",
        f"[3/3] c (exit code 137; killed, out of memory?; {tasks[2].log})",
    ]
    assert Scheduler([Slot()], told.append).run([]) == 0  # all are done


def test_a_process_is_told_its_share_of_the_machine(monkeypatch):
    monkeypatch.setattr(local_scheduler, "num_cores", lambda: 8)
    monkeypatch.setattr(local_scheduler, "compiler_cache", lambda: {"TAG": "a"})
    for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS", "CUDA_VISIBLE_DEVICES", "TAG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", "mine")

    def changes(slot, code=None):
        env = local_scheduler.environment(slot, code, 3)
        return {name: env[name] for name in env if env[name] != os.environ.get(name)}

    assert changes(Slot(gpus=("1", "3"))) == {"CUDA_VISIBLE_DEVICES": "1,3"}
    assert changes(Slot(cores=(0, 1))) == {"OMP_NUM_THREADS": "2"}
    compiled = {"PYTHONPATH": "code:mine", "TORCHINDUCTOR_COMPILE_THREADS": "2", "TAG": "a"}
    assert changes(Slot(gpus=("0",)), Path("code")) == {"CUDA_VISIBLE_DEVICES": "0", **compiled}
    for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS", "TAG"):  # what a user has set stays
        monkeypatch.setenv(name, "7")
    assert changes(Slot(cores=(0,)), Path("code")) == {"PYTHONPATH": "code:mine"}


def test_groups_are_of_one_row_and_of_no_more_than_there_are_streams(tmp_path):
    def grouped(*rows):
        tasks = (LocalTask(StudyDir(tmp_path, "demo"), key, [], row) for key, row in enumerate(rows))
        return [[task.key for task in group] for group in group_by_row(tasks)]

    assert grouped("a", "b", None, "a", None, "b") == [[0, 3], [1, 5], [2], [4]]
    assert list(map(len, grouped(*["a"] * (2 * MAX_SEEDS + 1)))) == [MAX_SEEDS] * 2 + [1]
