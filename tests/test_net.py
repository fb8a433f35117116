"""The net: every row costs what the paper prints, every parameter learns, every legal combination of toggles trains."""

from dataclasses import fields, replace

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from roadmap import paper
from roadmap.config import NetConfig
from roadmap.errors import ConfigError
from roadmap.net import build_net, cost, describe
from roadmap.net.block import Block, block_convs
from roadmap.net.layers import ChannelNorm, DropPath
from roadmap.steps import compose

from .net_rows import rows

CONVNEXT = rows("tiny")["separate_downsampling"]
TOY = rows("toy")


@pytest.mark.parametrize("regime", ["tiny", "base"])
def test_gmacs_are_the_papers_to_the_printed_digit(regime):
    for step, cfg in rows(regime).items():
        counted, printed = cost(cfg, 1000, 224).gmacs, paper.rows(regime)[step].gmacs
        if (regime, step) in paper.SLIPS:
            assert f"{counted:.2f}" == {"layer_norm": "4.15", "separate_downsampling": "4.46"}[step]
        else:
            assert f"{counted:.2f}" == f"{printed:.2f}", step


def test_config_files_say_the_same_as_the_rows_written_by_hand():
    for regime in ("tiny", "base"):
        for step, cfg in rows(regime).items():
            model = compose(step, regime).model
            assert replace(model, layer_scale=None, drop_path=0.0, init="kaiming") == cfg, (regime, step)


@pytest.mark.parametrize(("name", "gmacs", "params"), [("swin_t", "4.49", 28_288_354), ("swin_b", "15.43", 87_768_224)])
def test_swin_counts(name, gmacs, params):
    size = cost(compose("swin", "tiny" if name == "swin_t" else "base").model, 1000, 224)
    assert (f"{size.gmacs:.2f}", round(size.params_m * 1e6)) == (gmacs, params)


@pytest.mark.parametrize(
    ("regime", "params"),
    [("tiny", 28_589_128), ("small", 50_223_688), ("base", 88_591_464), ("large", 197_767_336), ("xlarge", 350_196_968)],
)
def test_last_step_has_convnexts_parameters(regime, params):
    model = compose("separate_downsampling", regime).model
    assert sum(torch.Size(s).numel() for s in describe(model, 1000).values()) == params


@pytest.mark.parametrize(("depths", "peer"), [((3, 4, 6, 3), "resnet50"), ((3, 4, 23, 3), "resnet101"), ((3, 8, 36, 3), "resnet152")])
def test_first_step_has_resnets_parameters(depths, peer):
    with torch.device("meta"):
        theirs = sum(p.numel() for p in getattr(torchvision.models, peer)().parameters())
    assert round(cost(NetConfig(depths=depths), 1000, 224).params_m * 1e6) == theirs


@pytest.mark.parametrize("regime", ["tiny", "base"])
def test_parameters_follow_from_the_shapes_of_the_convolutions(regime):
    """Counted by hand: convs, their biases, norms, layer scales, head."""
    for step, cfg in rows(regime).items():
        cfg = replace(cfg, layer_scale=1e-6)
        batch = cfg.norm == "batch_norm"
        out = 4 if not cfg.inverted else 1
        total, c_in = 3 * cfg.width * (16 if cfg.stem == "patchify" else 49) + 2 * cfg.width + (0 if batch else cfg.width), cfg.width
        for stage, depth in enumerate(cfg.depths):
            c = cfg.width * 2**stage * out
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
        total += (2 * c_in if cfg.separate_downsampling else 0) + 1000 * c_in + 1000
        assert round(cost(cfg, 1000, 224).params_m * 1e6) == total, step


def images(n=4, size=32, seed=0):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("step", [*TOY, "swin"])
def test_every_parameter_receives_a_gradient(step):
    torch.manual_seed(0)
    cfg = replace(TOY[step], layer_scale=1e-6) if step in TOY else compose("swin", "tiny").model
    net = build_net(cfg, 5)
    nn.functional.cross_entropy(net(images(4, 64 if step in TOY else 224)), torch.tensor([0, 1, 2, 3])).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if step != "swin" or "relative_position_bias_table" not in name:
            assert parameter.grad.abs().max() > 0, name


TOGGLES = {
    "stem": st.sampled_from(["resnet", "patchify"]),
    "depthwise": st.booleans(),
    "inverted": st.booleans(),
    "depthwise_first": st.booleans(),
    "kernel_size": st.integers(1, 12),
    "activation": st.sampled_from(["relu", "gelu"]),
    "activations_per_block": st.sampled_from([3, 1]),
    "norm": st.sampled_from(["batch_norm", "layer_norm"]),
    "norms_per_block": st.sampled_from([3, 1]),
    "separate_downsampling": st.booleans(),
    "layer_scale": st.sampled_from([None, 1e-6]),
    "drop_path": st.sampled_from([0.0, 0.3]),
    "init": st.sampled_from(["kaiming", "trunc_normal"]),
    "stem_norm": st.booleans(),
    "stem_activation": st.sampled_from(["auto", "always", "never"]),
    "projection_norm": st.booleans(),
    "residual_activation": st.sampled_from(["auto", "always", "never"]),
    "head_norm": st.sampled_from(["auto", "always", "never"]),
    "stride_on": st.sampled_from(["spatial", "pointwise"]),
    "conv_bias": st.sampled_from(["auto", "always", "never"]),
    "depths": st.tuples(*[st.integers(1, 2)] * 4),
    "width": st.integers(1, 9),
}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.fixed_dictionaries(TOGGLES))
def test_a_combination_of_toggles_trains_or_is_refused_with_its_name(toggles):
    wrong = {"kernel_size"} if toggles["kernel_size"] % 2 == 0 else set()
    if toggles["depthwise_first"] and not (toggles["depthwise"] and toggles["inverted"]):
        wrong.add("depthwise_first")
    if wrong:
        with pytest.raises(ConfigError, match="|".join(wrong)):
            NetConfig(**toggles)
        return
    cfg = NetConfig(**toggles)
    torch.manual_seed(0)
    net = build_net(cfg, 3)
    before = {n: p.clone() for n, p in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss = nn.functional.cross_entropy(net(images(3, 64)), torch.tensor([0, 1, 2]))
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert any(not torch.equal(before[n], p) for n, p in net.named_parameters())


def test_toggles_of_the_schema_are_all_in_the_property_test():
    assert {f.name for f in fields(NetConfig)} - set(TOGGLES) == {"batch_norm_eps", "layer_norm_eps", "reference"}


class TestBlock:
    def shapes(self, **toggles):
        return [tuple(s) for s in block_convs(NetConfig(**toggles), 64, 256, 2)]

    def test_resnet(self):
        assert self.shapes() == [(64, 64, 1, 1, 1), (64, 64, 3, 2, 1), (64, 256, 1, 1, 1)]

    def test_inverted_depthwise(self):
        expected = [(64, 1024, 1, 1, 1), (1024, 1024, 3, 2, 1024), (1024, 256, 1, 1, 1)]
        assert self.shapes(inverted=True, depthwise=True) == expected

    def test_depthwise_first(self):
        expected = [(64, 64, 7, 2, 64), (64, 1024, 1, 1, 1), (1024, 256, 1, 1, 1)]
        assert self.shapes(inverted=True, depthwise=True, depthwise_first=True, kernel_size=7) == expected

    def test_the_other_reading_of_the_stride(self):
        assert [s[3] for s in self.shapes(stride_on="pointwise")] == [2, 1, 1]
        first = self.shapes(inverted=True, depthwise=True, depthwise_first=True, stride_on="pointwise")
        assert [s[3] for s in first] == [1, 2, 1]

    def kinds(self, step):
        block = Block(TOY[step], 16, 16, 1, 0.0)
        return [type(getattr(block, slot)).__name__ for slot in ("norm1", "act1", "norm2", "act2", "norm3", "act3")]

    def test_where_norms_and_activations_stand(self):
        bn, ln, none = "BatchNorm2d", "ChannelNorm", "Identity"
        assert self.kinds("resnet") == [bn, "ReLU", bn, "ReLU", bn, "ReLU"]
        assert self.kinds("move_up_depthwise") == [bn, "ReLU", bn, "ReLU", bn, "ReLU"]
        assert self.kinds("gelu") == [bn, "GELU", bn, "GELU", bn, "GELU"]
        assert self.kinds("fewer_activations") == [bn, none, bn, "GELU", bn, none]
        assert self.kinds("fewer_norms") == [bn, none, none, "GELU", none, none]
        assert self.kinds("layer_norm") == [ln, none, none, "GELU", none, none]
        late = Block(replace(TOY["depthwise"], norms_per_block=1), 16, 16, 1, 0.0)
        assert [type(n).__name__ for n in (late.norm1, late.norm2, late.norm3)] == [none, bn, none]


def test_a_conv_has_a_bias_unless_a_batch_norm_follows_it():
    for step, cfg in TOY.items():
        net = build_net(cfg, 5)
        for block in [m for m in net.modules() if isinstance(m, Block)]:
            for conv, norm in ((block.conv1, block.norm1), (block.conv2, block.norm2), (block.conv3, block.norm3)):
                assert (conv.bias is None) == isinstance(norm, nn.BatchNorm2d), step
    assert all(m.bias is not None for m in build_net(replace(TOY["resnet"], conv_bias="always"), 5).modules() if isinstance(m, nn.Conv2d))


def test_downsampling_leaves_the_blocks_and_takes_the_projections_with_it():
    with_it, without = build_net(TOY["separate_downsampling"], 5), build_net(TOY["layer_norm"], 5)
    assert not [n for n, _ in with_it.named_parameters() if "shortcut" in n]
    assert len([n for n, _ in without.named_parameters() if n.endswith("shortcut.conv.weight")]) == 3
    assert [n for n, _ in with_it.named_modules() if n.endswith("downsample")] == [f"stages.{s}.downsample" for s in (1, 2, 3)]
    assert isinstance(with_it.norm, nn.LayerNorm)
    assert isinstance(without.norm, nn.Identity)


def test_stochastic_depth_grows_linearly_over_all_blocks():
    net = build_net(replace(TOY["gelu"], drop_path=0.5), 5)
    rates = [m.drop_path.rate if isinstance(m.drop_path, DropPath) else 0.0 for m in net.modules() if isinstance(m, Block)]
    assert rates == pytest.approx([0.5 * i / 5 for i in range(6)])


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    layer = DropPath(0.25)
    x = torch.ones(20_000, 2, 1, 1)
    y = layer(x)
    assert torch.equal(y[:, 0], y[:, 1])
    assert y.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert float((y == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert torch.equal(layer.eval()(x), x)


def test_channel_norm_is_torchs_layer_norm_on_pixels():
    torch.manual_seed(0)
    x, layer = torch.randn(2, 6, 4, 5), ChannelNorm(6, eps=1e-6)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    y = layer(x)
    pixel = x[1, :, 2, 3]
    by_hand = (pixel - pixel.mean()) / (pixel.var(correction=0) + 1e-6).sqrt() * layer.weight + layer.bias
    assert torch.allclose(y[1, :, 2, 3], by_hand, atol=1e-6)


@pytest.mark.parametrize("step", ["resnet", "gelu", "separate_downsampling"])
def test_channels_last_changes_nothing_but_the_layout(step):
    torch.manual_seed(0)
    net = build_net(replace(TOY[step], layer_scale=0.5), 5).eval()
    plain = net(images())
    last = net.to(memory_format=torch.channels_last)(images().to(memory_format=torch.channels_last))
    assert torch.allclose(plain, last, atol=1e-5)


def test_initialisation():
    torch.manual_seed(0)
    table5 = build_net(replace(CONVNEXT, init="trunc_normal", layer_scale=1e-6), 1000)
    assert float(table5.stages[2].block3.conv2.weight.std()) == pytest.approx(0.02, rel=0.02)
    assert float(table5.head.weight.std()) == pytest.approx(0.02, rel=0.02)
    assert all(not p.any() for n, p in table5.named_parameters() if n.endswith("bias"))
    assert all(torch.equal(p, torch.full_like(p, 1e-6)) for n, p in table5.named_parameters() if n.endswith("gamma"))
    resnet = build_net(rows("tiny")["resnet"], 1000)
    fan_out = 3 * 3 * 256
    assert float(resnet.stages[2].block1.conv2.weight.std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)
    assert all(torch.equal(p, torch.ones_like(p)) for n, p in resnet.named_parameters() if ".norm" in n and n.endswith("weight"))


def test_same_seed_same_weights_as_torchvisions_resnet():
    """The original row starts where torchvision's ResNet-50 does: same distributions, layer by layer."""
    torch.manual_seed(0)
    ours, theirs = build_net(rows("tiny")["resnet"], 1000), torchvision.models.resnet50()
    for a, b in ((ours.stem.conv, theirs.conv1), (ours.stages[3].block0.conv3, theirs.layer4[0].conv3), (ours.head, theirs.fc)):
        assert float(a.weight.std()) == pytest.approx(float(b.weight.std()), rel=0.03)
