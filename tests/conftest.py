"""What several tests share: the command line as a user types it, and small runs inside this process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from roadmap.steps.compose import compose

ROOT = Path(__file__).resolve().parent.parent
SMALL = (
    "data.train_images=96",
    "data.val_images=40",
    "recipe.batch_size=32",
    "recipe.epochs=2",
    "recipe.warmup_epochs=0",
)


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path_factory):
    """No test finds a login, a data folder or a runs folder of whoever runs it."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "ROADMAP_DATA", "ROADMAP_RUNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", os.devnull)


@pytest.fixture
def command(tmp_path):
    """Return a function that runs `python run.py WORDS` with its runs under `tmp_path/runs`."""

    def call(*words: str, runs: Path | None = tmp_path / "runs", **env: str) -> subprocess.CompletedProcess[str]:
        place = [f"paths.runs={runs}"] if runs else []
        return subprocess.run(
            [sys.executable, str(ROOT / "run.py"), *words, *place],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, **env},
            timeout=240,
            check=False,
        )

    return call


@pytest.fixture
def small(tmp_path):
    """Return a function that composes a run of a few seconds on the digits, under `tmp_path/runs`."""

    def call(step: str = "separate_downsampling", *overrides: str):
        given = {o.split("=")[0] for o in overrides}
        words = [
            w
            for w in (*SMALL, "wandb.mode=disabled", f"paths.runs={tmp_path / 'runs'}")
            if w.split("=")[0] not in given
        ]
        return compose(step, "nano", [*words, *overrides])

    return call
