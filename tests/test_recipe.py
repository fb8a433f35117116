"""The parts of the recipe in training: accumulation, scaling of the rate, mixing, the moving average, precision."""

import os
import shutil
import signal
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import log_softmax, one_hot
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.overrides import TorchFunctionMode

from roadmap.config.choices import Precision
from roadmap.distributed.ranks import Ranks
from roadmap.errors import ConfigError, NonFiniteError, Refused, StoppedEarly
from roadmap.files import read_json
from roadmap.runs.run_dir import run_path
from roadmap.steps.compose import compose
from roadmap.training import mixup, setup
from roadmap.training import step as updating
from roadmap.training import train as training
from roadmap.training.ema import build_ema
from roadmap.training.train import train

from .records import assert_equal_runs, ledger, newest, same, status, stopped_at


def losses(config):
    return [row["train/loss"] for row in ledger(config) if row["kind"] == "train"]


@pytest.mark.parametrize("step", ["layer_norm", "separate_downsampling"])
def test_accumulating_over_four_passes_equals_one_pass(reference, step):
    """For nets without BatchNorm, whose statistics are those of a pass, and without what is drawn per pass."""
    whole, parts = reference(step), reference(step, "recipe.micro_batch=8")
    assert losses(whole) == pytest.approx(losses(parts), rel=1e-4)
    for name, tensor in newest(whole)["net"].items():
        assert torch.allclose(tensor, newest(parts)["net"][name], atol=2e-3), name


def test_accumulating_changes_what_batch_norm_sees(reference):
    whole, parts = reference("gelu"), reference("gelu", "recipe.micro_batch=8")
    assert losses(whole) != pytest.approx(losses(parts), rel=1e-4)


def test_a_batch_that_does_not_divide_is_refused(small):
    with pytest.raises(ConfigError, match=r"recipe.batch_size=32: must be a multiple of recipe.micro_batch=12"):
        small("gelu", "recipe.micro_batch=12")


def test_the_rate_is_scaled_only_when_asked():
    assert compose("gelu", "tiny", ["recipe.batch_size=1024"]).recipe.base_lr == 4e-3
    assert compose("gelu", "tiny", ["recipe.batch_size=1024", "recipe.lr_scaling=linear"]).recipe.base_lr == 1e-3


def test_loss_on_mixed_targets_is_the_cross_entropy_written_out():
    """FACTS: targets (1 - s) y + s / K, mixed with the partner's; loss = mean of -sum t log p."""
    recipe = compose("gelu", "tiny", ["recipe.cutmix=0"]).recipe
    images, labels = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    mixed, targets = mixup.mixup_batch(images.clone(), labels, recipe, 5, seed=3, number=7)
    lam = float(((mixed - images.flip(0)) / (images - images.flip(0)))[0, 0, 0, 0])
    smooth = one_hot(labels, 5) * 0.9 + 0.1 / 5
    assert torch.allclose(targets, lam * smooth + (1 - lam) * smooth.flip(0), atol=1e-4)
    logits = torch.randn(6, 5)
    state = SimpleNamespace(model=lambda _: logits.clone().requires_grad_(), scaler=torch.amp.GradScaler(enabled=False))
    for words, given, written_out in (({}, targets, targets), ({"mixup": 0.0}, labels, smooth)):
        config = SimpleNamespace(recipe=recipe.replace(batch_size=12, micro_batch=None, **words))
        ctx = SimpleNamespace(config=config, ranks=Ranks(), device=torch.device("cpu"), precision=Precision.fp32)
        loss = updating.backward(ctx, state, images, given, last=True)  # of half a batch
        assert torch.allclose(loss, -(written_out * log_softmax(logits, 1)).sum(1).mean() / 2)


def test_moving_average_is_the_authors_and_covers_buffers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = build_ema(net, 0.9)
    by_hand = {k: v.clone() for k, v in net.state_dict().items() if v.is_floating_point()}
    for _ in range(5):
        net(torch.randn(8, 3))
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        average.update_parameters(net)
        by_hand = {k: 0.9 * v + 0.1 * net.state_dict()[k] for k, v in by_hand.items()}
    for key, value in by_hand.items():
        assert torch.allclose(average.module.state_dict()[key], value, atol=1e-5), key
    assert build_ema(net, None) is None


class Moves(TorchFunctionMode):
    """Counts what the host would wait for on a GPU: numbers that are read, tensors that are copied there and back."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in ("to", "cpu", "cuda", "item", "tolist", "numpy", "nonzero"):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def test_moving_average_is_torchs_own_to_the_bit_and_nothing_is_waited_for():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    ours = build_ema(net, 0.9)
    theirs = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    theirs.update_parameters(net)
    for _ in range(3):
        net(torch.randn(8, 3, 6, 6)).sum().backward()
        with torch.no_grad():
            for p in net.parameters():
                p.sub_(p.grad)
        with Moves() as moves:
            ours.update_parameters(net)
        theirs.update_parameters(net)
        assert not moves.found
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.equal(a, b), name


def test_moving_average_has_its_own_evaluation(reference):
    config = reference("gelu", "recipe.ema_decay=0.5")
    summary, last = read_json(run_path(config) / "summary.json"), ledger(config)[-1]
    assert summary["ema_top1"] == last["val/ema_top1"]
    assert "ema" in newest(config)
    average = {k.removeprefix("module."): v for k, v in newest(config)["ema"].items() if k != "n_averaged"}
    assert not same(newest(config)["net"], average)


def test_bf16_is_recorded_and_is_not_fp32(reference):
    one, two = reference("layer_norm"), reference("layer_norm", "recipe.precision=bf16")
    first, second = losses(one), losses(two)
    assert first != second
    assert first == pytest.approx(second, rel=0.05)
    records = [read_json(run_path(c) / "summary.json")["precision"] for c in (one, two)]
    assert records == ["fp32", "bf16"]


@pytest.mark.parametrize("extra", [(), ("recipe.micro_batch=8",)])
def test_fp16_scales_its_loss_and_stays_near_fp32(reference, extra):
    one = reference("layer_norm", "recipe.lr=1e-4")
    two = reference("layer_norm", "recipe.precision=fp16", "recipe.lr=1e-4", *extra)
    assert losses(one) == pytest.approx(losses(two), rel=0.02)
    scaler = newest(two)["scaler"]
    assert scaler["scale"] == 65536.0  # torch's first value: no gradient of so small a net overflows
    assert scaler["_growth_tracker"] == 6
    assert read_json(run_path(two) / "summary.json")["precision"] == "fp16"


def test_a_gradient_that_overflows_in_fp16_is_a_skipped_step_and_no_error(small, monkeypatch):
    """The ledger says so (no gradient norm), the scale is halved, and training goes on."""
    config = small("layer_norm", "recipe.precision=fp16")
    real, calls = updating.backward, []

    def overflowing(job, state, *args, **kwargs):
        loss = real(job, state, *args, **kwargs)
        calls.append({name: p.detach().clone() for name, p in state.net.named_parameters()})
        if len(calls) == 2:
            next(state.net.parameters()).grad[0] = float("inf")
        return loss

    monkeypatch.setattr(updating, "backward", overflowing)
    train(config)
    rows = [row for row in ledger(config) if row["kind"] == "train"]
    assert [row["train/grad_norm"] is None for row in rows] == [False, True, False, False, False, False]
    assert newest(config)["scaler"]["scale"] == 32768.0
    assert same(calls[1], calls[2])
    assert not same(calls[2], calls[3])


@pytest.mark.parametrize(("epochs", "last"), [(2, 6), (9, 18)])  # the scale is under 1 after 17 steps
def test_a_run_whose_every_gradient_overflows_in_fp16_is_no_result(small, monkeypatch, epochs, last):
    """It ends by itself, also where it has too few steps for the scale to fall far, and again when typed again."""
    config = small("layer_norm", "recipe.precision=fp16", f"recipe.epochs={epochs}")
    real = updating.backward

    def overflowing(job, state, *args, **kwargs):
        loss = real(job, state, *args, **kwargs)
        next(state.net.parameters()).grad[0] = float("inf")
        return loss

    monkeypatch.setattr(updating, "backward", overflowing)
    for _ in range(2):
        with pytest.raises(NonFiniteError, match=rf"step {last}: gradients overflow in fp16 .*, no step was taken"):
            train(config)
    assert (status(config)["state"], status(config)["exit_code"]) == ("failed", 70)
    assert not (run_path(config) / "summary.json").exists()


def test_fp16_resumes_to_the_bit(small, reference):
    whole, config = reference("gelu", "recipe.precision=fp16"), small("gelu", "recipe.precision=fp16")
    with stopped_at(2):
        train(config)
    train(config)
    assert_equal_runs(config, whole)


@pytest.mark.slow
def test_compiled_it_trains_to_the_same_losses_and_says_so(reference):
    """Rounding alone differs; the keys of its checkpoints are those of the plain net."""
    one, two = reference("layer_norm"), reference("layer_norm", "compile=true", "study=compiled")
    assert losses(one) == pytest.approx(losses(two), rel=1e-3)
    assert newest(one)["net"].keys() == newest(two)["net"].keys()
    assert read_json(run_path(two) / "summary.json")["compile"] is True


@pytest.mark.slow
def test_compiled_it_resumes_to_the_bit(small, reference):
    words = ("compile=true", "study=compiled")
    whole, config = reference("layer_norm", *words), small("layer_norm", *words)
    for check in (1, 3):
        with stopped_at(check):
            train(config)
    train(config)
    assert_equal_runs(config, whole)


def test_a_compiler_that_fails_is_told_in_plain_words(small, monkeypatch):
    from torch._dynamo.exc import InternalTorchDynamoError

    monkeypatch.setattr(training, "train_step", Mock(side_effect=InternalTorchDynamoError("no such kernel")))
    with pytest.raises(ConfigError, match=r"compile=auto: torch cannot compile this net here \(no such kernel\)"):
        train(small("layer_norm"))


def test_ctrl_c_that_ends_the_compilers_processes_is_a_stop(small, monkeypatch):
    """A terminal sends it to them, too, and the compiler says that the net cannot be compiled."""
    from torch._inductor.exc import CppCompileError

    def killed(*_):
        os.kill(os.getpid(), signal.SIGINT)
        raise CppCompileError(["g++"], "killed")

    monkeypatch.setattr(training, "train_step", killed)
    config = small("layer_norm")
    with pytest.raises(StoppedEarly, match=r"stopped by SIGINT, while the net was compiled"):
        train(config)
    assert status(config)["state"] == "stopped"


def test_batch_norm_over_several_devices_needs_gpus(small):
    with pytest.raises(ConfigError, match=r"recipe\.sync_batch_norm=true: needs GPUs"):
        train(small("gelu", "recipe.sync_batch_norm=true", "device=cpu"))


def test_batch_norm_of_one_pixel_is_refused_before_anything_is_written(small, tmp_path):
    without_layer_norm = ("+variant=without_layer_norm", "data.image_size=63")  # its patches leave out the last pixels
    for step, words in (("gelu", ()), ("separate_downsampling", without_layer_norm)):
        with pytest.raises(ConfigError, match=r"recipe\.micro_batch=1"):
            train(small(step, "recipe.micro_batch=1", *words))
    assert not (tmp_path / "runs").exists()
    assert train(small("layer_norm", "recipe.micro_batch=1", "recipe.epochs=1"))["state"] == "done"


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu_kernels")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu_no_step_waits_for_the_device(small, monkeypatch, precision):
    """Between two flushes of the ledger nothing asks the device for a value; the first step may, while it allocates."""
    config = small("gelu", "device=cuda", f"recipe.precision={precision}", "recipe.mixup=0.8", "recipe.cutmix=1.0")
    real, steps = training.train_step, []

    def watched(*args):
        steps.append(1)
        torch.cuda.set_sync_debug_mode("error" if len(steps) > 1 else "default")
        try:
            return real(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(training, "train_step", watched)
    assert train(config)["precision"] == precision


def test_another_precision_does_not_go_on_in_silence(trained, monkeypatch):
    config = trained("gelu", stopped_at=2)
    monkeypatch.setattr(setup, "choose_precision", lambda *_: "bf16")
    with pytest.raises(Refused, match="precision: fp32 -> bf16"):
        train(config)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Return a folder of 3 classes, 12 + 4 images each."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for label in range(3):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                pixels[:, :, label] //= 4
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return root


FULL = (
    "data=imagefolder", "data.image_size=32", "data.resize_size=36", "data.train_images=null", "data.val_images=null",
    "recipe.batch_size=12", "recipe.micro_batch=6", "recipe.rand_augment=rand-m9-mstd0.5-inc1",
    "recipe.random_erasing=0.25", "recipe.mixup=0.8", "recipe.cutmix=1.0", "recipe.drop_path=0.1",
    "recipe.ema_decay=0.9",
)  # fmt: skip


@pytest.mark.parametrize(("step", "at"), [("patchify_stem", 2), ("separate_downsampling", 5)])
def test_the_whole_enhanced_recipe_resumes_to_the_bit(small, photographs, tmp_path, step, at):
    """Workers too: the resumed run has two, the whole one none."""
    whole = small(step, *FULL, f"data.root={photographs}", "data.workers=0", f"paths.runs={tmp_path / 'whole'}")
    train(whole)
    config = small(step, *FULL, f"data.root={photographs}", "data.workers=0")
    with stopped_at(at):
        train(config)
    config.data.workers = 2
    train(config)
    assert_equal_runs(config, whole)
    assert len([row for row in ledger(whole) if row["kind"] == "train"]) == 6


def test_other_images_do_not_go_on_in_silence(small, photographs, tmp_path):
    root = shutil.copytree(photographs, tmp_path / "photographs")
    config = small("gelu", *FULL, f"data.root={root}", "data.workers=0")
    with stopped_at(2):
        train(config)
    with (root / "train" / "class1" / "3.jpg").open("ab") as image:
        image.write(b"\0")
    with pytest.raises(Refused, match="data_fingerprint"):
        train(config)
    config.allow_drift = True
    assert any("data_fingerprint" in line for line in train(config)["drift"])
