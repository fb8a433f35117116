"""The fast pipeline: equal to torchvision for fixed parameters, and random in (seed, epoch, id) only."""

import math

import pytest
import torch
import torchvision.transforms.functional as TF
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from roadmap.config.images import DataConfig
from roadmap.config.recipe import RecipeConfig
from roadmap.data import check_pipeline, eval_batches, train_batches
from roadmap.data.datasets import Split, load
from roadmap.data.gpu_transforms import (
    Augmentation,
    affine,
    affine_theta,
    augment,
    draw_augmentation,
    resized_crop,
)
from roadmap.data.random_crop import resized_boxes
from roadmap.data.sampling import eval_index_batches, train_index_batches
from roadmap.errors import ConfigError

CPU = torch.device("cpu")
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
EVERYTHING = {"flip": True, "crop": "pad", "padding": 3, "rotate": 15, "zoom": 0.2, "shift": 0.1}


def synthetic(**changes) -> DataConfig:
    settings = {"name": "synthetic", "image_size": 16, "num_classes": 10, "train_images": 60, "val_images": 10}
    return DataConfig(**(settings | changes))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Six smooth images, uint8 (N, 3, H, W)."""
    small = torch.rand(6, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 255
    return torch.nn.functional.interpolate(small, size=(24, 24), mode="bilinear").byte()


def nhwc(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize(
    ("angle", "scale", "shift"),
    [(0, 1, (0, 0)), (20, 1, (0, 0)), (0, 1.3, (0, 0)), (0, 1, (3, -5)), (-33, 0.8, (2, 4))],
)
def test_rotation_zoom_and_shift_are_torchvisions_affine(images, angle, scale, shift):
    theta = affine_theta(
        torch.tensor([math.radians(angle)] * 6), torch.tensor([float(scale)] * 6), torch.tensor([shift] * 6) / 24
    )
    got = affine(nhwc(images), theta).permute(0, 3, 1, 2)
    expected = TF.affine(images.float(), angle, list(shift), scale, [0.0, 0.0], InterpolationMode.BILINEAR)
    assert torch.allclose(got, expected, atol=0.02)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("box", [(0, 0, 24, 24), (3, 5, 7, 11), (17, 0, 7, 24), (8, 8, 1, 1)])
def test_a_resized_crop_is_torchvisions(images, box, interpolation):
    got = resized_crop(nhwc(images), torch.tensor([box] * 6, dtype=torch.float32), interpolation).permute(0, 3, 1, 2)
    mode = InterpolationMode(interpolation)
    expected = TF.resized_crop(images.float(), *box, [24, 24], mode, antialias=False).clamp(0, 255)
    if interpolation == "bicubic":  # at the crop's edge it may look at the image around it
        reach = [max(2, math.ceil(2 * 24 / side)) for side in box[2:]]
        inner = (..., slice(reach[0], -reach[0]), slice(reach[1], -reach[1]))
        got, expected = got[inner], expected[inner]
    assert torch.allclose(got, expected, atol=0.05)


def test_boxes_are_distributed_as_torchvisions():
    boxes = resized_boxes(4000, 32, torch.Generator().manual_seed(0))
    assert torch.equal(boxes, boxes.round())
    top, left, height, width = boxes.unbind(1)
    assert min(top.min(), left.min()) >= 0 and min(height.min(), width.min()) >= 1
    assert max((top + height).max(), (left + width).max()) <= 32
    torch.manual_seed(0)
    blank = torch.zeros(3, 32, 32)
    drawn = [RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    theirs = torch.tensor(drawn).float()
    assert torch.allclose(boxes.mean(0), theirs.mean(0), atol=0.6)
    assert torch.allclose(boxes.std(0), theirs.std(0), atol=0.4)


@pytest.mark.parametrize("flip", [False, True])
def test_a_window_is_cut_from_the_padded_image_then_mirrored(images, flip):
    padded = TF.pad(images, [4])
    corners = torch.tensor([[0, 0], [8, 8], [4, 4], [1, 7], [5, 2], [3, 3]])
    todo = Augmentation(torch.full((6,), flip), corners)
    got = augment(nhwc(images), todo, padding=4, interpolation="bilinear").permute(0, 3, 1, 2)
    for i, (top, left) in enumerate(corners.tolist()):
        expected = TF.crop(padded[i], top, left, 24, 24)
        assert torch.equal(got[i], TF.hflip(expected) if flip else expected)


def test_draws_cover_their_ranges_evenly():
    todo = draw_augmentation(20_000, synthetic(**EVERYTHING), seed=0, epoch=0)
    assert todo.flip.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.bincount(todo.window.flatten(), minlength=7).div(40_000).sub(1 / 7).abs().max() < 0.01
    scale = todo.theta[:, :, :2].det().rsqrt()
    angle = torch.rad2deg(torch.atan2(todo.theta[:, 0, 1], todo.theta[:, 0, 0]))
    shift = -torch.linalg.solve(todo.theta[:, :, :2], todo.theta[:, :, 2:]) / 2
    for value, middle, limit in ((scale, 1, 0.2), (angle, 0, 15), (shift[:, 0], 0, 0.1), (shift[:, 1], 0, 0.1)):
        assert value.min().item() == pytest.approx(middle - limit, abs=0.02 * limit)
        assert value.max().item() == pytest.approx(middle + limit, abs=0.02 * limit)
        assert value.mean().item() == pytest.approx(middle, abs=0.03 * limit)


def test_switching_one_part_leaves_the_draws_of_the_others_alone():
    everything = draw_augmentation(50, synthetic(**EVERYTHING), 1, 2)
    assert torch.equal(draw_augmentation(50, synthetic(**(EVERYTHING | {"flip": False})), 1, 2).theta, everything.theta)
    assert torch.equal(draw_augmentation(50, synthetic(flip=True), 1, 2).flip, everything.flip)


def batches_of(split: Split, data: DataConfig, index_batches, seed: int = 5, epoch: int = 3) -> dict[int, torch.Tensor]:
    ids = torch.cat(list(index_batches)).tolist()
    batches = train_batches(split, data, RecipeConfig(), index_batches, seed=seed, epoch=epoch, device=CPU)
    return dict(zip(ids, [im for x, _ in batches for im in x], strict=True))


@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_randomness_depends_on_seed_epoch_and_id_alone(crop):
    data = synthetic(**(EVERYTHING | {"crop": crop}))
    split = load(data).train
    order = train_index_batches(60, 12, 5, 3)
    whole = batches_of(split, data, order)
    for others in (train_index_batches(60, 12, 5, 3, skip=2), list(torch.arange(60).split(7)), [torch.tensor([8])]):
        images = batches_of(split, data, others)
        assert all(torch.allclose(images[i], whole[i], atol=1e-5) for i in images)
    for changed in ({"epoch": 4}, {"seed": 6}):
        assert all(not torch.allclose(im, whole[i]) for i, im in batches_of(split, data, order, **changed).items())


def test_with_nothing_to_change_training_images_are_the_images():
    data = synthetic(**PLAIN)
    split = load(data).train
    for i, image in batches_of(split, data, train_index_batches(60, 20, 0, 0)).items():
        assert torch.allclose(image * 255, split.images[i].float(), atol=1e-4)


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_batches_are_normalised_channels_last_and_carry_their_labels(name):
    data = DataConfig(
        name=name, image_size=16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), train_images=100, val_images=50
    )
    val = load(data).val
    batches = list(eval_batches(val, data, RecipeConfig(), eval_index_batches(50, 16), device=CPU))
    assert [len(y) for _, y in batches] == [16, 16, 16, 2]
    assert torch.equal(torch.cat([y for _, y in batches]), val.labels)
    assert all(x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last) for x, _ in batches)
    expected = torch.stack([TF.normalize(TF.to_tensor(val.read(i)), data.mean, data.std) for i in range(50)])
    assert torch.allclose(torch.cat([x for x, _ in batches]), expected, atol=1e-5)
    index_batches = train_index_batches(100, 10, 0, 0)
    train = load(data).train
    labels = [y for _, y in train_batches(train, data, RecipeConfig(), index_batches, seed=0, epoch=0, device=CPU)]
    assert all(torch.equal(y, train.labels[ids]) for y, ids in zip(labels, index_batches, strict=True))


def test_the_global_random_state_is_left_alone():
    data = synthetic(**EVERYTHING)
    split = load(data).train
    before = torch.get_rng_state()
    batches_of(split, data, train_index_batches(60, 12, 0, 0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("policy", ["rand-m9-tweights", "rand-m9-t3a", "rand-t3aw"])
def test_what_the_fast_pipeline_cannot_do_is_refused_at_once(policy):
    config, recipe = synthetic(), RecipeConfig(rand_augment=policy)
    with pytest.raises(ConfigError, match=rf"recipe.rand_augment={policy}: .* needs data.pipeline=reference"):
        check_pipeline(config, recipe)
    with pytest.raises(ConfigError, match=policy):
        train_batches(load(config).train, config, recipe, [], seed=0, epoch=0, device=CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_prepares_the_same_images():
    for crop in ("pad", "resized"):
        data = synthetic(**(EVERYTHING | {"crop": crop}))
        split, order = load(data).train, train_index_batches(60, 12, 5, 3)
        ours, on_cpu = (
            train_batches(split, data, RecipeConfig(), order, seed=0, epoch=0, device=device)
            for device in (torch.device("cuda"), CPU)
        )
        for (x, y), (x_cpu, y_cpu) in zip(ours, on_cpu, strict=True):
            assert x.is_cuda
            assert torch.equal(y.cpu(), y_cpu)
            assert torch.allclose(x.cpu(), x_cpu, atol=1e-3)
