"""What only a GPU can show: its kernels, compiled and captured training, its memory, NCCL. `make test-gpu`.

Its groups run side by side, in workers of pytest-xdist, since most of their time a core works: runs of a form in one
group share what was captured, as the seeds of a row do. Kernels and nets are compiled by processes of their own, into
the compilers' caches. `pytest -m gpu` runs one group after the other; all that has a process is then started at once.
"""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from roadmap.bench.kernels import chosen_forms, compile_ahead, compilers, errors_at
from roadmap.bench.measure import free_memory
from roadmap.bench.operations import shapes_of
from roadmap.config.recipe import RecipeConfig
from roadmap.data import train_batches
from roadmap.data.datasets import load
from roadmap.distributed.rank_env import RankEnv
from roadmap.distributed.ranks import Ranks
from roadmap.errors import ConfigError, NonFiniteError
from roadmap.runs.progress import SweepProgress
from roadmap.runs.run_dir import run_path
from roadmap.runs.schema import SUMMARY
from roadmap.steps.compose import compose
from roadmap.training import cuda_graph, step
from roadmap.training import train as training
from roadmap.training.cuda_graph import CapturedStep
from roadmap.training.evaluation import evaluate_weights
from roadmap.training.group import Group, GroupRun
from roadmap.training.train import train

from .conftest import ROOT, SMALL, small_run
from .records import ledger, newest, stopped_at

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
CUDA = torch.device("cuda")
STEP = "separate_downsampling"
EAGER = ("cuda_graph=never", "compile=false")
COMPILED = ("cuda_graph=always", "compile=true")
FORMS = {
    "eager": EAGER,
    "captured": ("cuda_graph=always", "compile=false"),
    "captured passes": ("cuda_graph=always", "compile=false", "recipe.micro_batch=16"),
    "compiled": ("cuda_graph=never", "compile=true"),
    "compiled and captured": COMPILED,
}
AVERAGED = ("recipe.precision=bf16", "recipe.ema_decay=0.9")
DRAWN = (*AVERAGED, "recipe.drop_path=0.3")  # each run of a group draws from a state of its own
ROWS = ("depthwise", "kernel_5", "kernel_7", "kernel_9", "kernel_11", STEP)
COMPILED_RUNS = {
    "nets": ("run.py", f"+step={STEP}", "regime=nano", *COMPILED, *DRAWN, *SMALL, "paths.runs=runs"),
    "step": ("run.py", f"+step={STEP}", "regime=nano", *COMPILED, *AVERAGED, *SMALL, "paths.runs=runs"),
}
OTHER_RUNS = {
    "packer": (
        *("-m", "roadmap.sweep", "submit", "demo", "--runs", "runs", "--cluster", "local", "--"),
        *("+step=resnet,gelu", "seed=0,1", *SMALL),
    ),
    "torchrun": (
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"),
        *("run.py", f"+step={STEP}", "regime=nano", *SMALL, "paths.runs=runs"),
    ),
}


def losses(config):
    return np.array([row["train/loss"] for row in ledger(config) if row["kind"] == "train"])


def together(group):
    """Mark tests that share fixtures: one worker has them all."""
    return pytest.mark.xdist_group(group)


@pytest.fixture(scope="module", autouse=True)
def at_once(request):
    """Start what takes processes of its own before the first test, where no other worker does."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        wanted = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
        for name in ("compiled_runs", "other_runs", "shapes"):
            if name in wanted:
                request.getfixturevalue(name)


@pytest.fixture(scope="module")
def shapes():
    """Compile all forms of every operation of tiny at its largest map and of mini at its smallest, side by side.

    Return a function that waits for these operations.
    """
    largest = {shape.family: shape for shape in reversed(shapes_of([compose(row, "tiny") for row in ROWS], 224))}
    smallest = {shape.cut[:3]: shape.cut for shape in shapes_of([compose(row, "mini") for row in ROWS], 48)}
    taken, end = [*largest.values(), *smallest.values()], time.monotonic() + 90
    forms = [(shape, form) for shape in taken for form in chosen_forms(shape, CUDA, 1, {})]
    with compilers(CUDA) as pool, ThreadPoolExecutor(1) as beside:
        compiled = beside.submit(compile_ahead, pool, forms, torch.bfloat16, end)
        yield lambda: (compiled.result(), taken)[1]


@contextmanager
def processes(commands, tmp_path_factory):
    """Start commands, by name; give a function that waits for one, and returns its output and folder."""
    started = {}
    for name, words in commands.items():
        folder = tmp_path_factory.mktemp("process")
        words = [str(folder / "runs") if word == "runs" else word.replace("=runs", f"={folder}/runs") for word in words]
        env = os.environ | {"ROADMAP_KERNELS": "", "WANDB_MODE": "disabled"}
        env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
        with (folder / "out").open("w") as out:
            command = [sys.executable, *words, "device=cuda", "wandb.mode=disabled"]
            started[name] = folder, subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out)

    def finish(name):
        folder, process = started[name]
        code, told = process.wait(150), (folder / "out").read_text()
        assert code == 0, told
        return told, folder

    try:
        yield finish
    finally:
        for _, process in started.values():
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def compiled_runs(tmp_path_factory):
    """Start runs whose compiled nets those of the tests are, in the compiler's cache."""
    with processes(COMPILED_RUNS, tmp_path_factory) as finish:
        yield finish


@pytest.fixture(scope="module")
def other_runs(tmp_path_factory):
    """Start the runs that a test looks at when they have ended."""
    with processes(OTHER_RUNS, tmp_path_factory) as finish:
        yield finish


@pytest.fixture
def on_gpu(request, small):
    """Return a function that composes a small run on the GPU."""
    request.getfixturevalue("gpu_kernels")  # not before what is started at once
    return lambda *words: small(STEP, "device=cuda", *words)


@pytest.fixture(scope="module")
def alone(request, tmp_path_factory):
    """Return a function that trains a run of a form and of a seed, once, and the caches of the forms."""
    request.getfixturevalue("gpu_kernels")
    runs, caches = {}, defaultdict(dict)

    def call(form, seed=0):
        if (form, seed) not in runs:
            folder = tmp_path_factory.mktemp("alone")
            config = small_run(folder, STEP, "device=cuda", *FORMS[form], *DRAWN, f"seed={seed}")
            train(config, SweepProgress(cache=caches[form]))
            runs[form, seed] = config
        return runs[form, seed]

    return call, caches


@pytest.fixture(scope="module")
def eager(request, tmp_path_factory):
    """Return the losses of a run whose steps are eager, by what else it is."""
    request.getfixturevalue("gpu_kernels")
    known = {}

    def call(*words):
        if words not in known:
            config = small_run(tmp_path_factory.mktemp("eager"), STEP, "device=cuda", *EAGER, *words)
            train(config)
            known[words] = losses(config)
        return known[words]

    return call


def same_as_eager(config, eager, form, kernels, rtol):
    summary = train(config)
    assert summary["cuda_graph"] == ("cuda_graph=always" in FORMS[form])
    passes = [word for word in FORMS[form] if "micro_batch" in word]
    np.testing.assert_allclose(losses(config), eager(*AVERAGED, f"kernels={kernels}", *passes), rtol=rtol)


@together("eager")
@pytest.mark.parametrize(
    ("form", "kernels"), [("captured", "plain"), ("captured", "auto"), ("captured passes", "auto")]
)
def test_a_captured_step_gives_the_losses_of_the_eager_one(on_gpu, eager, form, kernels):
    config = on_gpu(*FORMS[form], f"kernels={kernels}", *AVERAGED)
    same_as_eager(config, eager, form, kernels, rtol=0.01)


def check_seeds(on_gpu, alone, form, seeds):
    """Train runs side by side, and compare each with the run alone."""
    call, caches = alone
    expected, beside = [], [on_gpu(*FORMS[form], *DRAWN, f"seed={seed}") for seed in range(seeds)]
    expected = [losses(call(form, seed)) for seed in range(seeds)]
    outcomes = []
    runs = [GroupRun(config, SweepProgress(cache=caches[form])) for config in beside]
    Group(runs, lambda run, outcome: outcomes.append(outcome)).train()
    assert [outcome["state"] for outcome in outcomes] == ["done"] * seeds, outcomes
    assert len({run.stream for run in runs}) == seeds
    assert all(outcome["group_size"] == seeds for outcome in outcomes)
    for config, of_seed in zip(beside, expected, strict=True):
        np.testing.assert_allclose(losses(config), of_seed, rtol=2e-3)
    if "captured" in form:
        assert len(caches[form]["steps"]) == seeds and not any(step.in_use for step in caches[form]["steps"])


@together("alone")
@pytest.mark.parametrize(("form", "seeds"), [("captured", 3), ("captured passes", 2), ("eager", 2)])
def test_seeds_side_by_side_have_the_losses_of_each_alone(on_gpu, alone, form, seeds):
    check_seeds(on_gpu, alone, form, seeds)


def check_resumed(on_gpu, alone, form):
    """Stop a run in the middle, let it go on, and compare it with the whole one."""
    call, caches = alone
    whole, config = call(form), on_gpu(*FORMS[form], *DRAWN)
    with stopped_at(4):
        train(config, SweepProgress(cache=caches[form]))
    train(config, SweepProgress(cache=caches[form]))
    np.testing.assert_allclose(losses(config), losses(whole), rtol=2e-3)
    for a, b in zip(newest(config)["net"].values(), newest(whole)["net"].values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


@together("alone")
@pytest.mark.parametrize("form", ["eager", "captured", "captured passes"])
def test_a_stopped_run_goes_on_to_the_losses_of_the_whole_one(on_gpu, alone, form):
    check_resumed(on_gpu, alone, form)


@together("own runs")
@pytest.mark.parametrize("form", ["eager", "captured", "captured passes"])
def test_the_host_waits_for_no_step(on_gpu, monkeypatch, form):
    """Images, mixing, draws, step and moving average are asked of the device; the losses are read later, together."""

    def watched(real):
        def call(*args):
            torch.cuda.set_sync_debug_mode(
                "error" if args[-3].global_step else "default"
            )  # the first copies the images
            try:
                return real(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return call

    monkeypatch.setattr(training, "train_step", watched(training.train_step))
    monkeypatch.setattr(CapturedStep, "__call__", watched(CapturedStep.__call__))
    train(on_gpu(*FORMS[form], *DRAWN, "recipe.mixup=0.8", "recipe.cutmix=1.0", "recipe.clip_grad=1.0"))


@together("own runs")
@pytest.mark.parametrize("form", ["eager", "captured", "captured passes"])
def test_a_step_that_is_not_finite_ends_the_run(on_gpu, monkeypatch, form):
    real = step.prepare

    def spoilt(ctx, images, labels, number):
        return real(ctx, images * (torch.nan if number == 2 * ctx.grad_accumulation else 1), labels, number)

    monkeypatch.setattr(step, "prepare", spoilt)
    monkeypatch.setattr(cuda_graph, "prepare", spoilt)
    with pytest.raises(NonFiniteError, match="step 3"):
        train(on_gpu(*FORMS[form]))


@together("own runs")
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


@together("eager")
@pytest.mark.parametrize(("precision", "rtol"), [("fp32", 0.01), ("bf16", 0.1)])
def test_our_kernels_give_the_losses_of_torchs_own(eager, precision, rtol):
    """In bf16 the first steps of AdamW make much of what is rounded."""
    words = AVERAGED if precision == "bf16" else (f"recipe.precision={precision}",)
    ours, plain = (eager(*words, f"kernels={kernels}") for kernels in ("auto", "plain"))
    np.testing.assert_allclose(ours, plain, rtol=rtol)


@together("eager")
def test_in_fp16_our_kernels_begin_with_the_loss_of_torchs_own(eager):
    """Which of the next steps the scale of the loss skips may hang on a rounding."""
    ours, plain = (eager("recipe.precision=fp16", f"kernels={kernels}") for kernels in ("auto", "plain"))
    np.testing.assert_allclose(ours[0], plain[0], rtol=0.01)
    assert np.isfinite(ours).all()


@together("own runs")
@pytest.mark.parametrize("form", ["eager", "captured"])
def test_memory_that_is_too_small_is_told_with_the_pass_that_fits(on_gpu, form):
    config = on_gpu(*FORMS[form], "data.image_size=224", "kernels=plain")
    free_memory(CUDA)  # what earlier tests have left in circles, too: it would make room later
    allowed = torch.cuda.memory_reserved() + 40 * 2**20
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(ConfigError, match=r"a pass of so many images is too large .*; (\d+ fits|not even 2)"):
            train(config)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@together("own runs")
def test_evaluation_counts_as_on_the_cpu(on_gpu):
    config = on_gpu("recipe.precision=fp32")
    train(config)
    weights = next((run_path(config) / "checkpoints").glob("*.pt"))
    scored = [config.replace(mode="evaluate", weights=str(weights), device=device) for device in ("cuda", "cpu")]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # whose 10 bits may turn a close decision
        on_cuda, on_cpu = (evaluate_weights(each).result for each in scored)
    assert np.array_equal(on_cuda.predicted, on_cpu.predicted)
    assert (on_cuda.top1, on_cuda.top5) == (on_cpu.top1, on_cpu.top5)
    np.testing.assert_allclose(on_cuda.loss, on_cpu.loss, rtol=1e-4)


@together("processes")
@pytest.mark.usefixtures("other_runs")  # which begin before the first test of the group
@pytest.mark.parametrize(("decoder", "levels"), [("cpu", 0.01), ("nvjpeg", 4.0), ("both", 3.0)])
def test_the_fast_pipeline_gives_the_cpus_images_with_every_decoder(tmp_path, decoder, levels):
    """NvJPEG doubles the color's pixels where libjpeg interpolates: 1.5 levels on average."""
    pytest.importorskip("timm")  # which reads the recipe's RandAugment; the other tests do without
    from .test_data_ops import photographs

    data = photographs(tmp_path)
    recipe = RecipeConfig(rand_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic")
    split, order = load(data).train, list(torch.arange(40).split(16))

    def images(device, decoder):
        """Return all images of an epoch, 0 to 255."""
        chosen = data.replace(decoder=decoder)
        batches = train_batches(split, chosen, recipe, order, seed=0, epoch=0, device=torch.device(device))
        found = torch.cat([images.cpu() for images, _ in batches])
        return (found * torch.tensor(data.std)[:, None, None] + torch.tensor(data.mean)[:, None, None]) * 255

    off = (images("cuda", decoder) - images("cpu", "cpu")).abs()
    if decoder == "cpu":
        assert (off > levels).float().mean() < 2e-3
    assert off.mean() < levels


@together("processes")
def test_nccl_averages_the_gradients_of_a_net():
    """There is one GPU, so a group of one rank: what asks for several is told of two, after that has begun."""
    ranks, image = Ranks(RankEnv(), torch.device("cuda", 0)), torch.randn(4, 3, 8, 8, device=CUDA)
    plain, other = (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).to(CUDA) for _ in range(2))
    other.load_state_dict(plain.state_dict())
    ranks._init_process_groups(dist.HashStore(), 60.0, 60.0)
    try:
        ranks.world_size = 2
        parallel = ranks.wrap_ddp(other, image)
        for net in (plain, parallel):
            net(image).square().sum().backward()
        ranks.broadcast_buffers(other)
        assert ranks.all_reduce_mean(torch.tensor(3.0, device=CUDA)).item() == 1.5
        for a, b in zip(plain.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
    finally:
        ranks._destroy_process_groups()


@together("processes")
def test_the_packer_prepares_a_row_while_another_trains(other_runs):
    told, folder = other_runs("packer")
    assert "the seeds of a row side by side" in told and "[4/4]" in told
    found = [json.loads(path.read_text()) for path in folder.rglob(SUMMARY)]
    assert [about["cuda_graph"] for about in found] == [True] * 4


@together("processes")
def test_one_rank_under_torchrun_trains(other_runs):
    _, folder = other_runs("torchrun")
    summary = json.loads(next(folder.rglob(SUMMARY)).read_text())
    assert summary["world_size"] == 1 and np.isfinite(summary["top1"])


@together("shapes")
@pytest.mark.timeout(200)
def test_every_form_is_as_exact_as_torchs_own_at_the_shapes_of_tiny_and_mini(shapes):
    for shape in shapes():
        error_of = errors_at(shape, CUDA, torch.bfloat16)
        plain = error_of("plain")
        for form in chosen_forms(shape, CUDA, 1, {}):
            assert error_of(form) <= 1.5 * plain + 1e-4, (shape, form, error_of(form), plain)


@together("compiled")
def test_seeds_side_by_side_of_compiled_nets(compiled_runs, on_gpu, alone):
    compiled_runs("nets")
    check_seeds(on_gpu, alone, "compiled and captured", 2)


@together("compiled")
def test_a_compiled_run_that_was_stopped_goes_on(on_gpu, alone):
    check_resumed(on_gpu, alone, "compiled and captured")


@together("compiled")
@pytest.mark.parametrize("form", ["compiled and captured", "compiled"])
def test_a_compiled_step_gives_nearly_the_losses_of_the_eager_one(compiled_runs, on_gpu, eager, form):
    compiled_runs("step")
    same_as_eager(on_gpu(*FORMS[form], *AVERAGED), eager, form, "auto", rtol=0.1)
