"""`python -m roadmap.bench input`: every pipeline is measured on the same photographs, and yields what a net needs."""

import io
import json
import multiprocessing
import signal
import tempfile
import threading
import time
from argparse import Namespace
from unittest.mock import Mock

import numpy as np
import pytest
import timm  # noqa: F401 - here, since it brings W&B, which makes folders for its files
import torch
from PIL import Image

from roadmap.bench import input as bench_input
from roadmap.bench.__main__ import main
from roadmap.bench.input import FULL_RECIPE, batch_times
from roadmap.bench.measure import Candidate
from roadmap.bench.photographs import SIZE, link_photographs, synthetic_jpeg, write_photographs
from roadmap.bench.pipelines import PIPELINES
from roadmap.errors import ConfigError
from roadmap.steps.compose import compose

SMALL = ("--device", "cpu", "--images", "12", "--batch", "2", "--workers", "1", "--image-size", "32")
SMALL += ("--repeats", "2", "--seconds", "0.2", "--limit", "300")


def test_photographs_are_as_large_as_those_of_imagenet_and_always_the_same():
    drawn = [synthetic_jpeg(np.random.default_rng(seed)) for seed in range(40)]
    assert 95e3 < np.mean([len(data) for data in drawn]) < 125e3
    assert Image.open(io.BytesIO(drawn[0])).size == SIZE
    assert drawn[0] == synthetic_jpeg(np.random.default_rng(0))
    assert drawn[0] != drawn[1]


def test_every_pipeline_is_measured_beside_decoding_alone(tmp_path, capsys, monkeypatch):
    file = tmp_path / "input.json"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert main(["input", *SMALL, "--json", str(file)]) == 0
    record = json.loads(file.read_text())
    (row,) = record["rows"]
    assert "so_far" not in record
    found = {entry["candidate"]: entry for entry in row["candidates"]}
    assert list(found) == [*(name for name, _, _ in PIPELINES), "decode alone", "decode and crop"]
    assert list(found)[:2] == ["ours, fast", "timm, full recipe"]  # what must not be missing where time is short
    assert [name for name, entry in found.items() if entry["failed"]] == []
    assert all(len(entry["times_s"]) == 2 and entry["images_a_call"] == 2 for entry in found.values())
    assert row["bounds_images_per_s"]["decode"] == pytest.approx(found["decode alone"]["images_per_s"])
    assert row["against_best_peer"]["peer"] in [name for name, library, _ in PIPELINES if library]
    out = capsys.readouterr().out
    assert "12 of them, read again" in out
    assert out.index("timm, full recipe: ") < out.index("decode alone: ") < out.index("| row |")  # as they come
    left = [path.name for path in tmp_path.iterdir() if not path.name.startswith("pymp-")]  # Python 3.14's own
    assert left == ["input.json"]  # the photographs are gone


def test_what_was_measured_is_kept_where_the_next_pipeline_is_cut_off(tmp_path, monkeypatch):
    real = bench_input.measure

    def cut_off(name, *more):
        if name != "ours, fast":
            raise KeyboardInterrupt
        return real(name, *more)

    monkeypatch.setattr(bench_input, "measure", cut_off)
    file = tmp_path / "input.json"
    main(["input", *SMALL, "--json", str(file)])
    ((name, times),) = json.loads(file.read_text())["so_far"].items()
    assert name == "ours, fast" and len(times) == 2


def test_a_training_step_is_fed_by_every_pipeline(tmp_path):
    file, root = tmp_path / "input.json", tmp_path / "photographs"
    write_photographs(root, 12)
    words = ["--train", "gelu", "--regime", "nano", "--peer", "timm", "--root", str(root)]
    assert main(["input", *SMALL, *words, "--json", str(file)]) == 0
    first, row = json.loads(file.read_text())["rows"]
    found = {entry["candidate"]: entry for entry in row["candidates"]}
    assert list(found) == ["one batch again and again", "ours, fast", "timm, full recipe", "ours, reference"]
    assert [name for name, entry in found.items() if entry["failed"]] == [] and first["row"] == "input"
    assert row["row"] == "gelu" and list(row["bounds_images_per_s"]) == ["synthetic"]


def test_training_has_the_second_half_of_the_time_and_compiling_its_step_does_not_count(tmp_path, monkeypatch):
    ends, file = {}, tmp_path / "input.json"

    def measured(name, library, start, use, args, config, device, end):
        ends.setdefault(use, set()).add(end)
        return Candidate(name, args.batch, lambda: lambda: None, library, times_s=[1.0, 1.0])

    step = lambda images, labels: None  # noqa: E731
    monkeypatch.setattr(bench_input, "measure", measured)
    monkeypatch.setattr(bench_input, "train_on", lambda config, device: (time.sleep(2), step)[1])
    began = time.monotonic()
    assert main(["input", *SMALL, "--train", "gelu", "--regime", "nano", "--limit", "100", "--json", str(file)]) == 0
    took = time.monotonic() - began - 2
    (in_training,), (alone,) = ends.pop(step), set().union(*ends.values())
    assert 0 <= in_training - began - 102 < 1 + took and 50 <= alone - began < 51 + took


def test_a_training_step_that_does_not_fit_is_named_and_the_pipelines_are_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_input, "train_on", Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
    file = tmp_path / "input.json"
    words = ["--train", "gelu", "--regime", "nano", "--peer", "none", "--json", str(file)]
    assert main(["input", *SMALL, *words]) == 0
    assert (
        "| gelu | one batch again and again | failed: OutOfMemoryError: CUDA out of memory |" in capsys.readouterr().out
    )
    pipelines, training = json.loads(file.read_text())["rows"]
    assert [entry["failed"] for entry in pipelines["candidates"]] == [None] * 4
    assert [entry["failed"] for entry in training["candidates"]] == ["OutOfMemoryError: CUDA out of memory"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("photographs")
    write_photographs(root, 9)
    words = [
        f"data.root={root}",
        "data.image_size=64",
        "data.workers=1",
        "recipe.batch_size=4",
        "recipe.micro_batch=null",
        *FULL_RECIPE,
    ]
    return compose("separate_downsampling", "tiny", ["data=imagefolder", *words])


@pytest.mark.parametrize(("name", "library", "start"), PIPELINES)
def test_a_pipeline_yields_whole_batches_ready_for_the_net(config, name, library, start):
    try:
        epoch = start(config, torch.device("cpu"))
    except ConfigError as error:
        if name != "ours, fast":
            raise
        pytest.skip(str(error))
    for number in range(2):
        batches = list(epoch(number))
        assert [(images.shape, labels.shape) for images, labels in batches] == [((4, 3, 64, 64), (4,))] * 2
        images, labels = batches[0]
        assert images.is_contiguous(memory_format=torch.channels_last) and images.is_floating_point()
        assert labels.dtype == torch.int64 and -3 < images.float().mean() < 3 and images.min() < -0.5  # normalised


def test_the_clock_starts_when_every_worker_has_given_a_batch(monkeypatch):
    """A batch takes 1 s of a played clock; the first two, 50 s. Only whole rounds of the workers are timed."""
    now = [0.0]
    monkeypatch.setattr(bench_input.time, "perf_counter", lambda: now[0])

    def use(images, labels):
        now[0] += 50 if now[0] < 100 else 1

    epoch = lambda number: ((torch.zeros(1), torch.zeros(1)) for _ in range(4))  # noqa: E731
    assert list(batch_times(epoch, torch.device("cpu"), 2, use, 6.0, 3)) == [1.0] * 3
    assert now[0] == 106
    now[0] = 0.0
    batches = []

    def bursts(images, labels):
        batches.append(None)
        now[0] += 9 if len(batches) % 3 == 0 else 0  # of three workers, all at once

    assert list(batch_times(epoch, torch.device("cpu"), 3, bursts, 4.0, 2)) == [3.0] * 2


def test_a_pipeline_ends_with_its_workers_and_one_that_hangs_is_given_up(config, monkeypatch):
    args = Namespace(batch=4, limit=60.0, seconds=0.1, repeats=1, workers=1)
    device, use, end = torch.device("cpu"), lambda images, labels: None, time.monotonic() + 60
    for pipeline in PIPELINES[:3]:
        measured = bench_input.measure(*pipeline, use, args, config, device, end)
        assert measured.failed is None and measured.images_per_s > 0
        assert multiprocessing.active_children() == []

    def late_from_the_third_on():
        for number in range(10):
            if number == 2:
                signal.raise_signal(signal.SIGALRM)  # as when the time is over
            time.sleep(0.06 * number)
            yield torch.zeros(1), torch.zeros(1)

    args.repeats = 2
    slow = lambda config, device: lambda number: late_from_the_third_on()  # noqa: E731
    one = bench_input.measure("slow", None, slow, use, args, config, device, end)
    assert one.failed is None and len(one.times_s) == 1  # what it gave in its time
    monkeypatch.setattr(bench_input, "START_S", 0.3)
    hanging = lambda config, device: lambda number: iter(threading.Event().wait, None)  # noqa: E731
    late = bench_input.measure("hangs", None, hanging, use, args, config, device, end)
    assert late.failed == "TimeoutError: took longer than 0 s"
    out = bench_input.measure("late", None, hanging, use, args, config, device, time.monotonic())
    assert out.failed == "left out: 0 s of --limit=60 are left for it"


def test_real_photographs_are_linked_and_too_few_are_refused(tmp_path, capsys):
    write_photographs(tmp_path / "real", 5)
    sizes = link_photographs(tmp_path / "real", tmp_path / "links", 4)
    links = sorted((tmp_path / "links" / "train").glob("*/*"))
    assert len(links) == 4 and sorted(sizes) == sorted(link.stat().st_size for link in links)
    assert {link.resolve().parent.parent for link in links} == {(tmp_path / "real" / "train").resolve()}
    assert main(["input", *SMALL, "--root", str(tmp_path / "real")]) == 64
    assert "--images=12: " in (error := capsys.readouterr().err) and "has 5 JPEGs" in error


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--train", "gellu"], "gellu"),
        (["--workers", "9999"], "--workers=9999: must be from 0 to"),
        (["--root", "nowhere"], "argument --root: nowhere: is not a folder"),
        (["--images", "4", "--batch", "4", "--workers", "1"], "--images=4: 1 batches of 4 are too few for 1 workers"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_refused(capsys, words, told):
    assert main(["input", "--device", "cpu", *words]) == 64
    assert told in capsys.readouterr().err
