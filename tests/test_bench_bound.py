"""The least that a step must compute and move: by hand for single layers, by the count of MACs for whole nets."""

import pytest
import torch
from torch import nn

from roadmap.bench.bound import Rates, Work, bounds, measured_rates, step_work
from roadmap.config.choices import Precision
from roadmap.config.recipe import RecipeConfig
from roadmap.net import build_net, cost
from roadmap.steps.compose import compose


def test_one_convolution_by_hand():
    with torch.device("meta"):
        net = nn.Conv2d(3, 8, 3, padding=1)
    work = step_work(net, 2, 4, RecipeConfig(optimizer="adamw"), Precision.fp32)
    macs = 2 * 4 * 4 * 8 * 3 * 9
    assert work.flop == 3 * 2 * macs
    image, weight, out = 2 * 3 * 4 * 4, 8 * 3 * 9, 2 * 8 * 4 * 4
    parameters = weight + 8
    assert (
        work.moved_bytes == 4 * (3 * (image + weight) + 2 * out) + 4 * 7 * parameters
    )  # gradient, weight twice, two states twice


def test_one_linear_layer_by_hand_in_bf16():
    with torch.device("meta"):
        net = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
    work = step_work(net, 2, 4, RecipeConfig(optimizer="sgd"), Precision.bf16)
    assert work.flop == 3 * 2 * 2 * 48 * 10
    assert work.moved_bytes == 2 * (3 * (2 * 48 + 48 * 10) + 2 * 2 * 10) + 4 * 5 * (48 * 10 + 10)


@pytest.mark.parametrize("step", ["resnet", "kernel_11", "separate_downsampling", "swin"])
def test_flop_are_six_times_the_macs_of_the_table(step):
    config = compose(step, "tiny")
    with torch.device("meta"):
        net = build_net(config.model, 1000)
    work = step_work(net, 3, 224, config.recipe, Precision.bf16)
    assert work.flop == pytest.approx(6 * 3 * 1e9 * cost(config.model, 1000, 224).gmacs)


def test_bounds_are_images_a_second():
    assert bounds(Work(flop=4e12, moved_bytes=1e9), Rates(flop_per_s=8e12, bytes_per_s=4e9), batch=16) == {
        "matrix": 32.0,
        "memory": 64.0,
    }


def test_a_device_is_measured():
    rates = measured_rates(torch.device("cpu"), Precision.fp32)
    assert 1e9 < rates.flop_per_s < 1e14  # between a core of the nineties and a rack
    assert 1e8 < rates.bytes_per_s < 1e13
