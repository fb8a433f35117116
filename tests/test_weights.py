"""Weights of other code in and out: logits equal to torchvision's and timm's own nets, and back out unchanged."""

import pytest
import timm
import torch
import torchvision
from timm.models.convnext import checkpoint_filter_fn

from roadmap.errors import DataError
from roadmap.net import build_net, export_weights, load_weights
from roadmap.net.weights import FREE

from .net_rows import CONVNEXTS, CONVNEXTS_V2, SWIN, blank, convnext, convnext_v2, drawn, images, one_thread, rows  # noqa: F401

RESNET = rows("tiny")["resnet"]
TOY = rows("toy") | {"convnext": rows("toy")["separate_downsampling"].replace(layer_scale=1e-6)}
TOY["grn"] = rows("toy")["separate_downsampling"].replace(grn=True)


def sizes(*fast, slow=()):
    """Return sizes for a test of values: all others differ in shapes alone, which a test without memory compares."""
    return [*fast, *(pytest.param(size, marks=pytest.mark.slow) for size in slow)]


def ours(cfg, num_classes=1000):
    return blank(lambda: build_net(cfg, num_classes))


def unchanged(out, given):
    assert out.keys() == given.keys()
    for key, tensor in given.items():
        assert torch.equal(out[key], tensor), key


def agree(a, b):
    """Logits within 1e-5, and of a size at which that says something."""
    assert b.abs().max() > 0.1
    return torch.allclose(a, b, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "depths"), [("resnet50", (3, 4, 6, 3)), ("resnet101", (3, 4, 23, 3)), ("resnet152", (3, 8, 36, 3))]
)
def test_torchvisions_resnets_are_equal_to_the_bit(name, depths):
    theirs = drawn(getattr(torchvision.models, name))
    net = ours(RESNET.replace(depths=depths))
    load_weights(net, theirs.state_dict())
    x = images(2, 64)
    expected = theirs(x)
    assert torch.isfinite(expected).all()
    assert torch.equal(net(x), expected)
    unchanged(export_weights(net, "torchvision"), theirs.state_dict())


def test_torchvisions_resnet50_trains_to_the_same_bits():
    """Logits of batch statistics, running statistics and every gradient, at the paper's image size."""
    torch.manual_seed(0)
    theirs, net = torchvision.models.resnet50(), ours(RESNET)
    load_weights(net, theirs.state_dict())
    logits = []
    for module in (theirs, net):
        logits.append(module.train()(images(2, 224)))
        logits[-1].square().mean().backward()
    assert torch.equal(*logits)
    unchanged(export_weights(net, "torchvision"), theirs.state_dict())
    for module in (theirs, net):
        for parameter in module.parameters():
            parameter.data = parameter.grad
    unchanged(export_weights(net, "torchvision"), theirs.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("size", sizes("tiny", slow=("small", "base", "large")))
def test_torchvisions_convnexts(size):
    theirs = drawn(getattr(torchvision.models, f"convnext_{size}"))
    net = ours(convnext(size))
    load_weights(net, theirs.state_dict())
    x = images(1, 32)
    assert agree(net(x), theirs(x))
    unchanged(export_weights(net, "torchvision"), theirs.state_dict())


def official(state):
    """Return timm's tensors under the authors' names: by hand, the inverse of timm's own conversion."""
    out = {}
    for key, tensor in state.items():
        parts = key.split(".")
        if parts[0] == "stem":
            new = ["downsample_layers", "0", *parts[1:]]
        elif parts[0] == "stages" and parts[2] == "downsample":
            new = ["downsample_layers", parts[1], *parts[3:]]
        elif parts[0] == "stages":
            rest = ".".join(parts[4:])
            for theirs, authors in (
                *(("conv_dw", "dwconv"), ("mlp.fc1", "pwconv1"), ("mlp.fc2", "pwconv2")),
                *(("mlp.grn.weight", "grn.gamma"), ("mlp.grn.bias", "grn.beta")),
            ):
                rest = rest.replace(theirs, authors)
            if "grn" in rest:
                tensor = tensor.reshape(1, 1, 1, -1)
            elif rest.startswith("pw") and rest.endswith("weight"):
                tensor = tensor.flatten(1)
            new = ["stages", parts[1], parts[3], rest]
        else:
            new = ["norm" if parts[1] == "norm" else "head", *parts[2:]]
        out[".".join(new)] = tensor
    return out


def convnext_of(name):
    """Return our config of a net of timm's."""
    version, _, size = name.partition("_")
    return convnext_v2(size) if version == "convnextv2" else convnext(size)


@torch.no_grad()
@pytest.mark.parametrize("name", [
    *sizes("convnext_tiny", "convnext_small", slow=("convnext_base", "convnext_large", "convnext_xlarge")),
    *sizes("convnextv2_atto", "convnextv2_nano", slow=("convnextv2_femto", "convnextv2_pico", "convnextv2_tiny")),
])  # fmt: skip
def test_timms_convnexts_and_the_authors_files(name):
    theirs = drawn(lambda: timm.create_model(name, num_classes=1000))
    state = theirs.state_dict()
    net = ours(convnext_of(name))
    load_weights(net, state)
    x = images(1, 64)
    assert agree(net(x), theirs(x))
    unchanged(export_weights(net, "timm"), state)

    # Out in the authors' names, and in again: timm's reading of such a file is the judge.
    file = export_weights(net, "official")
    unchanged(checkpoint_filter_fn({"model": file}, theirs), state)
    unchanged(file, official(state))
    again = ours(convnext_of(name))
    load_weights(again, {"model": file})
    unchanged(again.state_dict(), net.state_dict())


@pytest.mark.parametrize("name", [*(f"convnext_{s}" for s in CONVNEXTS), *(f"convnextv2_{s}" for s in CONVNEXTS_V2)])
def test_exported_names_and_shapes_are_those_of_the_other_code(name):
    """All sizes, on nets without memory."""
    peer = getattr(torchvision.models, name, None)  # it has four of them
    with torch.device("meta"):
        net = build_net(convnext_of(name), 1000)
        theirs = timm.create_model(name, num_classes=1000).state_dict()
        torchvisions = peer().state_dict() if peer else {}
    assert shapes(export_weights(net, "timm")) == shapes(theirs)
    assert shapes(export_weights(net, "official")) == shapes(official(theirs))
    assert not peer or shapes(export_weights(net, "torchvision")) == shapes(torchvisions)


def shapes(state):
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


@torch.no_grad()
def test_timms_and_torchvisions_convnext_are_one_net_through_ours():
    source = drawn(lambda: timm.create_model("convnext_tiny", num_classes=1000))
    net = ours(convnext("tiny"))
    load_weights(net, source.state_dict())
    target = drawn(torchvision.models.convnext_tiny, seed=5)
    target.load_state_dict(export_weights(net, "torchvision"))
    x = images(1, 64)
    assert agree(source(x), target(x))


@torch.no_grad()
def test_swin_is_torchvisions():
    torch.manual_seed(0)
    theirs = torchvision.models.swin_t().eval()
    net = build_net(SWIN["tiny"], 1000).eval()
    load_weights(net, theirs.state_dict())
    x = images(1, 64)
    assert torch.equal(net(x), theirs(x))
    unchanged(export_weights(net, "torchvision"), theirs.state_dict())
    with pytest.raises(DataError, match="SwinTransformer"):
        export_weights(net, "timm")


@pytest.mark.parametrize("step", list(TOY))
def test_our_own_weights_come_back_for_every_row(step):
    first, second = drawn(lambda: build_net(TOY[step], 5)), ours(TOY[step], 5)
    load_weights(second, {"state_dict": {f"module.{k}": v for k, v in first.state_dict().items()}})
    unchanged(second.state_dict(), first.state_dict())


def test_weights_of_half_precision_and_another_layout_are_taken():
    first = drawn(lambda: build_net(TOY["resnet"], 5)).to(memory_format=torch.channels_last)
    second = ours(TOY["resnet"], 5)
    load_weights(second, {k: v.half() if v.is_floating_point() else v for k, v in first.state_dict().items()})
    assert second.stem.conv.weight.dtype == torch.float32
    assert second.stem.conv.weight.is_contiguous()
    assert torch.equal(second.stem.conv.weight, first.stem.conv.weight.half().float())


def test_files_whose_batch_norms_did_not_count_batches_leave_the_nets_counts():
    given = drawn(lambda: build_net(TOY["resnet"], 5)).state_dict()
    net = ours(TOY["resnet"], 5)
    counts = {k: v.clone() for k, v in net.state_dict().items() if k.endswith("num_batches_tracked")}
    load_weights(net, {k: v for k, v in given.items() if k not in counts})
    unchanged(net.state_dict(), given | counts)
    assert len(counts) > 0
    assert all(given[k] != v for k, v in counts.items())


class TestRefusals:
    """Weights of another net are named, and the net stays as it was."""

    def refused(self, net, weights):
        before = {k: v.clone() for k, v in net.state_dict().items()}
        with pytest.raises(DataError) as caught:
            load_weights(net, weights)
        unchanged(net.state_dict(), before)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def resnet(self, depth="50", **kwargs):
        return drawn(lambda: getattr(torchvision.models, f"resnet{depth}")(**kwargs)).state_dict()

    def test_of_another_width(self):
        said = self.refused(ours(TOY["resnet"]), self.resnet())
        assert "torchvision resnet format: conv1.weight has shape [64, 3, 7, 7], this net wants [8, 3, 7, 7]" in said

    def test_of_another_number_of_classes(self):
        said = self.refused(ours(RESNET), self.resnet(num_classes=10))
        assert "fc.weight has shape [10, 2048], this net wants [1000, 2048]" in said

    def test_of_a_deeper_net(self):
        said = self.refused(ours(RESNET), self.resnet("101"))
        assert "layer3.6.conv1.weight has no place" in said
        assert "model.depths=[3, 4, 6, 3]" in said

    def test_of_a_shallower_net(self):
        said = self.refused(ours(RESNET.replace(depths=(3, 4, 23, 3))), self.resnet())
        assert "no layer3.6.conv1.weight" in said

    def test_of_another_step(self):
        assert "model.stem=resnet" in self.refused(ours(TOY["gelu"]), self.resnet())

    @pytest.mark.parametrize("fmt", ["timm", "official"])
    def test_of_v2_in_a_net_of_the_first_one_and_the_other_way_round(self, fmt):
        first, second = ours(TOY["convnext"], 5), ours(TOY["grn"], 5)
        said = self.refused(first, export_weights(second, fmt))
        assert said.endswith("have global response normalisation (ConvNeXt V2), this net has model.grn=false")
        assert self.refused(second, export_weights(first, fmt)).endswith("this net has model.grn=true")

    def test_of_torchvision_which_has_no_v2(self):
        second = ours(TOY["grn"], 5)
        assert "model.grn=False" in self.refused(second, export_weights(ours(TOY["convnext"], 5), "torchvision"))
        with pytest.raises(DataError, match=r"model\.grn"):
            export_weights(second, "torchvision")

    def test_of_the_authors_who_have_no_net_with_layer_scale_and_response_normalisation(self):
        both, given = ours(TOY["grn"].replace(layer_scale=1e-6), 5), export_weights(ours(TOY["grn"], 5), "official")
        assert "layer scale or model.grn=true" in self.refused(both, given)
        with pytest.raises(DataError, match="this one has both"):
            export_weights(both, "official")
        assert "stages.0.blocks.0.gamma" in export_weights(both, "timm")  # whose nets can have both

    def test_that_are_of_no_known_format(self):
        net = ours(TOY["convnext"], 5)
        assert "the format is unknown" in self.refused(net, {"layers.0.weight": torch.zeros(3)})
        assert "no tensors" in self.refused(net, {"epoch": 3})

    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            (lambda t: t.to("meta"), "device meta"),
            (lambda t: t.to_sparse(), "layout torch.sparse_coo"),
            (lambda t: t.to(torch.int8), "torch.int8"),
            (lambda t: t.to(torch.complex64), "torch.complex64"),
            (lambda t: t.tolist(), "of type list"),
            (lambda t: t[:, :-1], "this net wants [5, 256]"),
        ],
        ids=["meta", "sparse", "int8", "complex", "list", "shape"],
    )
    def test_whose_last_tensor_cannot_be_copied(self, bad, words):
        """The last one: a load that goes tensor by tensor would have changed all others by then."""
        weights = drawn(lambda: build_net(TOY["resnet"], 5)).state_dict()
        key = "head.weight"
        said = self.refused(ours(TOY["resnet"].replace(width=2), 5), {"x": torch.zeros(1)} | weights)
        assert "has shape" in said
        said = self.refused(ours(TOY["resnet"], 5), weights | {key: bad(weights[key])})
        assert key in said
        assert words in said

    def test_that_would_become_one_key(self):
        weights = drawn(lambda: build_net(TOY["resnet"], 5)).state_dict()
        twice = weights | {"module.head.weight": weights["head.weight"]}
        assert "module.head.weight" in self.refused(ours(TOY["resnet"], 5), twice)

    @pytest.mark.parametrize(
        ("step", "fmt"), [("gelu", "torchvision"), ("resnet", "timm"), ("layer_norm", "official"), ("resnet", "onnx")]
    )
    def test_a_net_without_a_place_in_the_format_does_not_go_out(self, step, fmt):
        with pytest.raises(DataError, match=r"model\.|onnx"):
            export_weights(ours(TOY[step], 5), fmt)


CHANGES = [  # another value for every field that is no size
    ("resnet", {"activation": "gelu"}),
    ("resnet", {"stem_activation": "never"}),
    ("resnet", {"residual_activation": "never"}),
    ("resnet", {"stride_on": "pointwise"}),
    ("resnet", {"batch_norm_eps": 1e-3}),
    ("resnet", {"activations_per_block": 1}),
    ("resnet", {"stem_norm": False}),
    ("resnet", {"projection_norm": False}),
    ("resnet", {"conv_bias": "always"}),
    ("resnet", {"head_norm": "always"}),
    ("resnet", {"kernel_size": 5}),
    ("resnet", {"layer_scale": 1e-6}),
    ("resnet", {"stem_stride": 2}),  # which no table names: as any toggle that is newer than the formats
    ("convnext", {"activation": "relu"}),
    ("convnext", {"stem_activation": "always"}),
    ("convnext", {"residual_activation": "always"}),
    ("convnext", {"layer_norm_eps": 1e-5}),
    ("convnext", {"activations_per_block": 3}),
    ("convnext", {"norms_per_block": 3}),
    ("convnext", {"stem_norm": False}),
    ("convnext", {"conv_bias": "never"}),
    ("convnext", {"head_norm": "never"}),
    ("convnext", {"kernel_size": 9}),
    ("convnext", {"layer_scale": None}),
    ("convnext", {"grn": True}),
    ("resnet", {"inverted": True, "activations_per_block": 1, "grn": True}),
    ("convnext", {"separate_downsampling": False, "head_norm": "always"}),
]
SAME = [  # other words for the same net
    (
        "resnet",
        {"stem_activation": "always", "residual_activation": "always", "conv_bias": "never", "head_norm": "never"},
    ),
    ("resnet", {"layer_norm_eps": 1e-3}),
    (
        "convnext",
        {"stem_activation": "never", "residual_activation": "never", "conv_bias": "always", "head_norm": "always"},
    ),
    ("convnext", {"stride_on": "pointwise", "projection_norm": False, "batch_norm_eps": 1e-3}),
]


@pytest.mark.parametrize(("end", "change"), CHANGES)
def test_a_net_that_computes_something_else_takes_and_gives_no_such_weights(end, change):
    """Although for many of them every name and every shape would fit."""
    weights = export_weights(ours(TOY[end], 5), "torchvision")
    net = ours(TOY[end].replace(**change), 5)
    with pytest.raises(DataError, match=r"model\.|layer scale"):
        load_weights(net, weights)
    with pytest.raises(DataError, match=r"model\.|layer scale"):
        export_weights(net, "torchvision")


@torch.no_grad()
@pytest.mark.parametrize(("end", "change"), SAME)
def test_other_words_for_the_same_net_are_the_same_net(end, change):
    first, second = drawn(lambda: build_net(TOY[end], 5)), ours(TOY[end].replace(**change), 5)
    load_weights(second, export_weights(first, "torchvision"))
    assert torch.equal(first(images()), second(images()))
    unchanged(export_weights(second, "torchvision"), export_weights(first, "torchvision"))


def test_what_may_be_anything_is_told_by_the_shapes_or_tried():
    """Every other field, new ones too, is compared with the format's nets or must be at its default."""
    assert FREE - {"depths", "width", "layer_scale", "drop_path", "init"} <= {name for _, same in SAME for name in same}
