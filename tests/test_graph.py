"""A captured step takes the eager steps, whichever run it was captured for; on a CPU a replay calls the step again."""

from dataclasses import replace

import pytest
import torch

from roadmap import data
from roadmap.config.choices import Precision
from roadmap.data import datasets, sampling
from roadmap.distributed.device import choose_compile, choose_graph
from roadmap.distributed.rank_env import RankEnv
from roadmap.distributed.ranks import Ranks
from roadmap.errors import ConfigError
from roadmap.runs.null_logger import NullLogger
from roadmap.steps.compose import compose
from roadmap.training import cuda_graph
from roadmap.training.cuda_graph import CapturedStep, with_captured_step
from roadmap.training.state import RunContext, build_state
from roadmap.training.step import train_step

from .net_rows import one_thread  # noqa: F401

SMALL = ["data.train_images=128", "recipe.batch_size=32"]


class Again:
    """Replays by taking the step again, its results put where the first ones lie."""

    def __init__(self, step, results):
        self.step, self.results = step, results

    def replay(self):
        for kept, new in zip(self.results, self.step(), strict=True):
            kept.copy_(new)


def capture_on_cpu(step):
    for _ in range(cuda_graph.WARM_UP):
        results = step()
    return Again(step, results), results


@pytest.fixture
def job_of():
    ranks = Ranks(RankEnv(), torch.device("cpu"))

    def make(step, *overrides, kept=None, seed=0):
        config = compose(step, overrides=[*SMALL, f"seed={seed}", *overrides])
        images = datasets.load(config.data)
        return RunContext(
            config,
            images,
            ranks,
            NullLogger({"precision": Precision.fp32}),
            None,
            Precision.fp32,
            cache={} if kept is None else kept,
        )

    return make


def batches(job, skip=0):
    ids = sampling.train_index_batches(len(job.images.train), 32, job.config.seed, 0, skip=skip)
    ids = [part for batch in ids for part in batch.split(job.micro_batch)]
    return data.train_batches(
        job.images.train, job.config.data, job.config.recipe, ids, seed=job.config.seed, epoch=0, device=job.device
    )


def run(job, state, steps, *, skip=0):
    source, numbers = batches(job, skip), []
    for number in range(steps):
        numbers += (state.step_fn or train_step)(job, state, source, 0.01 * (number + skip + 1))
        state.global_step += 1
    return torch.stack(numbers), state


def same(one, other):
    assert torch.equal(one[0], other[0])
    for (name, a), b in zip(one[1].net.state_dict().items(), other[1].net.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("step", "overrides"),
    [
        ("resnet", []),
        ("separate_downsampling", []),
        ("gelu", ["recipe.mixup=0.8", "recipe.drop_path=0.3"]),
        ("layer_norm", ["recipe.ema_decay=0.9"]),
        ("resnet", ["recipe.momentum=0"]),
        ("gelu", ["recipe.micro_batch=8", "recipe.mixup=0.8", "recipe.drop_path=0.3"]),
    ],
)
def test_captured_steps_are_the_eager_ones(monkeypatch, job_of, step, overrides):
    monkeypatch.setattr(CapturedStep.__init__, "__defaults__", (capture_on_cpu,))
    job = job_of(step, *overrides)
    state = with_captured_step(job, build_state(job))
    assert isinstance(state.step_fn, CapturedStep)
    taken, eager = run(job, state, 3), run(job, build_state(job), 3)
    same(taken, eager)
    if state.ema is not None:
        for a, b in zip(state.ema.module.parameters(), eager[1].ema.module.parameters(), strict=True):
            assert torch.equal(a, b)


def test_the_next_seed_uses_the_capture_of_the_one_before(monkeypatch, job_of):
    captures = []
    monkeypatch.setattr(
        CapturedStep.__init__, "__defaults__", (lambda step: captures.append(1) or capture_on_cpu(step),)
    )
    kept = {}
    for seed in (0, 1):
        job = job_of("gelu", kept=kept, seed=seed)
        captured = with_captured_step(job, build_state(job))
        same(run(job, captured, 2), run(job, build_state(job), 2))
        cuda_graph.release_step(job, captured)
    assert len(captures) == 1
    other = job_of("layer_norm", kept=kept)
    with_captured_step(other, build_state(other))
    assert len(captures) == 2


@pytest.mark.parametrize("before", ["captured", "eager"])
@pytest.mark.parametrize("after", ["captured", "eager"])
def test_a_checkpoint_goes_from_one_form_to_the_other(monkeypatch, job_of, before, after):
    monkeypatch.setattr(CapturedStep.__init__, "__defaults__", (capture_on_cpu,))
    job = job_of("gelu")
    whole = run(job, build_state(job), 3)
    first = build_state(job)
    _, first = run(job, with_captured_step(job, first) if before == "captured" else first, 2)
    saved = {key: torch.load(_in_memory(value)) for key, value in first.state_dict().items()}
    second = build_state(job)
    second.load_state_dict(saved)
    job.cache.clear()
    second = with_captured_step(job, second) if after == "captured" else second
    _, second = run(job, second, 1, skip=2)
    for (name, a), b in zip(whole[1].net.state_dict().items(), second.net.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def _in_memory(value):
    from io import BytesIO

    file = BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def test_a_step_that_is_not_finite_is_skipped(monkeypatch, job_of):
    monkeypatch.setattr(CapturedStep.__init__, "__defaults__", (capture_on_cpu,))
    job = job_of("gelu")
    state = with_captured_step(job, build_state(job))
    before = {name: value.clone() for name, value in state.net.named_parameters()}
    images, labels = next(batches(job))
    loss, _ = state.step_fn(job, state, iter([(images * torch.nan, labels)]), 0.1)
    assert not torch.isfinite(loss)
    for name, value in state.net.named_parameters():
        assert torch.equal(value, before[name]), name


CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("overrides", "device", "precision", "world_size", "expected"),
    [
        ([], CUDA, Precision.bf16, 1, True),
        (["cuda_graph=never"], CUDA, Precision.bf16, 1, False),
        ([], CPU, Precision.fp32, 1, False),
        ([], CUDA, Precision.bf16, 2, False),
        ([], CUDA, Precision.fp16, 1, False),
        (["compile=true"], CUDA, Precision.bf16, 1, True),
        (["recipe.micro_batch=32"], CUDA, Precision.bf16, 1, True),
        (["data.image_size=224"], CUDA, Precision.bf16, 1, True),
        (["data.image_size=224", "compile=false"], CUDA, Precision.bf16, 1, False),
        (["data.image_size=224", "cuda_graph=always"], CUDA, Precision.bf16, 1, True),
        (
            ["cuda_graph=always"],
            CPU,
            Precision.fp32,
            1,
            "cuda_graph=always: a step cannot be captured without a GPU; cuda_graph=auto or",
        ),
        (["cuda_graph=always"], CUDA, Precision.bf16, 2, "with several devices"),
        (["cuda_graph=always"], CUDA, Precision.fp16, 1, "with fp16"),
    ],
)
def test_which_steps_are_captured(overrides, device, precision, world_size, expected):
    config = compose("gelu", overrides=overrides)
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            choose_graph(config, device, precision, world_size)
    else:
        assert choose_graph(config, device, precision, world_size) is expected


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu_kernels")
@pytest.mark.parametrize("step", ["resnet", "separate_downsampling"])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_real_graph_takes_the_eager_steps(job_of, step):
    job = replace(job_of(step), ranks=Ranks(RankEnv(), CUDA), precision=Precision.bf16)
    taken, eager = run(job, with_captured_step(job, build_state(job)), 3), run(job, build_state(job), 3)
    torch.testing.assert_close(taken[0], eager[0], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("overrides", "device", "expected"),
    [
        (["data.image_size=224"], CUDA, True),
        (["data.image_size=224"], CPU, False),
        (["data.image_size=224", "compile=false"], CUDA, False),
        (["data.image_size=224", "cuda_graph=always"], CUDA, True),
        (["data.image_size=32"], CUDA, False),
        (["data.image_size=32", "compile=true"], CPU, True),
    ],
)
def test_which_nets_are_compiled(overrides, device, expected):
    assert choose_compile(compose("gelu", overrides=overrides), device) is expected


def test_another_word_for_compile_is_refused():
    with pytest.raises(ConfigError, match="compile=yes: must be one of auto, true, false"):
        compose("gelu", overrides=["compile='yes'"])
