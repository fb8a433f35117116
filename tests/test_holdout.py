"""`data.holdout`: which training images are held out, of every kind of set, and what a run with them records."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import train_test_split

from roadmap.config.images import DataConfig
from roadmap.data import datasets, eval_batches, train_batches, transforms, verify
from roadmap.data.datasets import load
from roadmap.data.holdout import holdout_mask
from roadmap.errors import ConfigError
from roadmap.runs.recorded_config import identity
from roadmap.runs.run_dir import run_path
from roadmap.steps.compose import compose


@given(
    counts=st.lists(st.integers(10, 60), min_size=2, max_size=6),
    shares=st.lists(st.floats(0.06, 0.7), min_size=2, max_size=2).map(sorted),
    order=st.randoms(use_true_random=False),
)
def test_each_class_gives_its_share_and_a_larger_share_holds_out_the_same_images_and_more(counts, shares, order):
    labels = np.repeat(np.arange(len(counts)), counts)
    order.shuffle(labels)
    masks = [holdout_mask(labels, share, [*"abcdef"]) for share in shares]
    for mask, share in zip(masks, shares, strict=True):
        taken = np.bincount(labels[mask], minlength=len(counts))
        assert (np.abs(taken - np.array(counts) * share) <= 0.5 + 1e-9).all()
        assert (taken > 0).all()
        assert (taken < counts).all()
    assert (masks[0] <= masks[1]).all()
    assert np.array_equal(masks[0], holdout_mask(labels.copy(), shares[0], [*"abcdef"]))


def test_the_images_held_out_are_those_of_every_version():
    held_out = [5, 16, 23, 62, 63, 66, 68, 80, 111, 119, 123, 138, 140, 149, 154, 161, 166, 183, 190, 193]
    assert np.flatnonzero(holdout_mask(np.arange(200) % 2, 0.1, "ab")).tolist() == held_out


def test_its_counts_are_within_one_image_of_scikit_learns_stratified_split():
    labels = load(DataConfig(name="digits")).train.labels.numpy()
    ours = np.bincount(labels[holdout_mask(labels, 0.1, "0123456789")])
    _, theirs = train_test_split(labels, test_size=0.1, stratify=labels, random_state=0)
    assert (np.abs(ours - np.bincount(theirs)) <= 1).all()


@pytest.mark.parametrize(
    ("counts", "share", "where"),
    [((40, 4, 3), 0.1, "no image of class b (4 training images) and of 1 more classes would be held out"),
     ((40, 4, 9), 0.9, "no image of class b (4 training images) would be left to train on")],
)  # fmt: skip
def test_a_class_that_would_be_empty_on_a_side_is_named(counts, share, where):
    with pytest.raises(ConfigError, match=r"data\.holdout=") as error:
        holdout_mask(np.repeat(np.arange(3), counts), share, [*"abc"])
    assert where in str(error.value)


def test_a_class_without_an_image_is_nobodys_fault():
    assert holdout_mask(np.repeat([0, 2], 10), 0.2, [*"abc"]).sum() == 4


def test_the_images_held_out_are_training_images_and_the_others_are_trained_on():
    whole, part = (load(DataConfig(name="digits", holdout=share)) for share in (0.0, 0.1))

    def images(split):
        return sorted(image.numpy().tobytes() for image in split.images)

    assert sorted(images(part.train) + images(part.val)) == images(whole.train)
    assert not set(images(part.val)) & set(images(whole.val))
    assert len({whole.fingerprint, part.fingerprint, load(DataConfig(name="digits", holdout=0.2)).fingerprint}) == 3
    subset = load(DataConfig(name="digits", holdout=0.25, train_images=200, val_images=20))
    assert len(subset.train) + len(subset.val) == 200  # of the subset, and val_images is not read
    assert set(images(subset.train) + images(subset.val)) <= set(images(whole.train))


@pytest.fixture
def folders(tmp_path):
    """Return class folders of 2 x 20 training images, and no validation images at all."""
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.random.default_rng([i, name == "cat"]).integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{i}.png")
    return tmp_path


def test_class_folders_give_their_share_and_the_validation_images_are_not_read(folders):
    found = load(DataConfig(name="imagefolder", root=str(folders), holdout=0.2, image_size=8))
    names = [{bytes(name) for name in split.files} for split in (found.train, found.val)]
    assert list(map(len, names)) == [32, 8]
    assert not names[0] & names[1]
    assert torch.bincount(found.val.labels).tolist() == [4, 4]
    val, _ = datasets.load_val(DataConfig(name="imagefolder", root=str(folders), holdout=0.2, image_size=8))
    assert list(val.files) == list(found.val.files)


def test_npz_gives_its_share_and_needs_no_validation_file(tmp_path):
    images, labels = np.zeros((30, 8, 8), np.uint8), np.arange(30) % 3
    images[:, 0, 0] = np.arange(30)
    np.savez(tmp_path / "train.npz", images=images, labels=labels)
    found = load(DataConfig(name="mine", kind="npz", root=str(tmp_path), image_size=8, holdout=0.2))
    marks = [split.images[:, 0, 0, 0].tolist() for split in (found.train, found.val)]
    assert sorted(marks[0] + marks[1]) == list(range(30))
    assert len(marks[1]) == 6


@pytest.mark.parametrize("pipeline", ["fast", "reference"])
def test_both_pipelines_evaluate_held_out_images_as_they_are(pipeline):
    config = compose("gelu", "nano", [f"data.pipeline={pipeline}", "data.holdout=0.1"])
    found, cpu = load(config.data), torch.device("cpu")
    ids = [torch.arange(8)]
    images, labels = next(iter(eval_batches(found.val, config.data, config.recipe, ids, device=cpu)))
    transform = transforms.eval_transform(config.data, config.recipe)
    assert torch.allclose(images, torch.stack([transform(found.val.read(i)) for i in range(8)]), atol=1e-5)
    assert labels.tolist() == found.val.labels[:8].tolist()
    trained, _ = next(iter(train_batches(found.train, config.data, config.recipe, ids, seed=0, epoch=0, device=cpu)))
    assert trained.shape == images.shape


def test_a_data_check_opens_all_and_a_run_with_a_holdout_knows(folders, tmp_path):
    (folders / "val").mkdir()
    for name in ("cat", "dog"):
        (folders / "val" / name).mkdir()
        Image.new("RGB", (8, 8), "red").save(folders / "val" / name / "a.png")
    words = ["data=imagefolder", f"data.root={folders}", "data.workers=1", "data.holdout=0.2"]
    config = compose("gelu", "nano", [*words, f"paths.runs={tmp_path / 'runs'}"])
    assert "40 + 2 images in 2 classes" in verify.data_check(config)
    found = load(config.data)
    assert "the whole set fully checked" in verify.verification_note(found, config.data, config.paths.runs)


def test_a_plain_run_keeps_its_name_and_identity_and_a_holdout_is_another_run():
    plain, zero, held = (compose("gelu", "nano", words) for words in ([], ["data.holdout=0"], ["data.holdout=0.1"]))
    assert plain.cell == zero.cell == "gelu"
    older = plain.values()
    del older["data"]["holdout"]
    assert identity(older) == identity(plain.values()) == identity(zero.values())
    assert held.cell == "gelu,data.holdout=0.1"
    assert identity(held.values()) != identity(older)


def test_a_run_says_which_images_it_was_evaluated_on(reference):
    config = reference("gelu", "data.holdout=0.25")
    summary = json.loads((run_path(config) / "summary.json").read_text())
    assert (summary["split"], summary["val_images"]) == ("holdout", 25)
    assert len(np.load(run_path(config) / "correct.npy")) == 4
    log = (run_path(config) / "run.log").read_text()
    assert "evaluated on 25 held-out training images; the validation images are not read" in log


def test_a_run_scored_again_has_the_same_images(reference, command):
    config = reference("gelu", "data.holdout=0.25")
    summary = json.loads((run_path(config) / "summary.json").read_text())
    done = command("mode=evaluate", f"weights='{run_path(config)}'")
    assert f"top-1 {summary['top1']:.2f} %" in done.stdout
    assert "(held-out training images)" in done.stdout
    assert "/25 images right" in done.stdout


def test_an_empty_class_ends_in_one_line_and_nothing_is_written(command, tmp_path):
    done = command("+step=gelu", "data.holdout=0.9", "data.train_images=20")
    assert done.returncode == 64
    assert "data.holdout=0.9: no image of class" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/*/*/*/seed*/config.yaml"))
    done = command("+step=gelu", "data.holdout=1")
    assert done.returncode == 64
    assert "data.holdout=1" in done.stderr
