"""The net: every parameter learns, every legal combination of toggles trains."""

from contextlib import suppress
from random import Random

import pytest
import torch
import torchvision
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from timm.layers.grn import GlobalResponseNorm as TimmsGrn
from torch import nn

from roadmap.config.toggles import NetConfig
from roadmap.errors import ConfigError
from roadmap.net import build_net, export_weights
from roadmap.net.block import Block, block_convs
from roadmap.net.layers import ChannelNorm, DropPath, GlobalResponseNorm
from roadmap.steps.compose import compose

from .net_rows import SWIN, images, one_thread, rows  # noqa: F401

TOY = rows("toy")
TOY["grn"] = TOY["separate_downsampling"].replace(grn=True)


def test_config_files_say_the_same_as_the_rows_written_by_hand():
    for regime in ("tiny", "base"):
        for step, cfg in rows(regime).items():
            model = compose(step, regime).model
            assert model.replace(layer_scale=None, drop_path=0.0, init="kaiming") == cfg, (regime, step)
        model = compose("grn", regime).model
        assert model == compose("separate_downsampling", regime).model.replace(grn=True, layer_scale=None)


@pytest.mark.parametrize("step", [*TOY, "swin"])
def test_every_parameter_receives_a_gradient(step):
    torch.manual_seed(0)
    net = build_net(TOY[step].replace(layer_scale=1e-6) if step in TOY else SWIN["tiny"], 5)
    nn.functional.cross_entropy(net(images(3, 64)), torch.tensor([0, 1, 2])).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


TOGGLES = {
    "stem": st.sampled_from(["resnet", "patchify"]),
    "stem_stride": st.sampled_from([4, 2]),
    "depthwise": st.booleans(),
    "inverted": st.booleans(),
    "depthwise_first": st.booleans(),
    "kernel_size": st.sampled_from([1, 3, 5, 7]),
    "activation": st.sampled_from(["relu", "gelu"]),
    "activations_per_block": st.sampled_from([3, 1]),
    "norm": st.sampled_from(["batch_norm", "layer_norm"]),
    "norms_per_block": st.sampled_from([3, 1]),
    "separate_downsampling": st.booleans(),
    "grn": st.booleans(),
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
    "width": st.integers(1, 4),
}
combinations = st.fixed_dictionaries(TOGGLES)


def moves_up_alone(toggles):
    return toggles["depthwise_first"] and not (toggles["depthwise"] and toggles["inverted"])


def grn_alone(toggles):
    return toggles["grn"] and not (toggles["inverted"] and toggles["activations_per_block"] == 1)


@settings(max_examples=70)
@given(combinations.filter(lambda toggles: not moves_up_alone(toggles) and not grn_alone(toggles)))
def test_every_legal_combination_of_toggles_trains(toggles):
    torch.manual_seed(0)
    net = build_net(NetConfig(**toggles), 3)
    before = [p.clone() for p in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    logits = net(images(3))
    loss = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2]))
    loss.backward()
    optimizer.step()
    assert logits.shape == (3, 3)
    assert torch.isfinite(loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))


@settings(max_examples=100)
@given(
    combinations,
    st.sampled_from(
        [("kernel_size", 4), ("activations_per_block", 2), ("norms_per_block", 0), ("width", 0), ("stem", "none")]
    ),
)
def test_every_illegal_combination_is_refused_with_the_toggles_name(toggles, wrong):
    if moves_up_alone(toggles):
        missing = "depthwise" if not toggles["depthwise"] else "inverted"
        with pytest.raises(ConfigError, match=f"model.depthwise_first=true with model.{missing}=false"):
            NetConfig(**toggles)
    elif grn_alone(toggles):
        missing = "inverted=false" if not toggles["inverted"] else "activations_per_block=3"
        with pytest.raises(ConfigError, match=f"model.grn=true with model.{missing}"):
            NetConfig(**toggles)
    name, value = wrong
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        NetConfig(**{**toggles, name: value})


def test_toggles_of_the_schema_are_all_in_the_property_tests():
    assert set(NetConfig.model_fields) - set(TOGGLES) == {"batch_norm_eps", "layer_norm_eps", "reference"}


@pytest.mark.parametrize("name", TOGGLES)
def test_every_toggle_of_the_schema_is_read_by_the_net(name):
    def net_of(toggles):
        torch.manual_seed(0)
        net = build_net(NetConfig(**toggles), 3)
        return repr(net), net(images(3)).detach().numpy().tobytes()

    def changes_the_net(case):
        toggles, value = case
        with suppress(ConfigError):
            return net_of(toggles) != net_of({**toggles, name: value})
        return False

    cases = st.tuples(combinations, TOGGLES[name])
    find(cases, changes_the_net, settings=settings(phases=[Phase.generate]), random=Random(0))


NORM = ["bias", "num_batches_tracked", "running_mean", "running_var", "weight"]
NAMES = {  # files of weights depend on them
    "resnet": {
        *(
            f"{part}.weight"
            for part in ("stem.conv", "block0.conv1", "block0.conv2", "block0.conv3", "block0.shortcut.conv", "head")
        ),
        *(
            f"{part}.{k}"
            for part in ("stem.norm", "block0.norm1", "block0.norm2", "block0.norm3", "block0.shortcut.norm")
            for k in NORM
        ),
        "block0.scale.gamma",
        "head.bias",
    },
    "separate_downsampling": {
        *(
            f"{part}.{k}"
            for part in ("stem.conv", "stem.norm", "downsample.norm", "downsample.conv")
            for k in ("weight", "bias")
        ),
        *(f"block0.{part}.{k}" for part in ("conv1", "norm1", "conv2", "conv3") for k in ("weight", "bias")),
        *(f"{part}.{k}" for part in ("norm", "head") for k in ("weight", "bias")),
        "block0.scale.gamma",
    },
}
NAMES["grn"] = {*NAMES["separate_downsampling"], "block0.grn.gamma", "block0.grn.beta"}


@pytest.mark.parametrize("step", list(NAMES))
def test_names_of_tensors_are_a_contract(step):
    net = build_net(TOY[step].replace(depths=(1, 1, 1, 1), layer_scale=1e-6), 5)
    first = "stages.0." if step == "resnet" else "stages.1."
    names = [n for n in net.state_dict() if not n.startswith("stages.") or n.startswith(first)]
    assert {n.removeprefix(first) for n in names} == NAMES[step]


def test_only_weights_of_convolutions_and_the_head_have_two_dimensions():
    """Weight decay goes by the number of dimensions (Table 5): none on norms, biases and layer scales."""
    for step, cfg in TOY.items():
        net = build_net(cfg.replace(layer_scale=1e-6), 5)
        modules = {f"{n}.weight" for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        assert {n for n, p in net.named_parameters() if p.ndim > 1} == modules, step
        assert {p.ndim for n, p in net.named_parameters() if n not in modules} == {1}, step
        assert all(p.is_contiguous() for p in net.parameters()), step


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
        late = Block(TOY["depthwise"].replace(norms_per_block=1), 16, 16, 1, 0.0)
        assert [type(n).__name__ for n in (late.norm1, late.norm2, late.norm3)] == [none, bn, none]


def test_a_conv_has_a_bias_unless_a_batch_norm_follows_it():
    for step, cfg in TOY.items():
        net = build_net(cfg, 5)
        for block in [m for m in net.modules() if isinstance(m, Block)]:
            for conv, norm in ((block.conv1, block.norm1), (block.conv2, block.norm2), (block.conv3, block.norm3)):
                assert (conv.bias is None) == isinstance(norm, nn.BatchNorm2d), step
    assert all(
        m.bias is not None
        for m in build_net(TOY["resnet"].replace(conv_bias="always"), 5).modules()
        if isinstance(m, nn.Conv2d)
    )
    bare = build_net(TOY["resnet"].replace(projection_norm=False, stem_norm=False), 5)
    assert bare.stem.conv.bias is not None and bare.stages[1].block0.shortcut.conv.bias is not None


def test_downsampling_leaves_the_blocks_and_takes_the_projections_with_it():
    with_it, without = build_net(TOY["separate_downsampling"], 5), build_net(TOY["layer_norm"], 5)
    assert not [n for n, _ in with_it.named_parameters() if "shortcut" in n]
    assert len([n for n, _ in without.named_parameters() if n.endswith("shortcut.conv.weight")]) == 3
    assert [n for n, _ in with_it.named_modules() if n.endswith("downsample")] == [
        f"stages.{s}.downsample" for s in (1, 2, 3)
    ]
    assert isinstance(with_it.norm, nn.LayerNorm)
    assert isinstance(without.norm, nn.Identity)


def test_stochastic_depth_grows_linearly_over_all_blocks():
    net = build_net(TOY["gelu"].replace(drop_path=0.5), 5)
    rates = [
        m.drop_path.rate if isinstance(m.drop_path, DropPath) else 0.0 for m in net.modules() if isinstance(m, Block)
    ]
    assert rates == pytest.approx([0.5 * i / 5 for i in range(6)])
    with torch.device("meta"):
        swin = build_net(SWIN["tiny"].replace(drop_path=0.2), 5)
    rates = [module.p for module in swin.modules() if isinstance(module, torchvision.ops.StochasticDepth)]
    assert rates == pytest.approx([0.2 * i / 11 for i in range(12)])


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


@pytest.mark.parametrize(("step", "key"), [("separate_downsampling", "layer_norm_eps"), ("resnet", "batch_norm_eps")])
def test_every_norm_has_the_eps_of_the_config(step, key):
    net = build_net(TOY[step].replace(**{key: 3e-4, "head_norm": "always"}), 5)
    norms = [m for m in net.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm1d | nn.BatchNorm2d)]
    assert net.norm in norms and {norm.eps for norm in norms} == {3e-4}


@torch.no_grad()
@pytest.mark.parametrize("channels_last", [True, False])
def test_global_response_norm_is_timms(channels_last):
    torch.manual_seed(0)
    x, ours, theirs = torch.randn(2, 6, 4, 5), GlobalResponseNorm(6), TimmsGrn(6, channels_last=channels_last)
    x[:, 3] = 0
    assert torch.equal(ours(x), x)  # as it begins
    for mine, other in ((ours.gamma, theirs.weight), (ours.beta, theirs.bias)):
        other.copy_(nn.init.normal_(mine))
    expected = theirs(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if channels_last else theirs(x)
    assert torch.allclose(ours(x), expected, atol=1e-6)


def test_a_channel_without_response_has_a_gradient():
    """As behind a ReLU: a norm's own gradient at zero would be none."""
    x = torch.zeros(2, 6, 4, 4, requires_grad=True)
    layer = GlobalResponseNorm(6)
    nn.init.ones_(layer.gamma)
    layer(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("step", ["resnet", "gelu", "separate_downsampling", "grn"])
def test_channels_last_changes_nothing_but_the_layout(step):
    torch.manual_seed(0)
    net = build_net(TOY[step].replace(layer_scale=0.5), 5).eval()
    plain = net(images())
    last = net.to(memory_format=torch.channels_last)(images().to(memory_format=torch.channels_last))
    assert torch.allclose(plain, last, atol=1e-5)


def test_initialisation():
    torch.manual_seed(0)
    table5 = build_net(rows("tiny")["separate_downsampling"].replace(init="trunc_normal", layer_scale=1e-6), 1000)
    assert std(table5.stages[2].block3.conv2.weight) == pytest.approx(0.02, rel=0.02)
    assert std(table5.head.weight) == pytest.approx(0.02, rel=0.02)
    assert all(not p.any() for n, p in table5.named_parameters() if n.endswith("bias"))
    assert all(torch.equal(p, torch.full_like(p, 1e-6)) for n, p in table5.named_parameters() if n.endswith("gamma"))
    assert all(
        torch.equal(p, torch.ones_like(p)) for n, p in table5.named_parameters() if "norm" in n and n.endswith("weight")
    )


def std(tensor):
    return float(tensor.detach().std())


@pytest.mark.parametrize(
    ("step", "init", "peer"),
    [("resnet", "kaiming", "resnet50"), ("separate_downsampling", "trunc_normal", "convnext_tiny")],
)
def test_the_same_seed_gives_the_weights_that_torchvision_starts_with(step, init, peer):
    """Every tensor to the bit: the distributions are theirs, and nothing else draws random numbers."""
    cfg = rows("tiny")[step].replace(init=init, layer_scale=1e-6 if step == "separate_downsampling" else None)
    torch.manual_seed(0)
    ours = export_weights(build_net(cfg, 1000), "torchvision")
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, peer)().state_dict()
    assert ours.keys() == theirs.keys()
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.parametrize("stem", ["resnet", "patchify"])
@pytest.mark.parametrize(("stride", "sides"), [(4, [8, 4, 2, 1]), (2, [16, 8, 4, 2])])
def test_the_stem_divides_by_its_stride_and_each_later_stage_by_two(stem, stride, sides):
    net, x, found = build_net(NetConfig(stem=stem, stem_stride=stride, depths=(1, 1, 1, 1), width=4), 3), images(2), []
    x = net.stem(x)
    for stage in net.stages:
        x = stage(x)
        found.append(x.shape[-1])
    assert found == sides


def test_mini_leaves_kernels_of_eleven_a_map_in_the_third_stage():
    cfg = compose("kernel_11", "mini", ["data.root=/none"])
    side = cfg.data.image_size // cfg.model.stem_stride // 4
    # From a map's one edge to the other is side - 1 pixels: so far a kernel of 11 reaches, and one of 9 does not.
    assert 11 // 2 == side - 1
