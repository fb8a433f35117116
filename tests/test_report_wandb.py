"""The report from W&B, by its own client over HTTP: the same tables as from run directories, and every failure."""

import json
from contextlib import closing

import numpy as np
import pytest

from roadmap.errors import ConfigError
from roadmap.report.read.wandb import last_values, metrics_of, parse_project
from roadmap.runs import schema
from tests.fabricate import unfinished, write_run
from tests.wandb_server import KEY, Server

TABLES = ("table.csv", "classes.csv", "table.md", "table.tex", "other_cells.csv", "findings.txt")
CONFIG = "  lr: 1.0e-06\n  rand_augment: null\n  drop: true\nmodel:\n  depths:\n  - 3\n  - 9\n"


def study(runs, seeds=2, study="roadmap", **more):
    """Write two rows and a variant with bits; the fabricated ledger's training lines go up too."""
    rng = np.random.default_rng(5)
    with_gelu = {"cell": "enhanced_recipe+with_gelu", "variant": "with_gelu"}
    for i, (step, extra) in enumerate((("resnet", {}), ("enhanced_recipe", {}), ("enhanced_recipe", with_gelu))):
        for seed in range(seeds):
            labels = np.arange(333) % 3
            predicted = np.where(rng.random(333) < 0.5 + 0.1 * i, labels, (labels + 1) % 3)
            about = {"status": {"code_hash": "aaaa", "git_dirty": False}, "code_hash": "aaaa", "data_fingerprint": "f"}
            about["versions"] = {"torch": "2.14.0", "numpy": "2.4"}  # W&B sorts the keys
            about |= {"study": study, "classes": ["cat", "dog", "ox"], "config": CONFIG, "gpu_hours": 0.1 + 0.2}
            write_run(runs, step, seed, by_image=(predicted, labels), **about, **extra, **more)


@pytest.fixture
def served(tmp_path):
    """Serve a study, and what the same study's run directories give."""
    study(tmp_path / "runs")
    with closing(Server(tmp_path / "runs", foreign=3, page=4)) as server:
        yield server, tmp_path


@pytest.mark.parametrize("nested", [False, True])
def test_both_sources_give_the_same_bytes_whatever_the_summarys_shape_and_over_several_pages(
    report_command, tmp_path, nested
):
    study(tmp_path / "runs")
    with closing(Server(tmp_path / "runs", nested=nested, page=4)) as server:
        done = report_command(server, "wandb:team/roadmap", tmp_path / "wandb")
        assert (done.returncode, done.stderr) == (0, "Reading wandb:team/roadmap ...\n")
        assert report_command(server, str(tmp_path / "runs"), tmp_path / "folders").returncode == 0
    for name in TABLES:
        assert (tmp_path / "wandb" / name).read_bytes() == (tmp_path / "folders" / name).read_bytes(), name
    table = (tmp_path / "wandb" / "table.md").read_text()
    assert "helped most" in table
    assert "McNemar p" in table
    assert sum("query Runs" in query for query in server.asked) == 2
    assert not any("sampledHistory" in query for query in server.asked)


def test_a_run_in_both_sources_counts_once(report_command, served):
    server, tmp_path = served
    done = report_command(server, f"wandb:team/roadmap {tmp_path / 'runs'}", tmp_path / "out")
    assert done.returncode == 0
    assert done.stdout.count("a copy of") == 6
    groups = json.loads((tmp_path / "out" / "report.json").read_text())["groups"]
    assert all(line["n"] == 2 for group in groups for line in group["cells"])


def test_runs_of_other_peoples_code_are_left_out_and_counted(report_command, served):
    server, tmp_path = served
    done = report_command(server, "wandb:team/roadmap", tmp_path / "out")
    assert "Runs of the project that are not of this roadmap, not read: 3" in done.stdout
    assert json.loads((tmp_path / "out" / "report.json").read_text())["foreign_runs"] == 3


def test_a_group_is_one_study(report_command, tmp_path):
    study(tmp_path / "runs", study="a")
    study(tmp_path / "runs", study="b")
    with closing(Server(tmp_path / "runs")) as server:
        assert report_command(server, "wandb:team/roadmap?group=b", tmp_path / "out").returncode == 0
    assert [group["study"] for group in json.loads((tmp_path / "out" / "report.json").read_text())["groups"]] == ["b"]


def test_the_whole_history_is_scanned(report_command, tmp_path):
    write_run(tmp_path / "runs", "gelu", epochs=1_300)
    with closing(Server(tmp_path / "runs")) as server:
        assert report_command(server, "wandb:team/roadmap", tmp_path / "out").returncode == 0
    assert sum("history(" in query for query in server.asked) == 3  # 2,600 lines in pages of 1,000


def test_a_run_that_is_not_finished_or_contradicts_itself_gives_no_number(report_command, tmp_path):
    study(tmp_path / "runs")
    unfinished(tmp_path / "runs", "gelu", epoch=2, epochs=9)
    write_run(tmp_path / "runs", "kernel_7", top1=50.0, code_hash="aaaa", data_fingerprint="f", study="other")
    with closing(Server(tmp_path / "runs")) as server:
        for run in server.runs:
            if run["summary"].get("step") == "kernel_7":
                run["summary"]["top1"] = 60.0
        done = report_command(server, "wandb:team/roadmap", tmp_path / "out")
    assert done.returncode == 0
    assert "epoch 2 of 9, stopped" in done.stdout
    assert "top1=60, the last evaluation in metrics.jsonl says 50" in done.stdout


FAILURES = {
    401: "refused: this login is not known (401)",
    403: "refused: this login may not read the project (403)",
    404: "no such entity, project or run (404)",
    429: "too many requests (429)",
    500: "the server failed (500)",
}


@pytest.mark.parametrize("status", FAILURES)
def test_a_project_that_cannot_be_listed_ends_with_65_in_plain_words(report_command, served, status):
    server, tmp_path = served
    server.always = {"query Runs(": status}
    done = report_command(server, "wandb:team/roadmap", tmp_path / "out")
    assert done.returncode == 65
    assert FAILURES[status] in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3
    assert "Traceback" not in done.stderr
    assert KEY not in done.stderr + done.stdout
    assert not (tmp_path / "out").exists()


def test_one_failure_is_tried_again(report_command, served):
    server, tmp_path = served
    server.fail = {
        "query Runs(": [(429, {"Retry-After": "1"})],
        "HistoryPage": [(429, {})],
        "/correct.npy": [(500, {})],
    }
    done = report_command(server, "wandb:team/roadmap", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert not any(server.fail.values())


def test_what_fails_for_one_run_is_listed_and_hides_no_other(report_command, served):
    server, tmp_path = served
    bad = server.runs[0]["name"]
    server.always = {f"/files/{bad}/correct.npy": 403}
    done = report_command(server, f"wandb:team/roadmap {tmp_path / 'absent'}", tmp_path / "out")
    assert done.returncode == 0
    assert f"wandb:team/roadmap/{bad}: W&B:" in done.stdout
    assert "no such folder" in done.stdout
    cells = json.loads((tmp_path / "out" / "report.json").read_text())["groups"][0]["cells"]
    assert sorted(cell["n"] for cell in cells) == [1, 2, 2]


def test_a_dead_connection_and_no_login_are_said_plainly(report_command, served):
    server, tmp_path = served
    none = report_command(server, "wandb:team/roadmap", tmp_path / "out", WANDB_API_KEY=None)
    assert none.returncode == 65
    assert "no login: wandb login, or WANDB_API_KEY" in none.stderr
    server.close()
    dead = report_command(server, "wandb:team/roadmap", tmp_path / "out")
    assert dead.returncode == 65
    assert "the server cannot be reached" in dead.stderr
    assert len(dead.stderr.strip().splitlines()) <= 3


def test_an_unknown_project_and_one_without_a_roadmap_run_are_said_plainly(report_command, served):
    server, tmp_path = served
    unknown = report_command(server, "wandb:team/elsewhere", tmp_path / "out")
    assert (unknown.returncode, "there is no such entity or project" in unknown.stderr) == (65, True)
    server.runs = [run for run in server.runs if run["displayName"] == "theirs"]
    foreign = report_command(server, "wandb:team/roadmap", tmp_path / "out")
    assert (foreign.returncode, "the project holds 3 runs, none of this roadmap" in foreign.stderr) == (65, True)


@pytest.mark.parametrize(
    "text",
    ["wandb:", "wandb:team", "wandb:team/", "wandb:a/b/c", "wandb:a/b?grup=x", "wandb:a/b?group=", "wandb:a b/c"],
)
def test_a_misnamed_source_is_refused(text):
    with pytest.raises(ConfigError, match="not of the form wandb:ENTITY/PROJECT"):
        parse_project(text)


def test_a_line_that_went_up_twice_alike_counts_once_and_a_contradiction_is_suspect():
    rows = [{"_step": i, "epoch": i, "global_step": 10 * i, "val/loss": 1.0, "val/top1": 50.0 + i} for i in (1, 2, 2)]
    assert [row["epoch"] for row in metrics_of(rows).rows] == [1, 2]
    assert not metrics_of(rows).problem
    rows[2] = rows[2] | {"val/top1": 99.0}
    assert "repeated" in metrics_of(rows).problem


def test_of_a_summary_with_several_values_the_last_counts_and_never_the_best():
    found = last_values({"a": {"max": 9, "last": 5}, "b": {"max": 9}, "c": {"x": 1}, "_runtime": 3})
    assert found == {"a": 5, "b": None, "c": {"x": 1}}


def test_a_summary_that_keeps_only_the_best_is_not_believed(report_command, tmp_path):
    study(tmp_path / "runs", seeds=1)
    with closing(Server(tmp_path / "runs")) as server:
        for run in server.runs:
            run["summary"]["top1"] = {"max": 99.0}
        done = report_command(server, "wandb:team/roadmap", tmp_path / "out")
    assert done.returncode == 65
    assert "top1=None is not what a run writes" in done.stderr


def test_the_status_that_did_not_go_up_is_replaced_by_what_the_summary_says(report_command, tmp_path):
    run = write_run(tmp_path / "runs", "gelu")
    with closing(Server(tmp_path / "runs")) as server:
        server.runs[0]["disk"].pop(schema.STATUS)
        assert report_command(server, "wandb:team/roadmap", tmp_path / "out").returncode == 0
        server.runs[0]["state"] = "crashed"
        done = report_command(server, "wandb:team/roadmap", tmp_path / "out2")
    assert run.exists()
    assert (done.returncode, "stopped" in done.stderr) == (65, True)
