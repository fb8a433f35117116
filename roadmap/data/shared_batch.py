"""Batches in anonymous memory, passed on by worker processes without /dev/shm, which has 64 MB in a container."""

import mmap
import os
from collections.abc import Sequence
from multiprocessing.reduction import DupFd
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes
Layout = tuple[torch.dtype, tuple[int, ...], tuple[int, ...], int]  # dtype, shape, strides, offset in bytes
AVAILABLE = hasattr(os, "memfd_create")  # Linux


class SharedBatch:
    """A tensor or a tuple of tensors in shared memory; unpickled in another process, it is these again, without a copy.

    Raises OSError if there is not enough memory.
    """

    def __init__(self, batch: Tensor | tuple[Tensor, ...]) -> None:
        tensors = (batch,) if isinstance(batch, Tensor) else batch
        self.is_tensor, self.layouts, size = isinstance(batch, Tensor), [], 0
        for tensor in tensors:
            strides = torch.empty_like(tensor, device="meta").stride()  # dense, in the same order
            self.layouts.append((tensor.dtype, tuple(tensor.shape), strides, size))
            size += (tensor.nbytes // ALIGNMENT + 1) * ALIGNMENT
        self.handle = os.memfd_create("batch", os.MFD_CLOEXEC)
        try:
            # If memory only ran out when it is written to, the process would get a SIGBUS.
            os.posix_fallocate(self.handle, 0, size)
            for shared, tensor in zip(map_tensors(self.handle, self.layouts), tensors, strict=True):
                shared.copy_(tensor)
        except BaseException:
            os.close(self.handle)
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        shared = DupFd(self.handle)
        os.close(self.handle)
        return open_batch, (shared, self.layouts, self.is_tensor)


def open_batch(
    shared: Any, layouts: Sequence[Layout], is_tensor: bool
) -> Tensor | tuple[Tensor, ...] | OSError | EOFError:
    """Return the batch that another process has pickled, or an error if that process has ended meanwhile.

    If raised, the error would end torch's pinning thread with a traceback.
    """
    try:
        handle = shared.detach()
        try:
            tensors = map_tensors(handle, layouts)
        finally:
            os.close(handle)
    except (OSError, EOFError) as error:
        return error
    return tensors[0] if is_tensor else tensors


def map_tensors(handle: int, layouts: Sequence[Layout]) -> tuple[Tensor, ...]:
    """Return the tensors in a memory file."""
    memory = mmap.mmap(handle, 0)
    tensors = []
    for dtype, shape, strides, offset in layouts:
        count = torch.Size(shape).numel()
        # torch refuses an empty buffer.
        flat = torch.frombuffer(memory, dtype=dtype, count=max(count, 1), offset=offset)
        tensors.append(flat.as_strided(shape, strides))
    return tuple(tensors)
