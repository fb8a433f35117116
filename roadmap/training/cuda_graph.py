"""A whole optimizer step as one CUDA graph: the kernels of a small net take less time than launching them one by one.

Captured once for a net and a recipe, then replayed; runs that follow in the same process and differ in the seed alone put their state into
the with_captured_step tensors instead of capturing again. Used by `roadmap.training.train`; the eager form is `roadmap.training.step.optimizer_step`.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch.nn.functional import one_hot

from roadmap.training import mixup
from roadmap.training.optim import set_lr
from roadmap.training.state import RunContext, TrainState
from roadmap.training.step import Batch, backward, optimizer_step, prepare

WARM_UP = 3  # steps before the capture, in which libraries choose their kernels and the optimizer makes its state


class Graph(Protocol):
    """What `torch.cuda.CUDAGraph` is to a with_captured_step step."""

    def replay(self) -> None:
        """Run the with_captured_step kernels again."""


def with_captured_step(ctx: RunContext, state: TrainState, begin: Callable[[RunContext], TrainState]) -> TrainState:
    """Return a run's state as one whose steps are with_captured_step: by this run or, where only the seed differs, by an earlier one."""
    step = ctx.cache.get("step")
    if step is None or step.key != key_of(ctx):
        ctx.cache.pop("step", None)  # its memory is free before the next one takes its own
        step = ctx.cache["step"] = CapturedStep(ctx, begin(ctx))
    return step.load_state(state)


def capture(step: Callable[[], Batch]) -> tuple[Graph, Batch]:
    """Record a step's kernels on the GPU; return what replays them, and the tensors that hold its results after each replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*capturable=True"
        )  # of steps that are not being with_captured_step, as these are
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


class CapturedStep:
    """Takes the place of `optimizer_step` for a state that it has adopted."""

    def __init__(
        self,
        ctx: RunContext,
        state: TrainState,
        capture: Callable[[Callable[[], Batch]], tuple[Graph, Batch]] = capture,
    ) -> None:
        """Capture a step with the net and the optimizer of `state`, whose values are lost; its numbers come with `adopt`."""
        size, device, recipe = ctx.config.data.image_size, ctx.device, ctx.config.recipe
        self.key = key_of(ctx)
        self.state = state
        images = torch.zeros(recipe.batch_size, 3, size, size, device=device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(recipe.batch_size, dtype=torch.int64, device=device)
        self.targets = one_hot(labels, len(ctx.images.classes)).float() if mixup.mixes(recipe) else labels
        for group in state.optimizer.param_groups:
            group["lr"] = torch.zeros((), device=device)  # read from the device at each replay
            group["capturable"] = True
        state.model.train()

        def step() -> Batch:
            state.optimizer.zero_grad(set_to_none=True)
            return optimizer_step(ctx, state, backward(ctx, state, self.images, self.targets, last=True))

        self.graph, self.results = capture(step)

    @torch.no_grad()
    def load_state(self, theirs: TrainState) -> TrainState:
        """Copy a run's state into the with_captured_step tensors; return the state that lives there from now on."""
        mine = self.state
        set_lr(mine.optimizer, float(theirs.optimizer.param_groups[0]["lr"]))
        mine.net.load_state_dict(theirs.net.state_dict())
        pairs = zip(mine.net.parameters(), theirs.net.parameters(), strict=True)
        for parameter, given in pairs:
            values = theirs.optimizer.state.get(given, {})  # empty before the first step: all of it begins at zero
            for name, value in mine.optimizer.state[parameter].items():
                value.copy_(values[name]) if name in values else value.zero_()
        return replace(theirs, net=mine.net, model=mine.model, optimizer=mine.optimizer, step_fn=self)

    def __call__(self, ctx: RunContext, state: TrainState, batches: Iterator[Batch], lr: float) -> Batch:
        """Take one step on the next batch; return the loss and the gradient's norm, left on the device."""
        set_lr(state.optimizer, lr)
        images, targets = prepare(ctx, *next(batches), state.global_step)
        self.images.copy_(images)
        self.targets.copy_(targets)
        self.graph.replay()
        if state.ema is not None:
            state.ema.update_parameters(state.net)
        loss, grad_norm = self.results
        return loss.clone(), grad_norm.clone()  # the next replay writes over them


def key_of(ctx: RunContext) -> str:
    """Return what must be equal for a run to use another one's with_captured_step step: all of its config but the seed and the names."""
    config: dict[str, Any] = ctx.config.values()
    parts = {name: config[name] for name in ("model", "recipe", "compile", "kernels")} | {
        "size": config["data"]["image_size"]
    }
    return json.dumps(parts | {"device": str(ctx.device), "classes": len(ctx.images.classes)}, sort_keys=True)
