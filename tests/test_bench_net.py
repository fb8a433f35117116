"""`python -m roadmap.bench net` and `mini`: rows, candidates, record; the peers are the same nets; wrong names."""

import gc
import json
import re
import statistics
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch

from roadmap.bench.__main__ import BENCHMARKS, main
from roadmap.bench.bound import Rates, step_work
from roadmap.bench.forms import FORMS, training_step
from roadmap.bench.measure import Candidate
from roadmap.bench.mini import extrapolated
from roadmap.bench.net import net_options
from roadmap.bench.options import LIBRARIES
from roadmap.bench.peers import NETS, has_net, peer_net
from roadmap.bench.rows import Setting, row_configs
from roadmap.config.choices import Precision
from roadmap.errors import ConfigError
from roadmap.net import build_net
from roadmap.steps.compose import compose

DROPS = ("DropPath", "StochasticDepth")
OURS = ["ours eager", "ours kernels"]
SMALL = ("--device", "cpu", "--batch", "2", "--image-size", "32", "--repeats", "3", "--warm-up", "1")


@pytest.fixture(autouse=True)
def rates(monkeypatch):
    """Take the device's rates as given: test_bench_bound measures them."""
    monkeypatch.setattr("roadmap.bench.net.measured_rates", lambda device, precision: Rates(1e11, 1e10))


def test_a_library_that_is_not_installed_is_named_and_left_out(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "timm", None)
    words = ("net", "--regime", "nano", "--rows", "separate_downsampling", "--forms", "eager", *SMALL)
    assert main([*words]) == 0
    found = capsys.readouterr().out
    assert "not installed, and left out: timm\n" in found and "torchvision eager" in found and "timm eager" not in found
    assert main([*words, "--peer", "timm"]) == 64
    assert capsys.readouterr().err == "error: --peer=timm: is not installed\n"


def test_rows_and_candidates_are_measured_and_recorded(tmp_path, capsys):
    file = tmp_path / "net.json"
    assert main(["net", "--regime", "nano", "--rows", "resnet,separate_downsampling", *SMALL, "--json", str(file)]) == 0
    record = json.loads(file.read_text())
    assert [row["row"] for row in record["rows"]] == ["resnet", "separate_downsampling"]
    first, last = record["rows"]
    assert [entry["candidate"] for entry in first["candidates"]] == OURS  # a narrow ResNet is in no other library
    assert [entry["candidate"] for entry in last["candidates"]] == [*OURS, "timm eager", "torchvision eager"]
    for row in record["rows"]:
        for entry in row["candidates"]:
            assert entry["failed"] is None
            assert len(entry["times_s"]) == 3
            assert entry["images_per_s"] == pytest.approx(2 / statistics.median(entry["times_s"]))
            bound = min(row["bounds_images_per_s"].values())
            assert entry["share_of_bound"] == pytest.approx(entry["images_per_s"] / bound)
            assert entry["peak_memory_gb"] is None or entry["peak_memory_gb"] < 2
    assert first["against_best_peer"] is None
    assert last["against_best_peer"]["peer"] in ("timm eager", "torchvision eager")
    taken = {"rows": ["resnet", "separate_downsampling"], "batch": 2, "image_size": 32, "precision": "fp32"}
    assert taken.items() <= record["settings"].items()
    assert record["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert record["hardware"]["device"] == "cpu" and record["rates"]["flop_per_s"] > 0
    assert {"date", "git_commit", "command"} <= record.keys()
    told = capsys.readouterr().out
    assert "n = 3, in turn" in told and f"torch {torch.__version__.split('+')[0]}" in told
    line = r"(?m)^\| \w+ \| (?:ours|timm|torchvision) (?:eager|kernels) \| [\d.,]+ \|"
    assert len(re.findall(line, told)) == 6
    beside = r"(?m)^separate_downsampling: ours (?:eager|kernels) is [\d.]+ \([\d.]+ to [\d.]+\) x as fast as"
    assert re.search(beside, told)


def test_a_peer_that_has_another_net_is_shown_and_the_rest_is_measured(tmp_path, capsys):
    file = tmp_path / "net.json"
    words = ["--regime", "tiny", "--rows", "swin", "--peer", "timm", *SMALL, "--repeats", "1", "--json", str(file)]
    assert main(["net", *words]) == 0  # on a small image timm's Swin has smaller windows
    ours, _, theirs = json.loads(file.read_text())["rows"][0]["candidates"]
    assert ours["failed"] is None
    assert theirs["failed"].startswith("timm has another net for swin: ")
    assert "| swin | timm eager | failed: timm has another net" in capsys.readouterr().out


def test_a_captured_step_is_the_eager_one_on_the_batch_that_is_given():
    config = compose("gelu", "nano")
    setting = Setting(torch.device("cpu"), Precision.fp32, 2, 32, 10)
    weights = []
    for capture in (None, lambda step: (SimpleNamespace(replay=step), None)):
        nets = []

        def build(nets=nets):
            nets.append(build_net(config.model, 10))
            return nets[-1]

        step = training_step(build, config, setting, capture=capture)
        for seed in range(2):
            step(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)), torch.tensor([seed, 3]))
        weights.append(nets[0].head.weight.detach())
    assert torch.allclose(*weights, atol=1e-4)  # a step moves a weight by 2e-3; the rate is float32 in a graph
    assert not torch.equal(weights[0], build_net(config.model, 10).head.weight)
    with pytest.raises(ConfigError, match="a CUDA graph needs a GPU"):
        FORMS["graph"](build, config, setting)


def test_a_captured_step_keeps_the_net_in_whose_memory_its_graph_works():
    setting, nets = Setting(torch.device("cpu"), Precision.fp32, 2, 32, 10), []

    def build():
        net = build_net(compose("gelu", "nano").model, 10)
        nets.append(weakref.ref(net))
        return net

    graph = SimpleNamespace(replay=lambda: None)  # as a GPU's, it knows addresses alone
    step = training_step(build, compose("gelu", "nano"), setting, capture=lambda step: (graph, step()))
    gc.collect()
    assert nets[0]() is not None
    del step
    gc.collect()
    assert nets[0]() is None


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a busy machine compiles for minutes
def test_a_compiled_net_is_measured_too(tmp_path):
    file = tmp_path / "net.json"
    words = ("--regime", "nano", "--rows", "gelu", "--forms", "eager,compiled", *SMALL, "--json", str(file))
    assert main(["net", *words]) == 0
    entries = json.loads(file.read_text())["rows"][0]["candidates"]
    assert {entry["candidate"]: entry["failed"] for entry in entries} == {"ours eager": None, "ours compiled": None}


@pytest.mark.parametrize(("library", "step"), NETS)
def test_a_peer_has_the_net_of_the_row(library, step):
    config = compose(step, "tiny")
    assert has_net(library, step, config.model)
    net = peer_net(library, step, config.model, 1000, 224)
    drops = [module for module in net.modules() if type(module).__name__ in DROPS]
    rates = [drop.drop_prob if library == "timm" else drop.p for drop in drops]
    assert max(rates, default=0.0) == pytest.approx(config.model.drop_path)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_convnext_for_small_images_has_our_stem_and_our_macs(library):
    config = compose("separate_downsampling", "mini")
    with torch.device("meta"):
        nets = peer_net(library, config.step, config.model, 10, 48), build_net(config.model, 10)
    theirs, ours = (step_work(net, 2, 48, config.recipe, Precision.fp32) for net in nets)
    assert theirs == ours
    assert not has_net(library, "resnet", compose("resnet", "tiny", ["model.stem_stride=2"]).model)


def test_a_peer_with_another_stem_is_refused():
    config = compose("separate_downsampling", "nano", ["model.stem=resnet"])
    told = r"torchvision has another net for separate_downsampling: [0-9,]+ parameters, ours has"
    with pytest.raises(ConfigError, match=told):
        peer_net("torchvision", config.step, config.model, 10, 32)


@pytest.mark.parametrize(("regime", "rows"), [("nano", 17), pytest.param("tiny", 18, marks=pytest.mark.slow)])
def test_every_row_of_a_regime_is_measured_by_default(regime, rows):
    options = net_options("net", None)
    assert len(row_configs(options.parse_args(["--regime", regime]))) == rows


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--regime", "tinny"], "regime=tinny: there is no such regime"),
        (["--rows", "gelu,gellu"], "argument --rows: gellu: unknown; did you mean gelu?"),
        (["--peer", "keras"], "argument --peer: keras: unknown; there are: timm, torchvision, none"),
        (["--peer", "none", "--peer", "timm"], "--peer=none: excludes every other"),
        (["--forms", "swift"], "argument --forms: swift: unknown; there are: eager, compiled, graph, kernels, fast"),
        (["--rows", ""], "argument --rows: '': names none; there are: resnet, "),
        (["--rows", ","], "argument --rows: ',': names none; there are: resnet, "),
        (["--peer", ""], "argument --peer: '': names none; there are: timm, torchvision, none"),
        (["--batch", "0"], "argument --batch: 0: must be a whole number from 1"),
        (["--repeats", "x"], "argument --repeats: x: must be a whole number from 1"),
        (["--regime", "nano", "--rows", "swin"], "this regime has no reference net"),
        (["--rows", "swin", "--image-size", "3"], "--image-size=3: too small for the net of swin"),
        (["--regime", "nano", "--rows", "resnet", "--without-ours"], "nothing could be measured; no library has such"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_refused(capsys, words, told):
    assert main(["net", "--device", "cpu", *words]) == 64
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error


def test_the_help_of_mini_has_the_batch_and_the_size_that_it_takes(capsys):
    with pytest.raises(SystemExit):
        main(["mini", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "pixels; default: 48" in text
    assert "images; default: 512" in text


def test_mini_extrapolates_from_what_it_measured(tmp_path, capsys):
    study = ("--seeds", "2", "--epochs", "5", "--images", "1000", "--json", str(tmp_path / "mini.json"))
    assert main(["mini", "--rows", "separate_downsampling", *SMALL, *study, "--peer", "none"]) == 0
    out = capsys.readouterr().out
    speed = json.loads((tmp_path / "mini.json").read_text())["rows"][0]["candidates"][0]["images_per_s"]
    minutes = re.search(r"ours eager would train 1 rows x 2 seeds, 10,000 images a row in all, in ([\d.]+) min", out)
    assert float(minutes[1]) == pytest.approx(10_000 / speed / 60, abs=0.051)


def test_extrapolation_adds_up_the_rows_of_a_form_and_leaves_out_what_failed():
    def candidate(name, times_s=(), peer=None, failed=None):
        return Candidate(name, 10, lambda: lambda: None, peer, list(times_s), failed=failed)

    failed, theirs = candidate("ours compiled", failed="no"), candidate("timm eager", [9.0], "timm")
    rows = {
        "a": [candidate("ours eager", [1.0]), failed, theirs],
        "b": [candidate("ours eager", [5.0]), candidate("ours compiled", [1.0])],
    }
    eager, compiled = extrapolated(rows, 600, 3)
    assert "ours eager would train 2 rows x 3 seeds, 600 images a row in all, in 6.0 minutes" in eager
    assert compiled == "ours compiled: 1 of 2 rows could not be measured: nothing to extrapolate"


def test_a_benchmark_that_there_is_not_is_refused(capsys):
    assert main(["nte"]) == 64
    assert "nte: there is no such benchmark; allowed: net, nets, infer, input, train, mini" in capsys.readouterr().err


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_option_that_a_benchmark_does_not_know_is_a_wrong_command(name, capsys):
    needed = ["--out=DIR"] if name == "nets" else []
    assert main([name, *needed, "--nonesuch"]) == 64
    assert "--nonesuch" in capsys.readouterr().err
