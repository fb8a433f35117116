"""The Triton kernels in Triton's interpreter, on the CPU; test_kernels_triton.py runs this with TRITON_INTERPRET=1.

The interpreter's time goes with the square of the kernel size: a few shapes for every kernel are quick, the rest slow.
"""

import numpy as np
import pytest
import torch

from roadmap.config.choices import Kernels
from roadmap.net import build_net, use_kernels
from roadmap.net.kernels import PASSES
from roadmap.net.kernels import depthwise_columns as columns_module
from roadmap.net.kernels import depthwise_strided as strided_module
from roadmap.net.kernels.depthwise import DepthwiseFunction
from roadmap.net.kernels.depthwise_strided import strips_of
from roadmap.net.kernels.gelu import GeluFunction
from roadmap.net.kernels.measured import Row, Table, origin_here, record
from roadmap.net.kernels.norm import NormFunction
from roadmap.net.kernels.residual import JoinFunction
from roadmap.training.train import train

from .kernel_checks import assert_as_exact, depthwise_inputs, drawn, plain_depthwise, plain_norm, results
from .net_rows import SIZES, images, one_thread, rows  # noqa: F401
from .records import ledger, newest

CPU = torch.device("cpu")
# The interpreter cuts fp32 down to bf16 where a GPU rounds: at least twice the error. fp16 it rounds.
ROOM = {torch.float32: 2.0, torch.float16: 1.1, torch.bfloat16: 3.0}
TOY = {step: cfg.replace(depths=(1, 1, 1, 1)) for step, cfg in rows("toy").items()}
TOY["grn"] = TOY["separate_downsampling"].replace(grn=True)
# Every kernel size has a row of its own.
TOY |= {step: cfg.replace(kernel_size=3) for step, cfg in TOY.items() if cfg.kernel_size == 7 and step != "kernel_7"}
QUICK = [  # kernel, stride, map: a small and a large kernel at each stride
    (3, 1, (2, 10, 3, 2)),
    (3, 2, (1, 17, 4, 5)),
    (7, 1, (1, 6, 2, 3)),
    (11, 2, (1, 6, 3, 2)),
]
MAPS = {  # kernel, stride: maps that are odd, small, of one pixel, of channels that fill no block
    (3, 1): [(2, 20, 7, 5), (3, 17, 1, 1)],
    (3, 2): [(1, 33, 8, 9), (2, 8, 1, 2)],
    (5, 1): [(1, 24, 6, 7)],
    (5, 2): [(1, 16, 5, 6)],
    (7, 1): [(1, 24, 9, 13), (2, 6, 2, 2)],
    (7, 2): [(1, 12, 10, 7)],
    (9, 1): [(1, 8, 3, 4)],
    (9, 2): [(1, 8, 6, 5)],
    (11, 1): [(1, 8, 4, 5)],
    (11, 2): [(1, 6, 7, 6)],
}


def by_triton(stride):
    return lambda x, weight, bias=None: DepthwiseFunction.apply(x, weight, bias, stride, "triton", "triton", "triton")


def by_columns(form="columns"):
    return lambda x, weight, bias=None: DepthwiseFunction.apply(x, weight, bias, 1, form, form, form)


def check_depthwise(shape, kernel, stride, kind, bias=True):
    inputs = depthwise_inputs(shape, kernel, kind, bias)
    form = by_columns() if stride == 1 else by_triton(stride)
    assert_as_exact(form, plain_depthwise(stride), inputs, factor=ROOM[kind])


@pytest.mark.parametrize(("kernel", "stride", "shape"), QUICK)
def test_depthwise_is_as_exact_as_torch(kernel, stride, shape):
    check_depthwise(shape, kernel, stride, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
@pytest.mark.parametrize(("kernel", "stride"), MAPS)
def test_depthwise_is_as_exact_as_torch_on_odd_maps(kernel, stride, kind):
    for number, shape in enumerate(MAPS[kernel, stride]):
        check_depthwise(shape, kernel, stride, kind, bias=number == 0)


def test_depthwise_takes_bf16_and_a_map_that_is_not_channels_last():
    check_depthwise((1, 24, 3, 2), 3, 1, torch.bfloat16)
    x, weight = depthwise_inputs((2, 8, 3, 2), 3, torch.float32, bias=False)
    assert_as_exact(by_columns(), plain_depthwise(1), [x.contiguous(), weight], factor=2)


@pytest.mark.slow
def test_depthwise_takes_bf16_at_both_strides():
    check_depthwise((1, 48, 9, 7), 3, 1, torch.bfloat16)
    check_depthwise((1, 48, 9, 7), 3, 2, torch.bfloat16)


def test_depthwise_gives_the_same_bits_in_any_number_of_strips_and_tiles(monkeypatch):
    stride = 2
    inputs = depthwise_inputs((1, 12, 7, 3), 3, torch.float32)
    g = drawn(*plain_depthwise(stride)(*inputs).shape, seed=3, kind=torch.float32)
    whole = results(by_triton(stride), inputs, g)
    monkeypatch.setattr(strided_module, "strips_of", lambda rows, programs, kernel: (-(-rows // 3), 3))
    monkeypatch.setattr(strided_module, "of_device", lambda tile, channels, width: tile._replace(width=2, channels=8))
    cut = results(by_triton(stride), inputs, g)
    assert all(torch.equal(a, b) for a, b in zip(whole[:2], cut[:2], strict=True))  # result, and gradient of the map
    again = results(by_triton(stride), inputs, g)
    assert all(torch.equal(a, b) for a, b in zip(cut, again, strict=True))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-4) for a, b in zip(whole[2:], cut[2:], strict=True))


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        ("columns/2/8/1", (2, 6, 7, 3)),
        pytest.param("columns/1/16/1", (3, 12, 13, 5), marks=pytest.mark.slow),
        pytest.param("columns/7/32/1/168", (3, 12, 13, 5), marks=pytest.mark.slow),
    ],
)
def test_columns_give_the_same_bits_in_any_tile_and_share(form, shape, monkeypatch):
    inputs = depthwise_inputs(shape, 3, torch.float32)
    g = drawn(*inputs[0].shape, seed=3, kind=torch.float32)
    whole = results(by_columns("columns/5/32/1"), inputs, g)
    monkeypatch.setattr(columns_module, "of_map", lambda tile, channels, width: tile)
    for programs in (1, 8192):  # several images a program; one; several programs an image
        monkeypatch.setattr(columns_module, "PROGRAMS", programs)
        monkeypatch.setattr(columns_module, "WEIGHT_PROGRAMS", programs)
        cut = results(by_columns(form), inputs, g)
        assert all(torch.equal(a, b) for a, b in zip(whole[:2], cut[:2], strict=True))
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-4) for a, b in zip(whole[2:], cut[2:], strict=True))


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 24, 5, 3), (3, 130, 1, 1)])
def test_gelu_gives_the_gradient_of_the_bias_before_it(shape, kind):
    inputs = [drawn(*shape, seed=0, kind=kind) * 2, drawn(shape[1], seed=1, kind=torch.float32)]

    def plain(x, bias):
        # The bias is in the map already: it changes nothing, and has its gradient.
        return torch.nn.functional.gelu(x + (bias - bias.detach()).to(x.dtype).view(-1, 1, 1))

    assert_as_exact(GeluFunction.apply, plain, inputs, factor=ROOM[kind])


def test_strips_cover_all_rows_once():
    for height in (1, 7, 14, 56, 57, 112):
        for programs in (1, 10, 1000, 100_000):
            strips, rows_each = strips_of(height, programs, 7)
            assert (strips - 1) * rows_each < height <= strips * rows_each


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 24, 5, 3), (1, 96, 4, 4), (3, 130, 1, 1)])
def test_norm_is_as_exact_as_torch(shape, kind):
    inputs = [
        drawn(*shape, seed=0, kind=kind) * 3 + 1,
        drawn(shape[1], seed=1, kind=kind),
        drawn(shape[1], seed=2, kind=kind),
    ]
    assert_as_exact(
        lambda x, w, b: NormFunction.apply(x, w, b, 1e-6, x.dtype, "triton"), plain_norm, inputs, factor=ROOM[kind]
    )


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("shape", [(2, 24, 5, 3), (4, 130, 1, 1)])
def test_joining_is_as_exact_as_torch(shape, dropped, kind):
    keep = torch.tensor([0.0, 1.25, 1.25, 0.0])[: shape[0]] if dropped else None
    inputs = [
        drawn(*shape, seed=0, kind=kind),
        drawn(*shape, seed=1, kind=torch.float32),
        drawn(shape[1], seed=2, kind=torch.float32),
    ]

    def plain(y, shortcut, gamma):
        scaled = y * gamma.view(-1, 1, 1)
        return (scaled if keep is None else scaled * keep.view(-1, 1, 1, 1)) + shortcut

    assert_as_exact(lambda y, s, gamma: JoinFunction.apply(y, s, gamma, keep), plain, inputs, factor=ROOM[kind])


def trained(net, x, *, autocast=False):
    """Return logits and gradients of one pass."""
    torch.manual_seed(5)  # what stochastic depth draws
    net.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = net(x)
    out.float().square().mean().backward()
    return [out.detach(), *(p.grad for p in net.parameters())]


def gap(ours, theirs):
    """Return the largest relative difference of two lists of tensors."""
    floor = max(t.double().norm().item() for t in theirs[1:]) * 1e-4  # gradients that BatchNorm makes zero are noise
    return max(
        ((a.double() - b.double()).norm() / b.double().norm().clamp_min(floor)).item()
        for a, b in zip(ours, theirs, strict=True)
    )


def toy(step):
    torch.manual_seed(0)
    return build_net(TOY[step].replace(layer_scale=0.1, drop_path=0.3), 5).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "step", [step if step == "resnet" else pytest.param(step, marks=pytest.mark.slow) for step in TOY]
)
def test_every_row_gives_the_same_result_and_gradients(step):
    net, x = (
        toy(step).eval(),
        images(1, 32).contiguous(memory_format=torch.channels_last),
    )  # BatchNorm of a few pixels is all noise
    names = list(net.state_dict())
    plain = trained(net, x)
    forms = use_kernels(net, CPU, Kernels.fast)
    assert forms["join"] == "triton" and (
        "depthwise" in step or step in ("resnet", "enhanced_recipe") or len(forms) > 1
    )
    ours = trained(net, x)
    assert gap(ours, plain) < 1e-4
    assert list(net.state_dict()) == names


@pytest.mark.slow
def test_under_autocast_it_is_as_near_to_fp32_as_the_plain_net_and_of_the_same_types():
    """The residual stream stays in fp32, where layer scale makes it so."""
    net, x = toy("separate_downsampling"), images(2, 32).contiguous(memory_format=torch.channels_last)
    types = {}

    def watch(name):
        return lambda module, inputs, out: types.setdefault(name, []).append(out.dtype)

    for name, module in net.stages[1].named_modules():
        if name in ("downsample.norm", "downsample.conv", "block0.conv1", "block0.conv3", "block0"):
            module.register_forward_hook(watch(name))
    exact, plain = trained(net, x), trained(net, x, autocast=True)
    use_kernels(net, CPU, Kernels.fast)
    ours = trained(net, x, autocast=True)
    assert gap(ours, exact) < 3 * gap(plain, exact)
    assert types["block0"] == [torch.float32] * 3
    # What convolutions alone read is written in bf16 at once; all else is of the type that torch gives it.
    assert types.pop("downsample.norm") == [torch.float32, torch.float32, torch.bfloat16]
    assert all(kinds[1] == kinds[2] for kinds in types.values())


def test_a_stage_gives_the_same_result_and_gradients():
    stage, x = toy("separate_downsampling").stages[1].eval(), drawn(1, 12, 4, 4, seed=0, kind=torch.float32)
    plain = trained(stage, x)
    forms = use_kernels(stage, CPU, Kernels.fast)
    assert (forms["norm"], forms["join"], forms["depthwise forward 3x3/1"]) == ("triton", "triton", "columns")
    assert gap(trained(stage, x), plain) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_it_is_one_graph_and_gives_the_same_bits(autocast):
    stage, x = toy("separate_downsampling").stages[1], drawn(2, 12, 4, 4, seed=0, kind=torch.float32)
    use_kernels(stage, CPU, Kernels.fast)
    eager = trained(stage, x, autocast=autocast)
    torch._dynamo.reset()
    model = torch.compile(stage, backend="aot_eager", fullgraph=True)
    compiled = trained(model, x, autocast=autocast)
    assert all(torch.equal(a, b) for a, b in zip(compiled, eager, strict=True))


def test_training_gives_the_losses_of_the_plain_net_within_the_noise_of_seeds(small, tmp_path, monkeypatch):
    """With all forms but those of depthwise convolutions, which take minutes here."""

    def run(*words):
        config = small("separate_downsampling", "recipe.epochs=1", *words)
        forms = train(config)["kernels"]
        losses = [row["train/loss"] for row in ledger(config) if row["kind"] == "train"]
        return np.array(losses), newest(config)["net"], forms

    plain = [run("kernels=plain", f"seed={seed}") for seed in range(3)]
    monkeypatch.setenv("ROADMAP_KERNELS", str(tmp_path / "kernels.json"))
    taken = [Row(operation=operation, form="triton", gain=2.0) for operation in ("gelu", "norm", "join")]
    name, hardware, version = origin_here(CPU)
    record(Table(device=name, hardware=hardware, torch=version, about="", rows=taken))
    ours, weights, forms = run("kernels=auto", "seed=0", "study=ours")
    assert "gelu triton, idle taps cut, join triton, norm triton" in forms
    # A few losses may agree to the bit, all weights do not.
    assert not all(torch.equal(tensor, plain[0][1][key]) for key, tensor in weights.items())
    noise = np.stack([losses for losses, _, _ in plain]).std(axis=0, ddof=1)
    assert np.abs(ours - plain[0][0]).mean() < 0.2 * noise.mean()


def test_double_precision_falls_back_to_torch_to_the_bit(monkeypatch):
    net, x = toy("separate_downsampling").double(), images(2, 32).double().contiguous(memory_format=torch.channels_last)
    plain = trained(net, x)
    forms = dict.fromkeys(PASSES, "columns") | {"norm": "triton", "join": "triton"}
    monkeypatch.setattr("roadmap.net.kernels.best_form", lambda spec: forms.get(spec.operation, "plain"))
    use_kernels(net, CPU, Kernels.auto)
    assert all(torch.equal(a, b) for a, b in zip(trained(net, x), plain, strict=True))


def shapes_of(regime):
    """Return kernel, stride, channels and a quarter of the map's size at 224 of all depthwise convolutions."""
    found = set()

    def note(conv, inputs, out):
        found.add((conv.kernel_size[0], conv.stride[0], conv.in_channels, max(3, inputs[0].shape[2] // 4)))

    for cfg in rows(regime).values():
        with torch.device("meta"):
            net = build_net(cfg.replace(depths=tuple(min(depth, 2) for depth in cfg.depths)), 2)
            for module in net.modules():
                if isinstance(module, torch.nn.Conv2d) and module.groups > 1:
                    module.register_forward_hook(note)
            net(torch.empty(1, 3, 224, 224))
    return sorted(found)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("regime", [name for name in SIZES if name != "toy"])
def test_every_depthwise_shape_of_a_regime(regime):
    shapes = shapes_of(regime)
    assert len(shapes) > 20 and {k for k, *_ in shapes} == {3, 5, 7, 9, 11} and {s for _, s, *_ in shapes} == {1, 2}
    for kernel, stride, channels, size in shapes:
        check_depthwise((1, channels, size, size), kernel, stride, torch.bfloat16)
