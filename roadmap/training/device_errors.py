"""What torch raises where memory runs out or the compiler fails, as an error that names the setting to change."""

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import clear_frames

import torch
from torch.nn.functional import cross_entropy

from roadmap.distributed.device import autocast, is_out_of_memory
from roadmap.errors import CompilerError, OutOfMemory
from roadmap.text import one_line
from roadmap.training.state import RunContext, TrainState


@contextmanager
def device_errors(ctx: RunContext, state: TrainState) -> Iterator[None]:
    """Turn a lack of memory into OutOfMemory, which spoils the state, an error of the compiler into CompilerError.

    Raises StoppedEarly where the compiler failed after a signal: Ctrl-C ends the processes that it had started, too.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            clear_frames(error.__traceback__)  # which hold the tensors of the pass that failed
            smaller = largest_micro_batch(ctx, state)
            fits = f"{smaller} fits this net" if smaller else "not even 2 images fit"
            raise OutOfMemory(
                f"recipe.micro_batch={ctx.micro_batch}: a pass of so many images is too large for the memory of "
                f"{ctx.device}; {fits}. All rows of a study must have the same"
            ) from None
        if is_of_compiler(error):
            ctx.stop.raise_here("while the net was compiled")
            raise CompilerError(
                f"compile={ctx.config.compile}: torch cannot compile this net here ({one_line(error)}); compile=false"
            ) from error
        raise


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn a lack of memory anywhere else into OutOfMemory: for the net, the images, a checkpoint, an evaluation."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"memory is too small for this run ({one_line(error, 120)}); fewer data.workers need less, "
            "or recipe.micro_batch= and data.image_size= for all rows of a study"
        ) from None


def is_of_compiler(error: BaseException) -> bool:
    """Tell whether `torch.compile` failed, by where its errors are defined: importing that takes seconds."""
    return any(cls.__module__.startswith(("torch._dynamo", "torch._inductor")) for cls in type(error).__mro__)


def largest_micro_batch(ctx: RunContext, state: TrainState) -> int | None:
    """Return the largest half of a half ... of the micro-batch that fits into memory, by trying; None for none.

    Spoils gradients and norms of the state.
    """
    micro_batch = ctx.micro_batch // 2
    while micro_batch > 1:  # BatchNorm needs two
        state.optimizer.zero_grad(set_to_none=True)
        if ctx.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            take_two_passes(ctx, state, micro_batch)
            return micro_batch
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            clear_frames(error.__traceback__)
            micro_batch //= 2
    return None


def take_two_passes(ctx: RunContext, state: TrainState, micro_batch: int) -> None:
    """Go forward and backward as in a step: with the optimizer's state and an earlier pass's gradients in memory."""
    size, first_step = ctx.config.data.image_size, not state.optimizer.state
    moments = [torch.zeros_like(p) for p in state.net.parameters() for _ in range(2)] if first_step else []
    images = torch.zeros(micro_batch, 3, size, size, device=ctx.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(micro_batch, dtype=torch.int64, device=ctx.device)
    for _ in range(2):
        with autocast(ctx.device, ctx.precision):
            loss = cross_entropy(state.net(images), labels)
        loss.backward()
    del moments
