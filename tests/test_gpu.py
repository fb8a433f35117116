"""What only a GPU can show: its kernels, compiled and captured training, its memory, NCCL. `pytest -m gpu`."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from roadmap.bench.kernels import compiled_ahead, measure_shape
from roadmap.bench.operations import shapes_of
from roadmap.config.recipe import RecipeConfig
from roadmap.data import load, train_batches
from roadmap.errors import ConfigError, NonFiniteError
from roadmap.runs.progress import SweepProgress
from roadmap.runs.run_dir import run_path
from roadmap.runs.schema import SUMMARY
from roadmap.steps.compose import compose
from roadmap.sweep.__main__ import main as sweep
from roadmap.training import cuda_graph, step
from roadmap.training.group import Group, GroupRun
from roadmap.training.train import train

from .conftest import ROOT, SMALL, small_run
from .records import ledger, newest, stopped_at
from .test_data_ops import photographs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
CUDA = torch.device("cuda")
STEP = "separate_downsampling"
EAGER = ("cuda_graph=never", "compile=false")
FORMS = {
    "eager": EAGER,
    "captured": ("cuda_graph=always", "compile=false"),
    "compiled": ("cuda_graph=never", "compile=true"),
    "compiled and captured": ("cuda_graph=always", "compile=true"),
    "captured passes": ("cuda_graph=always", "compile=false", "recipe.micro_batch=16"),
}
ROWS = ("depthwise", "kernel_5", "kernel_7", "kernel_9", "kernel_11", STEP)


def losses(config):
    return np.array([row["train/loss"] for row in ledger(config) if row["kind"] == "train"])


@pytest.fixture
def on_gpu(small):
    """Return a function that composes a small run on the GPU."""
    return lambda *words: small(STEP, "device=cuda", *words)


@pytest.fixture(scope="module")
def shapes():
    """Return every operation of tiny at its largest map and of mini at its smallest; their kernels are compiled."""
    largest = {shape.family: shape for shape in reversed(shapes_of([compose(row, "tiny") for row in ROWS], 224))}
    smallest = {shape[:3]: shape for shape in shapes_of([compose(row, "mini") for row in ROWS], 48)}
    taken = [*largest.values(), *smallest.values()]
    with compiled_ahead(taken, CUDA, torch.bfloat16, 1, 60.0):
        return taken


@pytest.mark.timeout(200)
def test_every_form_is_as_exact_as_torchs_own_at_the_shapes_of_tiny_and_mini(shapes):
    for shape in shapes:
        found = measure_shape(shape, CUDA, torch.bfloat16, 8, 1)
        plain = found["plain"].error
        for form, measured in found.items():
            assert measured.failed is None, (shape, form, measured.failed)
            assert measured.error <= 1.5 * plain + 1e-4, (shape, form, measured.error, plain)


@pytest.fixture(scope="module")
def eager(tmp_path_factory):
    """Return the losses of a run whose steps are eager, by what else it is."""
    known = {}

    def call(*words):
        if words not in known:
            config = small_run(tmp_path_factory.mktemp("eager"), STEP, "device=cuda", *EAGER, *words)
            train(config)
            known[words] = losses(config)
        return known[words]

    return call


@pytest.mark.parametrize("kernels", ["plain", "auto"])
@pytest.mark.parametrize("form", FORMS)
def test_every_way_to_take_a_step_gives_the_same_losses(on_gpu, eager, form, kernels):
    if kernels == "plain" and "compile=true" in FORMS[form]:
        pytest.skip("compiled with the forms that train")
    config = on_gpu(*FORMS[form], f"kernels={kernels}", "recipe.precision=bf16", "recipe.ema_decay=0.9")
    summary = train(config)
    assert summary["cuda_graph"] == ("cuda_graph=always" in FORMS[form])
    passes = [word for word in FORMS[form] if "micro_batch" in word]
    expected = eager("recipe.precision=bf16", f"kernels={kernels}", *passes)
    np.testing.assert_allclose(losses(config), expected, rtol=0.1 if "compile=true" in FORMS[form] else 0.01)


@pytest.mark.parametrize(("precision", "rtol"), [("fp32", 0.01), ("bf16", 0.1)])
def test_our_kernels_give_the_losses_of_torchs_own(eager, precision, rtol):
    """In bf16 the first steps of AdamW make much of what is rounded."""
    ours, plain = (eager(f"recipe.precision={precision}", f"kernels={kernels}") for kernels in ("auto", "plain"))
    np.testing.assert_allclose(ours, plain, rtol=rtol)


def test_in_fp16_our_kernels_begin_with_the_loss_of_torchs_own(eager):
    """Which of the next steps the scale of the loss skips may hang on a rounding."""
    ours, plain = (eager("recipe.precision=fp16", f"kernels={kernels}") for kernels in ("auto", "plain"))
    np.testing.assert_allclose(ours[0], plain[0], rtol=0.01)
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("form", ["eager", "captured", "compiled and captured", "captured passes"])
def test_a_stopped_run_goes_on_to_the_losses_of_the_whole_one(on_gpu, form):
    whole, config = on_gpu(*FORMS[form], "study=whole"), on_gpu(*FORMS[form])
    train(whole)
    with stopped_at(4):
        train(config)
    train(config)
    np.testing.assert_allclose(losses(config), losses(whole), rtol=2e-3)
    for a, b in zip(newest(config)["net"].values(), newest(whole)["net"].values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("form", ["eager", "captured", "captured passes"])
def test_a_step_that_is_not_finite_ends_the_run(on_gpu, monkeypatch, form):
    real = step.prepare

    def spoilt(ctx, images, labels, number):
        return real(ctx, images * (torch.nan if number == 2 * ctx.grad_accumulation else 1), labels, number)

    monkeypatch.setattr(step, "prepare", spoilt)
    monkeypatch.setattr(cuda_graph, "prepare", spoilt)
    with pytest.raises(NonFiniteError, match="step 3"):
        train(on_gpu(*FORMS[form]))


@pytest.mark.parametrize("form", ["eager", "captured"])
def test_memory_that_is_too_small_is_told_with_the_pass_that_fits(on_gpu, form):
    config = on_gpu(*FORMS[form], "data.image_size=224", "kernels=plain")
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + 40 * 2**20
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(ConfigError, match=r"a pass of so many images is too large .*; (\d+ fits|not even 2)"):
            train(config)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@pytest.mark.parametrize("form", ["eager", "captured", "compiled and captured", "captured passes"])
def test_seeds_side_by_side_have_the_losses_of_each_alone(on_gpu, form):
    """Stochastic depth as well: each draws from a state of its own."""
    words = (*FORMS[form], "recipe.drop_path=0.3")
    alone = [on_gpu(*words, "study=alone", f"seed={seed}") for seed in range(3)]
    beside = [on_gpu(*words, f"seed={seed}") for seed in range(3)]
    for config in alone:
        train(config)
    outcomes, cache = [], {}
    runs = [GroupRun(config, SweepProgress(cache=cache)) for config in beside]
    Group(runs, lambda run, outcome: outcomes.append(outcome)).train()
    assert [outcome["state"] for outcome in outcomes] == ["done"] * 3
    assert len({run.stream for run in runs}) == 3 and all(outcome["group_size"] == 3 for outcome in outcomes)
    for config, other in zip(beside, alone, strict=True):
        np.testing.assert_allclose(losses(config), losses(other), rtol=2e-3)
    if "captured" in form:
        assert len(cache["steps"]) == 3 and not any(step.in_use for step in cache["steps"])


def test_a_run_of_a_group_that_is_not_finite_leaves_and_the_others_go_on(on_gpu, monkeypatch):
    real = step.prepare

    def spoilt(ctx, images, labels, number):
        return real(ctx, images * (torch.nan if (number, ctx.config.seed) == (2, 1) else 1), labels, number)

    monkeypatch.setattr(cuda_graph, "prepare", spoilt)
    configs = [on_gpu(*FORMS["captured"], f"seed={seed}") for seed in range(3)]
    outcomes = {}
    runs = [GroupRun(config, SweepProgress()) for config in configs]
    Group(runs, lambda run, outcome: outcomes.update({run.config.seed: outcome})).train()
    assert isinstance(outcomes[1], NonFiniteError)
    assert outcomes[0]["state"] == outcomes[2]["state"] == "done"


def test_the_packer_prepares_a_row_while_another_trains(tmp_path, capsys):
    words = ["submit", "demo", "--runs", str(tmp_path), "--cluster", "local", "--", "+step=resnet,gelu", "seed=0,1"]
    assert sweep([*words, *SMALL, "wandb.mode=disabled", "device=cuda"]) == 0
    told = capsys.readouterr().out
    assert "the seeds of a row side by side" in told and "[4/4]" in told
    found = [json.loads(path.read_text()) for path in tmp_path.rglob(SUMMARY)]
    assert [about["cuda_graph"] for about in found] == [True] * 4


def test_evaluation_counts_as_on_the_cpu(on_gpu, tmp_path):
    config = on_gpu("recipe.precision=fp32")
    train(config)
    weights = shutil.copy(next((run_path(config) / "checkpoints").glob("*.pt")), tmp_path / "weights.pt")
    found = {}
    for device in ("cuda", "cpu"):
        words = ("mode=evaluate", f"weights={weights}", f"device={device}", "recipe.precision=fp32")
        done = command(*words, f"+step={STEP}", "regime=nano", *(word for word in SMALL if word.startswith("data.")))
        assert done.returncode == 0, done.stderr
        found[device] = done.stdout.splitlines()[-1]
    assert found["cuda"] == found["cpu"]


def test_the_fast_pipeline_gives_the_cpus_images_with_both_decoders(tmp_path):
    data = photographs(tmp_path)
    recipe = RecipeConfig(rand_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic")
    split, order = load(data).train, list(torch.arange(40).split(16))

    def levels(device, decoder):
        """Return all images of an epoch, 0 to 255."""
        chosen = data.replace(decoder=decoder)
        batches = train_batches(split, chosen, recipe, order, seed=0, epoch=0, device=torch.device(device))
        images = torch.cat([images.cpu() for images, _ in batches])
        return (images * torch.tensor(data.std)[:, None, None] + torch.tensor(data.mean)[:, None, None]) * 255

    expected = levels("cpu", "cpu")
    assert ((levels("cuda", "cpu") - expected).abs() > 0.01).float().mean() < 2e-3
    assert (levels("cuda", "nvjpeg") - expected).abs().mean() < 2


def test_one_rank_under_torchrun_trains_by_nccl(tmp_path):
    words = (f"+step={STEP}", "device=cuda", *SMALL, "wandb.mode=disabled", f"paths.runs={tmp_path}")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1")
    done = command(*words, launcher=launcher)
    assert done.returncode == 0, done.stderr
    summary = json.loads(next(tmp_path.rglob(SUMMARY)).read_text())
    assert summary["world_size"] == 1 and np.isfinite(summary["top1"])


def command(*words, launcher=()):
    """Run `python run.py WORDS`, with a launcher before it."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    return subprocess.run(
        [sys.executable, *launcher, "run.py", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=150, check=False, env=env,
    )  # fmt: skip
