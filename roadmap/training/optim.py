"""The optimizer with its decay groups, and the learning rate as a pure function of the step.

Source: Table 5 and the authors' code for the enhanced recipe, the PyTorch model zoo for the original one.
"""

import inspect
import math
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from roadmap.config.choices import Optimizer, Schedule
from roadmap.config.recipe import RecipeConfig

T = TypeVar("T", bound=type[torch.optim.Optimizer])


def learning_rate(recipe: RecipeConfig, step: int, steps_per_epoch: int) -> float:
    """Return the rate of optimizer step `step` (0 for the first).

    The warm-up is evenly spaced from `warmup_lr` to the base rate, both ends included; the cosine then starts at the
    base rate and would reach `min_lr` one step after the last.
    """
    warmup = int(recipe.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return recipe.warmup_lr + (recipe.base_lr - recipe.warmup_lr) * step / max(warmup - 1, 1)
    if recipe.schedule == Schedule.step:
        return recipe.base_lr * recipe.step_factor ** int(step / (recipe.step_epochs * steps_per_epoch))
    progress = (step - warmup) / (recipe.epochs * steps_per_epoch - warmup)
    return recipe.min_lr + (recipe.base_lr - recipe.min_lr) * (1 + math.cos(math.pi * progress)) / 2


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of the next step. A captured step reads it from the device, where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def decays(name: str, parameter: torch.Tensor, recipe: RecipeConfig) -> bool:
    """Tell whether weight decay applies: by shape, so that no norm, bias or layer scale is missed by its name.

    Swin's table of relative position biases is the one bias with two dimensions.
    """
    return recipe.decay_1d or (parameter.ndim > 1 and not name.endswith("relative_position_bias_table"))


def build_optimizer(net: nn.Module, recipe: RecipeConfig) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over all parameters of the net, in a group that decays and one that does not.

    Fused: it takes a `found_inf` flag and then skips the step on the device, without asking the host.
    """
    named = list(net.named_parameters())
    groups = [
        {"params": [p for n, p in named if decays(n, p, recipe)], "weight_decay": recipe.weight_decay},
        {"params": [p for n, p in named if not decays(n, p, recipe)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == Optimizer.sgd:
        optimizer = uncompiled(torch.optim.SGD)(groups, lr=recipe.lr, momentum=recipe.momentum, fused=True)
        # Zeros, because torch leaves the buffer uninitialised if the first step is skipped, as it often is with fp16.
        for parameter in net.parameters() if recipe.momentum else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    betas = (recipe.beta1, recipe.beta2)
    return uncompiled(torch.optim.AdamW)(groups, lr=recipe.lr, betas=betas, eps=recipe.eps, fused=True)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Any) -> None:
    """Load what a checkpoint has of each parameter, and the last rate; other settings are the config's.

    Raises ValueError for what is not of these parameters: torch's fused steps compare no sizes, and would write
    beyond the memory of a smaller tensor.
    """
    states = saved.get("state") if isinstance(saved, dict) else None
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.AdamW) else {"momentum_buffer"}
    if not isinstance(states, dict) or not states.keys() <= set(range(len(parameters))):
        raise ValueError("optimizer.state is not of these parameters")
    for number, state in states.items():
        parameter, step = parameters[number], torch.zeros(())
        if not isinstance(state, dict) or state.keys() != names:
            raise ValueError(f"optimizer.state.{number} is not of this optimizer")
        for name, value in state.items():
            own = step if name == "step" else parameter
            if not is_like(value, own):
                raise ValueError(f"optimizer.state.{number}.{name} is {kind_of(value)}, and not {kind_of(own)}")
        optimizer.state[parameter] = {  # in the parameter's own order of memory
            name: value.to(parameter.device) if name == "step" else torch.zeros_like(parameter).copy_(value)
            for name, value in state.items()
        }
    try:
        set_lr(optimizer, float(saved["param_groups"][0]["lr"]))
    except (LookupError, TypeError, ValueError, RuntimeError):
        raise ValueError("optimizer.param_groups has no rate") from None


def is_like(value: Any, own: Tensor) -> bool:
    """Tell whether a value is a tensor of the same shape and type as ours, and has its numbers in memory."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
        return False
    return value.shape == own.shape and value.dtype == own.dtype


def kind_of(value: Any) -> str:
    """Return what a value is in words: `float32 (24, 3, 4, 4)`, or the name of its class."""
    if not isinstance(value, Tensor):
        return "missing" if value is None else type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


@cache
def uncompiled(cls: T) -> T:
    """Return an optimizer's class without the guards that keep it out of a compiled graph.

    We compile no optimizer, and the first call of a guarded method imports all of torch's compiler: more than a second.
    """
    guarded = ("add_param_group", "zero_grad", "state_dict")
    methods = {name: inspect.unwrap(getattr(cls, name)) for name in guarded}
    methods["step"] = torch.no_grad()(inspect.unwrap(cls.step))
    return type(cls.__name__, (cls,), methods)  # type: ignore[return-value]
