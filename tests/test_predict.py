"""Naming the classes of images: the same as an evaluation of them, whatever else lies among them."""

import csv
import json
import os
import re
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision import transforms as T

from roadmap.config.choices import Mode
from roadmap.config.images import DataConfig
from roadmap.data import in_memory
from roadmap.data.loose_images import find_loose_images
from roadmap.errors import DataError, NonFiniteError, Refused
from roadmap.net import build_net, load_weights
from roadmap.runs.run_dir import run_path
from roadmap.steps.compose import compose
from roadmap.training import predict as predicting
from roadmap.training.predict import predict

from . import records
from .drive import python
from .net_rows import drawn, one_thread  # noqa: F401

RUN = ("resnet", "recipe.epochs=4", "data.train_images=400")  # tells more than one class
KINDS = ((".png", "RGB"), (".jpg", "L"), (".webp", "RGB"), (".jpg", "RGB"))
CLASSES = [f"the {n}" for n in ("tench", "goldfish", "shark", "ray", "cock", "hen")]


@pytest.fixture(scope="module")
def digits(reference, tmp_path_factory):
    """A run that was trained, and its 40 validation images as files of 8 x 8 pixels: run, folder, labels."""
    config = reference(*RUN)
    folder = tmp_path_factory.mktemp("digits")
    found = in_memory.digits(DataConfig())
    from roadmap.data.datasets import subset

    ids = subset("data.val_images", 40, 360, "val")
    for place, index in enumerate(ids):
        Image.fromarray(found.pixels["val"][index]).save(folder / f"{place:02d}.png")
    return run_path(config), folder, found.labels["val"][ids]


@pytest.fixture
def predicting_digits(reference, digits, tmp_path):
    """Return a function that predicts with the run's net, and returns the rows of the CSV."""

    def call(folder=None, **changes):
        run, images, _ = digits
        keys = {"mode": Mode.predict, "weights": str(run), "images": str(folder or images)}
        config = reference(*RUN).replace(**(keys | {"out": str(tmp_path / "out.csv")} | changes))
        predict(config)
        return rows_of(tmp_path / "out.csv")

    return call


def rows_of(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()))


def net_of(config, run):
    """Return the run's net, loaded by torch alone."""
    newest = sorted((run / "checkpoints").glob("*.pt"))[-1]
    net = build_net(config.model, 10)
    net.load_state_dict(torch.load(newest, weights_only=True)["net"])
    return net.eval()


@pytest.mark.parametrize("pipeline", ["fast", "reference"])
def test_a_runs_validation_images_get_the_classes_that_they_got_in_training(
    reference, digits, predicting_digits, pipeline, capsys, tmp_path
):
    run, folder, labels = digits
    config = reference(*RUN)
    rows = predicting_digits(data=config.data.replace(pipeline=pipeline), features=True)
    first = [int(row["class_1"]) for row in rows]
    right = np.unpackbits(np.load(run / "correct.npy"))[:40].astype(bool)
    assert [row["image"] for row in rows] == [f"{n:02d}.png" for n in range(40)]
    assert ((np.array(first) == labels) == right).all()
    assert len(set(first)) > 3

    # Each image again, by Pillow and torchvision alone.
    resized = [np.asarray(Image.open(folder / row["image"]).resize((32, 32), Image.Resampling.BICUBIC)) for row in rows]
    normalise = T.Compose([T.ToTensor(), T.Normalize(config.data.mean, config.data.std)])
    net = net_of(config, run)
    with torch.no_grad():
        batch = torch.stack([normalise(np.repeat(pixels[..., None], 3, 2)) for pixels in resized])
        expected, numbers = net(batch).softmax(1).topk(5)
        maps = net.stem(batch)
        for stage in net.stages:
            maps = stage(maps)
        pooled = net.norm(maps.mean((2, 3)))
    for row, probabilities, classes in zip(rows, expected.tolist(), numbers.tolist(), strict=True):
        assert int(row["class_1"]) == classes[0]
        assert [float(row[f"probability_{n}"]) for n in range(1, 6)] == pytest.approx(probabilities, abs=1e-4)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        assert arrays["names"].tolist() == [row["image"] for row in rows]
        assert arrays["features"].dtype == np.float32
        np.testing.assert_allclose(arrays["features"], pooled.numpy(), rtol=1e-4, atol=1e-5)
    lines = capsys.readouterr().out.splitlines()
    best = [f"{rows[0][f'class_{n}']} ({100 * float(rows[0][f'probability_{n}']):.2f} %)" for n in range(1, 6)]
    assert (len(lines), lines[0]) == (40, f"00.png: {', '.join(best)}")


def test_any_number_of_images_passes_in_batches(predicting_digits, monkeypatch, tmp_path):
    whole = predicting_digits(features=True)
    features = np.load(tmp_path / "out.npz")["features"]
    monkeypatch.setattr(predicting, "eval_batch_size", lambda *_: 7)
    parts = predicting_digits(features=True, out=str(tmp_path / "parts.csv"))
    assert parts == whole
    arrays = np.load(tmp_path / "parts.npz")
    assert arrays["names"].tolist() == [row["image"] for row in whole]
    np.testing.assert_allclose(arrays["features"], features, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """A set of class folders with images of several sizes and kinds, and weights of other code for it."""
    root, rng = tmp_path_factory.mktemp("birds"), np.random.default_rng(5)
    for split in ("train", "val"):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number, (suffix, mode) in enumerate(KINDS):
                size = (int(rng.integers(70, 200)), int(rng.integers(70, 200)))
                pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
                image = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).convert(mode)
                image.save(root / split / name / f"{number}{suffix}", lossless=True)
    words = ("data=imagefolder", f"data.root={root}", "data.image_size=64", "data.resize_size=73", "mode=predict")
    config = compose("separate_downsampling", "nano", (*words, "device=cpu", "recipe.layer_scale=0.1"))
    net = drawn(lambda: build_net(config.model, len(CLASSES)))
    torch.save({"model": net.state_dict()}, root / "w.pt")
    return config, root, net


def torchvisions(config):
    """Return how torchvision prepares an image."""
    resize = T.Resize(73, T.InterpolationMode(config.recipe.interpolation.value))
    return T.Compose([resize, T.CenterCrop(64), T.ToTensor(), T.Normalize(config.data.mean, config.data.std)])


def test_images_of_class_folders_are_prepared_as_torchvision_does_it_and_classes_have_their_folders_names(
    birds, tmp_path
):
    config, root, net = birds
    predict(config.replace(weights=str(root / "w.pt"), images=str(root / "val"), out=str(tmp_path / "out.csv")))
    theirs = torchvision.datasets.ImageFolder(str(root / "val"), torchvisions(config))
    rows = rows_of(tmp_path / "out.csv")
    assert [row["image"] for row in rows] == [os.path.relpath(path, root / "val") for path, _ in theirs.samples]
    with torch.no_grad():
        expected = torch.stack([net(image[None])[0] for image, _ in theirs]).softmax(1).topk(5)
    assert [row["class_1"] for row in rows] == [theirs.classes[n] for n in expected.indices[:, 0].tolist()]
    assert [float(row["probability_1"]) for row in rows] == pytest.approx(expected.values[:, 0].tolist(), abs=1e-4)


def test_what_is_no_image_is_named_and_the_rest_is_done(digits, predicting_digits, command, tmp_path):
    run, folder, _ = digits
    mixed = tmp_path / "mixed"
    (mixed / "deep" / "deeper").mkdir(parents=True)
    (mixed / "empty").mkdir()
    for name in ("a.png", "deep/b.png", "deep/deeper/\x1b[31mc.PNG", "=1+1.png"):
        (mixed / name).write_bytes((folder / "00.png").read_bytes())
    with open(os.fsencode(mixed) + b"/\xff.png", "wb") as file:
        file.write((folder / "00.png").read_bytes())
    (mixed / "deep" / "loop").symlink_to(mixed)
    (mixed / ".hidden.png").write_text("passed over")
    (mixed / "cut.png").write_bytes((folder / "01.png").read_bytes()[:60])
    (mixed / "nothing.jpg").touch()
    (mixed / "text.jpg").write_text("no image")
    (mixed / "notes.txt").write_text("no image")
    Image.new("RGB", (8, 8), (1, 2, 3)).save(mixed / "moves.gif")
    os.mkfifo(mixed / "pipe.png")
    out = tmp_path / "out.csv"
    done = command("mode=predict", f"weights='{run}'", f"images={mixed}", f"out={out}", "features=true")
    assert done.returncode == 65, done.stderr
    *named, last = done.stderr.splitlines()
    for name in ("cut.png", "nothing.jpg", "text.jpg", "notes.txt", "moves.gif", "pipe.png"):
        assert sum(f"{name}: " in line for line in named) == 1, done.stderr
    assert len(named) == 6
    assert last.startswith(
        f"error: images={mixed}: among them are 6 files that cannot be read as an image; done: 5 images"
    )
    assert "\x1b" not in done.stdout + done.stderr
    rows = rows_of(out)
    names = ["./=1+1.png", "a.png", "\udcff.png", "deep/b.png", "deep/deeper/\x1b[31mc.PNG"]
    assert [row["image"] for row in rows] == names
    assert all((mixed / name).exists() for name in names)
    assert len({tuple(row.values())[1:] for row in rows}) == 1
    assert len(np.load(tmp_path / "out.npz")["names"]) == 5
    assert not list(tmp_path.glob(".*"))

    none = tmp_path / "none.csv"
    for path, told in (
        (mixed / "text.jpg", "none of 1 can be read as an image"),
        (mixed / "pipe.png", "none of 1 can be read as an image"),
        (mixed / "empty", "holds no image"),
        (mixed / "a.pgn", "did you mean a.png?"),
    ):
        with pytest.raises(DataError, match=re.escape(told)):
            predicting_digits(path, out=str(none))
        assert not none.exists()


def test_a_file_that_is_there_stays_as_it_is(digits, predicting_digits, tmp_path):
    for name, features in (("out.csv", False), ("out.npz", True)):
        (tmp_path / name).write_text("mine")
        with pytest.raises(Refused, match=rf"{name}: exists already"):
            predicting_digits(features=features)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


@pytest.mark.parametrize("words", ["mode=predict images=.", "mode=export format=torch_export"])
def test_a_file_that_is_there_is_refused_without_torch(digits, tmp_path, words):
    (tmp_path / "out.csv").touch()
    (tmp_path / "out.pt2").touch()
    out = tmp_path / ("out.csv" if "predict" in words else "out.pt2")
    argv = [*words.split(), f"weights='{digits[0]}'", f"out={out}"]
    lines = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path('run.py', None, '__main__')"
    done = python("-c", lines, *argv)
    assert (done.returncode, done.stderr.count("exists already")) == (78, 1), done.stderr


def test_features_whose_table_a_kill_has_prevented_are_no_hindrance_and_others_are(predicting_digits, tmp_path):
    rows = predicting_digits(features=True)
    table, features = tmp_path / "out.csv", tmp_path / "out.npz"
    whole, killed = features.read_bytes(), tmp_path / ".out.csv.elsewhere.1.tmp"
    table.rename(killed)
    assert predicting_digits(features=True) == rows and features.read_bytes() == whole
    table.unlink()
    features.write_text("mine")
    with pytest.raises(Refused, match=r"out.npz: exists by now"):
        predicting_digits(features=True)
    assert features.read_text() == "mine" and not table.exists()


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("out=out.txt",), 64, "out=out.txt: must end with .csv"),
        (("out=nowhere/out.csv",), 64, "out=nowhere/out.csv: there is no folder nowhere"),
        (("data=imagenet",), 65, "are for 10 classes, data=imagenet has 1000"),
        (("model.kernel_size=5",), 64, "mode=predict takes it as it is; leave this out"),
    ],
)
def test_what_does_not_go_together_is_told_in_a_line(digits, command, tmp_path, words, code, told):
    run, folder, _ = digits
    done = command("mode=predict", f"weights='{run}'", f"images={folder}", *words)
    assert done.returncode == code, done.stderr
    assert told in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_weights_for_other_classes_than_the_set_has_are_refused(birds, tmp_path):
    config, root, _ = birds
    net = drawn(lambda: build_net(config.model, 4))
    torch.save(net.state_dict(), tmp_path / "four.pt")
    asked = config.replace(weights=str(tmp_path / "four.pt"), images=str(root), out=str(tmp_path / "out.csv"))
    with pytest.raises(DataError, match=r"four\.pt: are for 4 classes, data=imagefolder has 6$"):
        predict(asked)
    # Where the set's folder is not known, nothing says so, and numbers are names.
    predict(asked.replace(data=config.data.replace(root=None), images=str(root / "val" / CLASSES[0])))
    assert {row["class_1"] for row in rows_of(tmp_path / "out.csv")} <= {"0", "1", "2", "3"}
    with pytest.raises(KeyError):
        _ = rows_of(tmp_path / "out.csv")[0]["class_5"]


def test_the_run_keeps_the_names_of_its_classes_and_older_ones_fall_back_on_the_sets(trained, digits, tmp_path):
    config = trained(*RUN)
    run, folder = run_path(config), digits[1]

    def classes(names):
        for file in ("summary.json", "status.json"):
            values = json.loads((run / file).read_text())
            assert values["classes"] == [str(n) for n in range(10)] or names is None
            values.pop("classes") if names is None else values.update(classes=names)
            (run / file).write_text(json.dumps(values))
        out = tmp_path / "out.csv"
        out.unlink(missing_ok=True)
        predict(config.replace(mode=Mode.predict, weights=str(run), images=str(folder / "00.png"), out=str(out)))
        return [rows_of(out)[0][f"class_{n}"] for n in range(1, 6)]

    numbers = classes([str(n) for n in range(10)])
    hostile = ["=cmd()|x", "zwei\x1b[31m", "trois\n", *(f"n{n}" for n in range(3, 10))]
    names = classes(hostile)
    safe = ["'=cmd()|x", "zwei?[31m", "trois?", *(f"n{n}" for n in range(3, 10))]
    assert names == [safe[int(n)] for n in numbers]
    for file in ("summary.json", "status.json"):
        values = json.loads((run / file).read_text())
        (run / file).write_text(json.dumps(values | {"classes": [str(n) for n in range(10)]}))
    assert classes(None) == numbers


def test_outputs_that_are_not_finite_end_it_and_nothing_is_written(birds, tmp_path):
    config, root, net = birds
    weights = net.state_dict() | {"head.weight": torch.full_like(net.head.weight, 3e38)}
    torch.save(weights, tmp_path / "huge.pt")
    with pytest.raises(NonFiniteError, match="not finite for"):
        predict(
            config.replace(weights=str(tmp_path / "huge.pt"), images=str(root / "val"), out=str(tmp_path / "o.csv"))
        )
    assert [path.name for path in tmp_path.iterdir()] == ["huge.pt"]


def test_a_stop_leaves_no_file(digits, predicting_digits, monkeypatch, tmp_path):
    monkeypatch.setattr(records.Interrupter, "at", 1)
    monkeypatch.setattr(predicting, "StopSignal", records.Interrupter)
    with pytest.raises(predicting.StoppedEarly, match="SIGTERM: 40 of 40 images done, no file is written"):
        predicting_digits(features=True)
    assert not list(tmp_path.iterdir())


def test_a_timm_net_and_its_file_name_the_same_classes(birds, tmp_path):
    """Weights of other code go through the same door as in an evaluation."""
    import timm

    config, root, _ = birds
    theirs = drawn(lambda: timm.create_model("convnext_atto", num_classes=6, conv_mlp=False))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    model = config.model.replace(depths=(2, 2, 6, 2), width=40)
    load_weights(build_net(model, 6), theirs.state_dict())
    image = root / "val" / CLASSES[3] / "0.png"
    keys = {"weights": str(tmp_path / "timm.pth"), "images": str(image), "out": str(tmp_path / "out.csv")}
    predict(config.replace(model=model, features=True, **keys))
    with torch.no_grad():
        batch = torchvisions(config)(Image.open(image).convert("RGB"))[None]
        best = theirs(batch).softmax(1)[0]
        pooled = theirs.forward_head(theirs.forward_features(batch), pre_logits=True)
    (row,) = rows_of(tmp_path / "out.csv")
    assert row["class_1"] == sorted(CLASSES)[int(best.argmax())]
    assert float(row["probability_1"]) == pytest.approx(float(best.max()), abs=1e-5)
    with zipfile.ZipFile(tmp_path / "out.npz") as archive:
        assert archive.testzip() is None
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["features"], pooled.numpy(), rtol=1e-3, atol=1e-4)


def test_a_folder_is_listed_in_order_and_once(tmp_path):
    for name in ("b/2.png", "b/10.png", "a.png", "c/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "z").symlink_to(tmp_path / "b")
    found = find_loose_images(tmp_path)
    assert found.names == ["a.png", "b/10.png", "b/2.png", "c/x.png"]
    assert found.problems == []
