"""Runs trained side by side in one process end as each does alone, to the bit, whatever becomes of the others."""

import functools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from roadmap.config.choices import When
from roadmap.distributed import signals
from roadmap.errors import Busy, NonFiniteError, OutOfMemory, StoppedEarly
from roadmap.files import read_json, write_json
from roadmap.net import build_net
from roadmap.runs import run_logger
from roadmap.runs.deferred_metrics import DeferredMetrics
from roadmap.runs.progress import SweepProgress
from roadmap.runs.run_dir import RunDir, run_path
from roadmap.steps.compose import compose
from roadmap.sweep import local_scheduler
from roadmap.sweep.local_scheduler import LocalTask
from roadmap.sweep.study_dir import StudyDir
from roadmap.training import cuda_graph, group, setup, state, step
from roadmap.training import train as training
from roadmap.training.__main__ import main as group_main
from roadmap.training.cuda_graph import CapturedStep
from roadmap.training.group import Group, GroupRun
from roadmap.training.train import train

from .conftest import ROOT, SMALL
from .drive import python
from .net_rows import one_thread, rows  # noqa: F401
from .records import assert_equal_runs, ledger, status, stopped_at
from .test_graph import capture_on_cpu

# Random numbers in the net and in the images, a moving average, and several passes a step.
WORDS = ("recipe.drop_path=0.3", "recipe.mixup=0.8", "recipe.ema_decay=0.9", "recipe.micro_batch=16")


@pytest.fixture
def captured(monkeypatch):
    """Let steps be captured, with a replay that takes the step again."""
    monkeypatch.setattr(setup, "choose_graph", lambda config, *_: config.cuda_graph == When.auto)
    monkeypatch.setattr(CapturedStep.__init__, "__defaults__", (capture_on_cpu,))


@pytest.fixture(params=["eager", "captured"])
def form(request):
    """Let steps be eager, or captured."""
    if request.param == "captured":
        request.getfixturevalue("captured")
    return request.param


def train_group(configs, gate=None):
    """Train runs side by side; return what each came to, by its seed."""
    outcomes, cache = {}, {}
    runs = [GroupRun(config, SweepProgress(cache=cache)) for config in configs]
    Group(runs, lambda run, outcome: outcomes.update({run.config.seed: outcome}), gate).train()
    return outcomes


def log_of(config):
    return (run_path(config) / "run.log").read_text()


def test_each_of_a_group_ends_as_alone_whatever_becomes_of_the_others(form, small, monkeypatch):
    step_name = "separate_downsampling" if form == "eager" else "gelu"
    alone = [small(step_name, *WORDS, "study=alone", f"seed={seed}") for seed in range(5)]
    configs = [small(step_name, *WORDS, f"seed={seed}") for seed in range(5)]
    for config in alone[:3]:
        train(config)
    with stopped_at(4):
        train(configs[1])  # goes on in the middle
    train(configs[2])  # is done
    real = step.prepare

    def prepare(ctx, images, labels, number):
        spoilt = ctx.config.seed == 3 and number == 6
        return real(ctx, images * (torch.nan if spoilt else 1), labels, number)

    monkeypatch.setattr(step, "prepare", prepare)
    monkeypatch.setattr(cuda_graph, "prepare", prepare)
    handlers, threads = [signal.getsignal(number) for number in signal.Signals], torch.get_num_threads()
    logs = list(logging.getLogger("roadmap").handlers)
    with RunDir(run_path(configs[4])).lock():
        outcomes = train_group(configs)
    assert [signal.getsignal(number) for number in signal.Signals] == handlers
    assert torch.get_num_threads() == threads
    assert logging.getLogger("roadmap").handlers == logs
    for config, other in zip(configs[:3], alone[:3], strict=True):
        assert_equal_runs(config, other)
        assert outcomes[config.seed]["top1"] == read_json(run_path(other) / "summary.json")["top1"]
        assert outcomes[config.seed]["state"] == "done"
    assert isinstance(outcomes[3], NonFiniteError) and "step 4: the loss" in str(outcomes[3])
    assert status(configs[3])["exit_code"] == 70 and len(ledger(configs[3])) >= 4
    assert isinstance(outcomes[4], Busy)
    assert [status(config)["group_size"] for config in configs[:2]] == [4, 4]
    assert log_of(configs[0]).count("epoch 1/2") == 1 and "resuming at step" not in log_of(configs[0])
    assert "resuming at step" in log_of(configs[1])


def arranged(monkeypatch, place, accident):
    """Let `accident(config)` happen before a run takes its `place`th step."""
    real, taken = step.prepare, {}

    def prepare(ctx, images, labels, number):
        seed = ctx.config.seed
        taken[seed] = taken.get(seed, 0) + 1
        if taken[seed] == place:
            accident(ctx.config)
        return real(ctx, images, labels, number)

    monkeypatch.setattr(step, "prepare", prepare)


@pytest.fixture
def alone(reference):
    """Return a function: the small run of a seed, trained alone."""
    return lambda seed: reference("resnet", f"seed={seed}")


def test_the_others_have_work_on_the_device_before_a_run_is_waited_for(small, alone, monkeypatch):
    """A run's turn ends after a burst of steps, or before the host waits for its losses or its evaluation."""
    events = []

    def noted(sign, real, of_run=lambda *_: True):
        return lambda *args: ((events.append(sign) if of_run(*args) else None), real(*args))[1]

    read = noted("losses", DeferredMetrics.read, lambda metrics: metrics._rows)
    monkeypatch.setattr(DeferredMetrics, "read", read)
    for name, sign in (("train_step", "step"), ("score_batches", "evaluate"), ("collect_scores", "scores")):
        monkeypatch.setattr(training, name, noted(sign, getattr(training, name)))
    monkeypatch.setattr(group, "BURST", 2)
    turn = group.Group._take_turn
    monkeypatch.setattr(group.Group, "_take_turn", noted("|", turn))
    configs = [small("resnet", f"seed={seed}") for seed in range(2)]
    train_group(configs)
    assert " ".join(events).split("| ")[1:] == [
        "step ", "step ",  # the first one is read at once
        "losses step step ", "losses step step ", "", "",  # the end of the epoch
        "losses evaluate ", "losses evaluate ",
        "scores step step ", "scores step step ", "step ", "step ",
        "losses evaluate ", "losses evaluate ", "scores ", "scores",
    ]  # fmt: skip
    for config in configs:
        assert_equal_runs(config, alone(config.seed))


class SimulatedDevice:
    """A host's clock and a device, in ms: work of one stream comes one after the other, of several at once."""

    SPEED = (0.0, 1.0, 1.3, 1.5)  # of so many streams together

    def __init__(self, streams):
        self.now, self.work = 0.0, [0.0] * streams

    def spend(self, ms):
        """Let the host be busy; the device goes on."""
        while ms > 1e-9:
            busy = [left for left in self.work if left > 1e-9]
            each = self.SPEED[len(busy)] / len(busy) if busy else 1.0
            part = min(ms, *(left / each for left in busy), ms)
            self.work = [max(0.0, left - part * each) for left in self.work]
            self.now, ms = self.now + part, ms - part

    def wait(self, stream):
        while self.work[stream] > 1e-9:
            self.spend(min(left for left in self.work if left > 1e-9))

    def run(self, stream, step_ms, *, pauses, epochs=10, steps=117):
        """Take the steps of a run of `make mini`, which pauses before it waits, or after each step alone."""
        yield False
        pending, due = 0, 1
        for _ in range(epochs):
            for _ in range(steps):
                self.spend(1.5)
                self.work[stream] += step_ms
                pending += 1
                if pauses:
                    yield pending == due
                if pending == due:  # the losses
                    self.wait(stream)
                    self.spend(8)
                    pending, due = 0, 50
                if not pauses:
                    yield False
            if pauses:
                yield True
            self.wait(stream)
            self.spend(11)
            self.work[stream] += 50  # the evaluation
            pending = 0
            yield True
            self.wait(stream)
            self.spend(75)  # its record, and the checkpoint
        return {}


@pytest.mark.parametrize(("step_ms", "saved"), [(4, 0.08), (7, 0.065), (15, 0.035)])
def test_bursts_leave_the_device_less_idle_than_a_step_each_in_turn(small, monkeypatch, step_ms, saved):
    configs = [small("resnet", f"seed={seed}") for seed in range(3)]

    def row_ms(burst, *, pauses=True):
        device = SimulatedDevice(3)
        monkeypatch.setattr(group, "BURST", burst)
        monkeypatch.setattr(
            group, "run_steps", lambda config, *_, **__: device.run(config.seed, step_ms, pauses=pauses)
        )
        train_group(configs)
        return device.now

    ours = row_ms(group.BURST)
    assert ours < (1 - saved) * row_ms(1, pauses=False)
    assert ours < 1.02 * min(row_ms(burst) for burst in (8, 12, 24, 32))


def test_a_signal_saves_every_run_and_the_same_group_goes_on(small, alone, monkeypatch):
    configs = [small("resnet", f"seed={seed}") for seed in range(2)]
    with monkeypatch.context() as patch:
        arranged(patch, 3, lambda config: config.seed or signal.raise_signal(signal.SIGTERM))
        outcomes = train_group(configs)
    assert [str(outcomes[seed]) for seed in range(2)] == ["stopped by SIGTERM"] * 2
    assert [(status(config)["state"], status(config)["step"]) for config in configs] == [("stopped", 3), ("stopped", 1)]
    train_group(configs)
    for config in configs:
        assert_equal_runs(config, alone(config.seed))


def test_a_second_ctrl_c_ends_every_run_at_once(small, monkeypatch):
    configs = [small("resnet", f"seed={seed}") for seed in range(3)]
    monkeypatch.setattr(signals, "TWICE_S", -1.0)

    def twice(config):
        if config.seed == 1:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    arranged(monkeypatch, 2, twice)
    outcomes = train_group(configs)
    assert all(isinstance(outcome, KeyboardInterrupt) for outcome in outcomes.values()) and len(outcomes) == 3
    assert [(status(config)["state"], status(config)["exit_code"]) for config in configs] == [("stopped", 75)] * 3
    for config in configs:
        folder = run_path(config).parents[2]
        task = LocalTask(StudyDir(folder.parent, folder.name), str(run_path(config).relative_to(folder)), [])
        assert local_scheduler.how_it_ended(task) == "cut off after its last checkpoint"


def test_runs_that_memory_has_no_room_for_wait_for_the_others(small, alone, monkeypatch, capsys):
    configs = [small("resnet", f"seed={seed}") for seed in range(3)]
    real, at_work = group.run_steps, []

    def run_steps(config, *args, **more):
        at_work.append(config.seed)
        try:
            if len(at_work) == 3:
                raise OutOfMemory("recipe.micro_batch=32: too large")
            return (yield from real(config, *args, **more))
        finally:
            at_work.remove(config.seed)

    monkeypatch.setattr(group, "run_steps", run_steps)
    outcomes = train_group(configs)
    assert [outcomes[seed]["state"] for seed in range(3)] == ["done"] * 3
    assert capsys.readouterr().err.count("memory is too small for 3 runs at once: 2 at a time") == 1
    for config in configs:
        assert_equal_runs(config, alone(config.seed))


def test_a_run_that_memory_has_no_room_for_gives_its_captured_step_up(captured, small, alone, monkeypatch):
    configs, cache, outcomes, had = [small("resnet", f"seed={seed}") for seed in range(2)], {}, {}, []
    real = training.score_batches

    def score_batches(*args):
        had.append(len(cache["steps"]))
        if len(had) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args)

    monkeypatch.setattr(training, "score_batches", score_batches)
    runs = [GroupRun(config, SweepProgress(cache=cache)) for config in configs]
    Group(runs, lambda run, outcome: outcomes.update({run.config.seed: outcome})).train()
    assert had == [2, 2, 1, 1, 1]
    assert [outcomes[seed]["state"] for seed in range(2)] == ["done"] * 2
    assert all(ledger(config) == ledger(alone(config.seed)) for config in configs)


def test_memory_that_is_too_small_for_one_run_is_its_error(small, monkeypatch):
    configs = [small("resnet", f"seed={seed}") for seed in range(2)]

    def run_steps(*_, **__):
        raise OutOfMemory("recipe.micro_batch=32: too large")
        yield

    monkeypatch.setattr(group, "run_steps", run_steps)
    outcomes = train_group(configs)
    assert all(isinstance(outcome, OutOfMemory) for outcome in outcomes.values()) and len(outcomes) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_each_runs_error(small):
    outcomes = train_group([small("resnet", f"seed={seed}", "device=cuda") for seed in range(2)])
    assert [str(outcomes[seed]).partition(";")[0] for seed in range(2)] == ["device=cuda: there is no GPU here"] * 2


def test_a_net_that_the_compiler_fails_on_is_trained_uncompiled(small, alone, monkeypatch, capsys):
    config = small("resnet", "seed=0")
    outcomes = {}

    real = training.train_step
    run = GroupRun(config.replace(compile="true"), SweepProgress(), uncompiled=config)

    def train_step(ctx, *args):
        if ctx.config.compile == "true":
            raise torch._dynamo.exc.Unsupported("this net")
        return real(ctx, *args)

    monkeypatch.setattr(training, "train_step", train_step)
    Group([run], lambda run, outcome: outcomes.update({0: outcome})).train()
    assert outcomes[0]["state"] == "done" and outcomes[0]["compile"] is False
    assert "trains uncompiled (compile=true: torch cannot compile this net here" in capsys.readouterr().err
    assert_equal_runs(config, alone(0))


class Gate:
    """Opens, or does not; notes what the runs have written by then."""

    def __init__(self, configs, opens):
        self.configs, self.opens, self.states = configs, opens, None

    def is_open(self):
        return False

    def wait(self, stop):
        self.states = [(status(config)["state"], ledger(config)) for config in self.configs]
        return self.opens


@pytest.mark.parametrize("opens", [True, False])
def test_a_group_is_prepared_before_the_device_is_its_own(small, opens):
    configs = [small("resnet", f"seed={seed}") for seed in range(2)]
    gate = Gate(configs, opens)
    outcomes = train_group(configs, gate)
    assert gate.states == [("running", [])] * 2
    expected = ("done", 2) if opens else ("stopped", 0)
    assert [(status(config)["state"], status(config)["epoch"]) for config in configs] == [expected] * 2
    assert opens or all(isinstance(outcome, StoppedEarly) for outcome in outcomes.values())


@pytest.mark.parametrize("ahead", [True, False])
def test_preparing_while_others_have_the_device_takes_none_of_its_time(small, monkeypatch, ahead):
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 1000 * len(restored), time=time.time)
    restored, real = [], training.restore

    def restore(*args):
        state = real(*args)
        restored.append(state)  # the compiler has taken a quarter of an hour
        return state

    monkeypatch.setattr(run_logger, "time", clock)
    monkeypatch.setattr(training, "restore", restore)
    config = small("resnet")
    train_group([config], Gate([config], True) if ahead else None)
    times = [read_json(run_path(config) / "summary.json")["time_s"]]
    times += [json.loads(line)["time_s"] for line in (run_path(config) / "metrics.jsonl").read_text().splitlines()]
    assert [value < 1000 for value in times] == [ahead] * len(times)
    assert len(restored) == 1


COMPILED = """
import json, sys
from torch._dynamo.utils import counters
from roadmap.errors import RoadmapError
from roadmap.runs.progress import SweepProgress
from roadmap.steps.compose import compose
from roadmap.training.group import Group, GroupRun
runs = [GroupRun(compose("gelu", "nano", [*sys.argv[1:], f"seed={seed}"]), SweepProgress(cache={})) for seed in (0, 1)]
Group(runs, lambda run, outcome: print(outcome["state"], file=sys.stderr)).train()
print(json.dumps([counters["inductor"]["fxgraph_cache_hit"], counters["aot_autograd"]["autograd_cache_hit"],
                  counters["inductor"]["fxgraph_cache_miss"], counters["stats"]["unique_graphs"]]))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_a_process_has_compiled_the_next_one_finds_on_disk(tmp_path):
    """And the seeds of a row are compiled once."""
    env = local_scheduler.environment(local_scheduler.Slot(), ROOT, 1)
    env |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    found = []
    for study in ("first", "second"):
        words = (*SMALL, "recipe.epochs=1", "wandb.mode=disabled", "compile=true", f"study={study}")
        words += ("model.depths=[1,1,1,1]", f"paths.runs={tmp_path}")
        done = python("-c", COMPILED, *words, env=env, check=True)
        assert done.stderr.split().count("done") == 2
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[0][:2] == [0, 0] and found[0][2] >= 2
    assert found[1][0] == found[0][2] and found[1][1:] == [found[1][3], 0, found[0][3]]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_row_of_a_sweep_is_compiled():
    """Torch compiles one class of nets eight times, and lets what comes then run as it is, unless it is told."""
    ctx = SimpleNamespace(cache={}, config=None)
    for row in rows("toy"):
        ctx.config = compose(row, "nano")
        net, counter = build_net(rows("toy")[row], 10), CompileCounter()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
            model = state.compiled(ctx, net)
        model(torch.randn(2, 3, 32, 32))
        assert counter.frame_count == 1, row


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "required: FILE"),
        (["none.json"], "none.json: cannot be read (No such file or directory)"),
        (["pyproject.toml"], "pyproject.toml: cannot be read (pyproject.toml: not JSON ("),
        (["roadmap/net/kernels/measured.json"], "measured.json: must hold `share` and `runs`"),
    ],
)
def test_a_group_that_is_none_is_refused_in_a_line(monkeypatch, capfd, words, told):
    monkeypatch.chdir(ROOT)
    assert group_main(words) == 64
    assert told in (error := capfd.readouterr().err) and len(error.splitlines()) == 1


def test_a_group_whose_starter_is_gone_with_the_pipe_that_it_reports_to_ends_every_run_alike(small, tmp_path):
    configs = [small("gelu", f"seed={seed}") for seed in range(3)]
    logs = [tmp_path / f"{seed}.log" for seed in range(3)]
    runs = [{"config": c.values(), "log": str(log), "compile": False} for c, log in zip(configs, logs, strict=True)]
    write_json(tmp_path / "group.json", {"share": 0.5, "runs": runs})
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "roadmap.training", str(tmp_path / "group.json")]
    with open(write, "w") as out:  # stdin ends without a line, as where the starter was killed
        done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, check=False)
    assert done.returncode == 75
    gone = "the process that started it is gone; run the same command again to continue\n"
    assert all(log.read_text().endswith(gone) for log in logs)
    assert {status(config)["state"] for config in configs if (run_path(config) / "status.json").exists()} <= {"stopped"}
