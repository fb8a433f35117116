"""A whole optimizer step as one CUDA graph: the kernels of a small net take less time than launching them one by one.

Captured once for a net and a recipe, then replayed; runs that follow in the same process and differ in the seed alone put their state into
the captured tensors instead of capturing again. Used by `roadmap.train`; the eager form is `roadmap.update.optimizer_step`.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch.nn.functional import one_hot

from roadmap.config import resolved
from roadmap.job import Job, State
from roadmap.recipe import mix
from roadmap.recipe.optim import set_rate
from roadmap.update import Batch, backward, prepare, update

WARM_UP = 3  # steps before the capture, in which libraries choose their kernels and the optimizer makes its state


class Graph(Protocol):
    """What `torch.cuda.CUDAGraph` is to a captured step."""

    def replay(self) -> None:
        """Run the captured kernels again."""


def captured(job: Job, state: State, begin: Callable[[Job], State]) -> State:
    """Return a run's state as one whose steps are captured: by this run or, where only the seed differs, by an earlier one."""
    step = job.kept.get("step")
    if step is None or step.key != key_of(job):
        job.kept.pop("step", None)  # its memory is free before the next one takes its own
        step = job.kept["step"] = CapturedStep(job, begin(job))
    return step.adopt(state)


def capture(step: Callable[[], Batch]) -> tuple[Graph, Batch]:
    """Record a step's kernels on the GPU; return what replays them, and the tensors that hold its results after each replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*capturable=True")  # of steps that are not being captured, as these are
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


class CapturedStep:
    """Takes the place of `optimizer_step` for a state that it has adopted."""

    def __init__(self, job: Job, state: State, capture: Callable[[Callable[[], Batch]], tuple[Graph, Batch]] = capture) -> None:
        """Capture a step with the net and the optimizer of `state`, whose values are lost; its numbers come with `adopt`."""
        size, device, recipe = job.config.data.image_size, job.device, job.config.recipe
        self.key = key_of(job)
        self.state = state
        images = torch.zeros(recipe.batch_size, 3, size, size, device=device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(recipe.batch_size, dtype=torch.int64, device=device)
        self.targets = one_hot(labels, len(job.images.classes)).float() if mix.is_on(recipe) else labels
        for group in state.optimizer.param_groups:
            group["lr"] = torch.zeros((), device=device)  # read from the device at each replay
            group["capturable"] = True
        state.model.train()

        def step() -> Batch:
            state.optimizer.zero_grad(set_to_none=True)
            return update(job, state, backward(job, state, self.images, self.targets, last=True))

        self.graph, self.results = capture(step)

    @torch.no_grad()
    def adopt(self, theirs: State) -> State:
        """Copy a run's state into the captured tensors; return the state that lives there from now on."""
        mine = self.state
        set_rate(mine.optimizer, float(theirs.optimizer.param_groups[0]["lr"]))
        mine.net.load_state_dict(theirs.net.state_dict())
        pairs = zip(mine.net.parameters(), theirs.net.parameters(), strict=True)
        for parameter, given in pairs:
            values = theirs.optimizer.state.get(given, {})  # empty before the first step: all of it begins at zero
            for name, value in mine.optimizer.state[parameter].items():
                value.copy_(values[name]) if name in values else value.zero_()
        return replace(theirs, net=mine.net, model=mine.model, optimizer=mine.optimizer, take_step=self)

    def __call__(self, job: Job, state: State, batches: Iterator[Batch], lr: float) -> Batch:
        """Take one step on the next batch; return the loss and the gradient's norm, left on the device."""
        set_rate(state.optimizer, lr)
        images, targets = prepare(job, *next(batches), state.global_step)
        self.images.copy_(images)
        self.targets.copy_(targets)
        self.graph.replay()
        if state.ema is not None:
            state.ema.update_parameters(state.net)
        loss, grad_norm = self.results
        return loss.clone(), grad_norm.clone()  # the next replay writes over them


def key_of(job: Job) -> str:
    """Return what must be equal for a run to use another one's captured step: all of its config but the seed and the names."""
    config: dict[str, Any] = resolved(job.config)
    parts = {name: config[name] for name in ("model", "recipe", "compile", "kernels")} | {"size": config["data"]["image_size"]}
    return json.dumps(parts | {"device": str(job.device), "classes": len(job.images.classes)}, sort_keys=True)
