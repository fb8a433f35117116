"""Weights as other people's training code leaves them: found wherever they lie, and nothing but tensors is read."""

import argparse
import collections
import datetime
import enum
import os
import pathlib
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from roadmap.errors import DataError, OutOfMemory
from roadmap.net import build_net, export_weights, load_weights
from roadmap.net.find_weights import find_weights
from roadmap.net.weights_file import read_weights_file
from roadmap.training.evaluation import evaluate_weights

from .conftest import Trap
from .net_rows import drawn, rows

NET = rows("toy")["separate_downsampling"].replace(layer_scale=1e-6)


@pytest.fixture(scope="module")
def net():
    return drawn(lambda: build_net(NET, 3))


@pytest.fixture(scope="module")
def theirs(net):
    return {fmt: export_weights(net, fmt) for fmt in ("official", "timm", "torchvision")} | {
        "our own": net.state_dict()
    }


def before(prefix, weights):
    return {prefix + key: value for key, value in weights.items()}


def inside(wrapper, weights):
    """Put a word behind the first dot of every key, as FSDP and others do."""
    return {key.replace(".", f".{wrapper}.", 1): value for key, value in weights.items()}


def saved(tmp_path, what, **how):
    torch.save(what, tmp_path / "w.pth", **how)
    return find_weights(read_weights_file(tmp_path / "w.pth"))


def same_net(found, net):
    other = build_net(NET, 3)
    load_weights(other, found.tensors)
    return all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), net.state_dict().values(), strict=True))


WRAPPED = {
    "the authors' main.py": lambda w: {"model": w["official"], "epoch": 3, "scaler": {}},
    "timm": lambda w: {"state_dict": w["timm"], "arch": "convnext_tiny", "metric": 77.0},
    "torchvision's reference": lambda w: {"model": w["torchvision"], "lr_scheduler": {"last_epoch": 3}},
    "an average alone": lambda w: {"model_ema": w["official"]},
    "timm's average alone": lambda w: {"state_dict_ema": w["timm"]},
    "model_state_dict": lambda w: {"model_state_dict": w["our own"], "loss": torch.tensor(0.3)},
    "in three containers": lambda w: {"checkpoint": {"student": {"weights": w["timm"]}}},
    "DDP": lambda w: before("module.", w["official"]),
    "compiled": lambda w: before("_orig_mod.", w["timm"]),
    "DDP, compiled": lambda w: {"state_dict": before("module._orig_mod.", w["timm"])},
    "compiled, DDP": lambda w: {"model": before("_orig_mod.module.", w["official"])},
    "Lightning": lambda w: {"state_dict": before("net.", w["timm"]), "pytorch-lightning_version": "2.5"},
    "Lightning, compiled": lambda w: {"state_dict": before("model._orig_mod.", w["torchvision"])},
    "a backbone": lambda w: {"state_dict": before("backbone.", w["official"])},
    "AveragedModel": lambda w: {"n_averaged": torch.tensor(3), **before("module.", w["our own"])},
    "FSDP": lambda w: inside("_fsdp_wrapped_module", w["official"]),
    "blocks compiled one by one": lambda w: inside("_orig_mod", w["timm"]),
    "a number among the tensors": lambda w: w["timm"] | {"epoch": 3},
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("archive", [True, False], ids=["zip", "before-1.6"])
def test_tensors_are_found_wherever_training_code_puts_them(tmp_path, net, theirs, kind, archive):
    optimizer = torch.optim.AdamW(net.parameters()).state_dict()
    optimizer["state"] = {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(4, 4)}}
    made = WRAPPED[kind](theirs)
    made = made if any(isinstance(v, torch.Tensor) for v in made.values()) else {"optimizer": optimizer} | made
    found = saved(tmp_path, made, _use_new_zipfile_serialization=archive)
    assert same_net(found, net)
    assert found.origin == f"{found.fmt} format"


class Colour(enum.Enum):
    RED = 1


class AttributeDict(dict):
    """As Lightning's: a dictionary of its own class, pickled as such."""


def test_what_lies_beside_the_tensors_is_passed_over_without_its_code(tmp_path, theirs, monkeypatch):
    """The classes are gone when the file is read: none of them is looked up."""
    module = type(sys)("their_training_code")
    for name in ("Args", "AttributeDict", "Colour"):
        made = type(name, (dict if name == "AttributeDict" else object,), {"__module__": "their_training_code"})
        setattr(module, name, made)
    monkeypatch.setitem(sys.modules, "their_training_code", module)
    args, settings = module.Args(), module.AttributeDict(lr=1e-3, model_ema=theirs["official"])
    args.lr, args.nested = 1e-3, {"paths": [pathlib.PurePosixPath("/data")]}
    beside = {
        "args": argparse.Namespace(lr=1e-3, output_dir=pathlib.PurePosixPath("out"), more=argparse.Namespace(x=[1])),
        "config": OmegaConf.create({"lr": 1e-3, "list": [1, 2], "nested": {"a": None}}),
        "best": np.float64(77.0),
        "history": np.arange(4),
        "when": datetime.datetime(2026, 1, 1),
        "counts": collections.defaultdict(list, {"a": [1]}),
        "ordered": collections.OrderedDict(a=1),
        "their args": args,
        "hyper_parameters": settings,
        "size": torch.Size([1, 2]),
        Colour.RED: Colour.RED,
    }
    torch.save(beside | {"state_dict": theirs["timm"]}, tmp_path / "w.pth")
    monkeypatch.delitem(sys.modules, "their_training_code")
    monkeypatch.setattr(argparse.Namespace, "__init__", pytest.fail)
    found = find_weights(read_weights_file(tmp_path / "w.pth"))
    assert (found.name, found.fmt, found.others) == ("state_dict", "timm", ("hyper_parameters.model_ema",))
    assert "their_training_code" not in sys.modules


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda marker: Trap(os.system, f"touch {marker}"), "system"),
        (lambda marker: Trap(subprocess.check_output, ["touch", str(marker)]), "check_output"),
        (lambda marker: Trap(exec, f"open({str(marker)!r}, 'w')"), "exec"),
        (lambda marker: Trap(eval, f"open({str(marker)!r}, 'w')"), "eval"),
        (lambda marker: Trap(pathlib.Path.touch, marker), "getattr"),
    ],
    ids=["os", "subprocess", "exec", "eval", "method"],
)
@pytest.mark.parametrize("archive", [True, False], ids=["zip", "before-1.6"])
def test_a_file_that_runs_something_is_refused_by_name_and_nothing_runs(tmp_path, theirs, call, name, archive):
    marker = tmp_path / "marker"
    with pytest.raises(DataError, match=rf"refused: it asks for \S*{name}") as raised:
        saved(tmp_path, {"args": call(marker), "model": theirs["timm"]}, _use_new_zipfile_serialization=archive)
    assert not marker.exists()
    assert "\n" not in str(raised.value)
    torch.load(tmp_path / "w.pth", weights_only=False)  # the test can fail: read without care, it runs
    assert marker.exists()


def test_a_file_that_names_thousands_of_classes_is_refused_at_once(tmp_path):
    classes = {i: type(f"C{i}", (), {"__module__": "tests.test_weights_file"})() for i in range(300)}
    for each in classes.values():
        globals()[type(each).__name__] = type(each)
    with pytest.raises(DataError, match=r"refused: it asks for tests\.test_weights_file\.C"):
        saved(tmp_path, classes)


def test_an_archive_that_holds_more_than_its_size_is_refused_unread(tmp_path, theirs):
    torch.save(theirs["timm"], tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "w.pth", "w") as bomb:
        for each in plain.infolist():
            kind = zipfile.ZIP_DEFLATED if each.filename.endswith("data.pkl") else zipfile.ZIP_STORED
            bomb.writestr(each.filename, plain.read(each), kind)
    with pytest.raises(DataError, match=r"refused: \S*data\.pkl in it is compressed"):
        read_weights_file(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_a_file_that_memory_is_too_small_for_is_not_damaged(tmp_path, theirs, monkeypatch):
    torch.save(theirs, tmp_path / "net.pth")

    def load(*_, **__):
        raise MemoryError

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(OutOfMemory, match=r"net\.pth: memory is too small to read it"):
        read_weights_file(tmp_path / "net.pth")


def test_a_tensor_of_tensors_is_none_of_the_nets(tmp_path, theirs):
    key = "stages.0.blocks.0.mlp.fc1.weight"
    nested = theirs["timm"] | {key: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}
    torch.save(nested, tmp_path / "w.pth")
    with pytest.raises(
        DataError, match=rf"{key} is not a (plain tensor with values: nested|tensor, but of type .*nested)"
    ):
        load_weights(build_net(NET, 3), read_weights_file(tmp_path / "w.pth"))


def test_thousands_of_nets_in_one_container_are_refused_at_once():
    began = time.process_time()
    with pytest.raises(DataError, match="hold 20000 nets in one container, at most 100"):
        find_weights({f"net{n}.layer1.0.conv1.weight": torch.ones(1) for n in range(20_000)})
    assert time.process_time() - began < 5


SEVERAL = {
    "the authors': an average first": (
        lambda w: {"model_ema": dict(w["official"]), "model": w["official"]},
        ("model", "model_ema"),
    ),
    "timm": (lambda w: {"state_dict": w["timm"], "state_dict_ema": dict(w["timm"])}, ("state_dict", "state_dict_ema")),
    "two nets in one container": (
        lambda w: {"state_dict": before("ema_net.", w["timm"]) | before("net.", w["timm"])},
        ("state_dict.net", "state_dict.ema_net"),
    ),
    "averages alone": (lambda w: {"ema": w["timm"], "swa": dict(w["timm"])}, ("ema", "swa")),
    "formats": (lambda w: {"a": w["timm"], "b": w["official"]}, ("a", "b")),
    "another inside": (lambda w: w["timm"] | {"teacher": dict(w["timm"])}, ("", "teacher")),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_of_several_one_is_taken_and_said_and_a_name_chooses(net, theirs, kind):
    make, (taken, other) = SEVERAL[kind]
    made = make(theirs)
    found = find_weights(made)
    assert (found.name, found.others) == (taken, (other,))
    assert f"taken of {taken or 'the top'}, not {other}, weights_key=NAME chooses" in found.origin
    chosen = find_weights(made, other)
    assert (chosen.name, chosen.others) == (other, (taken,))
    assert same_net(found, net)
    assert same_net(chosen, net)
    with pytest.raises(DataError, match=rf"hold no weights nothing \(weights_key\).*{taken}"):
        find_weights(made, "nothing")


def test_tensors_beside_the_net_are_named(net, theirs):
    found = find_weights({"state_dict": before("net.", theirs["timm"]) | {"loss.weight": torch.ones(3)}})
    assert found.origin == "timm format (taken, 1 other tensors not read, loss.weight the first)"
    assert same_net(found, net)


def test_keys_that_would_become_one_stay_apart(theirs):
    weights = theirs["timm"]
    twice = weights | {f"_orig_mod.{key}": value + 1 for key, value in weights.items()}
    found = find_weights(twice)
    assert found.others == ("_orig_mod",)
    assert torch.equal(found.tensors["head.fc.bias"], weights["head.fc.bias"])


def test_containers_that_hold_themselves_are_read_once(theirs):
    loop = {"model": theirs["timm"]}
    loop["self"] = loop
    assert find_weights(loop).name == "model"


@pytest.mark.parametrize(
    ("keys", "nearest"),
    [
        (("stem.weight", "blocks.0.dwconv.weight", "downsample_layers.1.weight", "head.weight"), "official"),
        (("layers.0.blocks.0.attn.qkv.weight", "patch_embed.proj.weight"), "torchvision swin"),
        (("layer1.0.left.weight", "layer2.0.left.weight"), "torchvision resnet"),
    ],
)
def test_an_unknown_format_is_refused_with_its_first_keys_and_the_nearest_one(keys, nearest):
    with pytest.raises(DataError) as raised:
        find_weights({"optimizer": {"x": torch.ones(1)}, "model": dict.fromkeys(keys, torch.ones(2)) | {"epoch": 3}})
    said = str(raised.value)
    assert f"{len(keys) + 1} keys in model: {keys[0]}, {keys[1]}" in said
    assert f"the nearest is {nearest}, which has " in said
    assert "\n" not in said


def test_scoring_says_what_it_took_and_the_setting_chooses(small, tmp_path):
    config = small("gelu", "mode=evaluate", f"weights={tmp_path / 'w.pt'}")
    weights = [drawn(lambda: build_net(config.model, 10), seed).state_dict() for seed in (0, 1)]
    torch.save(
        {"state_dict_ema": weights[1], "state_dict": weights[0], "args": argparse.Namespace(x=1)}, tmp_path / "w.pt"
    )
    scored = [evaluate_weights(config.replace(weights_key=key)) for key in (None, "state_dict", "state_dict_ema")]
    assert scored[0].result.loss == scored[1].result.loss != scored[2].result.loss
    assert scored[0].origin == "our own format (taken of state_dict, not state_dict_ema, weights_key=NAME chooses)"
    assert scored[2].origin == "our own format (taken of state_dict_ema, not state_dict, weights_key=NAME chooses)"


def test_the_average_of_a_run_is_scored_by_its_name(reference):
    from roadmap.runs.metrics import read_metrics
    from roadmap.runs.run_dir import run_path

    config = reference("gelu", "recipe.ema_decay=0.5")
    rows = [row for row in read_metrics(run_path(config) / "metrics.jsonl").rows if row["kind"] == "val"]
    scored = evaluate_weights(config.replace(mode="evaluate", weights=str(run_path(config)), weights_key="ema"))
    assert scored.result.top1 == rows[-1]["val/ema_top1"]
    assert "ema and not net (weights_key=NAME chooses)" in scored.origin
