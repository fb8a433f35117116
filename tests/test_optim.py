"""The learning rate at every step and the decay groups, against computations written from FACTS of the paper's code."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from roadmap.config.recipe import RecipeConfig
from roadmap.distributed.ranks import Ranks
from roadmap.net import build_net
from roadmap.steps.compose import compose
from roadmap.steps.tree import step_tree
from roadmap.training.optim import build_optimizer, learning_rate, load_optimizer, set_lr
from roadmap.training.step import optimizer_step

from .records import ledger

NETS = [s for s in step_tree() if s != "swin"]


def authors_schedule(base, final, epochs, per_epoch, warmup_epochs, start=0.0):
    """The whole curve as one array: an even warm-up with both ends, then a half cosine over what remains."""
    warm = np.linspace(start, base, int(warmup_epochs * per_epoch))
    rest = np.arange(epochs * per_epoch - len(warm))
    return np.concatenate(
        [warm, [final + 0.5 * (base - final) * (1 + math.cos(math.pi * i / len(rest))) for i in rest]]
    )


@pytest.mark.parametrize("start", [0.0, 1e-6])
@pytest.mark.parametrize(
    ("epochs", "per_epoch", "warmup"), [(300, 312, 20), (20, 22, 3), (5, 7, 0), (4, 3, 4), (2, 1, 1)]
)
def test_cosine_with_warmup_at_every_step(epochs, per_epoch, warmup, start):
    recipe = RecipeConfig(schedule="cosine", lr=4e-3, min_lr=1e-6, epochs=epochs, warmup_epochs=warmup, warmup_lr=start)
    expected = authors_schedule(4e-3, 1e-6, epochs, per_epoch, warmup, start)
    got = [learning_rate(recipe, step, per_epoch) for step in range(epochs * per_epoch)]
    assert np.allclose(got, expected, rtol=1e-12, atol=0)


def test_original_divides_by_ten_every_thirty_epochs():
    recipe = compose("resnet", "tiny").recipe
    per_epoch = 1_281_167 // 256
    for epoch, rate in ((0, 0.1), (29, 0.1), (30, 0.01), (59, 0.01), (60, 0.001), (89, 0.001)):
        for step in (epoch * per_epoch, epoch * per_epoch + per_epoch - 1):
            assert learning_rate(recipe, step, per_epoch) == pytest.approx(rate, rel=1e-9)


def test_a_rate_that_a_captured_step_reads_on_the_device_is_changed_in_its_place():
    optimizer, rate = build_optimizer(torch.nn.Linear(1, 3), compose("gelu", "nano").recipe), torch.tensor(0.1)
    for group in optimizer.param_groups:
        group["lr"] = rate
    set_lr(optimizer, 0.25)
    assert rate == 0.25 and all(group["lr"] is rate for group in optimizer.param_groups)


@pytest.mark.parametrize("step", NETS)
def test_every_parameter_is_in_one_decay_group_by_its_shape(step):
    config = compose(step, "nano")
    net = build_net(config.model, 10)
    groups = build_optimizer(net, config.recipe).param_groups
    placed = [id(p) for group in groups for p in group["params"]]
    assert sorted(placed) == sorted(id(p) for p in net.parameters())
    if step == "resnet":  # the original recipe decays everything
        assert [g["weight_decay"] for g in groups] == [1e-4]
        return
    decayed, free = groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    assert all(p.ndim in (2, 4) for p in decayed["params"])
    assert all(p.ndim == 1 for p in free["params"])


def test_swins_position_biases_do_not_decay():
    config = compose("swin", "tiny")
    net = build_net(config.model, 10)
    free = {id(p) for p in build_optimizer(net, config.recipe).param_groups[1]["params"]}
    tables = [p for n, p in net.named_parameters() if "relative_position_bias_table" in n]
    assert tables
    assert all(id(p) in free for p in tables)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_step_matches_torchs_plain_loop(name):
    """The fused optimizer with our groups against the unfused one on the same gradients."""
    own = {"momentum": 0.8, "eps": 0.1, "beta1": 0.7, "beta2": 0.8}
    recipe = RecipeConfig(optimizer=name, lr=0.01, weight_decay=0.1, decay_1d=False, schedule="cosine", **own)
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    mine = build_optimizer(ours, recipe)
    groups = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    plain = (
        torch.optim.SGD(groups, lr=0.01, momentum=0.8, foreach=False)
        if name == "sgd"
        else torch.optim.AdamW(groups, lr=0.01, betas=(0.7, 0.8), eps=0.1)
    )
    for _ in range(5):
        x = torch.randn(4, 5)
        for net, optimizer in ((ours, mine), (theirs, plain)):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)
    assert torch.allclose(ours.bias, theirs.bias, atol=1e-6)


def test_clipped_gradients_are_torchs_and_the_norm_before_is_returned():
    draw, nets = torch.Generator().manual_seed(0), [torch.nn.Linear(5, 3) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    recipe = RecipeConfig(optimizer="sgd", lr=0.1, momentum=0, weight_decay=0, clip_grad=0.5)
    optimizers = [build_optimizer(net, recipe) for net in nets]
    state = SimpleNamespace(net=nets[0], optimizer=optimizers[0], scaler=torch.amp.GradScaler("cpu", enabled=False))
    ctx = SimpleNamespace(config=SimpleNamespace(recipe=recipe), ranks=Ranks())
    norms = []
    for scale in (0.001, 1.0, 100.0):
        x = torch.randn(4, 5, generator=draw) * scale
        for net in nets:
            net.zero_grad()
            net(x).square().mean().backward()
        _, norm = optimizer_step(ctx, state, torch.zeros(()))
        assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(nets[1].parameters(), 0.5))
        optimizers[1].step()
        assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
        norms.append(float(norm))
    assert norms[0] < 0.5 < norms[2]
    before = nets[0].weight.clone()
    optimizer_step(ctx, state, torch.tensor(torch.inf))
    assert torch.equal(nets[0].weight, before)
    nets[0].weight.grad.fill_(torch.nan)
    optimizer_step(ctx, state, torch.zeros(()))
    assert torch.equal(nets[0].weight, before)


def test_a_clipped_norm_is_in_the_ledger_only_where_gradients_are_clipped(reference):
    clipped = ledger(reference("gelu", "recipe.clip_grad=0.5"))
    rows = [row for row in clipped if row["kind"] == "train"]
    assert any(row["train/grad_norm"] > 0.5 for row in rows)
    for row in rows:
        assert row["train/clipped_grad_norm"] == pytest.approx(min(row["train/grad_norm"], 0.5), rel=1e-5)
    assert not any("train/clipped_grad_norm" in row for row in ledger(reference("gelu")))


@pytest.mark.parametrize(("regime", "drop_path"), [("tiny", 0.2), ("base", 0.5)])
def test_swins_recipe_is_that_of_its_published_config(regime, drop_path):
    """config.py and configs/swin of microsoft/Swin-Transformer, whose rates are scaled by 1024 / 512."""
    config = compose("swin", regime, ["recipe=swin"])
    published = {
        "epochs": 300, "warmup_epochs": 20, "weight_decay": 0.05, "lr": 5e-4 * 2, "warmup_lr": 5e-7 * 2,
        "min_lr": 5e-6 * 2, "clip_grad": 5.0, "eps": 1e-8, "beta1": 0.9, "beta2": 0.999, "batch_size": 1024,
        "label_smoothing": 0.1, "rand_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.25, "mixup": 0.8,
        "cutmix": 1.0, "mix_switch": 0.5, "interpolation": "bicubic", "optimizer": "adamw", "schedule": "cosine",
        "drop_path": drop_path, "decay_1d": False,
    }  # fmt: skip
    values = config.recipe.values()
    assert {key: values[key] for key in published} == published
    assert (config.model.drop_path, config.cell) == (drop_path, "swin,recipe=swin")


@pytest.mark.parametrize(("regime", "images"), [("tiny", 128), ("small", 128), ("base", 128), ("large", 64)])
def test_a_pass_has_as_many_images_as_the_authors_had_on_a_gpu(regime, images):
    recipe = compose("separate_downsampling", regime).recipe
    assert (recipe.micro_batch, recipe.batch_size) == (images, 4096)


def test_a_first_step_that_is_skipped_leaves_no_momentum_behind():
    recipe = compose("resnet", "nano").recipe
    for attempt in range(20):  # memory that was used before is not the same each time
        net = torch.nn.Linear(64, 64)
        optimizer = build_optimizer(net, recipe)
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, torch.inf)
        del parameter
        torch.full((64, 64), 7777.0)
        optimizer.found_inf = torch.ones(())
        optimizer.step()
        assert all(not state["momentum_buffer"].any() for state in optimizer.state.values()), attempt


def test_momentum_starts_as_torchs_own_does():
    recipe, grads = compose("resnet", "nano").recipe, torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(0))
    ours, plain = (torch.nn.Linear(5, 5, bias=False) for _ in range(2))
    plain.load_state_dict(ours.state_dict())
    own = torch.optim.SGD(
        plain.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
    )
    for optimizer, net in ((build_optimizer(ours, recipe), ours), (own, plain)):
        for grad in grads:
            net.weight.grad = grad.clone()
            optimizer.step()
    assert torch.equal(ours.weight, plain.weight)


@pytest.mark.parametrize("name", ["resnet", "gelu"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("smaller", torch.zeros(1)), ("of another type", torch.zeros(3, dtype=torch.int64)), ("text", "x"),
        ("without numbers", torch.zeros(3, device="meta")), ("missing", None), ("sparse", torch.zeros(3).to_sparse()),
    ],
)  # fmt: skip
def test_an_optimizers_state_of_other_parameters_is_refused_before_a_step_writes_beyond_it(name, key, value):
    net, recipe = torch.nn.Linear(1, 3), compose(name, "nano").recipe
    saved = trained_state(net, recipe)
    buffer = "momentum_buffer" if name == "resnet" else "exp_avg"
    number = next(n for n, state in saved["state"].items() if state[buffer].shape == (3,))
    saved["state"][number][buffer] = value
    with pytest.raises(ValueError, match=rf"optimizer\.state\.{number}\.{buffer} is .*, and not float32 \(3,\)"):
        load_optimizer(build_optimizer(net, recipe), saved)


@pytest.mark.parametrize("name", ["resnet", "gelu"])
def test_an_optimizers_state_with_other_numbers_or_names_is_refused(name):
    net, recipe = torch.nn.Linear(1, 3), compose(name, "nano").recipe
    saved = trained_state(net, recipe)
    for change, told in (
        (lambda states: states.update({2: states[0]}), "state is not of these parameters"),
        (lambda states: states.update({0: states[0] | {"more": torch.zeros(3)}}), r"state\.0 is not of this optimizer"),
        (lambda states: states.update({0: dict(list(states[0].items())[1:])}), r"state\.0 is not of this optimizer"),
    ):
        change(states := dict(saved["state"]))
        with pytest.raises(ValueError, match=rf"^optimizer\.{told}$"):
            load_optimizer(build_optimizer(net, recipe), saved | {"state": states})


def test_an_optimizers_state_is_loaded_to_the_bit_in_the_parameters_order_of_memory():
    net, recipe = torch.nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last), compose("gelu", "nano").recipe
    saved = trained_state(net, recipe)
    number = next(n for n, state in saved["state"].items() if state["exp_avg"].ndim == 4)
    saved["state"][number]["exp_avg"] = saved["state"][number]["exp_avg"].contiguous()
    saved["param_groups"][0]["weight_decay"] = 7.0
    optimizer = build_optimizer(net, recipe)
    load_optimizer(optimizer, saved)
    loaded = optimizer.state[net.weight]
    assert all(torch.equal(loaded[key], value) for key, value in saved["state"][number].items())
    assert loaded["exp_avg"].stride() == net.weight.stride()
    assert optimizer.param_groups[0]["weight_decay"] == recipe.weight_decay


def trained_state(net, recipe):
    """Return what a checkpoint has of an optimizer after a step."""
    optimizer = build_optimizer(net, recipe)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()
