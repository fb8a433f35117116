"""Runs of this process, stopped at a given point, and what they leave behind, read so that two can be compared."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from roadmap.distributed import signals
from roadmap.errors import StoppedEarly
from roadmap.files import read_json
from roadmap.runs import checkpoint
from roadmap.runs.metrics import read_metrics
from roadmap.runs.run_dir import run_path
from roadmap.training import train as training

CLOCK = {"time_s", "train/images_per_s", "train/data_wait", "train/memory_gb"}


class Interrupter(signals.StopSignal):
    """Says stop at the given check, as a signal would."""

    at = 0

    def __init__(self, ranks=None):
        super().__init__(ranks)
        self.checks = 0

    def raise_if_set(self, save_due=False):
        self.checks += 1
        if self.checks == self.at:
            self.signal = signal.SIGTERM
        return super().raise_if_set(save_due)


@contextmanager
def stopped_at(check: int) -> Iterator[None]:
    """Let the run that is trained within be stopped at the `check`th time that it asks whether it should."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Interrupter, "at", check)
        patch.setattr(training, "StopSignal", Interrupter)
        with pytest.raises(StoppedEarly, match="SIGTERM"):
            yield


def ledger(config):
    """Return the rows of `metrics.jsonl` without what a clock says."""
    record = read_metrics(run_path(config) / "metrics.jsonl")
    assert not record.bad_lines
    assert not record.torn
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in record.rows]


def status(config):
    """Return what `status.json` says."""
    return read_json(run_path(config) / "status.json")


def newest(config):
    """Return the newest checkpoint."""
    return checkpoint.load(checkpoint.find_newest(run_path(config) / "checkpoints").path)


def same(a, b):
    """Compare two checkpoints to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != "time_s")
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_equal_runs(config, other):
    """Two runs have written the same rows, weights and correct bits, and have left nothing unfinished."""
    assert ledger(config) == ledger(other)
    assert same(newest(config), newest(other))
    for name in ("correct.npy", "predictions.npy", "labels.npy"):
        assert np.array_equal(*(np.load(run_path(each) / name) for each in (config, other)))
    assert not list(run_path(config).rglob("*.tmp"))
    assert not list(run_path(config).rglob(".step-*"))
