"""`report --wandb`: a study's charts and tables in one run of its group, read back through W&B's API."""

import io
import json
from contextlib import closing

import pytest
from PIL import Image

from roadmap.report.read.wandb import find_wandb_runs
from roadmap.report.write.summary_run import summary_id
from roadmap.runs.wandb_client import import_wandb
from tests.test_report_wandb import study
from tests.wandb_server import Server


@pytest.fixture
def server(tmp_path):
    """Return a server that has nothing yet."""
    with closing(Server(tmp_path / "none")) as here:
        yield here


def test_chart_and_gains_go_to_one_run_of_the_group_and_again_to_the_same(
    report_command, server, tmp_path, monkeypatch
):
    study(tmp_path / "runs")
    for again in (False, True):
        done = report_command(server, f"{tmp_path / 'runs'} --wandb", tmp_path / "out", WANDB_PROJECT="roadmap")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].startswith("W&B: http://"), again
        (sent,) = server.runs
        assert sent["name"] == summary_id("roadmap")
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    run = import_wandb().Api(timeout=20).run(f"team/roadmap/{sent['name']}")
    assert (run.group, run.job_type, run.state) == ("roadmap", "summary", "finished")
    chart = run.summary["report/roadmap"]
    image = Image.open(io.BytesIO(server.runs[0]["disk"][chart["path"]]))
    assert image.format == "PNG" and image.size == (chart["width"], chart["height"])
    about = run.summary["report/nano-digits/Gains"]
    gains = json.loads(server.runs[0]["disk"][about["path"]])
    assert gains["columns"][0] == "step" and len(gains["data"]) == 2
    found, foreign, problems = find_wandb_runs("wandb:team/roadmap")
    assert (found, foreign, problems) == ([], 0, [])


def test_without_a_login_that_is_said_and_nothing_is_written(report_command, server, tmp_path):
    study(tmp_path / "runs", seeds=1)
    for environment in ({"WANDB_MODE": "offline"}, {"WANDB_API_KEY": None, "WANDB_BASE_URL": None}):
        done = report_command(server, f"{tmp_path / 'runs'} --wandb", tmp_path / "out", **environment)
        assert done.returncode == 64 and done.stderr.startswith("error: --wandb: W&B is offline here"), done.stderr
        assert not (tmp_path / "out").exists() and not server.runs


def test_a_server_that_refuses_leaves_the_report_and_says_to_try_again(report_command, server, tmp_path):
    study(tmp_path / "runs", seeds=1)
    server.always["upsertBucket"] = 403
    done = report_command(server, f"{tmp_path / 'runs'} --wandb", tmp_path / "out")
    assert done.returncode == 75 and "does not take the summary" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 2 and (tmp_path / "out" / "table.csv").exists()
