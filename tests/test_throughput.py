"""How fast training goes and how long it waits, by a played clock; and what the log advises."""

import pytest

from roadmap.config.choices import Pipeline
from roadmap.runs import throughput
from roadmap.runs.throughput import Throughput, waiting_advice


def played(monkeypatch, wait_s: float, step_s: float, steps: int = 10) -> dict[str, float]:
    """Return the numbers of some steps of 100 images that take `step_s` and wait `wait_s` for each batch."""
    now = [0.0]
    monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])

    def batches():
        for _ in range(steps):
            now[0] += wait_s
            yield "batch"

    count = Throughput()
    for _ in count.timed(batches()):
        now[0] += step_s
        count.images += 100
    return count.read()


def test_images_a_second_and_the_share_of_waiting(monkeypatch):
    assert played(monkeypatch, 0.25, 0.75) == {"train/images_per_s": 100.0, "train/data_wait": 0.25}


def test_a_gpu_that_waits_is_told_of_the_fast_pipeline_with_both_speeds(monkeypatch):
    values = played(monkeypatch, 0.25, 0.75)
    assert waiting_advice(Pipeline.reference, "cuda", values) == (
        "training waits for images 25 % of its time: 100 images/s, and 133 without; "
        "data.pipeline=fast prepares them on the GPU (in a new run)"
    )
    assert waiting_advice(Pipeline.reference, "cuda", values | {"train/data_wait": 1.0}) is not None
    assert waiting_advice(Pipeline.fast, "cuda", values) is None
    assert waiting_advice(Pipeline.reference, "cpu", values) is None


@pytest.mark.parametrize(("wait_s", "advised"), [(0.1, False), (0.11, True)])
def test_a_tenth_of_the_time_is_no_matter(monkeypatch, wait_s, advised):
    values = played(monkeypatch, wait_s, 1 - wait_s)
    assert (waiting_advice(Pipeline.reference, "cuda", values) is not None) == advised


def test_the_advice_is_given_once_and_not_of_the_first_step():
    values, throughput = {"train/images_per_s": 100.0, "train/data_wait": 0.5}, Throughput()
    first, second, third = (throughput.advice(Pipeline.reference, "cuda", values, steps) for steps in (1, 50, 50))
    assert (first, third) == (None, None)
    assert "50 % of its time: 100 images/s, and 200 without" in second
