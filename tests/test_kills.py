"""Runs that are killed for real, anywhere, of one rank or of several, end bit-equal to one that was never stopped."""

import pytest

from roadmap.runs.run_dir import run_path

from . import drive
from .records import assert_equal_runs, newest, status

TINY = (
    "data.train_images=48", "data.val_images=40", "recipe.batch_size=16", "recipe.epochs=2", "recipe.warmup_epochs=0",
    "recipe.drop_path=0.1", "checkpoint.every_min=0",
)  # fmt: skip
STEPS = 6  # 3 an epoch
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def pair(small, forks, tmp_path):
    """Return a function: the words of a tiny run, its config, and that of the same run that nothing happens to."""

    def call(step: str, *overrides: str):
        given = {o.split("=")[0] for o in overrides}
        overrides = (*(o for o in TINY if o.split("=")[0] not in given), *overrides)
        words = (f"+step={step}", "wandb.mode=disabled", *overrides)
        whole = (*words, f"paths.runs={tmp_path / 'whole'}")
        done = forks.run(whole)
        assert done.returncode == 0, done.stderr
        return (*words, f"paths.runs={tmp_path / 'runs'}"), small(step, *overrides), small(step, *overrides, whole[-1])

    return call


def ends_equal(forks, words, config, whole):
    done = forks.run(words)
    assert done.returncode == 0, done.stderr
    assert_equal_runs(config, whole)


@pytest.mark.parametrize(("step", "numbers"), [
    ("gelu", (1, 3, STEPS)),
    pytest.param("separate_downsampling", range(1, STEPS + 1), marks=pytest.mark.slow),
])  # fmt: skip
def test_killed_at_steps_in_turn(pair, forks, step, numbers):
    words, config, whole = pair(step)
    for number in numbers:
        already = (
            newest(config)["global_step"] if number > 1 and list(run_path(config).glob("checkpoints/step-*.pt")) else 0
        )
        killed = forks.run(words, drive.accident("step", number - already))
        assert killed.returncode == -9, killed.stderr
        assert status(config)["state"] == "running"
    ends_equal(forks, words, config, whole)


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_three_deaths_without_progress_are_enough(forks, small, tmp_path, devices):
    words = (
        "+step=gelu", "wandb.mode=disabled", *TINY, "recipe.micro_batch=8", f"devices={devices}",
        f"paths.runs={tmp_path / 'runs'}",
    )  # fmt: skip
    config = small("gelu", *words[2:])
    for _ in range(3):
        killed = forks.run(words, drive.accident("before", 1, rank=devices - 1))
        assert killed.returncode == (-9 if devices == 1 else 75)
    refused = forks.run(words)
    assert refused.returncode == 93
    assert "died 3 times without progress, at step 0" in refused.stderr
    assert (status(config)["state"], status(config)["exit_code"]) == ("failed", 93)
    done = forks.run(words)  # somebody's own wish
    assert done.returncode == 0, done.stderr


EDGES = [("before", 1), ("step", 2), ("step", 3), ("evaluate", 1), ("saving", 2), ("step", STEPS), ("evaluate", 2)]


def politely(pair, forks, step, signals, *overrides, edges=EDGES):
    words, config, whole = pair(step, *overrides)
    for (where, number), name in zip(edges, signals, strict=True):
        stopped = forks.run((*words, "fresh=true"), drive.accident(where, number, what=name, rank=0))
        assert stopped.returncode == 75, stopped.stderr
        assert f"stopped by SIG{name}; run the same command again to continue" in stopped.stderr
        assert "Traceback" not in stopped.stderr
        assert (status(config)["state"], status(config)["exit_code"]) == ("stopped", 75)
        ends_equal(forks, words, config, whole)


def test_stopped_politely_at_some_edges(pair, forks):
    politely(pair, forks, "gelu", ("TERM", "USR2", "INT"), edges=[EDGES[0], EDGES[3], EDGES[4]])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["TERM", "USR2", "INT"])
def test_stopped_politely_at_every_edge(pair, forks, name):
    politely(pair, forks, "separate_downsampling", [name] * len(EDGES))


MIXED = ("recipe.mixup=0.8", "recipe.cutmix=1.0")
REFERENCE = ("data.pipeline=reference", "recipe.rand_augment=rand-m9-mstd0.5-inc1", "recipe.random_erasing=0.25")
# Ranks, workers, EMA, accumulation: every pair of their values is there.
COMBINATIONS = [
    (4, 0, False, 1), (4, 2, True, 2), (2, 0, True, 1), (2, 2, False, 2), (1, 0, False, 2), (1, 2, True, 1),
]  # fmt: skip
IN_SHORT = {(2, 0, True, 1)}


def of(ranks, workers, ema, accumulation):
    words = [f"devices={ranks}", f"recipe.micro_batch={16 // ranks // accumulation}", *MIXED]
    words += ["recipe.ema_decay=0.9"] if ema else []
    words += [*REFERENCE, f"data.workers={workers}"] if workers else []
    return tuple(words)


@pytest.mark.parametrize(
    "combination", [pytest.param(c, marks=[] if c in IN_SHORT else pytest.mark.slow, id=str(c)) for c in COMBINATIONS]
)
def test_ranks_that_are_killed_and_stopped_in_turn(pair, forks, combination):
    """A kill of one rank, of the first while it saves; polite stops of one rank, and of all through their parent."""
    ranks = combination[0]
    words, config, whole = pair("patchify_stem", *of(*combination))
    last = ranks - 1
    told = forks.run(words, drive.accident("step", 1, rank=last))
    assert told.returncode == (-9 if ranks == 1 else 75), told.stderr
    if ranks > 1:
        assert f"rank {last} was killed (SIGKILL); run the same command again to continue" in told.stderr
        assert "Traceback" not in told.stderr
    forks.run(words, drive.accident("saving", 2))
    # Of several ranks each hears of a signal one step later: here in the first step of the next epoch.
    for where, to in (("evaluate", "self"), ("before", "parent" if ranks > 1 else "self")):
        stopped = forks.run(words, drive.accident(where, 1, rank=last, what="USR2", to=to))
        assert stopped.returncode == 75, stopped.stderr
        assert status(config)["state"] == "stopped"
    ends_equal(forks, words, config, whole)
    assert status(config)["world_size"] == ranks
