"""What Slurm answers, or does not, to a submission: scripts that stand for Slurm keep every call that they get."""

import json
import os
import shlex
import shutil
import time

import pytest

from roadmap.errors import ConfigError
from roadmap.files import write_json
from roadmap.sweep import sbatch, slurm_queue
from roadmap.sweep.cell_states import cell_states
from roadmap.sweep.launchers.slurm import recover_pending
from roadmap.sweep.study_dir import StudyDir

from .drive import python

# The file `next` counts the ids; squeue lists what was accepted and has the name asked for.
SBATCH = r"""
here=$(dirname "$0")
name=$(sed -n 's/^#SBATCH --job-name=//p' "$1")
last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\)%.*/\1/p' "$1")
id=$(cat "$here/next"); echo $((id + 1)) > "$here/next"
cp "$1" "$here/script.$id"
echo "$id $name $(sed -n 's/^#SBATCH --dependency=//p' "$1")" >> "$here/accepted"
if [ -z "$last" ]; then echo "$name $id|PENDING|REASON" >> "$here/queue"
else for i in $(seq 0 "$last"); do echo "$name ${id}_$i|PENDING|REASON" >> "$here/queue"; done; fi
"""
SQUEUE = r"""
here=$(dirname "$0")
for word in "$@"; do case "$word" in --name=*) names=${word#--name=};; esac; done
touch "$here/queue"
while read -r name rest; do case ",$names," in *,"$name",*) echo "$rest";; esac; done < "$here/queue"
"""
SCONTROL = r"""
echo "$@" >> "$(dirname "$0")/scontrol.log"
case "$*" in "show config") echo "MaxArraySize            = 2";; esac
"""
ANSWER = 'echo "Submitted batch job $id"'


class Stub:
    """Slurm as a folder of scripts."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        (folder / "next").write_text("11\n")
        for name in ("srun", "sinfo", "sacct", "scancel"):
            self.write(name, "")
        self.write("scontrol", SCONTROL)
        self.write("squeue", SQUEUE)
        self.write("sbatch", SBATCH + ANSWER)

    def write(self, name, text):
        (self.folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.folder / name).chmod(0o755)

    def lines(self, name):
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def set_reason(self, state, reason):
        path = self.folder / "queue"
        path.write_text(path.read_text().replace("PENDING|REASON", f"{state}|{reason}"))


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """Return a Slurm of scripts, whose arrays hold two tasks."""
    stub = Stub(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{stub.folder}:{os.environ['PATH']}")
    return stub


@pytest.fixture
def call(sweep, tmp_path):
    """Return a function that types a verb for cells of `demo`; it returns the exit code and what was printed."""

    def type_verb(verb, *words, steps="resnet,depthwise,gelu"):
        cells = ["--", f"+step={steps}", "recipe.micro_batch=8"] if verb == "submit" else []
        own = [word for word in words if word.startswith("-")]
        return sweep(verb, "demo", "--runs", tmp_path / "runs", *own, *cells, *(w for w in words if w not in own))

    return type_verb


@pytest.fixture
def study(tmp_path):
    """Return the study of these tests."""
    return StudyDir(tmp_path / "runs", "demo")


def test_an_array_above_slurms_size_is_split_and_one_report_waits_for_all(slurm, call, study):
    code, told = call("submit")
    assert code == 0 and "3 cells to start, 0 to resume, as Slurm job 11, 12" in told
    first, second, report = (line.split() for line in slurm.lines("accepted"))
    assert (first[0], second[0]) == ("11", "12") and report[1:] == [f"{second[1]}-report", "afterany:11:12"]
    assert [cell.job for cell in cell_states(study)[0]] == ["11_0", "11_1", "12"]
    assert [rows[-1]["name"] for rows in study.jobs().values()] == [first[1], first[1], second[1]]


def test_a_refusal_of_a_later_array_names_those_that_are_queued(slurm, call, study):
    refuse = 'if [ -e "$(dirname "$0")/accepted" ]; then echo "sbatch: error: AssocMaxSubmitJobLimit" >&2; exit 1; fi\n'
    slurm.write("sbatch", refuse + SBATCH + ANSWER)
    code, told = call("submit")
    assert code == 64 and "AssocMaxSubmitJobLimit; queued before that: 11; make roadmap adds the rest" in told
    assert [cell.state for cell in cell_states(study)[0]] == ["queued", "queued", "planned"]
    slurm.write("sbatch", SBATCH + ANSWER)
    code, told = call("submit")
    assert code == 0 and "1 cells to start" in told and "left alone: 2 queued" in told


def test_what_slurm_counts_in_one_array_holds_over_several(slurm, call):
    call("submit", "cluster.max_running=1")
    assert slurm.lines("accepted")[1].split()[2] == "afterany:11"


def test_a_job_takes_nothing_of_the_job_in_which_it_is_submitted(slurm, call, monkeypatch):
    """Seen on a real Slurm: a single cell submitted from an array's task looked for the work of that array."""
    slurm.write("sbatch", 'env > "$(dirname "$0")/env"\n' + SBATCH + ANSWER)
    inside = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_CPU_BIND": "mask_cpu:0x1", "SLURM_NTASKS": "4"}
    theirs = {"SLURM_CONF": "/site/slurm.conf", "SBATCH_ACCOUNT": "lab", "MODULEPATH": "/site"}
    for name, value in (inside | theirs).items():
        monkeypatch.setenv(name, value)
    assert call("submit", "cluster.report=false", steps="gelu")[0] == 0
    env = dict(line.split("=", 1) for line in slurm.lines("env") if "=" in line)
    assert not inside.keys() & env.keys() and theirs.items() <= env.items()
    monkeypatch.delenv("SLURM_JOB_ID")
    assert inside.keys() - {"SLURM_JOB_ID"} <= slurm_queue.environment().keys()


def test_how_a_user_reads_the_queue_hides_no_job(slurm, call, study, monkeypatch):
    slurm.write("squeue", '[ -z "$SQUEUE_PARTITION$SQUEUE_USERS" ] || exit 0\n' + SQUEUE)
    call("submit")
    monkeypatch.setenv("SQUEUE_PARTITION", "gpu")
    monkeypatch.setenv("SQUEUE_USERS", "somebody")
    assert {cell.state for cell in cell_states(study)[0]} == {"queued"}


def test_any_option_of_sbatch_and_srun_reaches_the_script_as_it_was_typed(slurm, call):
    hard = 'it\'s "#1" $HOME 100%'
    words = ["cluster.sbatch.mail_type=END", "cluster.sbatch.exclusive=true", "cluster.sbatch.time-min=30:00"]
    words += [f"cluster.sbatch.comment={hard}", "cluster.srun.container-image=nvcr.io/x:1", "cluster.srun.mpi=false"]
    assert call("submit", *words)[0] == 0
    for job in ("11", "12", "13"):  # two arrays, and the report
        script = (slurm.folder / f"script.{job}").read_text()
        options = [shlex.split(line)[1] for line in script.splitlines() if line.startswith("#SBATCH")]
        assert {"--mail-type=END", "--exclusive", "--time-min=30:00", f"--comment={hard}"} <= set(options)
        srun = shlex.split(next(line for line in script.splitlines() if line.startswith("srun ")))
        assert "--container-image=nvcr.io/x:1" in srun and not any(word.startswith("--mpi") for word in srun)


def test_a_row_with_resources_of_its_own_is_an_array_of_its_own_and_keeps_them_when_restarted(slurm, call, study):
    rows = ["cluster.rows={gelu: {time_h: 30, sbatch: {begin: 20:00}}}", "cluster.rows.depthwise.mem_gb=9"]
    code, told = call("submit", *rows, "cluster.report=false", "cluster.sbatch.nice=7")
    assert code == 0 and "3 cells to start, 0 to resume, as Slurm job 11, 12, 13" in told
    scripts = [(slurm.folder / f"script.{job}").read_text() for job in (11, 12, 13)]
    assert [f"--time={m}\n" in text for text, m in zip(scripts, (1440, 1440, 1800), strict=True)] == [True] * 3
    assert ["--mem=9216M" in text for text in scripts] == [False, True, False]
    assert ["--begin=20:00" in text for text in scripts] == [False, False, True]
    assert all("--nice=7" in text for text in scripts)
    (slurm.folder / "queue").write_text(
        "".join(f"{line.replace('PENDING', 'FAILED') if ' 13|' in line else line}\n" for line in slurm.lines("queue"))
    )
    assert "1 restarted: nano-digits/gelu" in call("reconcile")[1]
    again = (slurm.folder / "script.14").read_text()
    assert "--time=1800\n" in again and "--begin=20:00" in again and "--nice=7" in again


@pytest.mark.parametrize(("word", "told"), [
    ("sbatch.array=0-3", "cluster.sbatch.array: is set by the launcher; set cluster.max_running"),
    ("sbatch.arr=0-3", "cluster.sbatch.arr: may be read as --array, which is set by the launcher"),
    ("sbatch.job_name=x", "cluster.sbatch.job_name: is set by the launcher"),
    ("srun.output=x", "cluster.srun.output: is set by the launcher"),
    ("sbatch.gres=gpu:2", "set cluster.per_cell and cluster.gpu_type"),
    ("sbatch.-x=1", "is not the name of an option"),
    ('sbatch.comment="a\\nb"', "must be one line"),
    ("sbatch.comment=\x1b[2J", "must be one line"),
    ("sbatch.comment=", "must be text, or true"),
    ("sbatch.export=WANDB_API_KEY=abc", "holds what looks like a secret"),
    ("sbatch=7", "must be {OPTION: VALUE}"),
    ("rows=7", "must be {STEP: {KEY: VALUE}}"),
    ("rows.gelo.time_h=3", "cluster.rows.gelo: there is no such row; did you mean gelu?"),
    ("rows.gelu.time_h=0", "cluster.rows.gelu.time_h=0.0: must be above 0"),
    ("rows.gelu.per_cell=4", "cluster.rows.gelu.per_cell: a row has no such setting of its own"),
    ("rows.gelu.sbatch.array=1", "cluster.rows.gelu.sbatch.array: is set by the launcher"),
])  # fmt: skip
def test_options_and_rows_that_cannot_be_are_refused_before_anything_is_queued(slurm, call, word, told):
    code, said = call("submit", f"cluster.{word}")
    assert code == 64 and told in said and len(said.splitlines()) <= 2
    assert slurm.lines("accepted") == []


@pytest.mark.parametrize(("end", "told"), [
    ("exec sleep 60", "sbatch does not answer within 2 s"),
    ("kill -9 $$", "sbatch was killed by signal 9"),
    ("echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1",
     "Batch job submission failed: Socket timed out"),
    ("echo 'the site greets you'", "sbatch answers the site greets you"),
])  # fmt: skip
def test_a_lost_answer_is_no_refusal_and_the_jobs_are_found_by_their_name(slurm, call, study, monkeypatch, end, told):
    slurm.write("sbatch", SBATCH + end)
    with monkeypatch.context() as patched:
        if "sleep" in end:
            patched.setattr(sbatch, "TIMEOUT_S", 2.0)  # within which it has queued them
        began = time.monotonic()
        code, said = call("submit", "cluster.report=false", steps="depthwise,gelu")
        assert time.monotonic() - began < 50
    assert code == 75 and told in said and "it is not known whether Slurm has queued the job" in said
    cells = cell_states(study)[0]
    assert [cell.state for cell in cells] == ["queued"] * 2
    assert all("its submission got no answer; make roadmap completes it" in cell.reason for cell in cells)
    slurm.write("sbatch", SBATCH + ANSWER)
    code, said = call("submit", "cluster.report=false", steps="depthwise,gelu")
    assert code == 0 and "0 cells to start, 0 to resume; left alone: 2 queued" in said
    assert len(slurm.lines("accepted")) == 1 and study.pending() is None
    for cell in cell_states(study)[0]:
        assert (study.notes / "slurm" / f"{cell.job}_submitted.pkl").exists()


def test_a_submission_that_is_completed_by_typing_again_has_its_report_once(slurm, call):
    slurm.write("sbatch", SBATCH + "kill -9 $$")
    assert call("submit", steps="depthwise,gelu")[0] == 75
    slurm.write("sbatch", SBATCH + ANSWER)
    for _ in range(2):
        assert "left alone: 2 queued" in call("submit", steps="depthwise,gelu")[1]
        array, report = (line.split() for line in slurm.lines("accepted"))
        assert report[1:] == [f"{array[1]}-report", "afterany:11"]
    denied = 'case "$*" in "update JobId=12 "*) exit 1;; esac'  # it is another user's
    slurm.write("scontrol", denied)
    for _ in range(2):
        call("submit", steps="depthwise,gelu")
        assert len(slurm.lines("accepted")) == 3


NO_CHART = "\n  no job draws the chart: %s; make roadmap tries again while cells are in the queue"


def test_a_study_that_is_queued_without_its_chart_says_so(slurm, call):
    slurm.write("squeue", '[ ! -e "$(dirname "$0")/accepted" ] || exit 1\n' + SQUEUE)
    code, told = call("submit", steps="gelu")
    assert code == 0 and "as Slurm job 11" + NO_CHART % "squeue failed" in told
    slurm.write("squeue", SQUEUE)
    refusal = 'if grep -q -e -report "$1"; then echo "sbatch: error: no gpu in it" >&2; exit 1; fi\n'
    slurm.write("sbatch", refusal + SBATCH + ANSWER)
    code, told = call("submit", steps="gelu")
    assert code == 0 and "left alone: 1 queued" + NO_CHART % "Slurm refuses the job: no gpu in it" in told
    assert len(slurm.lines("accepted")) == 1


def test_a_chart_whose_submission_got_no_answer_is_given_its_work(slurm, call, study):
    slurm.write("sbatch", SBATCH + 'if grep -q -e -report "$1"; then kill -9 $$; fi\n' + ANSWER)
    code, told = call("submit", steps="gelu")
    assert code == 0 and "it is not known whether Slurm has queued the job (sbatch was killed by signal 9)" in told
    work = study.notes / "slurm" / "12_submitted.pkl"
    assert not work.exists()
    assert "draws the chart" not in call("submit", steps="gelu")[1]
    assert work.exists() and len(slurm.lines("accepted")) == 2


def test_reconcile_completes_an_interrupted_submission_with_its_chart(slurm, call):
    slurm.write("sbatch", SBATCH + "kill -9 $$")
    assert call("submit", steps="depthwise,gelu")[0] == 75
    slurm.write("sbatch", SBATCH + ANSWER)
    for _ in range(2):
        assert call("reconcile")[1] == "demo: 0 restarted\n"
        array, report = (line.split() for line in slurm.lines("accepted"))
        assert report[1:] == [f"{array[1]}-report", "afterany:11"]


def test_a_cell_that_is_queued_with_another_config_is_refused_and_stays_as_it_is(slurm, sweep, tmp_path):
    file, words = tmp_path / "configs" / "mine.yaml", ("--runs", tmp_path / "runs")
    text = "defaults: [config, _self_]\nstudy: mine\nrecipe: {micro_batch: 8, weight_decay: %s}\n"
    text += "hydra: {mode: MULTIRUN, sweeper: {params: {+step: gelu, seed: '0,1'}}}\n"
    file.parent.mkdir()
    file.write_text(text % 0.2)
    assert sweep("submit", file, *words, "--seeds", "0")[0] == 0
    file.write_text(text % 0.3)
    for _ in range(2):
        code, told = sweep("submit", file, *words)
        assert code == 78 and "gelu/seed0 is queued with another config (recipe.weight_decay: 0.2 -> 0.3)" in told
    assert len(slurm.lines("queue")) == 2  # the cell and the report
    cells = StudyDir(tmp_path / "runs", "mine").cells()
    assert {cell["config"]["recipe"]["weight_decay"] for cell in cells} == {0.2}
    (slurm.folder / "queue").unlink()  # as if it was cancelled
    code, told = sweep("submit", file, *words)
    assert code == 0 and "2 cells to start" in told


def test_a_lost_answer_to_what_slurm_never_got_is_tried_again(slurm, call, study, monkeypatch):
    slurm.write("sbatch", "exec sleep 60")
    with monkeypatch.context() as patched:
        patched.setattr(sbatch, "TIMEOUT_S", 0.5)
        assert call("submit", "cluster.report=false", steps="gelu")[0] == 75
    assert all("Slurm has no such job now" in cell.reason for cell in cell_states(study)[0])
    slurm.write("sbatch", SBATCH + ANSWER)
    code, said = call("submit", "cluster.report=false", steps="gelu")
    assert code == 0 and "1 cells to start" in said


def test_a_refusal_shows_slurms_first_line_and_names_the_setting(slurm, call, study):
    text = "invalid partition specified: gpuu\nsbatch: error: Batch job submission failed: Invalid partition name"
    slurm.write("sbatch", f"echo 'sbatch: error: {text}' >&2; exit 1")
    code, said = call("submit", "cluster.partition=gpuu", steps="gelu")
    assert code == 64 and "Slurm refuses the job: invalid partition specified: gpuu; Batch job submission" in said
    assert "(cluster.partition=gpuu)" in said and study.pending() is None
    slurm.write("sbatch", "echo 'sbatch: error: Requested reservation is invalid' >&2; exit 1")
    assert "(cluster.sbatch.reservation=noo)" in call("submit", "cluster.sbatch.reservation=noo", steps="gelu")[1]
    slurm.write("sbatch", "echo 'sbatch: error: Invalid feature specification' >&2; exit 1")
    assert "specification (cluster.constraint=a100)\n" in call("submit", "cluster.constraint=a100", steps="gelu")[1]
    slurm.write("sbatch", "echo 'sbatch: error: Invalid generic resource (gres) specification' >&2; exit 1")
    gpus = " (cluster.gpu_type and cluster.per_cell: gpu:8; ARGS=device=cpu takes no GPU)"
    assert gpus in call("submit", steps="gelu")[1] and gpus not in call("submit", "device=cpu", steps="gelu")[1]
    assert [cell.state for cell in cell_states(study)[0]] == ["planned"]


WAITS = [  # Slurm's reason, what is said of it, and whether the cell can never start
    ("Priority", "Slurm: Priority", False),
    ("ReqNodeNotAvail, UnavailableNodes:n1", "Slurm: ReqNodeNotAvail, UnavailableNodes:n1", False),
    ("JobHeldUser", "Slurm: JobHeldUser: scontrol release frees it", False),
    ("None", "", False),
    ("QOSMaxJobsPerUserLimit", "Slurm: QOSMaxJobsPerUserLimit", False),
    ("PartitionTimeLimit", "can never start, cluster.time_h is above the limit there", True),
    ("PartitionNodeLimit", "can never start, cluster.nodes", True),
    ("QOSMaxWallDurationPerJobLimit", "can never start, cluster.time_h", True),
    ("AssocMaxCpuPerJobLimit", "can never start, it asks for more than a job may have", True),
    ("DependencyNeverSatisfied", "can never start", True),
]


def test_status_says_why_a_cell_waits_when_it_can_never_start_and_where_it_runs(slurm, call):
    call("submit")
    submitted = (slurm.folder / "queue").read_text()
    for reason, told, never in WAITS:
        (slurm.folder / "queue").write_text(submitted)
        slurm.set_reason("PENDING", f"{reason}||1700000600")
        code, said = call("status")
        assert code == 0 and said.count(told) >= 3, reason
        assert ("3 of them can never start as submitted" in said) == never, reason
        found = json.loads(call("status", "--json")[1])
        cell = found["cells"][0]
        assert found["never_start"] == 3 * never and found["left_out"] == []
        assert (cell["slurm_state"], cell["slurm_reason"]) == ("PENDING", None if reason == "None" else reason)
        assert cell["starts"] == "2023-11-14T22:23:20Z" and cell["submitted"] and cell["never_starts"] == never, reason
        assert cell["path"].endswith("/runs/demo/nano-digits/resnet,recipe.micro_batch=8/seed0") and cell["log"] is None
    (slurm.folder / "queue").write_text(submitted)
    slurm.set_reason("RUNNING", "None|n[1-2]|1700000600")
    cell = json.loads(call("status", "--json")[1])["cells"][0]
    assert (cell["state"], cell["node"], cell["started"]) == ("running", "n[1-2]", "2023-11-14T22:23:20Z")


def test_an_array_that_was_cancelled_before_it_began_says_so_and_names_no_log(slurm, call):
    """Slurm has one line for all its tasks then."""
    call("submit", "cluster.report=false")
    (slurm.folder / "queue").write_text("")
    names = [line.split()[1] for line in slurm.lines("accepted")]
    (slurm.folder / "queue").write_text(f"{names[0]} 11_[0-1]|CANCELLED|None\n{names[1]} 12|CANCELLED|None\n")
    code, said = call("status")
    assert code == 0 and said.count("cancelled before it started") == 3 and "_log.out" not in said
    assert "0 restarted" in call("reconcile")[1]


def test_what_was_cancelled_here_is_known_when_slurm_has_forgotten_it(slurm, call):
    call("submit", "cluster.report=false")
    code, said = call("cancel")
    assert code == 0 and "3 cancelled; make roadmap continues them" in said and "Slurm's jobs 11_0 11_1 12" in said
    (slurm.folder / "queue").write_text("")
    assert call("status")[1].count("cancelled before it started") == 3


def test_what_left_the_queue_before_it_began_was_cancelled_as_far_as_anybody_knows(slurm, call):
    call("submit", "cluster.report=false")
    (slurm.folder / "queue").write_text("")  # as after `scancel`, without accounting, some minutes later
    assert call("status")[1].count("left the queue before it began") == 3
    assert "0 restarted" in call("reconcile")[1]


def test_cancel_names_the_jobs_that_are_another_users_and_cancels_the_others(slurm, call, study):
    call("submit")
    denied = "scancel: error: Kill job error on job id 11_1: Access/permission denied"
    slurm.write("scancel", f'echo "$@" >> "$(dirname "$0")/cancelled"; echo "{denied}" >&2; exit 1')
    code, told = call("cancel")
    assert code == 0 and "2 cancelled; make roadmap continues them\n  Slurm's jobs 11_0 12\n" in told
    assert "depthwise,recipe.micro_batch=8/seed0: Slurm's job 11_1: Access/permission denied" in told
    assert slurm.lines("cancelled") == ["11_0 11_1 12 13"]
    assert [cell.cancelled for cell in cell_states(study)[0]] == [True, False, True]


def test_reconcile_adds_no_report_while_one_waits(slurm, call, study):
    call("submit")
    before = slurm.lines("accepted")
    (report,) = (line.split() for line in before if "-report" in line)
    path = slurm.folder / "queue"
    lines = [line.replace("PENDING", "FAILED") if " 11_0|" in line else line for line in slurm.lines("queue")]
    path.write_text("\n".join(lines) + "\n")
    code, said = call("reconcile")
    assert code == 0 and "1 restarted: nano-digits/resnet" in said
    assert [line.split()[1] for line in slurm.lines("accepted")[len(before) :] if "-report" in line] == []
    assert slurm.lines("scontrol.log")[-1] == f"update JobId={report[0]} Dependency=afterany:11:12:14"
    assert "0 restarted" in call("reconcile")[1]
    path.write_text("")  # the queue forgets, and accounting knows the last job alone
    slurm.write("sacct", 'case "$*" in *--jobs=*14*) echo "14|NODE_FAIL|None";; esac')
    assert call("status")[1].count("before the run started (NODE_FAIL)") == 1


@pytest.mark.parametrize("command", ["squeue", "scontrol", "scancel", "sinfo", "sacct"])
def test_every_call_has_a_bound(slurm, command):
    slurm.write(command, "exec sleep 60")
    began = time.monotonic()
    assert slurm_queue.run(command, timeout_s=0.3) == (None, f"{command} does not answer within 0 s")
    assert time.monotonic() - began < 50


def test_what_runs_on_a_login_node_imports_no_torch(slurm, tmp_path):
    """It takes seconds and half a gigabyte there, for nothing."""
    runs, words = str(tmp_path / "runs"), ["--", "+step=gelu", "recipe.micro_batch=8"]
    run = tmp_path / "runs" / "demo" / "nano-digits" / "gelu" / "seed0"  # by hand: there is something to send
    run.mkdir(parents=True)
    (run / "metrics.jsonl").touch()
    write_json(run / "status.json", {"state": "stopped"})
    code = f"""
import sys
from roadmap.sweep.__main__ import main
for verb in ("submit", "status", "reconcile", "cancel", "sync"):
    code = main([verb, "demo", "--runs", {runs!r}, *({words!r} if verb == "submit" else [])])
    print(verb, code, "torch" in sys.modules)
"""
    done = python("-c", code)
    for verb, exit_code in {"submit": 0, "status": 0, "reconcile": 0, "cancel": 0, "sync": 75}.items():
        assert f"\n{verb} {exit_code} False\n" in f"\n{done.stdout}", done.stdout + done.stderr


OLDER = {  # rows of a study as earlier versions of the project wrote them
    "cells.json": {
        "schema": 1, "study": "trial", "file": "/studies/trial.yaml",
        "left_out": [{"words": ["+step=gelu"], "reason": "none"}],
        "cells": [{"key": "nano-digits/gelu/seed0", "cell": "gelu", "step": "gelu", "variant": None, "label": "GELU",
                   "seed": 0, "regime": "nano", "data": "digits", "words": ["+step=gelu"],
                   "config": {"recipe": {"epochs": 20}}}],
    },
    "jobs.jsonl": {
        "cell": "nano-digits/gelu/seed0", "kind": "slurm", "name": "trial-12345678", "by": "roadmap", "step": None,
        "line": ["-cd", "x", "-cn", "trial", "+step=gelu"], "snapshot": "0123456789abcdef", "on_gpu": False,
        "cluster": {"partition": "main", "per_cell": 2, "time_h": 1.0, "setup": ["module load python"],
                    "report": False},
        "git_commit": "c0ffee", "git_dirty": False, "job": "3", "log": "slurm/3_0_log.out",
        "time": "2026-01-01T00:00:00Z", "host": "login", "uid": 0,
    },
}  # fmt: skip


def test_a_study_of_an_earlier_version_is_read_and_its_killed_cell_restarted_with_its_own_code(sweep, slurm, tmp_path):
    notes = tmp_path / "trial" / ".study"
    code = notes / "snapshots" / "0123456789abcdef"
    code.mkdir(parents=True)
    write_json(code / "snapshot.json", {"git_commit": "c0ffee", "git_dirty": False})
    for name, values in OLDER.items():
        (notes / name).write_text(json.dumps(values) + "\n")
    run = tmp_path / "trial" / "nano-digits" / "gelu" / "seed0"
    run.mkdir(parents=True)
    write_json(run / "status.json", {"state": "running", "host": "n17", "pid": 12, "step": 9, "epoch": 1, "starts": 2})
    code, told = sweep("status", "trial", "--runs", tmp_path, "--json")
    (cell,) = json.loads(told)["cells"]
    assert code == 0 and (cell["state"], cell["killed"], cell["restarts"], cell["job"]) == ("failed", True, 1, "3")
    code, told = sweep("reconcile", "trial", "--runs", tmp_path)
    assert code == 0 and "1 restarted: nano-digits/gelu/seed0" in told
    batch = (slurm.folder / "script.11").read_text()
    assert (
        "#SBATCH --partition=main" in batch and "#SBATCH --ntasks-per-node=2" in batch and "module load python" in batch
    )
    assert "snapshots/0123456789abcdef && " in batch and "-m roadmap.sweep.requeue $code " in batch
    row = StudyDir(tmp_path, "trial").jobs()["nano-digits/gelu/seed0"][-1]
    assert (row["by"], row["job"], row["step"], row["line"]) == ("reconcile", "11", 9, OLDER["jobs.jsonl"]["line"])


def test_a_study_that_was_copied_is_not_restarted_in_its_old_place(sweep, slurm, tmp_path):
    notes = tmp_path / "new" / "trial" / ".study"
    (notes / "snapshots" / "0123456789abcdef").mkdir(parents=True)
    write_json(notes / "snapshots" / "0123456789abcdef" / "snapshot.json", {"git_commit": "c0ffee", "git_dirty": False})
    row = {**OLDER["jobs.jsonl"], "runs": str(tmp_path / "old")}
    for name, values in (OLDER | {"jobs.jsonl": row}).items():
        (notes / name).write_text(json.dumps(values) + "\n")
    run = notes.with_name("nano-digits") / "gelu" / "seed0"
    run.mkdir(parents=True)
    write_json(run / "status.json", {"state": "running", "host": "n17", "pid": 12, "step": 9, "epoch": 1, "starts": 2})
    code, told = sweep("reconcile", "trial", "--runs", tmp_path / "new")
    assert code == 0 and "0 restarted\n" in told
    assert f"gelu/seed0: left, submitted in {tmp_path}/old, where it would train again; make roadmap RUNS=" in told
    (tmp_path / "old").symlink_to(tmp_path / "new")
    assert "1 restarted" in sweep("reconcile", "trial", "--runs", tmp_path / "new")[1]


@pytest.mark.parametrize("values", ["{", 5, {"name": 5, "rows": []}, {"name": "a", "rows": [{"kind": "slurm"}]}])
def test_a_damaged_note_of_a_submission_is_none(tmp_path, values):
    directory = StudyDir(tmp_path, "trial")
    directory.make()
    (directory.notes / "pending.json").write_text(values if isinstance(values, str) else json.dumps(values))
    assert directory.pending() is None


def test_what_is_done_needs_no_slurm_and_without_one_a_copy_is_told_how_to_go_on(slurm, call, study, monkeypatch):
    call("submit", "cluster.report=false", steps="gelu,depthwise")
    runs = [study.path / cell["key"] for cell in study.cells()]
    for run, state in zip(runs, ("done", "stopped"), strict=True):
        run.mkdir(parents=True)
        write_json(run / "status.json", {"state": state})
    monkeypatch.setattr(shutil, "which", lambda _: None)  # on a machine without Slurm
    local = ("submit", "--cluster=local")
    code, told = call(*local, steps="gelu,depthwise")
    advice = f"in a copy, in which none of its jobs trains, move {study.notes}/jobs.jsonl away\n"
    assert code == 64 and "(there is no squeue here), so it is not known what is queued; " + advice in told
    write_json(runs[1] / "status.json", {"state": "done"})
    assert "left alone: 2 done" in call(*local, steps="gelu,depthwise")[1]
    assert "does not answer" not in call("status")[1]


def test_an_interrupted_submission_is_recovered_only_where_slurm_answers(slurm, tmp_path):
    directory = StudyDir(tmp_path, "trial")
    with directory.lock():
        directory.set_pending({"name": "trial-1", "rows": [{"cell": "a", "kind": "slurm", "name": "trial-1"}]})
        slurm.write("squeue", "exit 1")
        with pytest.raises(ConfigError, match="an earlier submission was interrupted, and Slurm does not answer"):
            recover_pending(directory)
        (directory.notes / "slurm").mkdir()
        (directory.notes / "slurm" / "9_submitted.pkl").touch()
        slurm.write("squeue", "echo '9|PENDING'")
        recover_pending(directory)
    assert directory.pending() is None and [row["job"] for row in directory.jobs()["a"]] == ["9"]
