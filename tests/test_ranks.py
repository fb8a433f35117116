"""Several ranks: equal to one of the larger batch, exact in evaluation, and ended by whatever ends one of them."""

import fcntl
import os
import re
import signal
import socket
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from roadmap.distributed import device as devices
from roadmap.distributed.rank_env import Launcher, RankEnv, rank_env
from roadmap.errors import ConfigError
from roadmap.files import read_json
from roadmap.runs.run_dir import RunDir, run_path
from roadmap.steps.compose import compose

from . import drive
from .records import ledger, newest

TINY = (
    "data.train_images=48", "data.val_images=301", "recipe.batch_size=16", "recipe.micro_batch=8", "recipe.epochs=2",
    "recipe.warmup_epochs=0", "wandb.mode=disabled",
)  # fmt: skip


def words(tmp_path, step, *overrides):
    given = {o.split("=")[0] for o in overrides}
    return (f"+step={step}", *(o for o in TINY if o.split("=")[0] not in given), *overrides, f"paths.runs={tmp_path}")


def config_of(words):
    return compose(words[0].removeprefix("+step="), "nano", words[1:])


def status(words):
    return read_json(run_path(config_of(words)) / "status.json")


@pytest.fixture
def finished(forks):
    """Return a function that runs a command line, which must succeed, and returns its config."""

    def call(words):
        done = forks.run(words)
        assert done.returncode == 0, done.stderr
        return config_of(words)

    return call


def val_rows(rows):
    return [row for row in rows if row["kind"] == "val"]


def train_losses(rows):
    return [row["train/loss"] for row in rows if row["kind"] == "train"]


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_equal_one_rank_of_the_larger_batch(finished, tmp_path, ranks):
    """Of a net without BatchNorm. A pass has its number, and so its draws, however many ranks share the passes."""
    extra = (
        "recipe.mixup=0.8", "recipe.cutmix=1.0", "recipe.drop_path=0.1", "recipe.micro_batch=4",
        "recipe.ema_decay=0.5",
    )  # fmt: skip
    runs = [words(tmp_path / str(n), "separate_downsampling", *extra, f"devices={n}") for n in (1, ranks)]
    configs = [finished(each) for each in runs]
    first, second = map(ledger, configs)
    assert len(first) == len(second) == 8
    assert train_losses(first) == pytest.approx(train_losses(second), rel=1e-4)
    nets = [newest(config)["net"] for config in configs]
    assert all(torch.allclose(tensor, nets[1][name], atol=2e-3) for name, tensor in nets[0].items())
    assert status(runs[1])["world_size"] == ranks


def test_two_ranks_equal_one_pass_of_the_double_batch(finished, tmp_path):
    one = finished(words(tmp_path / "one", "separate_downsampling", "recipe.micro_batch=16"))
    two = finished(words(tmp_path / "two", "separate_downsampling", "devices=2"))
    assert train_losses(ledger(one)) == pytest.approx(train_losses(ledger(two)), rel=1e-4)


def test_evaluation_over_ranks_is_exactly_that_of_one_process(finished, tmp_path):
    """301 images in batches of 256: one rank of three has nothing. The net's evaluation after the same single step."""
    rows, classes = [], []
    for ranks in (1, 3):
        extra = (
            "recipe.batch_size=48", "recipe.micro_batch=16", "recipe.lr=1e-30", "recipe.min_lr=0", "recipe.epochs=1",
        )  # fmt: skip
        one = words(tmp_path / str(ranks), "separate_downsampling", f"devices={ranks}", *extra)
        config = finished(one)
        rows.append((val_rows(ledger(config)), np.load(run_path(config) / "correct.npy")))
        classes.append(np.load(run_path(config) / "predictions.npy"))
    assert rows[0][0] == rows[1][0]
    assert np.array_equal(*classes)
    assert len(set(classes[0])) > 1
    assert np.array_equal(rows[0][1], rows[1][1])
    bits = np.unpackbits(rows[1][1])
    assert not bits[301:].any()
    assert 100 * bits[:301].mean() == pytest.approx(rows[1][0][-1]["val/top1"])


def own_lines(stdout):
    """Return what we print ourselves: Gloo, in torch 2.10, has lines of its own, and mixes them."""
    return [line for line in stdout.splitlines() if line and "Gloo" not in line and "peer ranks" not in line]


def test_the_command_starts_its_ranks_and_ends_with_one_line(tmp_path):
    done = drive.run(words(tmp_path, "gelu", "devices=2"), {"GLOO_SOCKET_IFNAME": "of-another-machine"})
    assert done.returncode == 0, done.stderr
    (line,) = own_lines(done.stdout)
    assert "top-1" in line
    assert done.stderr.splitlines() == [f"{config_of(words(tmp_path, 'gelu', 'devices=2')).cell}: starting"]
    assert "batch 16 = 2 devices x micro-batch 8 x 1 passes" in next(tmp_path.rglob("run.log")).read_text()


def test_ranks_of_torchrun_find_themselves(tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = drive.python(*torchrun, "run.py", *words(tmp_path, "gelu"), timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(own_lines(done.stdout)) == 1
    assert status(words(tmp_path, "gelu"))["world_size"] == 2


def slurm(rank: int, step: str = "0", tasks: int = 2) -> dict[str, str]:
    return {"SLURM_JOB_ID": "41", "SLURM_STEP_ID": step, "SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank), "SLURM_NTASKS": str(tasks)}  # fmt: skip


def test_tasks_of_a_job_step_find_each_other_and_run_a_sweep(forks, tmp_path):
    sweep = ("-m", *words(tmp_path, "gelu,layer_norm", "recipe.epochs=1"))
    tasks = [forks.start(sweep, slurm(rank)) for rank in range(2)]
    ended = [task.wait() for task in tasks]
    assert [task.returncode for task in ended] == [0, 0], ended
    assert [len(own_lines(task.stdout)) for task in ended] == [2, 0]
    assert ended[1].stderr == ""
    assert not list((tmp_path / ".ranks").iterdir())


def test_an_error_of_one_task_is_the_code_of_all(forks, tmp_path):
    accident = drive.accident("before", 2, rank=1, what="error")
    tasks = [forks.start(words(tmp_path, "gelu"), slurm(rank) | accident) for rank in range(2)]
    ended = [task.wait() for task in tasks]
    assert [task.returncode for task in ended] == [65, 65], ended
    assert ended[0].stderr.splitlines()[-1] == "error: 7.jpg: cannot be decoded"
    assert (status(words(tmp_path, "gelu"))["exit_code"], status(words(tmp_path, "gelu"))["state"]) == (65, "failed")


def test_a_task_of_another_config_is_refused_before_anything_is_written(forks, tmp_path):
    """As where each node was given its command by hand: the two would average gradients of two runs."""
    tasks = [
        forks.start(words(tmp_path, "gelu", f"recipe.lr={lr}"), slurm(rank)) for rank, lr in enumerate((1e-3, 2e-3))
    ]
    first, second = (task.wait() for task in tasks)
    assert (first.returncode, second.returncode, second.stderr) == (78, 78, "")
    assert first.stderr.splitlines()[1:] == ["error: rank 1 has another recipe.lr than rank 0: 0.002 instead of 0.001"]
    assert not list(tmp_path.rglob("config.yaml"))


def test_a_task_that_never_comes_is_told_in_time(forks, tmp_path):
    mine = words(tmp_path, "gelu", "start_timeout_s=4")
    tasks = [forks.start(mine, slurm(1)), forks.start(mine, slurm(0, step="1"))]  # of two job steps
    second, first = (task.wait() for task in tasks)
    assert (first.returncode, second.returncode) == (75, 75)
    assert second.stderr == ""  # the first rank speaks for all
    assert first.stderr.splitlines()[1:] == ["error: not all 2 ranks connected within 4 s"]


def test_a_task_that_waits_for_another_is_stopped_at_once(forks, tmp_path):
    task = forks.start(words(tmp_path, "gelu"), slurm(0))
    while not list(tmp_path.glob(".ranks/*")):  # where the other would find it
        time.sleep(0.02)
    os.kill(task.pid, signal.SIGTERM)
    done = task.wait()
    assert done.returncode == 75
    assert done.stderr.splitlines()[1:] == ["stopped by SIGTERM; run the same command again to continue"]


def test_a_network_interface_that_is_not_there_is_told_at_once(forks, tmp_path):
    mine = words(tmp_path, "gelu", "start_timeout_s=4")
    tasks = [forks.start(mine, slurm(rank) | {"GLOO_SOCKET_IFNAME": "ib9"}) for rank in range(2)]
    first, second = (task.wait() for task in tasks)
    assert (first.returncode, second.returncode) == (75, 75)
    assert re.fullmatch(r"error: rank 0 of 2 cannot reach the others \(.*ib9.*\)", first.stderr.splitlines()[-1])


def test_a_host_that_does_not_resolve_is_told_in_time(forks, tmp_path):
    env = {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "no-such-host.invalid",
        "MASTER_PORT": "29500",
    }  # fmt: skip
    done = forks.run(words(tmp_path, "gelu", "start_timeout_s=5"), env)
    assert done.returncode == 75
    assert "error: rank 0 of 2 cannot reach the others within 5 s" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, RankEnv()),
        # An interactive shell, or a batch script.
        ({"SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, RankEnv()),
        (slurm(3, step=str(2**32 - 5), tasks=4), RankEnv()),
        (slurm(3, tasks=4), RankEnv(3, 4, 3, Launcher.slurm)),
        (slurm(0, tasks=1), RankEnv()),
        ({"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}, RankEnv(5, 8, 1, Launcher.torchrun)),
    ],
)
def test_which_rank_a_process_is(env, expected):
    assert rank_env(env) == expected


@pytest.mark.parametrize(
    ("rank", "told"), [("x", "not a whole number"), ("2", r"RANK=2, WORLD_SIZE=2: a rank is from 0"), ("-1", "RANK=-1")]
)
def test_a_rank_that_cannot_be_is_refused(rank, told):
    with pytest.raises(ConfigError, match=told):
        rank_env({"RANK": rank, "LOCAL_RANK": "0", "WORLD_SIZE": "2"})


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_rank_ends_the_run_with_its_code(forks, tmp_path, rank):
    done = forks.run(words(tmp_path, "gelu", "devices=2"), drive.accident("before", 2, rank=rank, what="error"))
    assert done.returncode == 65
    assert done.stderr.splitlines()[-1] == "error: 7.jpg: cannot be decoded"
    assert "Traceback" not in done.stderr
    assert status(words(tmp_path, "gelu", "devices=2"))["exit_code"] == 65


def test_a_mistake_of_ours_in_one_rank_shows_its_traceback_and_is_no_kill(forks, tmp_path):
    done = forks.run(words(tmp_path, "gelu", "devices=2"), drive.accident("before", 2, rank=1, what="bug"))
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.splitlines()[-1] == "error: rank 1 failed (TypeError: nobody thought of this)"
    assert status(words(tmp_path, "gelu", "devices=2"))["state"] == "failed"


def test_a_loss_of_one_rank_that_is_not_finite_stops_all_and_no_weight_takes_it(forks, tmp_path):
    mine = words(tmp_path, "gelu", "devices=2", "checkpoint.every_min=0")
    done = forks.run(mine, drive.accident("loss", 4, rank=1, what="nan"))
    assert done.returncode == 70, done.stderr
    assert re.search(r"error: step 4: the loss is not finite; the weights did not take that step", done.stderr)
    state = newest(config_of(mine))
    assert state["global_step"] == 3
    assert all(torch.isfinite(tensor).all() for tensor in state["net"].values())


def test_a_silent_rank_is_noticed_and_the_same_command_goes_on(forks, tmp_path):
    mine = words(tmp_path, "gelu", "devices=2", "comm_timeout_s=4", "checkpoint.every_min=0")
    done = forks.run(mine, drive.accident("before", 3, rank=1, what="STOP"))
    assert done.returncode == 75, done.stderr
    assert "rank 1 did not answer; run the same command again to continue" in done.stderr
    assert status(mine)["reason"].startswith("PeerLost")
    assert forks.run(mine).returncode == 0


def test_memory_that_is_too_small_is_told_and_never_adapted_to(forks, tmp_path):
    mine = words(tmp_path, "gelu", "devices=2")
    done = forks.run(mine, drive.accident("before", 2, rank=1, what="memory"))
    assert done.returncode == 64
    assert (
        "error: recipe.micro_batch=8: a pass of so many images is too large for the memory of cpu; 4 fits this net"
        in done.stderr
    )


def test_other_devices_do_not_go_on_in_silence(forks, tmp_path):
    mine = words(tmp_path, "gelu", "checkpoint.every_min=0")
    assert forks.run(mine, drive.accident("step", 2, what="TERM")).returncode == 75
    refused = forks.run((*mine, "devices=2"))
    assert refused.returncode == 78
    assert "world_size: 1 -> 2" in refused.stderr
    allowed = forks.run((*mine, "devices=2", "allow_drift=true"))
    assert allowed.returncode == 0, allowed.stderr
    assert status(mine)["drift"] == ["world_size: 1 -> 2"]


def test_a_second_writer_of_ranks_leaves_at_once(forks, tmp_path):
    mine = words(tmp_path, "gelu", "devices=2")
    with RunDir(run_path(config_of(mine))).lock():
        second = forks.run(mine)
    assert second.returncode == 75
    assert f"another process is writing this run (process {os.getpid()} on {socket.gethostname()})" in second.stderr


@pytest.mark.parametrize(("where", "number"), [("watch", 1), ("step", 2)])
def test_a_keyboard_interrupt_of_all_processes_is_one_polite_stop(forks, tmp_path, where, number):
    """As a terminal sends it: to the parent and to every rank, while they start or while they train."""
    accident = drive.accident(where, number, what="INT", to="group")
    run = drive.run if where == "watch" else forks.run
    done = run(words(tmp_path, "gelu", "devices=2", "recipe.epochs=200"), accident)
    assert (done.returncode, own_lines(done.stdout)) == (75, []), done.stderr
    assert done.stderr.splitlines()[-1] == "stopped by SIGINT; run the same command again to continue"
    assert "Traceback" not in done.stderr


def test_a_parent_that_is_killed_lets_its_ranks_save_and_stop(forks, tmp_path):
    mine = words(tmp_path, "gelu", "devices=2", "recipe.epochs=200")
    killed = forks.run(mine, drive.accident("step", 2, rank=1, what="KILL", to="parent"))
    assert killed.returncode == -9
    with (run_path(config_of(mine)) / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # held until the first rank has ended
    assert status(mine)["state"] == "stopped"


@pytest.mark.parametrize(
    ("recipe", "num_devices", "message"),
    [
        (("recipe.batch_size=256", "recipe.micro_batch=32"), 8, None),
        (
            ("recipe.batch_size=256", "recipe.micro_batch=32"),
            3,
            "is not a whole number of passes over 3 devices x recipe.micro_batch=32 = 96",
        ),
        (("recipe.batch_size=256", "recipe.micro_batch=64"), 8, "= 512 images"),
        (("recipe.batch_size=256", "recipe.micro_batch=null"), 2, "such as recipe.micro_batch=128"),
        (("recipe.batch_size=256", "recipe.micro_batch=null"), 1, None),
    ],
)
def test_a_batch_that_is_no_whole_number_of_passes_is_refused(recipe, num_devices, message):
    config = compose("gelu", "nano", recipe)
    with pytest.raises(ConfigError, match=re.escape(message)) if message else nullcontext():
        config.recipe.check_passes(num_devices)


def test_auto_takes_all_gpus_where_there_is_something_to_share(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    shared, whole = compose("gelu", "tiny"), compose("gelu", "nano")
    assert devices.choose_count(shared, RankEnv()) == 4
    assert devices.choose_count(whole, RankEnv()) == 1
    assert devices.choose_count(shared, RankEnv(0, 2, 0, Launcher.torchrun)) == 1
    shared.devices = "9"
    with pytest.raises(ConfigError, match="devices=9: there are 4 GPUs here"):
        devices.choose_count(shared, RankEnv())
    with pytest.raises(ConfigError, match="devices=9: torchrun has started 2 ranks"):
        devices.choose_count(shared, RankEnv(0, 2, 0, Launcher.torchrun))


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "null", "99999"])
def test_a_number_of_devices_that_is_none_is_refused(value):
    with pytest.raises(ConfigError, match="devices"):
        compose("gelu", "nano", [f"devices={value}"])
