"""Where a run computes, in which number format, and how a step is taken there: compiled, or as one CUDA graph."""

import errno
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from roadmap.config.choices import Device, Precision, When
from roadmap.config.schema import Config
from roadmap.distributed.rank_env import Launcher, RankEnv
from roadmap.errors import ConfigError

# What the CPU's allocator, cuBLAS, the driver, oneDNN and C++ say in a plain RuntimeError; cuDNN's convolutions, where
# torch has met a lack of memory in each of their algorithms and kept quiet about it; Triton, where it loads a kernel.
OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator|CU(BLAS|DNN)_STATUS_(INTERNAL_ERROR_\w+_)?ALLOC(ATION)?_FAILED|Cannot allocate memory"
    r"|CUDA (driver )?error: out of memory"
    r"|std::bad_alloc|unable to find an engine to execute this computation|Triton Error \[CUDA\]: out of memory"
    r"|could not create a (primitive|memory( object)?)\s*$"
)


def choose_device(wanted: Device, env: RankEnv | None = None) -> torch.device:
    """Return the device of a rank: the node's GPU with its number. Raises ConfigError if there is none."""
    if wanted == Device.cuda and not torch.cuda.is_available():
        raise ConfigError("device=cuda: there is no GPU here; device=cpu or device=auto")
    if wanted == Device.cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    if env is None or env.world_size == 1:
        return torch.device("cuda")
    found = torch.cuda.device_count()
    is_own = found == 1 and env.launcher == Launcher.slurm  # Slurm may show each task its own GPU alone
    index = 0 if is_own else env.local_rank
    if index >= found:
        which = f"rank {env.rank} is number {env.local_rank} of its node"
        raise ConfigError(f"{which}, which has {found} GPUs; start one rank a GPU")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def choose_count(config: Config, env: RankEnv) -> int:
    """Return how many ranks this process starts: what `devices` says, else all GPUs of the node. Raises ConfigError.

    A run whose micro-batch is the whole batch has one forward pass a step, so `auto` is one device there.
    """
    wanted, on_gpus = config.devices, choose_device(config.device).type == "cuda"
    if env.launcher != Launcher.user:
        if wanted not in ("auto", str(env.world_size)):
            started = f"{env.launcher} has started {env.world_size} ranks"
            raise ConfigError(f"devices={wanted}: {started}; devices=auto takes them")
        return 1
    found = torch.cuda.device_count() if on_gpus else 1
    if wanted == "auto":
        return found if config.recipe.micro_batch is not None else 1
    if on_gpus and int(wanted) > found:
        raise ConfigError(f"devices={wanted}: there {'is 1 GPU' if found == 1 else f'are {found} GPUs'} here")
    return int(wanted)


def choose_precision(wanted: Precision, device: torch.device) -> Precision:
    """Return fp32, bf16 or fp16. Raises ConfigError where the GPU has no bf16 and it was asked for."""
    if device.type == "cpu":
        return Precision.fp32 if wanted == Precision.auto else wanted
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == Precision.bf16 and not has_bf16:
        raise ConfigError("recipe.precision=bf16: this GPU does not support it; use recipe.precision=fp32 or fp16")
    if wanted == Precision.auto:
        return Precision.bf16 if has_bf16 else Precision.fp32
    return wanted


def choose_compile(config: Config, device: torch.device) -> bool:
    """Tell whether the net is compiled: `auto` compiles on a GPU, for images so large that half a minute pays off."""
    return config.compile == "true" or (config.compile == "auto" and device.type == "cuda" and config.has_large_images)


def choose_graph(config: Config, device: torch.device, precision: Precision, world_size: int) -> bool:
    """Tell whether a step is captured. Raises ConfigError where `cuda_graph=always` cannot be.

    `auto` captures on one GPU, for small images and for compiled nets; other nets' kernels take longer than launching.
    """
    found = {
        "without a GPU": device.type != "cuda",
        "with several devices": world_size > 1,
        "with fp16, which scales its loss": precision == Precision.fp16,
    }
    reason = next((reason for reason, is_so in found.items() if is_so), None)
    if config.cuda_graph == When.always:
        if reason is not None:
            raise ConfigError(f"cuda_graph=always: a step cannot be captured {reason}; cuda_graph=auto or never")
        return True
    pays = not config.has_large_images or choose_compile(config, device)
    return reason is None and pays and config.cuda_graph == When.auto


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which a net computes in a precision."""
    kind = torch.float16 if precision == Precision.fp16 else torch.bfloat16
    return torch.autocast(device.type, kind, enabled=precision != Precision.fp32)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory was too small, the device's or this machine's.

    Also behind another error: where it is too small while a CUDA graph is captured, the end of the capture fails, too.
    """
    if error.__context__ is not None and is_out_of_memory(error.__context__):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    by_text = isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None
    return by_text or isinstance(error, torch.OutOfMemoryError | MemoryError)


@contextmanager
def num_threads(number: int) -> Iterator[None]:
    """Let operations on the CPU use this number of threads in the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak memory in GiB: of the GPU, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    with suppress(OSError, StopIteration):
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak, so that it is not that of an earlier run in the same process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # Linux only; elsewhere the peak is the process's
        Path("/proc/self/clear_refs").write_text("5")
