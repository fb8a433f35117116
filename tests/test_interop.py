"""Weights of other code in and out: logits equal to torchvision's and timm's own nets, and back out unchanged."""

import pytest
import timm
import torch
import torchvision
from timm.models.convnext import checkpoint_filter_fn

from roadmap.errors import DataError
from roadmap.net import build_net, export_weights, load_weights
from roadmap.steps import compose

from .net_rows import rows


def randomised(net, seed=0):
    """Give every tensor values that matter: fresh nets hide layer scale (1e-6) and zero biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point() and tensor.ndim <= 3:
                spread = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(spread * 0.2 + (0.9 if name.endswith(("weight", "var")) else 0.0))
    return net.eval()


def images(size, seed=1):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def convnext(size):
    return build_net(
        compose("separate_downsampling", {"t": "tiny", "s": "small", "b": "base", "l": "large", "x": "xlarge"}[size]).model, 1000
    )


def unchanged(out, given):
    assert out.keys() == given.keys()
    for key, tensor in given.items():
        assert torch.equal(out[key], tensor), key


@torch.no_grad()
@pytest.mark.parametrize(("name", "depths"), [("resnet50", (3, 4, 6, 3)), ("resnet101", (3, 4, 23, 3)), ("resnet152", (3, 8, 36, 3))])
def test_torchvisions_resnets_are_equal_to_the_bit(name, depths):
    torch.manual_seed(0)
    theirs = randomised(getattr(torchvision.models, name)())
    model = rows("tiny")["resnet"]
    model.depths = depths
    ours = build_net(model, 1000).eval()
    load_weights(ours, theirs.state_dict())
    x = images(64)
    assert torch.equal(ours(x), theirs(x))
    unchanged(export_weights(ours, "torchvision"), theirs.state_dict())


def test_torchvisions_resnet50_trains_to_the_same_bits():
    """Gradients and running statistics too, at the size of the paper."""
    torch.manual_seed(0)
    theirs, ours = torchvision.models.resnet50(), build_net(compose("resnet", "tiny").model, 1000)
    load_weights(ours, theirs.state_dict())
    for net in (theirs, ours):
        net.train()
        net(images(224)).square().mean().backward()
    unchanged(export_weights(ours, "torchvision"), theirs.state_dict())
    assert torch.equal(ours.stem.conv.weight.grad, theirs.conv1.weight.grad)


@torch.no_grad()
@pytest.mark.parametrize(("size", "name"), [("t", "tiny"), ("s", "small"), ("b", "base"), ("l", "large")])
def test_torchvisions_convnexts(size, name):
    torch.manual_seed(0)
    theirs = randomised(getattr(torchvision.models, f"convnext_{name}")())
    ours = convnext(size).eval()
    load_weights(ours, theirs.state_dict())
    x = images(64)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    unchanged(export_weights(ours, "torchvision"), theirs.state_dict())


def official(state):
    """Return timm's tensors under the authors' names, by the inverse of timm's own conversion."""
    out = {}
    for key, tensor in state.items():
        parts = key.split(".")
        if parts[0] == "stem":
            new = ["downsample_layers", "0", *parts[1:]]
        elif parts[0] == "stages" and parts[2] == "downsample":
            new = ["downsample_layers", parts[1], *parts[3:]]
        elif parts[0] == "stages":
            inner = {"conv_dw": "dwconv", "mlp.fc1": "pwconv1", "mlp.fc2": "pwconv2"}
            rest = ".".join(parts[4:])
            for old, name in inner.items():
                rest = rest.replace(old, name)
            new = ["stages", parts[1], parts[3], rest]
        else:
            new = ["norm" if parts[1] == "norm" else "head", *parts[2:]]
        out[".".join(new)] = tensor
    return out


@torch.no_grad()
@pytest.mark.parametrize("size", ["t", "s", "b", "l", pytest.param("x", marks=pytest.mark.slow)])
def test_timms_convnexts_and_the_authors_files(size):
    name = {"t": "tiny", "s": "small", "b": "base", "l": "large", "x": "xlarge"}[size]
    torch.manual_seed(0)
    theirs = randomised(timm.create_model(f"convnext_{name}", num_classes=1000))
    ours = convnext(size).eval()
    load_weights(ours, theirs.state_dict())
    x = images(64)
    expected = theirs(x)
    assert torch.allclose(ours(x), expected, atol=1e-5, rtol=1e-5)
    unchanged(export_weights(ours, "timm"), theirs.state_dict())

    file = {"model": official(theirs.state_dict())}
    converted = checkpoint_filter_fn(dict(file["model"]), theirs)  # timm's reading of the authors' names agrees with the test's
    unchanged({k: converted[k].reshape(v.shape) for k, v in theirs.state_dict().items()}, theirs.state_dict())
    again = convnext(size).eval()
    load_weights(again, file)
    assert torch.allclose(again(x), expected, atol=1e-5, rtol=1e-5)
    unchanged(export_weights(again, "official"), file["model"])


@torch.no_grad()
def test_timms_and_torchvisions_convnext_are_one_net_through_ours():
    torch.manual_seed(0)
    source = randomised(timm.create_model("convnext_tiny", num_classes=1000))
    ours = convnext("t")
    load_weights(ours, source.state_dict())
    target = torchvision.models.convnext_tiny().eval()
    target.load_state_dict(export_weights(ours, "torchvision"))
    x = images(224)
    assert torch.allclose(source(x), target(x), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["swin_t"])
def test_swin_is_torchvisions(name):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)().eval()
    ours = build_net(compose("swin", "tiny").model, 1000).eval()
    load_weights(ours, theirs.state_dict())
    x = images(224)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("step", list(rows("toy")))
def test_our_own_weights_come_back_for_every_row(step):
    first, second = build_net(rows("toy")[step], 5), build_net(rows("toy")[step], 5)
    load_weights(second, {"state_dict": {f"module.{k}": v for k, v in first.state_dict().items()}})
    unchanged(second.state_dict(), first.state_dict())


class TestRefusals:
    """Weights of another net are named, and the net stays as it was."""

    def refused(self, net, weights):
        before = {k: v.clone() for k, v in net.state_dict().items()}
        with pytest.raises(DataError) as caught:
            load_weights(net, weights)
        unchanged(net.state_dict(), before)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_of_another_depth(self):
        said = self.refused(build_net(rows("toy")["resnet"], 1000), torchvision.models.resnet50().state_dict())
        assert "torchvision resnet" in said
        assert "[64, 3, 7, 7]" in said

    def test_of_another_number_of_classes(self):
        said = self.refused(convnext("t"), torchvision.models.convnext_tiny(num_classes=10).state_dict())
        assert "classifier.2.weight" in said

    def test_of_a_smaller_net(self):
        assert "layer3.6.conv1.weight" in self.refused(
            build_net(rows("tiny")["resnet"], 1000),
            torchvision.models.resnet101().state_dict(),
        )

    def test_of_another_step(self):
        said = self.refused(build_net(compose("gelu", "tiny").model, 1000), torchvision.models.resnet50().state_dict())
        assert "model.stem=resnet" in said

    def test_whose_activation_differs_although_every_shape_fits(self):
        model = rows("tiny")["resnet"]
        model.activation = "gelu"
        assert "model.activation=relu" in self.refused(build_net(model, 1000), torchvision.models.resnet50().state_dict())

    def test_that_are_of_no_known_format(self):
        assert "none that is known" in self.refused(convnext("t"), {"layers.0.weight": torch.zeros(3)})
        assert "no tensors" in self.refused(convnext("t"), {"epoch": 3})

    @pytest.mark.parametrize(("step", "fmt"), [("gelu", "torchvision"), ("resnet", "timm"), ("layer_norm", "official"), ("resnet", "onnx")])
    def test_a_net_without_a_place_in_the_format_does_not_go_out(self, step, fmt):
        with pytest.raises(DataError, match=r"model\.|onnx"):
            export_weights(build_net(rows("toy")[step], 5), fmt)
