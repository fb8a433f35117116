"""A whole optimizer step as CUDA graphs: launching kernels one by one takes longer than a small net's compute.

Captured once for a net and a recipe, then replayed: a step of one pass as one graph, one of several as a graph that is
replayed for each pass and one for the optimizer. Runs that follow in the same process and differ in the seed alone copy
their state into the captured tensors instead of capturing again; those that train at the same time have one each, and
nothing in it is shared: not its memory, the workspace of its matrix products, or the state of its random numbers. So
graphs may be replayed on several streams at once. The eager form is `train_step`.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from roadmap.errors import OutOfMemory
from roadmap.training import mixup
from roadmap.training.optim import set_lr
from roadmap.training.state import RunContext, TrainState, build_state
from roadmap.training.step import Batch, backward, optimizer_step, prepare

Results = tuple[Tensor, ...]
Captured = tuple[torch.cuda.CUDAGraph, Results]  # what replays a step's kernels, and what then holds its results
WARM_UP = 3  # steps before the capture, in which libraries choose their kernels and the optimizer makes its state


def with_captured_step(ctx: RunContext, state: TrainState) -> TrainState:
    """Return a run's state with a captured step: of this run or, where only the seed differs, of an earlier one."""
    steps: list[CapturedStep] = ctx.cache.setdefault("steps", [])
    key = capture_key(ctx)
    # The memory of those of another net is free before this one takes its own.
    steps[:] = [step for step in steps if step.in_use or step.key == key]
    step = next((step for step in steps if not step.in_use), None)
    if step is None:
        step = CapturedStep(ctx, build_state(ctx))
        steps.append(step)
    return step.load_state(state)


def release_step(ctx: RunContext, state: TrainState, kind: type[BaseException] | None = None, *_: object) -> None:
    """Let another run have the captured step of this one, if it has one; where memory was too small, give it up."""
    if isinstance(state.step_fn, CapturedStep):
        state.step_fn.in_use = False
        if kind is not None and issubclass(kind, OutOfMemory):
            ctx.cache["steps"].remove(state.step_fn)


@contextmanager
def random_state(device: torch.device, own: torch.Generator | None) -> Iterator[None]:
    """Let a GPU draw from another state meanwhile, if one is given.

    A graph reads seed and offset from the device, where they lie once for all graphs that were captured with a state.
    """
    if own is None:
        yield
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    default = torch.cuda.default_generators[index]
    shared = default.graphsafe_get_state()
    default.graphsafe_set_state(own)
    try:
        yield
    finally:
        default.graphsafe_set_state(shared)


def capture(step: Callable[[], Results]) -> Captured:
    """Record a step's kernels on the GPU."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*capturable=True")  # about steps outside a capture, as these are
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.empty_cache()  # a graph has memory of its own, as much again
    graph = torch.cuda.CUDAGraph()
    # On the stream of its own: what matrix products work in belongs to a stream. What other threads do meanwhile, such
    # as one that pins the batches of another run, is none of the capture's business, and does not break it.
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        results = step()
    return graph, results


class CapturedStep:
    """Takes the place of `train_step` for a state that was loaded into it."""

    def __init__(
        self,
        ctx: RunContext,
        state: TrainState,
        capture: Callable[[Callable[[], Results]], Captured] = capture,
    ) -> None:
        """Capture a step with the net and optimizer of `state`; its values are lost: see `load_state`."""
        size, device = ctx.config.data.image_size, ctx.device
        self.key = capture_key(ctx)
        self.state = state
        self.in_use = False
        self.random = torch.Generator(device) if device.type == "cuda" else None
        self.stream: torch.cuda.Stream | None = None  # of the run that it was loaded with last
        images = torch.zeros(ctx.micro_batch, 3, size, size, device=device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(ctx.micro_batch, dtype=torch.int64, device=device)
        mixes = mixup.mixes(ctx.config.recipe)
        self.targets = one_hot(labels, len(ctx.images.classes)).float() if mixes else labels
        self.losses = torch.zeros(ctx.grad_accumulation, device=device)  # of the passes
        for group in state.optimizer.param_groups:
            group["lr"] = torch.zeros((), device=device)  # read from the device at each replay
            group["capturable"] = True
        state.model.train()

        def whole_step() -> Results:
            state.optimizer.zero_grad(set_to_none=True)
            return optimizer_step(ctx, state, backward(ctx, state, self.images, self.targets, last=True))

        def one_pass() -> Results:
            return (backward(ctx, state, self.images, self.targets, last=True),)

        def after_passes() -> Results:
            results = optimizer_step(ctx, state, self.losses.sum())
            state.optimizer.zero_grad(set_to_none=False)  # the next passes add to the same tensors
            return results

        self.of_pass: Captured | None = None
        with random_state(device, self.random):
            if ctx.grad_accumulation == 1:
                self.graph, self.results = capture(whole_step)
            else:
                self.of_pass = capture(one_pass)
                self.graph, self.results = capture(after_passes)
                state.optimizer.zero_grad(set_to_none=False)

    @torch.no_grad()
    def load_state(self, source: TrainState) -> TrainState:
        """Copy a run's state into the captured tensors; return the state that lives there from now on."""
        captured, self.in_use = self.state, True
        if self.images.is_cuda:
            here = torch.cuda.current_stream()
            if self.stream is not None:
                here.wait_stream(self.stream)  # the run before may have been cut off within a step
            self.stream = here
        set_lr(captured.optimizer, float(source.optimizer.param_groups[0]["lr"]))
        captured.net.load_state_dict(source.net.state_dict())
        for ours, theirs in zip(captured.net.parameters(), source.net.parameters(), strict=True):
            values = source.optimizer.state.get(theirs, {})  # empty before the first step: all of it begins at zero
            for name, value in captured.optimizer.state[ours].items():
                value.copy_(values[name]) if name in values else value.zero_()
        return replace(source, net=captured.net, model=captured.model, optimizer=captured.optimizer, step_fn=self)

    def __call__(
        self, ctx: RunContext, state: TrainState, batches: Iterator[Batch], lr: float
    ) -> tuple[Tensor, Tensor]:
        """Take one step on the next batch; return the loss and the gradient's norm, left on the device."""
        set_lr(state.optimizer, lr)
        for number in range(ctx.grad_accumulation):
            batch = next(batches)
            with random_state(ctx.device, self.random):
                images, targets = prepare(ctx, *batch, ctx.grad_accumulation * state.global_step + number)
                self.images.copy_(images)
                self.targets.copy_(targets)
                if self.of_pass is not None:
                    graph, (loss,) = self.of_pass
                    graph.replay()
                    self.losses[number] = loss
        self.graph.replay()
        if state.ema is not None:
            state.ema.update_parameters(state.net)
        loss, grad_norm = self.results
        return loss.clone(), grad_norm.clone()  # the next replay writes over them


def capture_key(ctx: RunContext) -> str:
    """Return what must be equal for a run to use another one's captured step: all but the seed and the names."""
    config: dict[str, Any] = ctx.config.values()
    parts = {name: config[name] for name in ("model", "recipe", "compile", "kernels")}
    parts |= {"size": config["data"]["image_size"], "device": str(ctx.device), "classes": len(ctx.images.classes)}
    return json.dumps(parts, sort_keys=True)
