"""Mixup and cutmix: as the authors ran timm 0.3.2, as a function of (seed, global_step)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from timm.data import Mixup, mixup

from roadmap.config.recipe import RecipeConfig
from roadmap.errors import ConfigError
from roadmap.training.mixup import check_mixup, draw_box, draw_mix, mix_seed, mixup_batch

# Made with the Mixup of timm 0.3.2's own file, `np.random.seed(i)` before each draw on an image of SIZES[i % 5]: boxes
# as (top, bottom, left, right), -1 where it is mixup's turn; alphas 0 and 1.0, and 0.8 and 1.0.
DRAWS = np.load(Path(__file__).parent / "fixtures" / "timm_0_3_2_mix.npz")
SIZES = [(224, 224), (32, 32), (48, 48), (160, 160), (225, 181)]


def test_boxes_are_those_of_timm_0_3_2():
    recipe = RecipeConfig(cutmix=1.0)
    boxes = [draw_mix(recipe, *SIZES[i % 5], np.random.RandomState(i))[1] for i in range(5000)]
    assert np.array_equal(boxes, DRAWS["cutmix_boxes"])


def test_which_of_the_two_and_how_much_of_each_are_timm_0_3_2s():
    recipe = RecipeConfig(mixup=0.8, cutmix=1.0)
    drawn = [draw_mix(recipe, *SIZES[i % 5], np.random.RandomState(i)) for i in range(1000)]
    assert [lam for lam, _ in drawn] == DRAWS["both_lams"].tolist()
    assert np.array_equal([box or (-1,) * 4 for _, box in drawn], DRAWS["both_boxes"])
    for switch, share in ((0.0, 0.0), (0.2, 0.2), (1.0, 1.0)):
        recipe = recipe.replace(mix_switch=switch)
        cut = [draw_mix(recipe, 32, 32, np.random.RandomState(i))[1] is not None for i in range(1000)]
        assert np.mean(cut) == pytest.approx(share, abs=0.04)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 16, 16, generator=draw).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(0, 5, (8,), generator=draw)


@pytest.mark.parametrize("alphas", [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_images_and_targets_are_timms_but_for_the_box_of_later_timms(batch, monkeypatch, alphas, smoothing):
    monkeypatch.setattr(mixup, "rand_bbox", lambda shape, lam, **_: draw_box(lam, *shape[-2:], np.random))
    images, labels = batch
    recipe = RecipeConfig(mixup=alphas[0], cutmix=alphas[1], label_smoothing=smoothing, batch_size=8)
    timm_mixup = Mixup(*alphas, prob=1.0, switch_prob=0.5, mode="batch", label_smoothing=smoothing, num_classes=5)
    for step in range(30):
        got, targets = mixup_batch(images, labels, recipe, 5, seed=3, number=step)
        np.random.seed(mix_seed(3, step))
        expected, expected_targets = timm_mixup(images.clone(), labels)
        assert torch.equal(got, expected)
        assert torch.equal(targets, expected_targets)


def test_mixing_is_a_function_of_seed_and_step_and_changes_nothing_else(batch):
    images, labels = batch
    kept, state = images.clone(), np.random.get_state()[1].tolist()
    recipe = RecipeConfig(mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    results = {(s, t): mixup_batch(images, labels, recipe, 5, s, t) for s in range(2) for t in range(6)}
    again = mixup_batch(images, labels, recipe, 5, 1, 4)
    assert torch.equal(again[0], results[1, 4][0])
    assert torch.equal(again[1], results[1, 4][1])
    assert len({tuple(r[1].flatten().tolist()) for r in results.values()}) > 10  # two boxes of one size may be drawn
    assert torch.equal(images, kept)
    assert np.random.get_state()[1].tolist() == state
    assert results[0, 0][0].is_contiguous(memory_format=torch.channels_last)


def test_soft_targets_say_how_much_of_each_image_there_is():
    """On images of one colour each, the mean of a mixed image is lambda, after the box was clipped."""
    labels = torch.arange(6)
    images = labels.float().view(6, 1, 1, 1).expand(6, 3, 20, 20).contiguous()
    recipe = RecipeConfig(mixup=0.8, cutmix=1.0)
    kinds = set()
    for step in range(200):
        mixed, targets = mixup_batch(images, labels, recipe, 6, 0, step)
        assert torch.allclose(targets.sum(1), torch.ones(6))
        assert torch.allclose(mixed.mean((1, 2, 3)), (targets * torch.arange(6.0)).sum(1), atol=1e-4)
        kinds.add("cutmix" if torch.equal(mixed, mixed.round()) else "mixup")
    assert kinds == {"mixup", "cutmix"}


def test_with_both_off_images_and_labels_come_back_as_they_are(batch):
    images, labels = batch
    got = mixup_batch(images, labels, RecipeConfig(label_smoothing=0.1), 5, 0, 0)
    assert got[0] is images
    assert got[1] is labels


def test_an_odd_batch_is_refused_before_anything_runs():
    parts = RecipeConfig(batch_size=126, micro_batch=63, mixup=0.8)
    for recipe in (RecipeConfig(batch_size=63, mixup=0.8), RecipeConfig(batch_size=63, cutmix=1.0), parts):
        with pytest.raises(ConfigError, match=r"recipe.micro_batch is 63: must be even"):
            check_mixup(recipe)
    check_mixup(RecipeConfig(batch_size=63))
    check_mixup(RecipeConfig(batch_size=64, mixup=0.8))
