"""Depthwise kernels larger than their map: what meets padding alone is left out, and nothing else changes."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from roadmap.config.choices import Kernels
from roadmap.net import build_net, cost, use_kernels
from roadmap.net.kernels.depthwise import Depthwise, Forms

from .kernel_checks import assert_as_exact, depthwise_inputs, plain_depthwise, results
from .net_rows import images, rows

CPU = torch.device("cpu")
ROOM = {torch.float32: 2.0, torch.bfloat16: 1.2}


@pytest.mark.parametrize("kind", ROOM)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 4), (4, 4), (5, 5), (8, 1)])
def test_a_kernel_cut_to_what_its_map_can_meet_is_exact(size, stride, kind):
    if (size, stride, kind) == ((8, 1), 2, torch.bfloat16):
        pytest.skip("oneDNN writes no gradient for the idle taps of a map one pixel wide: what was in memory stays")
    conv = nn.Conv2d(8, 8, 11, stride, padding=5, groups=8).to(memory_format=torch.channels_last)
    conv.__class__, conv.forms = Depthwise, Forms()

    def cut(x, w, b):
        return torch.func.functional_call(conv.to(x.dtype), {"weight": w, "bias": b}, (x,))

    inputs = depthwise_inputs((3, 8, *size), 11, kind)
    assert_as_exact(cut, plain_depthwise(stride), inputs, factor=ROOM[kind])
    g = torch.ones_like(cut(*inputs))
    taps, whole = results(cut, inputs, g)[2], results(plain_depthwise(stride), inputs, g)[2]
    reach = max(size)
    idle = torch.ones(11, 11, dtype=torch.bool)
    idle[max(0, 6 - reach) : 5 + reach, max(0, 6 - reach) : 5 + reach] = False
    assert torch.equal(taps[..., idle], whole[..., idle]) and not taps[..., idle].any()


@pytest.mark.parametrize("choice", [Kernels.auto, Kernels.fast])
def test_a_row_computes_only_the_taps_that_its_maps_meet_and_costs_what_it_did(choice):
    net, x = build_net(rows("toy")["kernel_11"], 5), images(1, 32)
    assert use_kernels(net, CPU, choice)["idle taps"] == "cut"
    macs = {}
    for name in (choice, Kernels.plain):
        use_kernels(net, CPU, name)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net.eval()(x)
        macs[name] = counter.get_total_flops() // 2
    maps = {stage: 8 // 2**stage for stage in range(4)}  # H of each stage's map
    blocks = [(stage, block.conv1) for stage, layers in enumerate(net.stages) for block in layers]
    idle = 0
    for stage, conv in blocks:
        taps = min(11, 2 * conv.stride[0] * maps[stage] - 1)
        idle += conv.in_channels * maps[stage] ** 2 * (11**2 - taps**2)
    assert macs[Kernels.plain] - macs[choice] == idle > 0
    assert macs[Kernels.plain] == round(cost(rows("toy")["kernel_11"], 5, 32).gmacs * 1e9)
