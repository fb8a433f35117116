"""The reference pipeline: equal to timm's transforms, and random in (seed, epoch, id) only."""

import os
import random
import signal
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from roadmap.config.images import DataConfig
from roadmap.config.recipe import RecipeConfig
from roadmap.data import check_pipeline, eval_batches
from roadmap.data.datasets import Split, load
from roadmap.data.sampling import eval_index_batches, sample_seed, train_index_batches
from roadmap.data.transforms import (
    Prepared,
    device_batches,
    eval_transform,
    middle,
    posterize,
    rand_augment,
    random_state,
    train_transform,
)
from roadmap.errors import ConfigError

from .test_data_decode import OFFICIAL, images_of, picture

CPU = torch.device("cpu")
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CROPPED = {
    "name": "synthetic", "image_size": 32, "flip": True, "crop": "resized", "pipeline": "reference",
    "num_classes": 10,
}  # fmt: skip


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_training_transforms_are_timms_official_ones_draw_for_draw(interpolation):
    data = DataConfig(**(CROPPED | IMAGENET))
    recipe = RecipeConfig(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25, interpolation=interpolation)
    ours = train_transform(data, recipe)
    official = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel", "re_count": 1}
    theirs = create_transform(32, is_training=True, interpolation=interpolation, **official, **IMAGENET)
    compared = 0
    for i in range(300):
        seed_all(i)
        try:
            expected = theirs(picture(i))
        except ValueError as error:
            assert "bits must be between" in str(error)  # noqa: PT017  (what Pillow 13 refuses, and ours does not)
            continue
        seed_all(i)
        assert torch.equal(ours(picture(i)), expected)
        compared += 1
    assert compared > 290


def test_the_original_recipe_is_crop_flip_and_normalise_alone():
    data = DataConfig(**(CROPPED | IMAGENET))
    ours = train_transform(data, RecipeConfig())
    theirs = create_transform(32, is_training=True, color_jitter=None, interpolation="bilinear", **IMAGENET)
    for i in range(20):
        seed_all(i)
        expected = theirs(picture(i))
        seed_all(i)
        assert torch.equal(ours(picture(i)), expected)


def test_evaluation_transforms_are_timms():
    data = DataConfig(name="imagefolder", image_size=56, resize_size=64, pipeline="reference", **IMAGENET)
    theirs = create_transform(56, is_training=False, interpolation="bicubic", crop_pct=0.875, **IMAGENET)
    ours = eval_transform(data, RecipeConfig(interpolation="bicubic"))
    for i, size in enumerate([(90, 70), (70, 90), (64, 64), (200, 65)]):
        assert torch.equal(ours(picture(i, size)), theirs(picture(i, size)))


def test_a_line_of_pixels_is_resized_where_the_crop_is_alone():
    data = DataConfig(name="imagefolder", image_size=56, resize_size=64, pipeline="reference", **IMAGENET)
    theirs = create_transform(56, is_training=False, interpolation="bicubic", crop_pct=0.875, **IMAGENET)
    for i, size in enumerate([(100, 1), (1, 101), (332, 10)]):
        assert torch.equal(eval_transform(data, OFFICIAL)(picture(i, size)), theirs(picture(i, size)))
    assert middle(Image.new("RGB", (1, 60_000))).size == (1, 32)  # resized as a whole: 280 MB


def test_without_a_crop_the_whole_image_is_resized():
    data = DataConfig(name="imagefolder", image_size=16, pipeline="reference", mean=(0, 0, 0), std=(1, 1, 1))
    expected = np.asarray(picture(0).resize((16, 16), Image.Resampling.BILINEAR))
    for transform in (eval_transform(data, RecipeConfig()), train_transform(data, RecipeConfig())):
        assert np.array_equal((transform(picture(0)) * 255).round().byte().permute(1, 2, 0).numpy(), expected)


def test_a_padded_crop_is_a_window_of_the_image_with_a_black_border():
    data = DataConfig(
        name="cifar10", image_size=32, crop="pad", padding=4, pipeline="reference", mean=(0, 0, 0), std=(1, 1, 1)
    )
    image, transform = picture(0, (32, 32)), train_transform(data, RecipeConfig())
    padded = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)))
    windows = {padded[i : i + 32, j : j + 32].tobytes() for i in range(9) for j in range(9)}
    seen = {(transform(image) * 255).round().byte().permute(1, 2, 0).numpy().tobytes() for _ in range(200)}
    assert seen <= windows
    assert len(seen) > 50


def test_rand_augment_never_raises_and_posterising_to_no_bits_is_black():
    policy = rand_augment(DataConfig(**CROPPED), OFFICIAL)
    policy.ops = [op for op in policy.ops if "Posterize" in op.name]  # this operation alone: thousands of its draws
    assert policy.ops
    image, black = picture(0, (8, 8)), 0
    with random_state(0):
        for _ in range(4000):
            black += not np.asarray(policy(image)).any()
    assert black > 20


@pytest.mark.parametrize("bits", range(-4, 9))
def test_posterise_masks_bits_as_pillow_did_before_13(bits):
    image = picture(1, (16, 16))
    mask = ~(2 ** (8 - bits) - 1)
    assert np.array_equal(np.asarray(posterize(image, bits)), np.asarray(image).astype(int) & mask)


def test_the_whole_policy_runs_over_thousands_of_draws():
    policy = rand_augment(DataConfig(**CROPPED), OFFICIAL)
    assert policy.ops[0].hparams["translate_const"] == 14  # 0.45 of 32 pixels, as in the official code
    with random_state(1):
        for i in range(4000):
            policy(picture(i % 7, (12, 12)))


def test_randomness_depends_on_seed_epoch_and_id_alone():
    data = DataConfig(train_images=24, val_images=8, **CROPPED)
    split = load(data).train
    order = train_index_batches(24, 4, 5, 3)
    whole = images_of(split, data, order)
    others = {
        "skip": images_of(split, data, train_index_batches(24, 4, 5, 3, skip=2)),
        "composition": images_of(split, data, list(torch.arange(24).split(6))),
        "workers": images_of(split, DataConfig(train_images=24, val_images=8, workers=2, **CROPPED), order),
    }
    for images in others.values():
        assert all(torch.equal(images[i], whole[i]) for i in images)
    next_epoch = images_of(split, data, order, epoch=4)
    assert all(not torch.equal(next_epoch[i], whole[i]) for i in whole)


def test_an_image_is_what_its_own_seed_makes_of_it():
    data = DataConfig(train_images=4, val_images=4, **CROPPED)
    split = load(data).train
    got = images_of(split, data, [torch.tensor([2])])[2]
    seed = sample_seed(5, 3, 2)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    assert torch.equal(got, train_transform(data, OFFICIAL)(split.read(2)))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_callers_random_state_is_left_alone(workers):
    data = DataConfig(train_images=8, val_images=4, workers=workers, **CROPPED)
    found = load(data)
    seed_all(11)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    images_of(found.train, data, train_index_batches(8, 4, 0, 0))
    list(eval_batches(found.val, data, OFFICIAL, eval_index_batches(4, 3), device=CPU))
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_batches_are_float_channels_last_in_the_order_asked_for():
    data = DataConfig(train_images=8, val_images=7, workers=2, **CROPPED)
    val = load(data).val
    batches = list(eval_batches(val, data, OFFICIAL, eval_index_batches(7, 3), device=CPU))
    assert [len(y) for _, y in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([y for _, y in batches]), val.labels)
    assert all(x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last) for x, _ in batches)
    expected = (val.images.float() / 255 - 0.5) / 0.5
    assert torch.allclose(torch.cat([x for x, _ in batches]), expected, atol=1e-6)


WRONG = """
rand-q3 rand-mx rand-m9-mst0.5 rand-m9.5 augmix-m3 nonsense rand-m9-tnone rand-m9-mstdinf rand-m101 rand-n00101
rand-n1000000 rand-n101 rand-m101 rand-m99999999999 rand-mmax0 rand-mmax00-m9 rand-p1.1 rand-p5.0
"""
READ = """
rand rand-m9-n3-mstd0.5 rand-mstd101-tweights rand-m9-mmax20-p0.7-inc0 rand-m9-mstd0.5-inc1
rand-m0-n0-p0 rand-m100-n100-p1.0 rand-mmax100-m09 rand-mmax010 rand-n14-t3aw rand-n20-t3a
"""


@pytest.mark.parametrize("text", [*WRONG.split(), ""])
def test_a_policy_that_timm_cannot_read_or_draw_is_a_config_error(text):
    with pytest.raises(ConfigError, match=rf"recipe.rand_augment={text}: must be null or timm's notation"):
        RecipeConfig(rand_augment=text)


@pytest.mark.parametrize("text", READ.split())
def test_timms_notation_is_read_and_drawn(text):
    policy = rand_augment(DataConfig(**CROPPED), RecipeConfig(rand_augment=text))
    with random_state(0):
        policy(Image.new("RGB", (8, 8)))


def test_more_operations_than_a_set_has_that_gives_each_once_are_refused():
    with pytest.raises(ConfigError, match=r"recipe\.rand_augment=rand-n15-t3aw: n must be at most 14 with its -t"):
        check_pipeline(DataConfig(**CROPPED), RecipeConfig(rand_augment="rand-n15-t3aw"))


class SignalsItself(Split):
    """A split whose reader is sent, in the middle of the epoch, the signals by which a whole job is stopped."""

    def read(self, index: int) -> Image.Image:
        if index == 5:
            for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGTERM):
                subprocess.run(["kill", f"-{int(number)}", str(os.getpid())], check=True)
        return super().read(index)


@pytest.mark.timeout(60)
def test_workers_go_on_when_the_job_is_told_to_stop():
    data = DataConfig(train_images=16, val_images=4, **CROPPED)
    found = load(data).train
    split = SignalsItself(found.labels, images=found.images)
    loaded = device_batches(Prepared(split, eval_transform(data, OFFICIAL)), eval_index_batches(16, 4), 2, CPU)
    assert torch.equal(torch.cat([labels for _, labels in loaded]), found.labels)
