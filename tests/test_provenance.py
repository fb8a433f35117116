"""Where a result comes from, and why that cannot be told where it cannot."""

import os
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError

import pytest

from roadmap.runs import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout of somebody else's, as the one that this code lies in."""
    if os.geteuid() != 0:
        pytest.skip("giving files away takes root")
    root = tmp_path / "checkout"
    (root / "roadmap").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    for path in (root, root / ".git"):
        os.chown(path, 54321, 54321)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setattr(provenance, "PACKAGE", root / "roadmap")
    forget()
    yield root
    forget()


def forget():
    provenance.git_problem.cache_clear()
    provenance.git_state.cache_clear()


def test_a_commit_that_git_refuses_to_tell_comes_with_the_reason(checkout, monkeypatch):
    assert provenance.git_state() == {"git_commit": None, "git_dirty": None}
    line = provenance.git_problem()
    assert line.startswith("no commit is recorded: detected dubious ownership in repository")
    assert f"git config --global --add safe.directory {checkout} lets git read it" in line
    forget()
    monkeypatch.setenv("PATH", "/nowhere")
    assert provenance.git_problem() == "no commit is recorded: git cannot be run (No such file or directory)"
    forget()
    shutil.rmtree(checkout / ".git")
    assert provenance.git_problem() is None  # no checkout, nothing to tell


def test_a_run_tells_it_once(checkout, small, capsys):
    from roadmap.training.train import train

    provenance.git_problem()
    config = small("gelu")
    shutil.copytree(provenance.__file__.rpartition("/runs/")[0], checkout / "roadmap", dirs_exist_ok=True)
    train(config)
    assert capsys.readouterr().err.count("no commit is recorded") == 1


def test_a_package_that_is_not_installed_has_no_version_and_ends_nothing(monkeypatch):
    real = provenance.version

    def version(name):
        if name == "wandb":
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(provenance, "version", version)
    versions = provenance.versions()
    assert "wandb" not in versions
    assert {"python", "torch", "numpy"} <= versions.keys()


def test_a_copy_in_a_repository_of_something_else_has_no_commit_of_it(tmp_path, monkeypatch):
    def git(*words, folder=tmp_path):
        command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    (tmp_path / "lab" / "roadmap").mkdir(parents=True)
    (tmp_path / "lab" / "roadmap" / "__init__.py").touch()
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "theirs")
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "lab" / "roadmap")
    provenance.git_state.cache_clear()
    assert provenance.git_state() == {"git_commit": None, "git_dirty": None}
    assert provenance.git("ls-files") is None  # a study's snapshot would be of what they track
    git("add", "lab")
    git("commit", "-q", "-m", "part of it")
    (tmp_path / "other").mkdir()
    git("init", "-q", folder=tmp_path / "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))  # as for a hook
    provenance.git_state.cache_clear()
    state = provenance.git_state()
    monkeypatch.delenv("GIT_DIR")
    assert state["git_commit"] == git("rev-parse", "HEAD")
    provenance.git_state.cache_clear()
