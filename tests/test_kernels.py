"""The forms of the net's operations that need no Triton, and which form a net gets where."""

import copy
import json
import pwd

import numpy as np
import pytest
import torch
from torch import nn

from roadmap.config.choices import Kernels
from roadmap.errors import ConfigError
from roadmap.net import build_net, kernels, use_kernels
from roadmap.net.kernels import measured, triton_support
from roadmap.net.kernels.depthwise import Depthwise, DepthwiseFunction
from roadmap.net.kernels.measured import FILE, Row, Table, best_form, read_tables, record, torch_name
from roadmap.net.kernels.pointwise import LinearPointwise
from roadmap.runs.run_dir import run_path
from roadmap.runs.schema import STATUS, SUMMARY
from roadmap.training.train import train

from .kernel_checks import assert_as_exact, depthwise_inputs, drawn, plain_depthwise
from .net_rows import SWIN, images, one_thread, rows  # noqa: F401
from .records import ledger

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
TOY = {step: cfg.replace(layer_scale=0.1, drop_path=0.3) for step, cfg in rows("toy").items()}
TOY["grn"] = TOY["separate_downsampling"].replace(grn=True, layer_scale=None)
# Every kind of operation that a form replaces is in one of these rows; the others differ in sizes.
KINDS = ("resnet", "depthwise", "kernel_11", "gelu", "fewer_norms", "separate_downsampling", "grn")
ROWS = [step if step in KINDS else pytest.param(step, marks=pytest.mark.slow) for step in TOY]
ROOM = {torch.float32: 2.0, torch.bfloat16: 1.2}


@pytest.fixture
def capability(monkeypatch):
    """Let a GPU of a compute capability be there."""

    def call(major, minor):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"GPU {major}.{minor}")

    return call


def toy(step):
    torch.manual_seed(0)
    return build_net(TOY[step], 5).to(memory_format=torch.channels_last)


def trained(net, x):
    """Return logits and gradients of one pass."""
    torch.manual_seed(5)
    net.zero_grad(set_to_none=True)
    out = net(x)
    out.square().mean().backward()
    return [out.detach(), *(p.grad for p in net.parameters())]


@pytest.mark.parametrize("kind", ROOM)
@pytest.mark.parametrize("kernel", [3, 5, 7, 9, 11, 13])
def test_the_flipped_kernel_gives_the_input_gradient_and_the_bias_may_be_summed_apart(kernel, kind):
    for shape in ((2, 24, 9, 13), (1, 17, 14, 14), (3, 8, 1, 1)):
        assert_as_exact(
            lambda x, w, b: DepthwiseFunction.apply(x, w, b, 1, "plain", "flipped", "bias_apart"),
            plain_depthwise(1), depthwise_inputs(shape, kernel, kind), factor=ROOM[kind],
        )  # fmt: skip


def test_the_depthwise_function_passes_gradcheck():
    x, weight, bias = (t.requires_grad_() for t in depthwise_inputs((2, 3, 5, 4), 3, torch.float64))
    assert torch.autograd.gradcheck(
        lambda *given: DepthwiseFunction.apply(*given, 1, "triton", "flipped", "bias_apart"), (x, weight, bias)
    )
    assert torch.autograd.gradcheck(
        lambda *given: DepthwiseFunction.apply(*given, None, 2, "triton", "triton", "triton"), (x, weight)
    )


@pytest.mark.parametrize("kind", ROOM)
@pytest.mark.parametrize("shape", [(2, 24, 9, 13), (1, 96, 1, 1)])
def test_the_linear_form_of_a_pointwise_conv_is_as_exact_as_the_conv(shape, kind):
    conv = nn.Conv2d(shape[1], 40, 1).to(kind)
    linear = copy.deepcopy(conv)
    linear.__class__ = LinearPointwise
    inputs = [
        drawn(*shape, seed=0, kind=kind),
        drawn(40, shape[1], 1, 1, seed=1, kind=kind),
        drawn(40, seed=2, kind=kind),
    ]

    def of(module):
        return lambda x, w, b: torch.func.functional_call(module.to(x.dtype), {"weight": w, "bias": b}, (x,))

    assert_as_exact(of(linear), of(conv), inputs, factor=ROOM[kind])


@pytest.mark.parametrize("step", ROWS)
@pytest.mark.parametrize("choice", Kernels)
def test_gradients_lie_in_memory_as_their_parameters_do(step, choice):
    """Else DistributedDataParallel copies each of them, and says so on the screen."""
    net = toy(step).to(memory_format=torch.channels_last)
    use_kernels(net, CPU, choice)
    loss = net(images(8, 32).contiguous(memory_format=torch.channels_last)).square().sum()
    named = dict(net.named_parameters())
    for (name, parameter), grad in zip(named.items(), torch.autograd.grad(loss, list(named.values())), strict=True):
        assert grad.stride() == parameter.stride(), name


@pytest.mark.parametrize("step", ROWS)
def test_every_row_gives_the_same_and_may_be_made_plain_again(step):
    net, x = toy(step), images(8, 64).contiguous(memory_format=torch.channels_last)
    before, plain = {name: t.clone() for name, t in net.state_dict().items()}, trained(net.eval(), x)
    forms = use_kernels(net, CPU, Kernels.fast)
    changed = [type(module) for module in net.modules() if isinstance(module, Depthwise | LinearPointwise)]
    assert LinearPointwise in changed and (Depthwise in changed) == TOY[step].depthwise
    assert {"linear", "plain"} <= set(forms.values())
    ours = trained(copy.deepcopy(net), x)
    for mine, other in zip(ours, plain, strict=True):
        assert torch.allclose(mine, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))
    after = net.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], t) for name, t in before.items())
    trained(net.train(), x)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    use_kernels(net, CPU, Kernels.plain)
    net.load_state_dict(before)
    assert not any(isinstance(module, Depthwise | LinearPointwise) for module in net.modules())
    assert all(torch.equal(a, b) for a, b in zip(trained(net.eval(), x), plain, strict=True))


def test_compiled_the_net_is_one_graph():
    stage, x = toy("separate_downsampling").stages[1], drawn(2, 12, 8, 8, seed=0, kind=torch.float32)
    use_kernels(stage, CPU, Kernels.fast)
    eager = trained(stage, x)
    torch._dynamo.reset()
    compiled = trained(torch.compile(stage, backend="aot_eager", fullgraph=True), x)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(compiled, eager, strict=True))


def test_autocast_is_followed_as_a_convolution_does():
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    x = drawn(2, 8, 5, 5, seed=0, kind=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        plain = conv(x)
        use_kernels(conv, CPU, Kernels.fast)
        ours = conv(x)
        ours.float().sum().backward()
    assert isinstance(conv, Depthwise) and ours.dtype == plain.dtype == torch.bfloat16 and torch.equal(ours, plain)
    assert conv.weight.grad.dtype == torch.float32


def chosen(step, choice=Kernels.auto):
    """Return the forms that a net would have on the GPU, without tiles, and the line for the log."""
    forms = kernels.forms_of(TOY[step], GPU, choice)
    assert forms.pop("idle taps") == "cut"
    return {name: kernels.base(form) for name, form in forms.items()}, kernels.announcement(forms, GPU, choice)


def test_auto_takes_on_a_gpu_what_was_measured_there(capability):
    pytest.importorskip("triton", reason="Triton is not installed")
    capability(9, 0)
    for step, k in (("separate_downsampling", 7), ("kernel_9", 9), ("kernel_11", 11)):
        forms, line = chosen(step)
        assert {forms[f"{name} {k}x{k}/1"] for name in kernels.PASSES} == {"columns"}, step
        assert forms["join"] == "triton" and "not measured" not in line
    forms, _ = chosen("separate_downsampling")
    assert forms["norm"] == "triton" and forms["pointwise"] == "linear"
    with_grn, _ = chosen("grn")
    assert forms.pop("join") == "triton"  # without layer scale there is nothing to join
    assert forms["gelu"] == "triton" and with_grn == forms


def test_auto_takes_on_another_gpu_what_won_by_far_and_says_that_nobody_measured_it(capability):
    pytest.importorskip("triton", reason="Triton is not installed")
    capability(8, 6)
    forms, line = chosen("separate_downsampling")
    assert {forms[f"{name} 7x7/1"] for name in kernels.PASSES} == {"columns"} and forms["pointwise"] == "plain"
    assert line.endswith("(not measured on this GPU; python -m roadmap.bench kernels --record does)")
    capability(7, 5)
    assert set(chosen("separate_downsampling")[0].values()) == {"plain"}


def row(form, **more):
    return Row(operation="depthwise forward", kernel=7, stride=1, form=form, gain=2.0, **more)


def table(*rows, hardware="GPU 9.0", version=None):
    version = version or measured.torch_name()
    return Table(device="cuda 9.0", hardware=hardware, torch=version, about="", rows=list(rows))


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    """Return where a user's own tables are."""
    monkeypatch.setenv("ROADMAP_KERNELS", str(tmp_path / "mine" / "kernels.json"))
    return tmp_path / "mine" / "kernels.json"


def test_a_users_own_table_comes_first_by_the_nearest_shape(capability, own_file):
    pytest.importorskip("triton", reason="Triton is not installed")
    capability(9, 0)
    record(table(row("columns/2/32/1", channels=12), row("plain", channels=96)))
    forms = kernels.forms_of(TOY["separate_downsampling"], GPU, Kernels.auto)
    found = {name: form for name, form in forms.items() if name.startswith("depthwise forward 7x7/1")}
    assert found["depthwise forward 7x7/1 of 12"] == "columns/2/32/1"
    assert set(found.values()) == {"columns/2/32/1", "plain"}
    assert forms["norm"].startswith("triton")  # what it has not measured is the repository's


def test_recorded_forms_that_do_not_exist_are_ignored_and_said(capability, own_file):
    pytest.importorskip("triton", reason="Triton is not installed")
    capability(9, 0)
    rows = (Row(operation="gelu", channels=96, form="product/1/0/2", gain=1.2), row("columns/2/32/1"))
    record(table(*rows))
    forms = kernels.forms_of(TOY["separate_downsampling"], GPU, Kernels.auto)
    assert forms["gelu"] == "triton" and "columns/2/32/1" in forms.values()
    line = kernels.announcement(forms, GPU, Kernels.auto)
    assert line.endswith("kernels.json names forms that do not exist (gelu product/1/0/2): ignored)")


def test_recording_replaces_the_same_shapes_and_keeps_all_else(own_file):
    record(table(row("plain", channels=96, height=56), row("triton", channels=192, height=28)))
    record(table(row("plain", channels=8), hardware="another"))
    record(table(row("columns", channels=96, height=56)))
    first, second = read_tables(own_file)
    assert [(r.channels, r.form) for r in first.rows] == [(96, "columns"), (192, "triton")]
    assert second.hardware == "another"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ('{"schema_version": 2, "tables": []}', "no table of kernels (schema_version:"),
        (
            '{"schema_version": 1, "tables": [{"device": "cuda 9.0", "hardware": "GPU 9.0", "torch": "1", "about": "",'
            ' "rows": [{"operation": "norm", "form": "columns/9999999/1/1", "gain": 1.0}]}]}',
            "rows.0.form",
        ),
    ],
)
def test_a_damaged_table_is_ignored_and_said_once(capability, own_file, text, said):
    pytest.importorskip("triton", reason="Triton is not installed")
    capability(9, 0)
    expected, _ = chosen("separate_downsampling")
    own_file.parent.mkdir()
    own_file.write_text(text)
    forms, line = chosen("separate_downsampling")
    assert forms == expected
    assert line.count(str(own_file)) == 1 and said in line and line.endswith(": ignored)")


def test_a_table_that_cannot_be_reached_is_ignored_and_said_and_without_a_home_folder_there_is_none(monkeypatch):
    monkeypatch.setenv("ROADMAP_KERNELS", f"/{'x' * 300}")
    assert measured.user_tables()[0] == []
    assert measured.user_tables()[1].endswith("x: cannot be read (File name too long)")
    monkeypatch.setenv("ROADMAP_KERNELS", "/dev/null/none")
    assert measured.user_tables() == ([], None)
    for name in ("ROADMAP_KERNELS", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert measured.user_file() is None and measured.user_tables() == ([], None)


@pytest.mark.parametrize("other", [{"hardware": "another GPU"}, {"version": "1.0.0"}])
def test_a_table_of_another_gpu_or_torch_is_ignored_and_said_once(capability, own_file, other):
    pytest.importorskip("triton", reason="Triton is not installed")
    capability(9, 0)
    expected, _ = chosen("separate_downsampling")
    record(table(row("plain"), **other))
    forms, line = chosen("separate_downsampling")
    assert forms == expected
    assert line.count("ignored") == 1 and f"not of GPU 9.0 with torch {measured.torch_name()}" in line


def test_fast_takes_all_that_the_gpu_can_run(capability):
    pytest.importorskip("triton", reason="Triton is not installed")
    capability(9, 0)
    forms = kernels.forms_of(TOY["layer_norm"], GPU, Kernels.fast)
    strided = {name for name in forms if name.endswith("/2")}
    assert strided and {forms.pop(name) for name in list(forms) if name.startswith("pointwise")} == {"linear"}
    assert forms.pop("idle taps") == "cut"
    assert set(forms.values()) == {"columns", "triton"}
    assert {name for name, form in forms.items() if form == "columns"} == {f"{name} 7x7/1" for name in kernels.PASSES}
    assert set(kernels.forms_of(TOY["layer_norm"], GPU, Kernels.plain).values()) == {"plain"}


def test_a_gpu_that_is_too_old_computes_plainly_and_the_log_says_so_once(capability):
    pytest.importorskip("triton", reason="Triton is not installed")
    capability(7, 5)
    forms = kernels.forms_of(TOY["layer_norm"], GPU, Kernels.fast)
    assert "triton" not in forms.values() and forms["depthwise input gradient 7x7/1"] == "flipped"
    line = kernels.announcement(forms, GPU, Kernels.fast)
    assert line.endswith("(this GPU has compute capability 7.5, the Triton kernels need 8.0: torch's own there)")
    auto = kernels.forms_of(TOY["layer_norm"], GPU, Kernels.auto)
    assert "compute capability 7.5" in kernels.announcement(auto, GPU, Kernels.auto)
    plain = kernels.forms_of(TOY["layer_norm"], GPU, Kernels.plain)
    assert kernels.announcement(plain, GPU, Kernels.plain) == "kernels=plain: plain"


def test_without_triton_the_rest_still_works(capability, monkeypatch):
    capability(9, 0)
    monkeypatch.setattr(triton_support, "has_triton", lambda: False)
    forms = kernels.forms_of(TOY["layer_norm"], GPU, Kernels.fast)
    assert "triton" not in forms.values() and "flipped" in forms.values()
    assert "Triton is not installed" in kernels.announcement(forms, GPU, Kernels.fast)


def test_the_tables_of_the_repository_name_forms_that_there_are(capability):
    capability(9, 0)
    for known in read_tables(FILE):
        for entry in known.rows:
            name = kernels.base(entry.form)
            assert name in ("plain", *kernels.FORMS[entry.operation])
            assert name in ("plain", "triton", "columns") or kernels.can_run(
                name, kernels.OpSpec(CPU, entry.operation, entry.kernel, entry.stride)
            ), entry
            times = {form: ms for form, ms in entry.ms.items() if not form.endswith(" bound")}
            if entry.form in times:  # the gain is its own, and none is much faster
                assert entry.gain == pytest.approx(times["plain"] / times[entry.form], rel=0.01), entry
                assert times[entry.form] < 1.08 * min(times.values()), entry
            elif times:  # of those that were timed, the gain is that of the nearest tile at most
                assert entry.gain <= times["plain"] / min(times.values()) * 1.01, entry


def test_of_several_maps_with_as_many_channels_the_largest_decides(monkeypatch, tmp_path):
    monkeypatch.setenv("ROADMAP_KERNELS", str(tmp_path / "kernels.json"))
    spec = kernels.OpSpec(CPU, "depthwise input gradient", 7, 1, 96)
    for forms in ({24: "plain", 56: "flipped"}, {24: "plain"}):  # the small map is recorded once more
        rows = [Row(operation=spec.operation, kernel=7, stride=1, channels=96, height=h, form=f, gain=1)
                for h, f in forms.items()]  # fmt: skip
        record(Table(device="cpu", hardware="cpu", torch=torch_name(), about="", rows=rows))
        assert best_form(spec) == "flipped"


def test_swin_stays_as_torchvision_makes_it():
    assert kernels.forms_of(SWIN["tiny"], CPU, Kernels.fast) == {}


def test_the_setting_is_checked_and_is_no_part_of_a_runs_name(small):
    assert small("gelu", "kernels=plain").cell == small("gelu").cell
    with pytest.raises(ConfigError, match="kernels"):
        small("gelu", "kernels=fastest")


def test_a_run_records_its_forms_and_says_them_once(small):
    config = small("separate_downsampling", "kernels=auto", "recipe.epochs=1")
    assert train(config)["kernels"] == "idle taps cut, pointwise linear"
    line = "kernels=auto: idle taps cut, pointwise linear\n"
    assert (run_path(config) / "run.log").read_text().count(line) == 1
    assert json.loads((run_path(config) / SUMMARY).read_text())["kernels"] == "idle taps cut, pointwise linear"


def test_a_run_goes_on_with_other_forms_and_its_record_keeps_that(trained):
    config = trained("gelu", "kernels=plain", stopped_at=2)
    config.kernels = Kernels.auto
    forms = "idle taps cut, pointwise without bias linear"
    summary = train(config)
    assert (summary["drift"], summary["rounding"]) == ([], [f"kernels: plain -> {forms}"])
    assert json.loads((run_path(config) / STATUS).read_text())["kernels"] == forms
    assert "differs in rounding" in (run_path(config) / "run.log").read_text()


@pytest.mark.parametrize("step", ["kernel_7", "separate_downsampling"])
def test_training_gives_the_losses_of_the_plain_net_within_the_noise_of_seeds(small, step):
    def losses(*words):
        config = small(step, "recipe.epochs=3", *words)
        train(config)
        return np.array([row["train/loss"] for row in ledger(config) if row["kind"] == "train"])

    seeds = np.stack([losses("kernels=plain", f"seed={seed}") for seed in range(3)])
    ours = losses("kernels=fast", "seed=0", "study=fast")
    spread = seeds.std(axis=0, ddof=1).mean()
    assert 0 < np.abs(ours - seeds[0]).mean() < 0.2 * spread
