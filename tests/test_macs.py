"""What the nets cost: every row's MACs are the paper's, parameters follow from the convolutions' shapes."""

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from roadmap import paper
from roadmap.config.toggles import NetConfig
from roadmap.errors import ConfigError
from roadmap.net import build_net, cost, count_params, describe
from roadmap.net.block import block_convs
from roadmap.net.layers import GlobalResponseNorm, LayerScale

from .net_rows import CONVNEXTS, CONVNEXTS_V2, SWIN, convnext, convnext_v2, images, rows


@pytest.mark.parametrize("regime", ["tiny", "base"])
def test_gmacs_are_the_papers_to_the_printed_digit(regime):
    nets = rows(regime) | {"swin": SWIN[regime]}
    assert nets.keys() == paper.rows(regime).keys()
    for step, cfg in nets.items():
        counted = f"{cost(cfg, 1000, 224).gmacs:.2f}"
        if (regime, step) in paper.SLIPS:
            assert counted == {"layer_norm": "4.15", "separate_downsampling": "4.46", "swin": "4.49"}[step]
        else:
            assert counted == f"{paper.rows(regime)[step].gmacs:.2f}", step


@pytest.mark.parametrize(
    ("layer", "change", "told"),
    [
        (GlobalResponseNorm, lambda x: x[:, 1:], r"a convolution .* gets 63 channels\n  block.py, line .*conv3"),
        (GlobalResponseNorm, lambda x: x.view(-1), r"\n  block.py, line .*conv3"),
        (LayerScale, lambda x: x[:, :7], r"shape mismatch.*\n  block.py, line .*shortcut"),
        (LayerScale, lambda x: x.squeeze(9), r"Dimension out of range.*\n  test_macs.py, line"),
        (nn.Flatten, lambda x: x[:, :7], r"a product of \(1, 7\) and \(128, 10\) is none\n  net.py, line .*head"),
    ],
)
def test_a_layer_of_ones_own_that_does_not_fit_is_named_with_its_line(monkeypatch, layer, change, told):
    cfg = NetConfig(
        depths=(1, 1, 1, 1),
        width=16,
        inverted=True,
        depthwise=True,
        activations_per_block=1,
        grn=True,
        layer_scale=1e-6,
    )
    forward = nn.AdaptiveAvgPool2d.forward
    if layer is nn.Flatten:  # of the head
        monkeypatch.setattr(nn.AdaptiveAvgPool2d, "forward", lambda self, x: change(forward(self, x)))
    else:
        monkeypatch.setattr(layer, "forward", lambda self, x: change(x))
    with pytest.raises(ConfigError, match=rf"the net cannot be computed: .*{told}"):
        cost(cfg, 10, 32)


@pytest.mark.parametrize(
    ("size", "gmacs"), [("tiny", "4.46"), ("small", "8.68"), ("base", "15.35"), ("large", "34.36"), ("xlarge", "60.92")]
)
def test_convnexts_cost_what_the_paper_says(size, gmacs):
    assert f"{cost(convnext(size), 1000, 224).gmacs:.2f}" == gmacs
    assert count_params(convnext(size)) == CONVNEXTS[size][2]


@pytest.mark.parametrize("size", list(CONVNEXTS_V2))
def test_convnexts_v2_cost_what_timms_do(size):
    with torch.device("meta"):
        theirs = timm.create_model(f"convnextv2_{size}", num_classes=1000).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            theirs(torch.empty(1, 3, 224, 224))
    assert count_params(convnext_v2(size)) == count_params(theirs)
    assert cost(convnext_v2(size), 1000, 224).gmacs == counter.get_total_flops() // 2 / 1e9


PRINTED = {  # 1e6 activations at 224 as timm's benchmark prints them, counted by fvcore
    "resnet50": (rows("tiny")["resnet"], "11.11"),
    "resnet101": (NetConfig(depths=(3, 4, 23, 3)), "16.23"),
    "resnet152": (NetConfig(depths=(3, 8, 36, 3)), "22.56"),
    "convnext_tiny": (convnext("tiny"), "13.44"),
    "convnext_small": (convnext("small"), "21.56"),
    "convnext_base": (convnext("base"), "28.75"),
    "convnextv2_atto": (convnext_v2("atto"), "3.81"),
    "convnextv2_nano": (convnext_v2("nano"), "8.37"),
    "convnextv2_tiny": (convnext_v2("tiny"), "13.44"),
    "swin_tiny_patch4_window7_224": (SWIN["tiny"], "17.06"),
}


@pytest.mark.parametrize("name", list(PRINTED))
def test_activations_are_those_that_timm_prints(name):
    cfg, printed = PRINTED[name]
    assert f"{cost(cfg, 1000, 224).macts:.2f}" == printed


@pytest.mark.parametrize("step", ["resnet", "depthwise", "separate_downsampling"])
def test_activations_are_the_outputs_of_convolutions_and_of_the_head(step):
    net, found = build_net(rows("toy")[step], 5), []
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda module, inputs, out: found.append(out.numel()))
    net.eval()(images(1, 64))
    assert cost(rows("toy")[step], 5, 64).macts == sum(found) / 1e6


@pytest.mark.parametrize(("name", "regime"), [("swin_t", "tiny"), ("swin_b", "base")])
def test_swin_has_torchvisions_parameters(name, regime):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)()
    assert describe(SWIN[regime], 1000) == {key: tuple(p.shape) for key, p in theirs.named_parameters()}


@pytest.mark.parametrize(
    ("depths", "peer"), [((3, 4, 6, 3), "resnet50"), ((3, 4, 23, 3), "resnet101"), ((3, 8, 36, 3), "resnet152")]
)
def test_first_step_has_resnets_parameters(depths, peer):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, peer)()
    assert count_params(NetConfig(depths=depths), 1000) == count_params(theirs)


def params_by_hand(cfg: NetConfig, num_classes: int) -> int:
    """Count weights and biases of convs, norms, layer scales and head from the shapes of the blocks' convolutions."""
    batch = cfg.norm == "batch_norm"
    total, c_in = (
        3 * cfg.width * (16 if cfg.stem == "patchify" else 49) + 2 * cfg.width + (0 if batch else cfg.width),
        cfg.width,
    )
    for stage, depth in enumerate(cfg.depths):
        c = cfg.width * 2**stage * (1 if cfg.inverted else 4)
        if cfg.separate_downsampling and stage:
            total, c_in = total + 2 * c_in + 4 * c_in * c + c, c
        for index in range(depth):
            stride = 2 if stage and not index and not cfg.separate_downsampling else 1
            normed = {0, 1, 2} if cfg.norms_per_block == 3 else {0 if cfg.depthwise_first else 1}
            for slot, s in enumerate(block_convs(cfg, c_in, c, stride)):
                total += s.c_in * s.c_out * s.kernel**2 // s.groups + (2 * s.c_out if slot in normed else 0)
                total += 0 if slot in normed and batch else s.c_out
            if stride == 2 or c_in != c:
                total += c_in * c + 2 * c + (0 if batch else c)
            total, c_in = total + c, c
    return total + (2 * c_in if cfg.separate_downsampling else 0) + num_classes * c_in + num_classes


@pytest.mark.parametrize("regime", ["tiny", "base"])
def test_parameters_follow_from_the_shapes_of_the_convolutions(regime):
    for step, cfg in rows(regime).items():
        cfg = cfg.replace(layer_scale=1e-6)
        assert count_params(cfg, 1000) == params_by_hand(cfg, 1000), step


def test_counts_by_hand_on_a_small_net():
    """One 4x4 patch an image pixel block: each conv's weights times the positions it is applied at."""
    cfg = rows("toy")["separate_downsampling"].replace(depths=(1, 1, 1, 1), width=2)
    macs, positions, c_in = 0, 64, 3
    for stage, c in enumerate((2, 4, 8, 16)):
        positions = positions if stage == 0 else positions // 4
        macs += positions * c_in * c * (16 if stage == 0 else 4)  # stem and downsampling
        macs += positions * (49 * c + c * 4 * c + 4 * c * c)
        c_in = c
    assert cost(cfg, 5, 32).gmacs == (macs + 16 * 5) / 1e9


def test_the_ways_to_count_agree():
    cfg = rows("toy")["gelu"]
    size = cost(cfg, 5, 32)
    assert size.params_m == count_params(cfg, 5) / 1e6 == count_params(build_net(cfg, 5)) / 1e6
    assert {key: tuple(p.shape) for key, p in build_net(cfg, 5).named_parameters()} == describe(cfg, 5)


def test_counting_leaves_the_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    cost(rows("toy")["separate_downsampling"], 5, 32)
    assert torch.equal(torch.rand(1), expected)
