"""RandAugment in batches: each operation is timm's, to the bit or within one level where it interpolates."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageOps
from timm.data import auto_augment

from roadmap.config.choices import Interpolation
from roadmap.config.images import DataConfig
from roadmap.config.recipe import RecipeConfig
from roadmap.data import train_batches, transforms
from roadmap.data.datasets import load
from roadmap.data.decoding import TrainCrop
from roadmap.data.gpu_transforms import draw_augmentation
from roadmap.data.image_ops import autocontrast_tables
from roadmap.data.rand_augment import LEVELS, Layer, apply_layer, draw_layers, parse_policy
from roadmap.data.random_erasing import draw_erased

CPU = torch.device("cpu")
SIZE, FILL = 64, (124, 116, 104)
FACTORS = (0.1, 0.37, 1.0, 1.42, 1.9)
# As they are drawn: such that no place of a pixel is a round number.
SLOPES, SHARES = (-0.29876543, -0.07132167, 0.0, 0.26170349), (-0.44871629, -0.12341907, 0.0, 0.40011713)
# timm's function, and arguments at several magnitudes
OPERATIONS = {
    "AutoContrast": (auto_augment.auto_contrast, (None,)),
    "Equalize": (auto_augment.equalize, (None,)),
    "Invert": (auto_augment.invert, (None,)),
    "Posterize": (transforms.posterize, (-1, 0, 1, 2, 3, 4, 8)),
    "Solarize": (auto_augment.solarize, (0, 25, 128, 256)),
    "SolarizeAdd": (auto_augment.solarize_add, (0, 55, 99, 110)),
    "Color": (auto_augment.color, FACTORS),
    "Contrast": (auto_augment.contrast, FACTORS),
    "Brightness": (auto_augment.brightness, FACTORS),
    "Sharpness": (auto_augment.sharpness, FACTORS),
    "Rotate": (auto_augment.rotate, (-30.0, -11.3, 0.0, 27.77)),
    "ShearX": (auto_augment.shear_x, SLOPES),
    "ShearY": (auto_augment.shear_y, SLOPES),
    "TranslateX": (auto_augment.translate_x_rel, SHARES),
    "TranslateY": (auto_augment.translate_y_rel, SHARES),
}
MOVES = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


def batches() -> list[np.ndarray]:
    """Smooth and rough colours, a flat one, gray of few levels, black and white, a flat channel, one odd pixel."""
    draw = np.random.default_rng(0)
    small = [draw.integers(0, 256, (n, n, 3), dtype=np.uint8) for n in (4, 9, 30)]
    smooth = [Image.fromarray(pixels).resize((SIZE, SIZE)) for pixels in small]
    noise = draw.integers(0, 256, (SIZE, SIZE, 3))
    flat, gray = np.full((SIZE, SIZE, 3), (7, 250, 128)), np.repeat(draw.integers(100, 105, (SIZE, SIZE, 1)), 3, 2)
    dull = (np.asarray(smooth[1]) // 3 + 60) * (1, 1, 0) + (0, 0, 33)
    odd = flat.copy()
    odd[3, 5] = 255
    found = [*smooth, noise, flat, gray, draw.integers(0, 2, (SIZE, SIZE, 3)) * 255, dull, odd]
    return [np.asarray(picture).astype(np.uint8) for picture in found]


def ours(images: list[np.ndarray], op: str, arg: float, interpolation: str) -> np.ndarray:
    batch, layer = torch.from_numpy(np.stack(images)), Layer(np.array([op] * len(images)), np.full(len(images), arg))
    apply_layer(batch, layer, FILL, Interpolation(interpolation))
    return batch.numpy().astype(int)


def theirs(image: np.ndarray, op: str, arg: float | None, interpolation: str) -> np.ndarray:
    call, _ = OPERATIONS[op]
    kwargs = {"fillcolor": FILL, "resample": Image.Resampling[interpolation.upper()]}
    return np.asarray(call(Image.fromarray(image), *([] if arg is None else [arg]), **kwargs)).astype(int)


@pytest.mark.parametrize("op", [op for op in OPERATIONS if op not in MOVES])
def test_an_operation_on_values_is_timms_to_the_bit(op):
    for arg in OPERATIONS[op][1]:
        got = ours(batches(), op, arg or 0, "bicubic")
        for mine, picture in zip(got, batches(), strict=True):
            assert np.array_equal(mine, theirs(picture, op, arg, "bicubic")), arg


def test_contrast_is_stretched_as_pillow_does_it_from_any_value_to_any_other():
    """Pillow's own function, on two pixels; 248 of 0 to 248 is 255, not 254.99999999999997."""
    bounds = np.array([(low, high) for low in range(0, 256, 5) for high in range(low, 256)], dtype=np.uint8)
    pixels = np.repeat(bounds[:, None, :, None], 3, 3)  # (N, 1, 2, 3)
    tables = autocontrast_tables(torch.from_numpy(pixels)).numpy()[:, 0]
    for (low, high), table in zip(bounds.tolist(), tables, strict=True):
        image = Image.fromarray(np.arange(low, high + 1, dtype=np.uint8)[None])
        assert np.array_equal(np.asarray(ImageOps.autocontrast(image))[0], table[low : high + 1])


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("op", MOVES)
def test_a_move_is_timms_within_one_level_and_hardly_ever_off(op, interpolation):
    """Pillow interpolates in float64, we in float32: where a value is whole, either may cut off what is just below."""
    for arg in OPERATIONS[op][1]:
        got = ours(batches(), op, arg, interpolation)
        expected = np.stack([theirs(picture, op, arg, interpolation) for picture in batches()])
        difference = np.abs(got - expected)
        assert difference.max() <= 1, arg
        assert (difference > 0).mean() <= 5e-4, arg


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("op", "arg"), [("TranslateX", 0.45), ("TranslateY", -0.45), ("ShearX", -0.3), ("ShearY", 0.25), ("Rotate", 30.0)]
)
def test_a_move_by_a_round_number_is_within_one_level_too(op, arg, interpolation):
    """By a fifth of a pixel, say, every fifth difference of two values comes out whole.

    Only the strongest of all moves is so round.
    """
    expected = np.stack([theirs(picture, op, arg, interpolation) for picture in batches()])
    difference = np.abs(ours(batches(), op, arg, interpolation) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.1


def test_every_level_of_every_operation_gives_timms_argument(monkeypatch):
    ops = {op.name: op for inc in ("", "-inc1") for op in auto_augment.rand_augment_transform(f"rand-m9{inc}", {}).ops}
    assert set(ops) == set(LEVELS)
    magnitudes = np.linspace(0, 20, 81)  # beyond 10 too: -mmax allows it
    for sign, drawn in ((1.0, 0.4), (-1.0, 0.6)):
        monkeypatch.setattr("random.random", lambda drawn=drawn: drawn)
        for name, op in ops.items():
            if op.level_fn is None:
                continue
            expected = [op.level_fn(m, {"translate_pct": 0.45})[0] for m in magnitudes]
            assert LEVELS[name](magnitudes / 10, np.full(81, sign)).tolist() == pytest.approx(expected, abs=1e-12), name


def test_images_keep_their_own_operations_whatever_else_is_in_the_batch():
    """All operations in one batch, in an order that no grouping has, each image twice."""
    names = [op for op in OPERATIONS for _ in range(2)] + [""]
    order = np.random.default_rng(1).permutation(len(names))
    args = np.array([float(OPERATIONS[op][1][1 % len(OPERATIONS[op][1])] or 0) if op else 0.0 for op in names])
    images = [batches()[i % 4] for i in range(len(names))]
    batch = torch.from_numpy(np.stack([images[i] for i in order]))
    apply_layer(batch, Layer(np.array(names)[order], args[order]), FILL, Interpolation.bicubic)
    for place, i in enumerate(order):
        alone = ours([images[i]], names[i], args[i], "bicubic")[0] if names[i] else images[i]
        assert np.array_equal(batch[place].numpy(), alone), names[i]


def photographs(tmp_path, number: int = 40) -> DataConfig:
    draw = np.random.default_rng(2)
    for split, count in (("train", number), ("val", 2)):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "b").mkdir()
        for i in range(count):
            small = Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8))
            small.resize((120, 90)).save(tmp_path / split / "ab"[i % 2] / f"{i}.jpg", quality=90)
    return DataConfig(
        name="imagefolder", root=str(tmp_path), image_size=48, resize_size=54, flip=True,
        crop="resized", pipeline="fast",
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip


def test_all_that_happens_to_an_image_is_what_the_reference_does_with_the_same_draws(tmp_path):
    """The same crops and draws through Pillow and timm: after two operations two levels off at most, hardly ever."""
    data = photographs(tmp_path)
    recipe = RecipeConfig(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25, interpolation="bicubic")
    split, ids, seed, epoch = load(data).train, np.arange(40), 3, 1
    policy = parse_policy(data, recipe)
    train_crop = TrainCrop(split, 48, recipe.interpolation, True, seed, epoch)
    flips = draw_augmentation(40, data, seed, epoch).flip
    layers, erased = draw_layers(policy, seed, epoch, ids), draw_erased(0.25, 48, seed, epoch, ids)
    batches = train_batches(split, data, recipe, list(torch.arange(40).split(16)), seed=seed, epoch=epoch, device=CPU)
    got = torch.cat([images for images, _ in batches])
    worst = []
    for i in ids:
        image = Image.fromarray(train_crop(i).numpy())
        image = TF.hflip(image) if flips[i] else image
        for layer in layers:
            op, arg = layer.ops[i], layer.args[i]
            if op:
                call, some = OPERATIONS[op]
                arg = int(arg) if op in ("Posterize", "Solarize", "SolarizeAdd") else arg
                args = [] if some == (None,) else [arg]
                image = call(image, *args, fillcolor=policy.fill, resample=Image.Resampling.BICUBIC)
        expected = TF.normalize(TF.to_tensor(image), data.mean, data.std)
        top, left, height, width = erased[i]
        keep = torch.ones(48, 48, dtype=torch.bool)
        keep[top : top + height, left : left + width] = False
        assert height == 0 or (got[i] - expected)[:, ~keep].abs().mean() > 0.1
        worst.append(((got[i] - expected) * torch.tensor(data.std)[:, None, None] * 255)[:, keep].abs().flatten())
    assert max(part.max().item() for part in worst) < 2.01
    assert (torch.cat(worst) > 0.01).float().mean().item() < 2e-3
    assert sum(bool(h) for h in erased[:, 2]) > 4
