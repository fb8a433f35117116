"""The matrix products with GELU in them in Triton's interpreter; test_kernels_triton.py runs this with it."""

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu, linear

from roadmap.bench import kernels
from roadmap.bench.operations import OpShape
from roadmap.config.choices import Kernels
from roadmap.net import build_net, use_kernels
from roadmap.net.kernels import gelu_product as made
from roadmap.net.kernels.gelu_product import GeluProduct, GeluProductFunction, HiddenPointwise, Tile
from roadmap.net.kernels.measured import Row, Table, origin_here, record
from roadmap.runs.run_dir import run_path
from roadmap.training.train import train

from .interpreted_kernels import ROOM, gap, toy, trained
from .kernel_checks import assert_as_exact, drawn, results
from .net_rows import images, one_thread, rows  # noqa: F401
from .records import ledger

CPU = torch.device("cpu")
FORMS = ("product", "epilogue")
SHAPES = [(2, 5, 3, 96, 24), (3, 1, 1, 130, 33)]  # images, height, width, hidden channels, channels


@pytest.fixture(autouse=True)
def tf32(monkeypatch):
    """Let fp32 be multiplied by our kernels, too; here they do it in fp32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def drawn_inputs(shape, kind):
    """Return a map before GELU, the bias that it has in it, and weight and bias of the product."""
    n, height, width, hidden, channels = shape
    return [
        drawn(n, height, width, hidden, seed=0, kind=kind).contiguous() * 1.5,
        drawn(hidden, seed=1, kind=torch.float32),
        drawn(channels, hidden, seed=2, kind=kind) / hidden**0.5,
        drawn(channels, seed=3, kind=kind),
    ]


def plain(x, before, weight, bias=None):
    # The bias before is in the map already: it changes nothing, and has its gradient.
    return linear(gelu(x + (before - before.detach()).to(x.dtype)), weight, bias)


def by(form):
    return lambda x, before, weight, bias=None: GeluProductFunction.apply(x, before, weight, bias, form)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_products_with_gelu_are_as_exact_as_torch(form, shape, kind):
    assert_as_exact(by(form), plain, drawn_inputs(shape, kind), factor=ROOM[kind])


def test_a_product_needs_no_bias_and_takes_a_map_that_is_not_contiguous():
    x, before, weight, _ = drawn_inputs((2, 5, 3, 32, 16), torch.float32)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert_as_exact(by("product"), plain, [turned, before, weight], factor=2)


def test_far_from_zero_gelu_is_nearer_to_the_truth_than_torchs_in_fp32():
    x = torch.linspace(-9, 9, 1024).view(-1, 1, 1, 16)
    found = GeluProductFunction.apply(x, torch.zeros(16), torch.eye(16), None, "product")
    exact = gelu(x.double())
    assert (found - exact).abs().max() < 1e-6
    tail = (x < -3) & (x > -5)
    assert ((found - exact) / exact)[tail].abs().max() < 3e-3 < ((gelu(x) - exact) / exact)[tail].abs().max()


def test_any_tile_and_share_of_the_rows_gives_the_same_and_twice_the_same_bits(monkeypatch):
    inputs = drawn_inputs((2, 5, 7, 48, 20), torch.float32)
    g = drawn(2, 5, 7, 20, seed=9, kind=torch.float32)
    whole = results(by("product"), inputs, g)
    for tile, programs in ((Tile(16, 16, 16, 4, 1), 264), (Tile(32, 16, 32, 4, 1), 8)):
        monkeypatch.setattr(Tile, "fitting", lambda self, rows, columns, deep, like, tile=tile: tile)
        monkeypatch.setattr(made, "PROGRAMS", programs)
        cut, again = (results(by("product"), inputs, g) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(cut, again, strict=True))
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(cut, whole, strict=True))


def test_shares_cover_all_rows_once():
    for rows_ in (1, 31, 64, 12_544, 802_816):
        for blocks in ((1, 1), (3, 1), (24, 6)):
            share, shares = made.shares_of(rows_, blocks, 64)
            assert share % 64 == 0 and (shares - 1) * share < rows_ <= shares * share


def saved_bytes(net, x):
    """Return the bytes that autograd keeps of a forward pass."""
    total = {}

    def pack(tensor):
        total[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net(x)
    return sum(total.values()), out


@pytest.mark.parametrize("form", FORMS)
def test_a_stage_gives_the_same_result_and_gradients(form):
    stage, x = toy("separate_downsampling").stages[1].eval(), drawn(1, 12, 4, 4, seed=0, kind=torch.float32)
    exact = trained(stage, x)
    forms = use_kernels(stage, CPU, {"gelu": form, "pointwise": "linear"})
    assert forms["gelu"] == form and any(isinstance(module, GeluProduct) for module in stage.modules())
    assert gap(trained(stage, x), exact) < 1e-4
    block = stage.block0
    assert (type(block.conv2), type(block.conv3)) == (HiddenPointwise, GeluProduct)
    use_kernels(stage, CPU, Kernels.plain)
    assert type(block.conv2) is type(block.conv3) is torch.nn.Conv2d
    assert all(torch.equal(a, b) for a, b in zip(trained(stage, x), exact, strict=True))


def test_gelu_of_the_map_is_not_kept_for_the_backward_pass():
    stage, x = toy("separate_downsampling").stages[1].eval(), drawn(1, 12, 8, 8, seed=0, kind=torch.float32)
    block = stage.block0
    sizes = {}
    for form in ("triton", *FORMS):
        use_kernels(stage, CPU, {"gelu": form, "pointwise": "linear"})
        sizes[form], _ = saved_bytes(block, stage.downsample(x).detach())
    hidden = 4 * 4 * block.conv2.out_channels * 4
    assert sizes["product"] == sizes["triton"] - hidden and sizes["epilogue"] == sizes["triton"]


def test_before_a_response_norm_gelu_stays_by_itself_and_before_batch_norm_plain():
    for step, expected in (("grn", "triton"), ("gelu", None), ("fewer_norms", "product")):
        forms = use_kernels(toy(step), CPU, {"gelu": "product"})
        assert forms.get("gelu") == expected, step


def test_fp32_without_tf32_and_double_precision_are_what_form_triton_is():
    torch.backends.cuda.matmul.allow_tf32 = False
    x = drawn(1, 12, 4, 4, seed=0, kind=torch.float32)
    for kind in (torch.float32, torch.float64):
        found = []
        for form in ("triton", "product"):
            stage = toy("separate_downsampling").stages[1].eval().to(kind)
            use_kernels(stage, CPU, {"gelu": form, "pointwise": "linear"})
            found.append(trained(stage, x.to(kind)))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_under_autocast_types_and_errors_are_those_of_the_plain_stage():
    stage, x = toy("separate_downsampling").stages[1].eval(), drawn(1, 12, 4, 4, seed=0, kind=torch.float32)
    exact, torchs = trained(stage, x), trained(stage, x, autocast=True)
    use_kernels(stage, CPU, {"gelu": "product"})
    ours = trained(stage, x, autocast=True)
    assert [t.dtype for t in ours] == [t.dtype for t in torchs]
    assert gap(ours, exact) < 3 * gap(torchs, exact)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_lie_in_memory_as_their_parameters_do(form):
    stage, x = toy("separate_downsampling").stages[1], drawn(1, 12, 4, 4, seed=0, kind=torch.float32)
    use_kernels(stage, CPU, {"gelu": form, "pointwise": "linear"})
    trained(stage, x)
    for name, parameter in stage.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), name


def test_numbers_of_tiles_that_are_not_there_are_the_last_ones():
    assert made.tile_of("product/9999/0/1", 0, 96) == made.tile_of("product/4/1/0", 0, 96)
    assert made.tile_of("epilogue/2", 1, 96) == made.tile_of("product/0/2/0", 1, 96) != made.tile_of("product", 1, 96)


@pytest.mark.parametrize("autocast", [pytest.param(False, marks=pytest.mark.slow), True])
def test_compiled_it_is_one_graph_and_gives_the_same_bits(autocast):
    stage, x = toy("separate_downsampling").stages[1].eval(), drawn(2, 12, 4, 4, seed=0, kind=torch.float32)
    use_kernels(stage, CPU, {"gelu": "product", "pointwise": "linear", "norm": "triton", "join": "triton"})
    eager = trained(stage, x, autocast=autocast)
    torch._dynamo.reset()
    model = torch.compile(stage, backend="aot_eager", fullgraph=True)
    compiled = trained(model, x, autocast=autocast)
    assert all(torch.equal(a, b) for a, b in zip(compiled, eager, strict=True))


def test_training_gives_the_losses_of_the_plain_net_within_the_noise_of_seeds(small, tmp_path, monkeypatch):
    def run(*words):
        config = small("separate_downsampling", "recipe.epochs=1", *words)
        forms = train(config)["kernels"]
        newest = torch.load(max((run_path(config) / "checkpoints").glob("*.pt")), weights_only=True)
        losses = [row["train/loss"] for row in ledger(config) if row["kind"] == "train"]
        return np.array(losses), newest["net"], forms

    plain = [run("kernels=plain", f"seed={seed}") for seed in range(3)]
    monkeypatch.setenv("ROADMAP_KERNELS", str(tmp_path / "kernels.json"))
    row = Row(operation="gelu", channels=96, form="product/1/1/1", gain=2.0)
    name, hardware, version = origin_here(CPU)
    record(Table(device=name, hardware=hardware, torch=version, about="", rows=[row]))
    ours, weights, forms = run("kernels=auto", "seed=0", "study=ours")
    assert "gelu product/1/1/1" in forms
    # A few losses may agree to the bit, all weights do not.
    assert not all(torch.equal(tensor, plain[0][1][key]) for key, tensor in weights.items())
    noise = np.stack([losses for losses, _, _ in plain]).std(axis=0, ddof=1)
    assert np.abs(ours - plain[0][0]).mean() < 0.2 * noise.mean()


def test_the_benchmark_checks_every_form_against_float64_and_joins_the_best_tiles(monkeypatch):
    monkeypatch.setattr(kernels, "CPU_CALLS", 1)
    shape = OpShape("gelu", None, None, 32, 2, 8)
    found = kernels.measure_shape(shape, CPU, torch.float32, 2)
    assert not [form for form, measured in found.items() if measured.failed]
    assert {form.split("/")[0] for form in found} == {"plain", "triton", *FORMS}
    assert all(measured.error < 2 * found["plain"].error + 1e-6 for measured in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("regime", ["tiny", "base"])
def test_every_width_of_a_regime(regime):
    found = set()
    for cfg in rows(regime).values():
        with torch.device("meta"):
            net = build_net(cfg.replace(depths=(1, 1, 1, 1)), 2)
        found |= {module.in_channels for module in net.modules() if isinstance(module, torch.nn.Conv2d)}
    widths = {c for c in found if 4 * c in found}
    assert len(widths) >= 4
    for channels in widths:
        for kind in (torch.bfloat16, torch.float16):
            assert_as_exact(
                by("product"), plain, drawn_inputs((1, 3, 7, 4 * channels, channels), kind), factor=ROOM[kind]
            )
