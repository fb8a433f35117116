"""What the fast pipeline draws is distributed as what timm's classes draw, and is a function of its key."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation

from roadmap.config.images import DataConfig
from roadmap.config.recipe import RecipeConfig
from roadmap.data import transforms
from roadmap.data.counter_rng import normals, splitmix64, splitmix64_tensor, states, uniforms
from roadmap.data.rand_augment import Layer, draw_layers, parse_policy
from roadmap.data.random_crop import RATIO, SCALE, draw_box
from roadmap.data.random_erasing import draw_erased
from roadmap.data.sampling import Draw

N = 100_000
IDS = np.arange(N)
LIKELY = 0.001  # the seeds are fixed, so each of these tests has passed or failed for good


def policies(text: str):
    data, recipe = DataConfig(image_size=224), RecipeConfig(rand_augment=text, interpolation="bicubic")
    return parse_policy(data, recipe), transforms.rand_augment(data, recipe)


def drawn_by_timm(policy, number: int) -> list[Layer]:
    """Run timm's policy and note its calls: each layer's operations, "" where it left one out, and their arguments."""
    record: list[tuple[str, float]] = []
    for op in policy.ops:
        name = op.name.removesuffix("Increasing").removesuffix("Rel")
        op.aug_fn = lambda image, arg=0.0, name=name, **kwargs: record.append((name, float(arg)))
        call = type(op).__call__

    class Noted:
        def __init__(self, op):
            self.op = op

        def __call__(self, image):
            before = len(record)
            call(self.op, image)
            if len(record) == before:
                record.append(("", 0.0))

    policy.ops = [Noted(op) for op in policy.ops]
    with transforms.random_state(1):
        for _ in range(number):
            policy(None)
    names, args = zip(*record, strict=True)
    return [Layer(np.array(names[i::2]), np.array(args[i::2])) for i in range(2)]


def same_counts(a: np.ndarray, b: np.ndarray) -> float:
    """Return the p-value of the chi-square test that two samples of names or numbers are of one distribution."""
    values = np.unique(np.concatenate((a, b)))
    counts = np.array([[np.count_nonzero(sample == value) for value in values] for sample in (a, b)])
    return stats.chi2_contingency(counts[:, counts.sum(0) >= 10]).pvalue


def test_operations_signs_and_magnitudes_are_distributed_as_timms():
    ours, theirs = policies("rand-m9-mstd0.5-inc1")
    mine, other = draw_layers(ours, 5, 2, IDS), drawn_by_timm(theirs, N)
    pairs = [np.char.add(np.char.add(layers[0].ops, "+"), layers[1].ops) for layers in (mine, other)]
    assert len(np.unique(pairs[0])) == 16 * 16  # with replacement: each operation follows each, itself among them
    assert same_counts(*pairs) > LIKELY
    applied = np.mean([layer.ops != "" for layer in mine])
    assert applied == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(2 * N))
    # Magnitudes from arguments: all layers' and operations' together show the noise's spread.
    units = {"Rotate": 3, "ShearX": 0.03, "ShearY": 0.03, "TranslateX": 0.045, "TranslateY": 0.045}
    pooled = [
        np.concatenate([abs(x.args[x.ops == op]) / unit for op, unit in units.items() for x in both])
        for both in (mine, other)
    ]
    assert min(map(len, pooled)) > 30_000
    assert stats.ks_2samp(*pooled).pvalue > LIKELY
    for layer, of_timm in zip(mine, other, strict=True):
        for op in np.unique(of_timm.ops):
            a, b = layer.args[layer.ops == op], of_timm.args[of_timm.ops == op]
            if op in ("", "AutoContrast", "Equalize", "Invert"):
                continue
            if op in ("Posterize", "Solarize", "SolarizeAdd"):
                assert np.array_equal(a, a.round())
                assert same_counts(a, b) > LIKELY, op
            assert stats.ks_2samp(a, b).pvalue > LIKELY, op
            if op in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"):
                assert same_counts(np.sign(a), np.sign(b)) > LIKELY, op


@pytest.mark.parametrize("text", ["rand-m7-inc1", "rand-m9-mstd101", "rand-m12-mmax20-mstd3-p0.8", "rand"])
def test_the_rest_of_timms_notation_is_drawn_as_timm_draws_it(text):
    ours, theirs = policies(text)
    mine, other = draw_layers(ours, 0, 0, IDS[:8000]), drawn_by_timm(theirs, 8000)
    for layer, of_timm in zip(mine, other, strict=True):
        assert same_counts(layer.ops, of_timm.ops) > LIKELY
        for op in ("Rotate", "Color", "Solarize", "Posterize"):
            assert stats.ks_2samp(layer.args[layer.ops == op], of_timm.args[of_timm.ops == op]).pvalue > LIKELY, op


def test_more_layers_are_drawn_one_by_one():
    policy, _ = policies("rand-m9-n3-mstd0.5-inc1")
    three = draw_layers(policy, 0, 0, IDS[:2000])
    assert len(three) == 3
    numbers = [np.unique(x.ops, return_inverse=True)[1] for x in three[1:]]
    assert stats.chi2_contingency(np.histogram2d(*numbers, 4)[0]).pvalue > LIKELY


@pytest.mark.parametrize(
    ("height", "width", "number"), [(375, 500, N), (60, 500, 10_000), (500, 90, 10_000), (2, 3, 5000)]
)
def test_crops_are_distributed_as_timms(height, width, number):
    """The second and third are so narrow that many of ten attempts fail, which ends in the middle."""
    ours = np.array([draw_box(7, 1, i, height, width) for i in range(number)])
    blank, get = Image.new("L", (width, height)), RandomResizedCropAndInterpolation.get_params
    random.seed(0)
    theirs = np.array([get(blank, SCALE, RATIO) for _ in range(number)])
    for measure in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / np.maximum(box[:, 2], 1),
        lambda box: box[:, 0] / np.maximum(height - box[:, 2], 1),
        lambda box: box[:, 1] / np.maximum(width - box[:, 3], 1),
        lambda box: box[:, 0] + 1000 * box[:, 1],
    ):
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > LIKELY
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= (height, width)).all()


class Noting:
    """An image that notes which of its pixels are written."""

    def __init__(self) -> None:
        self.boxes: list[tuple[int, int, int, int]] = []

    def __setitem__(self, key, value) -> None:
        _, rows, columns = key
        self.boxes.append((rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start))


def test_erased_boxes_are_distributed_as_timms():
    ours = draw_erased(0.25, 224, 3, 9, IDS)
    share = (ours[:, 2] > 0).mean()
    assert share == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / N))
    every = draw_erased(1.0, 224, 3, 9, IDS)
    assert np.array_equal(every[ours[:, 2] > 0], ours[ours[:, 2] > 0])
    image, theirs = Noting(), RandomErasing(1.0, mode="pixel", max_count=1, device="cpu")
    random.seed(0)
    for _ in range(N):
        theirs._erase(image, 0, 224, 224, torch.float32)
    noted = np.array(image.boxes)
    assert len(noted) == pytest.approx((every[:, 2] > 0).sum(), abs=20)
    every = every[every[:, 2] > 0]
    for measure in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 2] / box[:, 3],
        lambda box: box[:, 0] / (224 - box[:, 2]),
        lambda box: box[:, 1] / (224 - box[:, 3]),
    ):
        assert stats.ks_2samp(measure(every), measure(noted)).pvalue > LIKELY
    assert (every[:, 0] + every[:, 2]).max() <= 224
    assert (every[:, 1] + every[:, 3]).max() <= 224


def test_noise_is_normal_and_its_own_for_every_image_and_value():
    starts = torch.from_numpy(states(Draw.noise, 0, 0, np.arange(100)).view(np.int64))[:, None]
    noise = normals(starts, torch.arange(1000)).double()
    assert noise.dtype == torch.float64
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > LIKELY
    assert noise.unique().numel() > 98_500  # of 8 million that there are
    assert torch.corrcoef(noise[:30]).fill_diagonal_(0).abs().max() < 0.15
    assert torch.corrcoef(noise[:, :30].T).fill_diagonal_(0).abs().max() < 0.5
    assert normals(starts, torch.arange(10**5, 10**5 + 10)).abs().max() < 5.4


def test_both_hashes_give_the_same_bits_and_those_of_splitmix64():
    numbers = np.array([0, 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15], dtype=np.uint64)
    of_torch = splitmix64_tensor(torch.from_numpy(numbers.view(np.int64))).numpy().view(np.uint64)
    assert np.array_equal(of_torch, splitmix64(numbers))
    # The first number of the generator's reference implementation, java.util.SplittableRandom's too, at seed 0.
    assert int(splitmix64(numbers)[4]) == 0xE220A8397B1DCDAF


def test_a_number_depends_on_its_key_alone_and_on_all_of_it():
    whole = uniforms(Draw.augment, 1, 2, np.arange(50), 8)
    assert np.array_equal(uniforms(Draw.augment, 1, 2, np.array([7, 3]), 8), whole[[7, 3]])
    assert np.array_equal(uniforms(Draw.augment, 1, 2, np.arange(50), 3), whole[:, :3])
    for draw, seed, epoch in ((Draw.erase, 1, 2), (Draw.augment, 2, 2), (Draw.augment, 1, 3), (Draw.augment, 2, 1)):
        assert not np.isin(uniforms(draw, seed, epoch, np.arange(50), 8), whole).any()
    many = uniforms(Draw.box, 0, 0, IDS, 2)
    assert stats.kstest(many[:, 0], "uniform").pvalue > LIKELY
    assert abs(np.corrcoef(many[:, 0], many[:, 1])[0, 1]) < 0.02
    assert abs(np.corrcoef(many[:-1, 0], many[1:, 0])[0, 1]) < 0.02
