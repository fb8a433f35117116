"""Completion of `python run.py` in a real bash, and what it never offers: words that bash would run."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from roadmap.steps import completion
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


@pytest.fixture
def bash(tmp_path):
    """Return a function: it types into an interactive bash, and waits until the screen shows a pattern."""
    master, slave = pty.openpty()
    (tmp_path / "python").symlink_to(sys.executable)
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PS1": "$ ", "TERM": "dumb"}
    command = ["bash", "--norc", "--noprofile", "-i"]
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env=env, start_new_session=True
    )
    os.close(slave)

    def type_text(text, until, seconds=60):
        os.write(master, text.encode())
        screen, deadline = "", time.monotonic() + seconds
        while not re.search(until, screen):
            assert time.monotonic() < deadline, screen
            if select.select([master], [], [], 1.0)[0]:
                screen += os.read(master, 65536).decode(errors="replace")
        return screen

    yield type_text
    process.kill()
    process.wait()
    os.close(master)


def test_the_tab_key_completes_names_of_groups_and_keys(bash):
    bash("bind 'set bell-style none'; eval \"$(python run.py -sc install=bash)\"; echo re''ady\n", r"\bready\b")
    bash("python run.py +step=gel\t", r"\+step=gelu")
    bash(" recipe.lr_b\t", r"recipe\.lr_batch_size=")
    bash("\x03eval \"$(python run.py -sc uninstall=bash)\"; complete -p python; echo go''ne\n", r"\bgone\b")


@pytest.mark.parametrize(("line", "found"), [
    ("python run.py +step=fewer_n", ["+step=fewer_norms"]),
    ("python run.py regime=tin", ["regime=tiny"]),
    ("python run.py +step=gelu model.kern", ["model.kernel_size="]),
    ("python run.py -cd sweeps -cn demo stud", ["study="]),
    ("python run.py +", ["+step=", "+variant="]),
    ("python run.py hydra", []),
    ("python run.py hydra.launcher=x +step=gel", []),
    ("python run.py --experimental-rerun x +step=gel", []),
    ("python run.py " + "[" * 5000, []),
    ("python run.py seed=${seed} +step=gel${", []),
    ("", []),
    ("\x00 ' \" $(", []),
])  # fmt: skip
def test_what_is_offered(line, found):
    assert completion.choices(line) == found


def test_no_word_is_offered_that_bash_would_run(tmp_path):
    folder = tmp_path / "mine" / "variant"
    folder.mkdir(parents=True)
    for name in ("good", "$(touch ran)", "`touch ran`", "a b", "x;y"):
        (folder / f"{name}.yaml").write_text("# @package _global_\nseed: 1\n")
    (tmp_path / "$(touch ran)").mkdir()
    offered = completion.choices(f"python run.py -cd {folder.parent} +variant=")
    assert "+variant=good" in offered and not re.search(r"[$`; ]", "".join(offered))
    offered = completion.choices(f"python run.py data.root={tmp_path}/")
    assert offered == [f"data.root={tmp_path}/mine"]


@pytest.mark.parametrize(
    "words", [["install=zsh"], ["query=fish"], [], ["install=bash", "query=bash"], ["remove=bash"]]
)
def test_other_shells_and_verbs_are_refused_in_a_line(command, words):
    done = command("-sc", *words, runs=None)
    assert done.returncode == 64 and "-sc: takes one of install=bash, uninstall=bash, query=bash" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout
