"""`python -m roadmap.bench infer`: latency and throughput of chosen rows, the search for a batch, wrong options."""

import json
import statistics

import pytest
import torch

from roadmap.bench import infer
from roadmap.bench.__main__ import main
from roadmap.bench.rows import Setting
from roadmap.config.choices import Precision
from roadmap.errors import ConfigError
from roadmap.net import build_net
from roadmap.steps.compose import compose

CPU = torch.device("cpu")
SMALL = ("--device", "cpu", "--regime", "nano", "--repeats", "10", "--warm-up", "1", "--most", "4", "--limit", "200")
SETTING = Setting(CPU, Precision.fp32, 1, 32, 10)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Try a batch no longer than its calls take."""
    monkeypatch.setattr(infer, "TRY_S", 0.0)


def test_rows_are_measured_beside_the_libraries_that_have_them_and_recorded(tmp_path, capsys):
    file = tmp_path / "infer.json"
    assert main(["infer", "--rows", "separate_downsampling,gelu", *SMALL, "--json", str(file)]) == 0
    record, out = json.loads(file.read_text()), capsys.readouterr().out
    found = {row["row"]: row for row in record["rows"]}
    ours = ["ours eager", "ours kernels"]
    names = {"separate_downsampling": [*ours, "timm eager", "torchvision eager"], "gelu": ours}
    for step, expected in names.items():
        searches = record["searches"][step]
        for one in searches.values():
            assert one["batch"] <= 4 and set(one["images_per_s"]) <= {"1", "2", "4"} and one["ended"]
        for what in ("one image", "best batch"):
            entries = found[f"{step}, {what}"]["candidates"]
            assert [entry["candidate"] for entry in entries] == expected
            for entry in entries:
                best = searches[entry["candidate"].split()[0]]["batch"]
                assert entry["failed"] is None and len(entry["times_s"]) >= 5
                assert entry["images_a_call"] == (1 if what == "one image" else best)
                assert entry["median_s"] == pytest.approx(statistics.median(entry["times_s"]))
    assert found["gelu, one image"]["against_best_peer"] is None
    assert "eager" in found["separate_downsampling, one image"]["against_best_peer"]["peer"]
    assert "| gelu, one image | ours kernels |" in out and "separate_downsampling, one image: ours" in out
    assert "separate_downsampling: best batch: ours " in out


def test_outputs_are_those_of_the_net():
    config, images = compose("grn", "nano"), torch.randn(2, 3, 32, 32)
    net = build_net(config.model, 10)
    run = infer.forward(lambda: net, SETTING, **infer.FORMS["kernels"])
    logits = run(images)
    assert torch.allclose(logits, build_same(config, net)(images), atol=1e-5)
    assert not net.training and logits.is_inference()
    with pytest.raises(ConfigError, match="a CUDA graph needs a GPU"):
        infer.forward(lambda: net, SETTING, **infer.FORMS["graph"])


def build_same(config, net):
    other = build_net(config.model, 10).eval()
    other.load_state_dict(net.state_dict())
    return other


class Costs(torch.nn.Module):
    """A net whose speed is told, not measured."""

    def forward(self, x):
        return x


def search(monkeypatch, seconds_of, most=1024, until=1e12):
    sizes = []

    def seconds(device, call):
        sizes.append(call.args[0].shape[0])
        return seconds_of(sizes[-1])

    monkeypatch.setattr(infer, "seconds", seconds)
    return infer.best_batch(Costs, SETTING, most, until, tuned=False)


def test_the_batch_is_doubled_until_it_twice_gains_nothing(monkeypatch):
    found = search(monkeypatch, lambda n: max(n, 8) / 100)
    assert (found.batch, found.ended, list(found.images_per_s)) == (8, "no longer grew", [1, 2, 4, 8, 16, 32])
    found = search(monkeypatch, lambda n: 1.0 + (n == 4), most=16)  # one slow batch on the way
    assert (found.batch, found.ended) == (16, "--most=16")


def test_the_search_ends_with_memory_or_time(monkeypatch):
    def memory(n):
        if n > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0

    found = search(monkeypatch, memory)
    assert (found.batch, found.ended) == (4, "memory")
    found = search(monkeypatch, lambda n: 1.0, until=0.0)
    assert (found.batch, found.ended) == (1, "--limit")


def test_a_form_that_cannot_run_is_shown_and_the_rest_is_measured(capsys):
    assert main(["infer", "--rows", "gelu", "--forms", "eager,graph", *SMALL]) == 0
    assert "| gelu, one image | ours graph | failed: a CUDA graph needs a GPU |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rows", "gellu"], "argument --rows: gellu: unknown; did you mean gelu?"),
        (["--forms", "fast"], "argument --forms: fast: unknown; there are: eager, compiled, graph, kernels"),
        (["--limit", "0"], "argument --limit: 0: must be a number above 0"),
        (["--limit", "nan"], "argument --limit: nan: must be a number above 0"),
        (["--limit", "x"], "argument --limit: x: must be a number above 0"),
        (["--rows", "gelu", "--image-size", "3"], "--image-size=3: too small for the net of gelu"),
        (["--regime", "nano", "--rows", "swin"], "this regime has no reference net"),
        (["--most", "0"], "must be a whole number from 1"),
    ],
)
def test_a_wrong_option_is_refused(capsys, words, told):
    assert main(["infer", "--device", "cpu", *words]) == 64
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error
