"""Scoring weights: the counts of other code's own nets, a run's own result, and nothing but tensors out of a file."""

import copy
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from torchvision import transforms as T

from roadmap.config.choices import Mode, Precision
from roadmap.config.images import DataConfig
from roadmap.data import datasets
from roadmap.data.transforms import eval_transform
from roadmap.errors import ConfigError, DataError, NonFiniteError
from roadmap.files import read_json
from roadmap.net import build_net, export_weights, load_weights
from roadmap.net.library_weights import published_evaluation
from roadmap.runs.metrics import read_metrics
from roadmap.runs.run_dir import run_path
from roadmap.runs.weights_source import library_weights
from roadmap.steps.compose import compose
from roadmap.steps.unused_settings import unused_settings
from roadmap.training.evaluation import Evaluation, evaluate_weights, result_line
from roadmap.training.predict import predict
from roadmap.training.saved_weights import evaluation_note
from roadmap.training.train import train

from .conftest import Trap
from .net_rows import blank, drawn, one_thread  # noqa: F401
from .records import newest
from .test_data_sets import write_idx

CLASSES, EACH = 7, 4
LAST = "separate_downsampling"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BICUBIC, BILINEAR = T.InterpolationMode.BICUBIC, T.InterpolationMode.BILINEAR


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Coloured noise in several sizes and shapes, 7 classes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(3)
    for split, count in (("train", 1), ("val", EACH)):
        for label in range(CLASSES):
            place = root / split / f"class{label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
                size = (int(rng.integers(70, 300)), int(rng.integers(70, 300)))
                Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(place / f"{number}.png")
    return root


def of_folder(folder, step, *words, regime="tiny"):
    words = ("data=imagefolder", f"data.root={folder}", "data.workers=0", "mode=evaluate", "device=cpu", *words)
    return compose(step, regime, words)


def prepared(folder, resize, crop, mode):
    """Return the validation images as torchvision's transforms make them, and the labels."""
    steps = T.Compose([T.Resize(resize, mode), T.CenterCrop(crop), T.ToTensor(), T.Normalize(MEAN, STD)])
    pairs = list(torchvision.datasets.ImageFolder(str(folder / "val"), steps))
    return torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])


@torch.no_grad()
def counted(net, pairs):
    """Return top-1 and top-5 (percent), the loss and which images are right, one image after the other."""
    first, five, losses = [], [], []
    for image, label in zip(pairs[0], pairs[1].tolist(), strict=True):
        logits = net(image[None])[0]
        ranks = logits.argsort(descending=True).tolist()
        first.append(ranks[0] == label)
        five.append(label in ranks[:5])
        losses.append(cross_entropy(logits, torch.tensor(label)).item())
    top1, top5 = (100 * sum(right) / len(right) for right in (first, five))
    return top1, top5, sum(losses) / len(losses), first


@torch.no_grad()
def varied(net, bias, pairs):
    """Let a net with drawn weights choose among all classes: without it one class is chosen for every image."""
    bias -= net(pairs[0]).mean(0)
    assert len(net(pairs[0]).argmax(1).unique()) > 2
    return net


def agrees(scored, expected):
    top1, top5, loss, correct = expected
    assert 0 < top1 < top5 < 100
    assert (scored.result.top1, scored.result.top5) == (top1, top5)
    assert scored.result.correct.tolist() == correct
    assert scored.result.loss == pytest.approx(loss, rel=1e-4)
    assert scored.precision == Precision.fp32


def torchvisions(name):
    return drawn(lambda: getattr(torchvision.models, name)(num_classes=CLASSES))


def timms_convnext():
    return drawn(lambda: timm.create_model("convnext_tiny", num_classes=CLASSES))


@pytest.mark.parametrize(
    ("step", "build", "head", "mode", "origin"),
    [
        ("resnet", lambda: torchvisions("resnet50"), "fc", BILINEAR, "torchvision resnet format"),
        (LAST, lambda: torchvisions("convnext_tiny"), "classifier.2", BICUBIC, "torchvision convnext format"),
        (LAST, timms_convnext, "head.fc", BICUBIC, "timm format"),
        ("swin", lambda: torchvisions("swin_t"), "head", BICUBIC, "torchvision swin format"),
    ],
    ids=["torchvision-resnet50", "torchvision-convnext", "timm-convnext", "torchvision-swin"],
)
def test_published_weights_count_as_in_their_own_net(folder, tmp_path, step, build, head, mode, origin):
    theirs, pairs = build(), prepared(folder, 73, 64, mode)
    varied(theirs, theirs.get_submodule(head).bias, pairs)
    file = tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), file)
    config = of_folder(folder, step, "data.image_size=64", "data.resize_size=73", f"weights={file}")
    scored = evaluate_weights(config)
    expected = counted(theirs, pairs)
    agrees(scored, expected)
    right = sum(expected[3])
    line = result_line(config, scored)
    for part in (
        step, f"top-1 {expected[0]:.2f} %", f"top-5 {expected[1]:.2f} %", f"{right}/{CLASSES * EACH} images right",
        origin, "fp32", str(file),
    ):  # fmt: skip
        assert part in line
    assert [p.name for p in tmp_path.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize("wrap", ["official", "safetensors"])
def test_official_files_and_safetensors_count_as_timms_net(folder, tmp_path, wrap):
    theirs, pairs = timms_convnext(), prepared(folder, 73, 64, BICUBIC)
    varied(theirs, theirs.head.fc.bias, pairs)
    file = tmp_path / ("weights.safetensors" if wrap == "safetensors" else "weights.pth")
    config = of_folder(folder, "separate_downsampling", "data.image_size=64", "data.resize_size=73", f"weights={file}")
    net = blank(lambda: build_net(config.model, CLASSES))
    load_weights(net, theirs.state_dict())
    official = export_weights(net, "official")
    if wrap == "safetensors":
        save_file(theirs.state_dict(), file)
    else:
        torch.save({"model": official}, file)
    scored = evaluate_weights(config)
    agrees(scored, counted(theirs, pairs))
    assert scored.origin == ("timm format" if wrap == "safetensors" else "official format")


@pytest.mark.parametrize(
    ("step", "mode", "other"), [("resnet", BILINEAR, BICUBIC), ("separate_downsampling", BICUBIC, BILINEAR)]
)
def test_images_are_resized_to_256_and_cropped_to_224_as_the_recipe_says(folder, tmp_path, step, mode, other):
    file = tmp_path / "w.pt"
    config = of_folder(folder, step, f"weights={file}", "scale=imagenet", regime="nano")
    assert (config.data.resize_size, config.data.image_size) == (256, 224)
    pairs = prepared(folder, 256, 224, mode)
    net = drawn(lambda: build_net(config.model, CLASSES))
    varied(net, net.head.bias, pairs)
    torch.save({"state_dict": net.state_dict()}, file)
    scored = evaluate_weights(config)
    loss = counted(net, pairs)[2]
    assert scored.origin == "our own format"
    assert scored.result.loss == pytest.approx(loss, rel=1e-5)
    for wrong in (
        (256, 224, other),
        (224, 224, mode),
        ((256, 256), 224, mode),
    ):  # at last both sides, not the short one
        assert abs(counted(net, prepared(folder, *wrong))[2] / loss - 1) > 1e-4


def files_of(path):
    def digest(p):
        return hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else ""

    return {str(p.relative_to(path)): (p.stat().st_mtime_ns, digest(p)) for p in [path, *path.rglob("*")]}


def scoring(config, weights):
    return config.replace(mode=Mode.evaluate, weights=str(weights))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


class TestRuns:
    """Our own run directories."""

    def test_give_exactly_the_result_they_recorded_and_stay_as_they_are(self, trained, command, tmp_path):
        config = trained()
        path = run_path(config)
        summary = read_json(path / "summary.json")
        before = files_of(tmp_path)
        scored = evaluate_weights(scoring(config, path))
        assert (scored.result.top1, scored.result.top5) == (summary["top1"], summary["top5"])
        assert np.array_equal(np.packbits(scored.result.correct), np.load(path / "correct.npy"))
        assert scored.origin == "our run after 2 of 2 epochs"

        words = (
            "+step=separate_downsampling", "mode=evaluate", f"weights='{path}'", "data.val_images=40",
            "wandb.mode=online",
        )  # fmt: skip
        done = command(*words, runs=tmp_path / "elsewhere")
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        right = round(summary["top1"] * 40 / 100)
        accuracies = (f"top-1 {summary['top1']:.2f} %", f"top-5 {summary['top5']:.2f} %", f"{right}/40 images right")
        for part in (*accuracies, str(path)):
            assert part in line
        assert done.stderr == ""
        assert files_of(tmp_path) == before

    def test_give_the_newest_checkpoint_that_is_whole(self, trained, capsys):
        config = trained("resnet")
        path = run_path(config)
        (first, _) = [row["val/top1"] for row in read_metrics(path / "metrics.jsonl").rows if row["kind"] == "val"]
        older, newest = sorted((path / "checkpoints").glob("*.pt"))
        cut(newest)
        scored = evaluate_weights(scoring(config, path))
        assert (scored.result.top1, scored.origin) == (first, "our run after 1 of 2 epochs")
        assert f"skipped {newest.name}" in capsys.readouterr().err
        cut(older)
        with pytest.raises(DataError, match=r"no checkpoint can be used \([^;]*; [^;]*\)$"):  # nothing to start over
            evaluate_weights(scoring(config, path))

    def test_of_another_net_are_refused_and_other_images_are_noted(self, small, trained, capsys):
        config = trained("gelu")
        path = run_path(config)
        with pytest.raises(DataError, match=r"model\.activation: gelu -> relu; model\.kernel_size: 7 -> 9"):
            evaluate_weights(scoring(small("kernel_9"), path))
        scored = evaluate_weights(scoring(small("gelu", "data.val_images=30", "data.train_images=50"), path))
        assert len(scored.result.correct) == 30
        told = capsys.readouterr().err.splitlines()[-1]
        assert told == "not evaluated as the run itself was: data.val_images: 40 -> 30"

    def test_classes_that_are_called_otherwise_than_in_training_are_noted(self, small, trained, tmp_path, capsys):
        """A class folder of another name shifts the labels of those behind it."""
        for name in (0, 1, 2, "three", 4, 5, 6, 7, 8, 9):
            (tmp_path / "val" / str(name)).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tmp_path / "val" / str(name) / "a.png")
        words = ("data=imagefolder", f"data.root={tmp_path}", "data.val_images=10", "data.workers=0")
        path = run_path(trained("gelu"))
        evaluate_weights(scoring(small("gelu", *words), path))
        told = capsys.readouterr().err
        assert "classes are not called as in the run's training (4 instead of 3, the first): labels are taken" in told
        (tmp_path / "val" / "three").rename(tmp_path / "val" / "3")
        evaluate_weights(scoring(small("gelu", *words), path))
        assert "not called" not in capsys.readouterr().err

    def test_need_nothing_typed_again(self, small, command, tmp_path):
        config = small("kernel_9", "data.image_size=40", "recipe.drop_path=0.1", "model.stem_stride=2")
        summary = train(config)
        path = run_path(config)
        words = ("mode=evaluate", f"weights='{path}'")
        done = command(*words, runs=tmp_path / "elsewhere")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"top-1 {summary['top1']:.2f} %" in done.stdout
        assert done.stdout.startswith(f"{config.cell}: ")
        # What was typed before may be typed again, and what an evaluation reads may differ.
        again = ("+step=kernel_9", "regime=nano", "model.stem_stride=2", "recipe.epochs=2", "device=cpu")
        other = command(*words, *again, "data.val_images=30", runs=None)
        assert other.returncode == 0, other.stderr
        assert other.stderr == "not evaluated as the run itself was: data.val_images: 40 -> 30\n"
        assert "/30 images right" in other.stdout
        for wrong, has in (
            ("+step=gelu", "kernel_9"),
            ("regime=mini", "nano"),
            ("recipe=enhanced", "original" if config.recipe.name == "original" else "enhanced"),
            ("model.kernel_size=7", "9"),
            ("recipe.lr=0.5", f"{config.recipe.lr:g}"),
            ("seed=4", "0"),
        ):
            if wrong == "recipe=enhanced" and has == "enhanced":
                continue
            refused = command(*words, wrong, runs=None)
            assert refused.returncode == 64, refused.stdout
            (line,) = refused.stderr.splitlines()
            assert f"has {has}, " in line, line

    def test_of_older_versions_are_scored_and_hostile_records_are_one_line(self, trained, command):
        config = trained("gelu")
        path = run_path(config)
        summary = read_json(path / "summary.json")
        whole = yaml.safe_load((path / "config.yaml").read_text())
        older = copy.deepcopy(whole) | {"gone": {"key": 3}}
        del older["model"]["batch_norm_eps"], older["kernels"], older["recipe"]["init"]
        older["model"]["of_old"] = True

        def score(values):
            (path / "config.yaml").write_text(values if isinstance(values, str) else yaml.safe_dump(values))
            return command("mode=evaluate", f"weights='{path}'", runs=None)

        done = score(older)
        assert done.returncode == 0, done.stderr
        assert f"top-1 {summary['top1']:.2f} %" in done.stdout
        assert "does not know and ignores: " in done.stderr
        for wrong in (
            whole | {"step": "../../evil"},
            whole | {"cell": "a\x1b[31mred"},
            whole | {"model": 3},
            whole | {"seed": "x" * 10_000},
            whole | {"model": whole["model"] | {"kernel_size": 8}},
            whole | {"regime": whole["regime"] | {"name": "\x1b[2J"}},
            {1: 2},
            "!!python/object/apply:os.system ['touch marker']",
        ):
            refused = score(wrong)
            assert refused.returncode == 65, refused.stderr
            assert refused.stderr.startswith("error: weights=")
            assert len(refused.stderr.splitlines()) == 1
            assert "\x1b" not in refused.stderr
            assert len(refused.stderr) < 800
        assert not Path("marker").exists()

    def test_that_are_not_there_come_with_what_is(self, trained, command):
        config = trained("gelu")
        seed0 = run_path(config)
        for weights, words in ((seed0.parent / "seed1", "did you mean seed0?"), (seed0.parent, "did you mean")):
            done = command("mode=evaluate", f"weights='{weights}'", runs=None)
            assert done.returncode == 65
            assert words in done.stderr or "there are: seed0" in done.stderr

    def test_settings_of_training_alone_are_told(self, small, tmp_path):
        config = scoring(small("gelu"), tmp_path)
        for key in ("fresh", "allow_drift", "devices", "compile", "cuda_graph"):
            assert unused_settings(config, [f"{key}=x"]) == [f"{key}: has no effect here, it needs mode=train"]

    def test_without_a_config_a_checkpoint_or_a_net_are_refused(self, small, tmp_path):
        config = small("gelu")
        path = tmp_path / "seed0"
        path.mkdir()
        self.refused(scoring(config, path), "is not a run directory (it has no config.yaml)")
        for text, words in (
            ("!!python/object/apply:os.system ['touch marker']", "no config that can be read"),
            ("- a list", "no config that can be read"),
            ("[" * 3000, "no config that can be read"),
            ("model: {depths: [1, 1, 2, 1]}", "of another net (model.activation: relu -> gelu"),
        ):
            (path / "config.yaml").write_text(text)
            self.refused(scoring(config, path), words)
        assert not Path("marker").exists()
        train(config)
        os.replace(run_path(config) / "config.yaml", path / "config.yaml")
        self.refused(scoring(config, path), "the run holds no checkpoint yet")

    def refused(self, config, words):
        with pytest.raises(DataError) as caught:
            evaluate_weights(config)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.code == 65


def npz_set(root, split):
    images = np.random.default_rng(1).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    np.savez(root / f"{split}.npz", images=images, labels=np.arange(20) % 5)


def test_the_validation_images_are_enough(tmp_path, folder):
    """Neither the folder `train` nor its files are looked for."""
    alone = tmp_path / "folders"
    shutil.copytree(folder / "val", alone / "val")
    both, classes = datasets.load_val(of_folder(folder, "resnet").data)
    val, of_alone = datasets.load_val(of_folder(alone, "resnet").data)
    assert (val.labels.tolist(), of_alone) == (both.labels.tolist(), classes)
    npz_set(tmp_path, "val")
    val, classes = datasets.load_val(DataConfig(name="mine", kind="npz", root=str(tmp_path), image_size=32))
    assert (len(val), len(classes)) == (20, 5)
    raw = tmp_path / "FashionMNIST" / "raw"
    write_idx(raw / "t10k-images-idx3-ubyte", np.zeros((10, 28, 28), np.uint8), packed=False)
    write_idx(raw / "t10k-labels-idx1-ubyte", np.arange(10, dtype=np.uint8), packed=False)
    val, classes = datasets.load_val(DataConfig(name="fashion_mnist", root=str(tmp_path), image_size=32))
    assert (len(val), len(classes)) == (10, 10)
    for name in ("digits", "synthetic"):
        data = DataConfig(name=name, image_size=32, val_images=20)
        assert len(datasets.load_val(data)[0]) == 20
    with pytest.raises(DataError, match=r"train\.npz"):
        datasets.load(DataConfig(name="mine", kind="npz", root=str(tmp_path), image_size=32))


def test_the_last_class_needs_no_validation_image(small, tmp_path):
    """As in training, where `train.npz` says how many classes there are."""
    npz_set(tmp_path, "train")
    images = np.random.default_rng(2).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "val.npz", images=images, labels=np.arange(8) % 4)
    words = ("data.name=mine", "data.kind=npz", f"data.root={tmp_path}", "data.num_classes=null")
    config = small("gelu", *words, "data.train_images=20", "data.val_images=8", "recipe.batch_size=10")
    train(config)
    recorded = read_json(run_path(config) / "summary.json")["top1"]
    assert evaluate_weights(scoring(config, run_path(config))).result.top1 == recorded
    file, image = tmp_path / "weights.pt", tmp_path / "image.png"
    torch.save(newest(config)["net"], file)
    Image.fromarray(images[0]).save(image)
    predict(config.replace(mode=Mode.predict, weights=str(file), images=str(image), out=str(tmp_path / "found.csv")))
    assert sorted((tmp_path / "found.csv").read_text().splitlines()[1].split(",")[1::2]) == list("01234")


def nano(small, file):
    return scoring(small("separate_downsampling"), file)


def test_a_pickle_that_runs_a_command_is_refused_and_has_not_run(command, tmp_path):
    marker, file = tmp_path / "marker", tmp_path / "evil.pt"
    torch.save({"model": {"head.weight": Trap(os.system, f"touch {marker}")}}, file)
    done = command("+step=separate_downsampling", "mode=evaluate", f"weights={file}")
    assert done.returncode == 65, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line == f"error: weights={file}: refused: it asks for posix.system, and a file of weights holds tensors only"
    assert [p.name for p in tmp_path.iterdir()] == ["evil.pt"]
    torch.load(file, weights_only=False)  # the test can fail: read without care, it runs
    assert marker.exists()


class TestRefusals:
    """Files that cannot be scored: a line that names the file and the reason."""

    @pytest.fixture
    def weights(self, small):
        return drawn(lambda: build_net(small("separate_downsampling").model, 10)).state_dict()

    def refused(self, small, file, *words):
        with pytest.raises(DataError) as caught:
            evaluate_weights(nano(small, file))
        for word in (*words, str(file)):
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.code == 65

    def test_missing_or_no_file(self, small, tmp_path):
        self.refused(small, tmp_path / "none.pt", "there is no such file or run directory")
        os.mkfifo(tmp_path / "pipe")
        self.refused(small, tmp_path / "pipe", "no regular file")

    @pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
    @pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
    def test_cut_short(self, small, tmp_path, weights, name, keep):
        file = tmp_path / name
        if name.endswith("pt"):
            torch.save(weights, file)
        else:
            save_file(weights, file)
        file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])
        self.refused(small, file, "damaged, cut short, or a file of another kind")

    @pytest.mark.parametrize(
        ("what", "words"),
        [
            (lambda w: list(w.values()), "but a list"),
            (lambda w: {"epoch": 3}, "hold no tensors"),
            (lambda w: {"model": {**w, "head.bias": "x"}}, "head.bias is not a tensor, but of type str"),
            (lambda w: {"model": {**w, "note": "x", "n.bias": w["head.bias"]}}, "n.bias has no place in it (1 such"),
            (lambda w: {k: v for k, v in w.items() if k != "head.bias"}, "no head.bias"),
            (lambda w: w | {"head.weight": w["head.weight"][:7]}, "has shape [7,"),
            (lambda w: torchvision.models.resnet18(num_classes=10).state_dict(), "model."),
            (lambda w: {"other.weight": torch.zeros(3)}, "the format is unknown"),
        ],
        ids=["list", "no-tensors", "a-string", "a-key-more", "a-key-less", "other-classes", "other-net", "unknown"],
    )
    def test_that_hold_something_else(self, small, tmp_path, weights, what, words):
        torch.save(what(weights), tmp_path / "w.pt")
        self.refused(small, tmp_path / "w.pt", words)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e300])
    def test_that_are_not_finite(self, small, tmp_path, weights, value):
        torch.save(weights | {"head.bias": torch.full((10,), value, dtype=torch.float64)}, tmp_path / "w.pt")
        self.refused(small, tmp_path / "w.pt", "head.bias holds numbers that are not finite")

    def test_that_give_no_finite_outputs(self, small, tmp_path, weights):
        torch.save(weights | {"head.weight": torch.full_like(weights["head.weight"], 3e38)}, tmp_path / "w.pt")
        told = r"weights=.*w\.pt: the net gives outputs that are not finite"
        with pytest.raises(NonFiniteError, match=told) as caught:
            evaluate_weights(scoring(small("separate_downsampling"), tmp_path / "w.pt"))
        assert caught.value.code == 70
        with pytest.raises(NonFiniteError, match="the net gives outputs that are not finite"):
            Evaluation(50.0, 50.0, torch.inf, np.ones(1, bool), np.zeros(1, int)).require_finite("the net")

    def test_text(self, small, tmp_path):
        (tmp_path / "w.pth").write_text("<html>404</html>\n")
        self.refused(small, tmp_path / "w.pth", "damaged, cut short, or a file of another kind")

    def test_images_too_small_for_the_net(self, small, tmp_path, weights):
        torch.save(weights, tmp_path / "w.pt")
        with pytest.raises(ConfigError, match=r"data\.image_size=16"):
            evaluate_weights(scoring(small("separate_downsampling", "data.image_size=16"), tmp_path / "w.pt"))


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (("mode=evaluate",), ["weights=FILE", "mode=evaluate"]),
        (("mode=evaluate", "weights="), ["weights=", "mode=evaluate"]),
        (("mode=predict", "weights=some.pth"), ["images=FILE or FOLDER", "mode=predict"]),
        (("mode=export", "weights=some.pth"), ["format=onnx or torch_export", "mode=export"]),
        (("mode=data_check", "weights=some.pth"), ["weights=some.pth", "mode=data_check"]),
        ((f"initial_weights=sha256:{'0' * 64}",), ["initial_weights=sha256:", "weights="]),
        (("mode=evalute", "weights=some.pth"), ["mode", "evalute", "data_check"]),
    ],
)
def test_mode_and_weights_that_do_not_go_together_are_a_wrong_command(command, tmp_path, words, pieces):
    done = command("+step=gelu", *words)
    assert done.returncode == 64, done.stderr
    (line,) = done.stderr.splitlines()
    for piece in pieces:
        assert piece in line
    assert not list(tmp_path.iterdir())


def test_a_sweep_scores_one_line_a_step(small, command, tmp_path):
    torch.save(drawn(lambda: build_net(small("gelu").model, 10)).state_dict(), tmp_path / "w.pt")
    done = command("-m", "+step=resnet,gelu", "mode=evaluate", f"weights={tmp_path / 'w.pt'}")
    assert done.returncode == 65
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["[2/2] gelu"]
    (line,) = done.stderr.splitlines()
    assert line.startswith("[1/2] error: weights=")
    assert not list(tmp_path.rglob("seed0"))


@pytest.mark.parametrize(
    ("step", "name", "told"),
    [
        ("separate_downsampling", "timm:convnext_tiny.fb_in1k", ""),
        (LAST, "timm:convnext_tiny.fb_in22k_ft_in1k_384", "data.image_size=384 data.resize_size=null"),
        (LAST, "torchvision:convnext_tiny.IMAGENET1K_V1", "data.resize_size=236 recipe.interpolation=bilinear"),
        ("resnet", "torchvision:resnet50.IMAGENET1K_V1", ""),
        ("resnet", "torchvision:resnet50.IMAGENET1K_V2", "data.resize_size=232"),
        ("resnet", "timm:resnet50.a1_in1k", "data.resize_size=235 recipe.interpolation=bicubic"),
    ],
)
def test_of_a_librarys_weights_it_is_said_how_they_were_evaluated(step, name, told):
    library = library_weights(name)
    config = compose(step, "tiny", ("scale=imagenet", "mode=evaluate", f"weights={name}"))
    assert evaluation_note(config, library) == (told and f"{name}: published with {told}")
    published = published_evaluation(library.library, library.net, library.tag)
    words = ("scale=imagenet", *(f"{key}={json.dumps(value)}" for key, value in published.items()))
    same = compose(step, "tiny", words)
    pixels = np.random.default_rng(0).integers(0, 256, (333, 500, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if library.library == "timm":
        settings = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name[5:]).to_dict())
        theirs = timm.data.create_transform(**settings)
    else:
        theirs = torchvision.models.get_model_weights(library.net)[library.tag].transforms()
    torch.testing.assert_close(eval_transform(same.data, same.recipe)(image), theirs(image), rtol=0, atol=1e-6)
