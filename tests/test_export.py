"""Nets written for other programs: what these compute with any number of images, and what is never kept."""

import json
import resource
import sys
from functools import partial

import onnx
import onnxruntime
import pytest
import torch

from roadmap.config.choices import ExportFormat, Mode
from roadmap.errors import ConfigError, ExportError, NonFiniteError, Refused
from roadmap.net import build_net
from roadmap.runs.run_dir import run_path
from roadmap.steps.compose import compose
from roadmap.steps.tree import CONF, step_tree
from roadmap.training import export as exporting
from roadmap.training.export import NOTES, export

from .drive import python
from .net_rows import drawn, images, one_thread  # noqa: F401

SUFFIX = {"onnx": ".onnx", "torch_export": ".pt2"}


def logits_of(path, batch):
    """Compute a file's net by the program that it is for."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])
    with torch.no_grad():
        return torch.export.load(path).module()(batch)


def own_lines(stderr):
    """Return what we print ourselves: torch 2.10 warns of operations that no net has."""
    return [line for line in stderr.splitlines() if "torch/onnx/_internal" not in line]


def notes_of(path):
    if path.suffix == ".onnx":
        model = onnx.load(str(path))
        onnx.checker.check_model(model, full_check=True)
        return json.loads({entry.key: entry.value for entry in model.metadata_props}[NOTES])
    found = {NOTES: ""}
    torch.export.load(path, extra_files=found)
    return json.loads(found[NOTES])


def test_a_disk_that_has_no_room_is_one_line_and_leaves_nothing(reference, tmp_path):
    """Torch's own writer ends the process there, with a dump of its memory."""
    run, out = run_path(reference("gelu")), tmp_path / "net.pt2"
    words = ("mode=export", f"weights='{run}'", "format=torch_export", f"out={out}")
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (10**6, 10**6))
    done = python("run.py", *words, preexec_fn=limit)
    assert (done.returncode, done.stderr) == (74, f"error: {out}: cannot be written (File too large)\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fmt", ["onnx", "torch_export"])
def test_a_run_is_exported_by_its_directory_alone(reference, command, tmp_path, fmt):
    config = reference("gelu")
    run, out = run_path(config), tmp_path / f"net{SUFFIX[fmt]}"
    words = ("mode=export", f"weights='{run}'", f"format={fmt}", f"out={out}")
    done = command(*words, runs=None)
    assert (done.returncode, own_lines(done.stderr)) == (0, []), done.stderr
    (line,) = done.stdout.splitlines()
    assert f"{out}, {fmt}, any number of images 3x32x32 -> 10 classes, differs from the net by" in line
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    net = build_net(config.model, 10)
    newest = max((run / "checkpoints").glob("*.pt"))
    net.load_state_dict(torch.load(newest, weights_only=True)["net"])
    for number in (1, 3, 8):
        with torch.no_grad():
            expected = net.eval()(images(number))
        torch.testing.assert_close(logits_of(out, images(number)), expected, rtol=1e-4, atol=1e-5)
    notes = notes_of(out)
    assert notes["classes"] == [str(n) for n in range(10)]
    assert (notes["mean"], notes["image_size"]) == (list(config.data.mean), 32)

    before = out.read_bytes()
    again = command(*words, runs=None)
    assert (again.returncode, len(own_lines(again.stderr))) == (78, 1)
    assert f"{out}: exists already" in again.stderr
    assert out.read_bytes() == before


@pytest.fixture
def of_file(tmp_path):
    """Return a function that exports drawn weights of a step; returns the file, and the net."""

    def call(step, fmt="torch_export", regime="nano", change=lambda weights: weights, **keys):
        config = compose(step, regime, ("recipe.layer_scale=0.1",) if step == "separate_downsampling" else ())
        net = drawn(lambda: build_net(config.model, config.data.num_classes))
        torch.save(change(net.state_dict()), tmp_path / "w.pt")
        out = tmp_path / f"net{SUFFIX[fmt]}"
        asked = {"mode": Mode.export, "weights": str(tmp_path / "w.pt"), "format": ExportFormat(fmt), "out": str(out)}
        export(config.replace(**(asked | keys)))
        return out, net, config.data.image_size

    return call


@pytest.mark.parametrize("step", ["resnet", "separate_downsampling"])
def test_the_two_ends_of_the_roadmap(of_file, step):
    out, net, size = of_file(step)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(out, images(4, size)), net(images(4, size)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fmt", ["onnx", "torch_export"])
@pytest.mark.parametrize("step", step_tree([CONF]))
def test_every_row(of_file, step, fmt):
    out, net, size = of_file(step, fmt, regime="tiny" if step == "swin" else "nano")
    with torch.no_grad():
        torch.testing.assert_close(logits_of(out, images(4, size)), net(images(4, size)), rtol=1e-4, atol=1e-4)


def test_what_differs_is_not_kept(of_file, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match=r"differs from the net by .*; nothing is kept") as caught:
        of_file("gelu")
    assert caught.value.code == 70
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"]


def test_a_net_that_cannot_be_written_is_told_in_a_line(of_file, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.GELU, "forward", lambda _, x: x if x.is_meta else torch.from_numpy(x.numpy()))
    with pytest.raises(ExportError, match="format=torch_export: this net cannot be written") as caught:
        of_file("gelu")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"]


def test_outputs_that_are_not_finite_are_not_written(of_file, tmp_path):
    with pytest.raises(NonFiniteError, match="not finite"):
        of_file("gelu", change=lambda weights: weights | {"head.weight": torch.full_like(weights["head.weight"], 3e38)})
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"]


@pytest.mark.parametrize(
    ("keys", "error", "told"),
    [
        ({"out": "net.pt"}, ConfigError, r"out=net\.pt: must end with \.pt2"),
        ({"out": "nowhere/net.pt2"}, ConfigError, "there is no folder nowhere"),
        ({"out": "/proc/self/net.pt2"}, Exception, "cannot be written"),
    ],
)
def test_where_it_cannot_lie(of_file, keys, error, told):
    with pytest.raises(error, match=told):
        of_file("gelu", **keys)


def test_a_link_to_nothing_is_a_file_too(of_file, tmp_path):
    (tmp_path / "net.pt2").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused):
        of_file("gelu")
    assert not (tmp_path / "elsewhere").exists()


def test_missing_packages_are_named_with_the_extra(of_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"format=onnx: needs onnxscript; pip install -e '\.\[export\]'"):
        of_file("gelu", "onnx")
