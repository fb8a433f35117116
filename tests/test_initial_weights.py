"""Training from weights: which run that is, what of the net they fill, and that a run which has begun needs no file."""

import hashlib
import json
import shutil
import time

import pytest
import timm
import torch
import torchvision
import yaml

from roadmap.config import Config
from roadmap.errors import ConfigError, DataError
from roadmap.net import build_net, export_weights
from roadmap.runs.progress import SweepProgress
from roadmap.runs.recorded_config import identity
from roadmap.runs.run_dir import run_path
from roadmap.runs.weights_source import name_initial_weights
from roadmap.steps.compose import compose
from roadmap.sweep.study import read_study
from roadmap.sweep.submit import run_args
from roadmap.training.initial_weights import read_initial_weights
from roadmap.training.saved_weights import Weights
from roadmap.training.train import train

from . import records
from .conftest import SMALL, small_run
from .net_rows import drawn, one_thread  # noqa: F401

FROZEN = (
    "recipe.lr=1e-12",
    "recipe.min_lr=0",
    "recipe.weight_decay=0",
)  # training leaves the parameters where they were
WARM = """defaults: [config, _self_]
study: warm
weights: w.pt
hydra: {mode: MULTIRUN, sweeper: {params: {seed: "0,1", +step: gelu}}}
"""
DIGITS = tuple(map(str, range(10)))


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def newest(config):
    return max((run_path(config) / "checkpoints").glob("*.pt"))


def log_of(config):
    return (run_path(config) / "run.log").read_text()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights of a net of 10 classes, as training code leaves it."""
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    net = drawn(lambda: build_net(compose("gelu", "nano").model, 10))
    torch.save({"model": net.state_dict(), "model_ema": {k: v * 0 for k, v in net.state_dict().items()}}, path)
    return path


class TestIdentity:
    """What a run is that starts from weights."""

    def test_is_the_weights_content_not_its_name_and_a_plain_run_keeps_its_own(self, weights, tmp_path):
        copy = tmp_path / "a copy.pt"
        shutil.copy(weights, copy)
        plain, first, same = (
            compose("gelu", "nano", words)
            for words in ((), (f"weights={weights}",), (f"weights='{copy}'", "paths.runs=elsewhere"))
        )
        assert (plain.cell, plain.initial_weights, identity(plain.values())["initial_weights"]) == ("gelu", None, None)
        assert first.cell == same.cell == f"gelu,weights={sha(weights)[:12]}"
        assert first.initial_weights == f"sha256:{sha(weights)}"
        assert identity(first.values()) == identity(same.values())
        older = plain.values()
        del older["initial_weights"], older["weights"]
        assert identity(older) == identity(plain.values())
        ema = compose("gelu", "nano", (f"weights={weights}", "weights_key=model_ema"))
        assert ema.cell == f"gelu,weights={sha(weights)[:12]}.model_ema"
        assert identity(ema.values()) != identity(first.values())
        with open(copy, "ab") as file:
            file.write(b"\0")
        assert compose("gelu", "nano", (f"weights='{copy}'",)).cell != first.cell

    def test_of_a_run_is_its_newest_whole_checkpoint(self, trained):
        config = trained("gelu")
        name = name_initial_weights(str(run_path(config)), None)
        assert name == f"sha256:{sha(newest(config))}"
        newest(config).write_bytes(newest(config).read_bytes()[:-1])
        older = sorted((run_path(config) / "checkpoints").glob("*.pt"))[-2]
        assert name_initial_weights(str(run_path(config)), None) == f"sha256:{sha(older)}"
        older.write_bytes(b"")
        with pytest.raises(DataError, match="no valid checkpoint"):
            name_initial_weights(str(run_path(config)), None)

    def test_of_a_library_is_its_name_with_the_tag(self):
        config = compose("resnet", "tiny", ("weights=torchvision:resnet50.IMAGENET1K_V2",))
        assert config.initial_weights == "torchvision:resnet50.IMAGENET1K_V2"
        assert config.cell == "resnet,weights=torchvision.resnet50.IMAGENET1K_V2"
        with pytest.raises(ConfigError, match=r"names no tag.*torchvision:resnet50\.IMAGENET1K_V1"):
            compose("resnet", "tiny", ("weights=torchvision:resnet50",))
        with pytest.raises(ConfigError, match="must be timm:NAME"):
            compose("resnet", "tiny", ("weights='timm:../x'",))

    @pytest.mark.parametrize("name", ["sha256:12", "w.pt", "timm:convnext_tiny", "sha256:" + "g" * 64])
    def test_is_no_other_text(self, weights, name):
        with pytest.raises(ConfigError, match="initial_weights="):
            compose("gelu", "nano", (f"weights={weights}", f"initial_weights='{name}'"))

    def test_belongs_to_the_cells_of_a_study_which_find_the_file_from_anywhere(self, weights, tmp_path, monkeypatch):
        file = tmp_path / "study" / "warm.yaml"
        file.parent.mkdir()
        file.write_text(WARM)
        monkeypatch.chdir(weights.parent)
        study = read_study(str(file), runs=tmp_path / "runs")
        for seed, cell in enumerate(study.cells):
            assert cell.key == f"nano-digits/gelu,weights={sha(weights)[:12]}/seed{seed}"
            args = run_args(study, cell, tmp_path)
            assert f"weights={weights}" in args
            assert f"initial_weights='sha256:{sha(weights)}'" in args
        # As the job composes them, wherever it starts, and if the file has become another one meanwhile.
        own = [word for word in args if not word.startswith(("-", "hydra", str(tmp_path)))]
        later = compose(
            "gelu", "nano", [w for w in own if w.partition("=")[0] in ("weights", "initial_weights", "seed")]
        )
        assert later.initial_weights == study.cells[1].config.initial_weights


class TestStart:
    """What training begins with."""

    def test_is_the_weights_of_a_file(self, small, weights):
        config = small("gelu", f"weights={weights}", "recipe.epochs=1", *FROZEN)
        train(config)
        given = torch.load(weights, weights_only=True)["model"]
        state = torch.load(newest(config), weights_only=True)["net"]
        for name, _ in build_net(config.model, 10).named_parameters():
            torch.testing.assert_close(state[name], given[name], rtol=0, atol=1e-6)
        (line,) = [line for line in log_of(config).splitlines() if "starts from weights=" in line]
        assert line.endswith(f"starts from weights={weights}: our own format (taken of model, not model_ema, "
                             "weights_key=NAME chooses)")  # fmt: skip
        assert (
            yaml.safe_load((run_path(config) / "config.yaml").read_text())["initial_weights"] == config.initial_weights
        )

    def test_is_a_run_with_a_head_initialised_anew_where_the_classes_differ(self, trained, small):
        source = trained("gelu")
        run = run_path(source)
        theirs = torch.load(newest(source), weights_only=True)["net"]
        config = small("gelu", f"weights='{run}'", "data=synthetic", "data.num_classes=5")
        initial = read_initial_weights(config, DIGITS[:5], run_path(config), SweepProgress())
        assert initial.note.endswith(
            ": our run after 2 of 2 epochs; the head is initialised anew, for 5 classes instead of 10"
        )
        torch.manual_seed(config.seed)
        net = build_net(config.model, 5)
        fresh = {key: value.clone() for key, value in net.state_dict().items()}
        initial.load(net)
        for key, value in net.state_dict().items():
            assert torch.equal(value, fresh[key] if key.startswith("head.") else theirs[key]), key

        def note(classes):
            return read_initial_weights(config, classes, run_path(config), SweepProgress()).note

        assert note(DIGITS).endswith("epochs")
        assert note((*DIGITS[:9], "ten")).endswith("anew, for other classes (ten instead of 9, the first)")
        recorded = Weights({}, "ours", "", of_run=True, classes=("M?ller",))  # as a record has such a name
        assert not recorded.other_class(("M\udcfcller",))

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (
                lambda w: {k: v for k, v in w.items() if k != "stages.1.block0.conv2.weight"},
                "no stages.1.block0.conv2",
            ),
            (lambda w: w | {"more.weight": torch.ones(3)}, "more.weight has no place in it (1 such keys)"),
            (lambda w: w | {"stem.conv.weight": torch.ones(5, 3, 4, 4)}, "stem.conv.weight has shape [5, 3, 4, 4]"),
            (lambda w: {k: v for k, v in w.items() if k != "head.bias"}, "no head.bias"),
            (lambda w: {"some.weight": torch.ones(3)}, "the format is unknown"),
        ],
        ids=["missing", "unexpected", "shape", "no-head", "unknown"],
    )
    def test_is_all_of_the_net_or_an_error_that_names_the_first_key(self, small, weights, tmp_path, change, told):
        torch.save(change(torch.load(weights, weights_only=True)["model"]), tmp_path / "w.pt")
        config = small("gelu", f"weights={tmp_path / 'w.pt'}")
        with pytest.raises(DataError) as caught:
            train(config)
        assert told in str(caught.value)
        assert str(caught.value).startswith(f"weights={tmp_path / 'w.pt'}: ")
        assert not run_path(config).exists()

    def test_is_refused_where_the_file_has_become_another(self, small, weights, tmp_path):
        shutil.copy(weights, tmp_path / "w.pt")
        config = small("gelu", f"weights={tmp_path / 'w.pt'}")
        with open(tmp_path / "w.pt", "ab") as file:
            file.write(b"\0")
        with pytest.raises(DataError, match=r"are sha256:\w+, and the run is one from sha256:"):
            train(config)

    def test_is_the_same_for_a_moving_average_and_on_every_rank(self, command, weights, tmp_path):
        words = (*SMALL, f"weights={weights}", "recipe.epochs=1", "recipe.ema_decay=0.5", *FROZEN)
        for devices, runs in (("1", tmp_path / "one"), ("2", tmp_path / "two")):
            more = ("recipe.micro_batch=16", "wandb.mode=disabled")
            done = command("+step=gelu", f"devices={devices}", *more, *words, runs=runs)
            assert done.returncode == 0, done.stderr
        given = torch.load(weights, weights_only=True)["model"]
        for path in tmp_path.glob("*/single/*/*/seed0/checkpoints/*.pt"):
            saved = torch.load(path, weights_only=True)
            torch.testing.assert_close(saved["net"]["stem.conv.weight"], given["stem.conv.weight"], rtol=0, atol=1e-6)
            torch.testing.assert_close(saved["ema"]["module.stem.conv.weight"], given["stem.conv.weight"])


class TestGoingOn:
    """A run that was stopped holds all that it needs."""

    def test_needs_the_weights_no_more(self, command, small, weights, tmp_path):
        shutil.copy(weights, tmp_path / "w.pt")
        word = f"weights={tmp_path / 'w.pt'}"
        whole = small_run(tmp_path / "whole", "gelu", word)
        train(whole)
        config = small("gelu", word)
        with records.stopped_at(4):
            train(config)
        (tmp_path / "w.pt").unlink()
        words = ("+step=gelu", *SMALL, "wandb.mode=disabled", word)
        gone = command(*words)
        assert gone.returncode == 65
        (line,) = gone.stderr.splitlines()
        assert "set initial_weights= as in its config.yaml to continue" in line
        done = command(*words, f"initial_weights={config.initial_weights}")
        assert done.returncode == 0, done.stderr
        records.assert_equal_runs(config, whole)
        again = command(*words, f"initial_weights={config.initial_weights}")
        assert (again.returncode, again.stdout) == (0, done.stdout)
        # Scoring it asks for the run alone.
        scored = command("mode=evaluate", f"weights='{run_path(config)}'", runs=None)
        assert scored.returncode == 0, scored.stderr
        top1 = json.loads((run_path(config) / "summary.json").read_text())["top1"]
        assert f"top-1 {top1:.2f} %" in scored.stdout

    def test_but_a_start_anew_does(self, small, weights, tmp_path):
        shutil.copy(weights, tmp_path / "w.pt")
        config = small("gelu", f"weights={tmp_path / 'w.pt'}")
        with records.stopped_at(4):
            train(config)
        (tmp_path / "w.pt").unlink()
        with pytest.raises(DataError, match="there is no such file"):
            train(config.replace(fresh=True))


def timm_cache(folder, name, net):
    """Put weights where timm finds those that it has fetched before."""
    place = folder / f"models--timm--{name}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    from safetensors.torch import save_file

    save_file(net.state_dict(), place / "snapshots" / ("0" * 40) / "model.safetensors")


def instead(config, weights):
    return config.replace(weights=weights, initial_weights=weights)


class TestLibraries:
    """Weights that a library fetches: from its own cache here, since nothing is fetched in a test."""

    def read(self, config: Config, classes):
        return read_initial_weights(config, classes, run_path(config), SweepProgress())

    def test_timms(self, monkeypatch, tmp_path):
        from huggingface_hub import constants

        theirs = drawn(lambda: timm.create_model("convnext_atto"))
        timm_cache(tmp_path, "convnext_atto.d2_in1k", theirs)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
        net = ("model.depths=[2,2,6,2]", "model.width=40", "recipe.layer_scale=1e-6")
        words = ("weights=timm:convnext_atto.d2_in1k", *net, f"paths.runs={tmp_path}")
        config = compose("separate_downsampling", "nano", words)
        initial = self.read(config, DIGITS)
        assert (
            "timm:convnext_atto.d2_in1k, timm format; the head is initialised anew, for 10 classes instead of 1000"
            in initial.note
        )
        ours = build_net(config.model, 10)
        initial.load(ours)
        loaded = export_weights(ours, "timm")
        for key, value in theirs.state_dict().items():
            assert key.startswith("head.fc.") or torch.equal(loaded[key].flatten(), value.flatten()), key
        began = time.monotonic()
        with pytest.raises(
            DataError, match=r"timm:convnext_femto\.d1_in1k: cannot be fetched \(http://127.0.0.1:9: .*ref"
        ):
            self.read(instead(config, "timm:convnext_femto.d1_in1k"), DIGITS)
        assert time.monotonic() - began < 30  # asked once: its library asks for a minute
        for wrong, told in (
            ("timm:convnext_ato.d2_in1k", "did you mean convnext_atto.d2_in1k"),
            ("timm:resnetblur50.bt_in1k", "is not a net of the roadmap"),  # its keys and shapes are ResNet-50's
            ("timm:convnext_xxlarge.clip_laion2b_soup_ft_in1k", "is not a net of the roadmap"),
        ):
            with pytest.raises(ConfigError, match=told):
                self.read(instead(config, wrong), DIGITS)

    def test_torchvisions(self, monkeypatch, tmp_path):
        known = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
        theirs = drawn(lambda: torchvision.models.resnet50())
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        torch.save(theirs.state_dict(), folder / known.url.rpartition("/")[2])
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        words = (f"weights=torchvision:resnet50.{known.name}", f"paths.runs={tmp_path}")
        config = compose("resnet", "tiny", words)
        initial = self.read(config, DIGITS)
        assert torch.equal(initial.tensors["stages.3.block2.conv3.weight"], theirs.layer4[2].conv3.weight)
        assert "head.weight" not in initial.tensors
        assert "head.weight" in self.read(config, tuple(map(str, range(1000)))).tensors
        for wrong, told in (
            ("resnet50.IMAGENET1K_V9", "IMAGENET1K_V2"),
            ("resnet51.IMAGENET1K_V1", "did you mean resnet50"),
        ):
            with pytest.raises(ConfigError, match=told):
                self.read(instead(config, f"torchvision:{wrong}"), DIGITS)

    def test_a_default_is_named_with_its_tag(self, command):
        for library, net, tag in (
            ("torchvision", "resnet50", torchvision.models.ResNet50_Weights.DEFAULT.name),
            ("timm", "convnext_atto", timm.models.get_pretrained_cfg("convnext_atto").tag),
        ):
            done = command("+step=gelu", f"weights={library}:{net}", "dry=true")
            assert done.returncode == 0, done.stderr
            assert f"cell: gelu,weights={library}.{net}.{tag}\n" in done.stdout
        for wrong in ("torchvision:resnet5", "timm:convnext_ato"):
            done = command("+step=gelu", f"weights={wrong}", "dry=true")
            assert (done.returncode, len(done.stderr.splitlines())) == (64, 1)
            assert "did you mean" in done.stderr
