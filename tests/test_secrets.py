"""No secret of the environment is written anywhere, or taken for a value."""

import json
import logging
import sys

import pytest

from roadmap.config.schema import Config
from roadmap.errors import ConfigError, DataError
from roadmap.report.__main__ import main as report
from roadmap.runs.children import compiler_cache
from roadmap.runs.provenance import code_hash
from roadmap.runs.run_dir import RunDir
from roadmap.runs.run_log import LogFile
from roadmap.runs.schema import Status, write_record
from roadmap.runs.wandb_logger import WandbLogger
from roadmap.steps import compose
from roadmap.sweep.launchers.slurm import Config as Slurm
from roadmap.text import RedactedStream, clean, one_line, redact, shorten
from tests import drive
from tests.fabricate import unfinished, write_run

KEY = "0123456789abcdef0123456789abcdef01234567"
SMALL = ("data.train_images=96", "data.val_images=40", "recipe.batch_size=32", "recipe.epochs=1")


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OUR_API_KEY", KEY)


def files_with(folder, text):
    """Return the files below a folder that hold a text."""
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANDB_API_KEY", KEY),
        ("HF_TOKEN", "hf_AbCdEfGhIjKl"),
        ("AWS_SECRET_ACCESS_KEY", "/wJalrXUtn/FEMI+K7MDENG=bPxRfi"),
        ("PGPASSWORD", "s3cr3t pass'word"),
        ("db_passwd", "correcthorsebattery"),
        ("MY_CREDENTIALS", 'a"b\\c123'),
    ],
)
def test_the_value_of_a_variable_that_is_named_like_a_secret_is_taken_out(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    for text in (f"x {value} y", f"x {value!r} y", json.dumps({"x": value})):
        assert value not in redact(text)
        assert "***" in redact(text)
    assert value[:6] not in shorten("x" * 60 + value * 3, 80)
    assert value[:6] not in clean("x" * 60 + value * 3, 80)
    assert value[:6] not in one_line(DataError("x" * 60 + value * 3), 80)


def test_plain_words_and_folders_are_no_secrets(monkeypatch, tmp_path):
    for name, value in {"A_KEY": "disabled", "B_TOKEN": "1", "C_SECRET": "", "PASSWORD_STORE": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
        assert redact(f"x {value} y") == f"x {value} y"


def test_the_hash_of_our_code_is_none_where_a_net_is_compiled(monkeypatch):
    """Torch's cache goes by it, in a variable whose name has KEY in it; a record without it refuses to go on."""
    for name, value in compiler_cache().items():
        monkeypatch.setenv(name, value)
    assert redact(json.dumps({"code_hash": code_hash()})) == json.dumps({"code_hash": code_hash()})


def test_passwords_in_addresses_and_keys_of_a_netrc_are_secrets(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_BASE_URL", "https://me:hunter2@wandb.example")
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password feedfacefeedface\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert redact("is hunter2 or feedfacefeedface") == "is *** or ***"
    assert redact("GET http://you:other1@proxy:80/x") == "GET http://***@proxy:80/x"
    assert redact("no http://proxy:80/x@y, nor a@b") == "no http://proxy:80/x@y, nor a@b"


@pytest.mark.parametrize("name", ["wandb.project", "wandb.entity", "study", "data.root", "paths.runs", "weights"])
def test_a_secret_is_refused_as_a_value_and_not_shown(name):
    with pytest.raises(ConfigError, match=rf"{name}: holds the secret of OUR_API_KEY") as caught:
        compose("gelu", overrides=(f"{name}=x{KEY}",))
    assert KEY not in str(caught.value)
    with pytest.raises(ConfigError, match="OUR_API_KEY"):
        compose("gelu", overrides=(f"{name}=${{oc.env:OUR_API_KEY}}",))
    with pytest.raises(ConfigError, match=r"cluster\.partition: holds the secret of OUR_API_KEY"):
        Slurm(partition=KEY)


def test_every_writer_of_a_run_takes_it_out(tmp_path, capsys):
    handler = LogFile(tmp_path / "run.log")
    log = logging.getLogger("roadmap")
    try:
        raise TypeError(f"no {KEY}")
    except TypeError as error:
        log.info("failed", exc_info=error)
    log.info("a\x1b[31m name\nwith %s", KEY)
    log.removeHandler(handler)
    handler.close()
    text = (tmp_path / "run.log").read_text()
    assert text.count("***") == 2
    assert "\x1b" not in text
    write_record(Status, tmp_path / "status.json", {"state": "failed", "reason": f"TypeError: no {KEY}"})
    RunDir(tmp_path).update(reason=KEY)
    RedactedStream(sys.stderr, is_result=False).write(f"no {KEY}\n")
    assert capsys.readouterr().err == "no ***\n"
    assert not files_with(tmp_path, KEY)


def test_a_report_on_an_older_record_that_holds_one_does_not(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("roadmap.report.__main__.FORMATS", ("svg",))  # what the page shows
    write_run(tmp_path / "runs", "gelu")
    failed = unfinished(tmp_path / "runs", "layer_norm", state="failed")
    status = json.loads((failed / "status.json").read_text())
    (failed / "status.json").write_text(json.dumps(status | {"reason": "x" * 100 + KEY}))
    assert report([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert not files_with(tmp_path / "out", KEY[:10])
    assert KEY[:10] not in capsys.readouterr().out


@pytest.mark.parametrize("module", ["steps", "bench", "sweep", "report"])
def test_no_command_repeats_one_that_it_was_given(module):
    done = drive.python("-m", f"roadmap.{module}", KEY)
    assert done.returncode == 64
    assert KEY[:10] not in done.stdout + done.stderr


def test_a_bug_that_quotes_a_key_leaves_it_nowhere(forks, tmp_path):
    env = {"OUR_API_KEY": KEY, "WANDB_API_KEY": "a" * 10 + "b1" * 15, "WANDB_MODE": "offline"}
    env["WANDB_BASE_URL"] = "http://me:hunter2@127.0.0.1:9"
    words = ("+step=gelu", *SMALL, "recipe.warmup_epochs=0", f"paths.runs={tmp_path}")
    done = forks.run(words, {**env, **drive.accident("step", 2, what="key")})
    assert done.returncode not in (0, 64), done.stderr
    for secret in (KEY, env["WANDB_API_KEY"], "hunter2"):
        assert secret not in done.stdout + done.stderr
        assert not files_with(tmp_path, secret), secret
    (status,) = tmp_path.glob("single/*/*/seed0/status.json")
    assert "the server refuses ***" in json.loads(status.read_text())["reason"]
    assert "the server refuses ***" in status.with_name("run.log").read_text()
    assert "***" in done.stderr


def test_wandb_is_given_an_address_without_its_password(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_BASE_URL", "http://me:hunter2@127.0.0.1:9")
    config = Config(wandb={"mode": "offline"}, step="gelu", cell="gelu")
    WandbLogger(config, tmp_path, "0123456789abcdef", {}, print).finish({}, 0)
    assert not files_with(tmp_path, "hunter2")
