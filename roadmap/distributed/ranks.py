"""The ranks of one run: how they agree, sum up, and end together when one of them cannot go on.

The only module that asks which rank this is. With one rank every method is trivial.
"""

import json
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from roadmap.config.schema import Config
from roadmap.distributed.rank_env import RankEnv
from roadmap.distributed.rendezvous import remove_address, rendezvous
from roadmap.distributed.signals import in_thread
from roadmap.errors import PeerLost, Refused, RoadmapError, error_of
from roadmap.files import expand, read_json
from roadmap.text import one_line

PRIMING_PASSES = 2  # DDP reorders its buckets after the first pass, and sums in that order from the second on
CAUSE_TIMEOUT_S = 5.0  # how long a rank looks for the reason why another one left
T = TypeVar("T")


class Ranks:
    """The process group of a run, as this process sees it; `Ranks()` is a process on its own."""

    def __init__(self, env: RankEnv | None = None, device: torch.device | None = None) -> None:
        self.env, self.device = env or RankEnv(), device or torch.device("cpu")
        self.rank, self.world_size, self.is_main = self.env.rank, self.env.world_size, self.env.is_main
        self.status: Path | None = None  # the file in which rank 0 leaves how it ended
        self._store: dist.Store | None = None
        self._device_group: dist.ProcessGroup | None = None  # gradients and losses, on the device
        self._host_group: dist.ProcessGroup | None = None  # flags and counts, on the host
        self._pending: tuple[dist.Work, Tensor] | None = None  # the flags that `all_reduce_max` sent last

    @contextmanager
    def process_group(self, config: Config, port: int | None) -> Iterator[None]:
        """Join the other ranks, and leave them at the end.

        Raises PeerLost where they do not come within `start_timeout_s`, or are silent for `comm_timeout_s` later.
        """
        if self.world_size == 1:
            yield
            return
        if not self.is_main:
            logging.getLogger("roadmap").addHandler(logging.NullHandler())  # the log of rank 0 is enough
        runs = expand(config.paths.runs).absolute()
        store = rendezvous(self.env, port, runs, config.start_timeout_s)
        try:
            self._init_process_groups(store, config.start_timeout_s, config.comm_timeout_s)
        except RuntimeError as error:
            if not _is_timeout(error):  # GLOO_SOCKET_IFNAME is no interface here, a firewall
                reason = one_line(str(error).split("\n")[0])
                raise PeerLost(f"rank {self.rank} of {self.world_size} cannot reach the others ({reason})") from None
            raise PeerLost(f"not all {self.world_size} ranks connected within {config.start_timeout_s:g} s") from None
        remove_address(self.env, runs)
        try:
            with self.share_errors():
                yield
        except Exception as error:
            if getattr(error, "on_all_ranks", False):
                self._destroy_process_groups()
            raise  # else the group is broken: closing it could wait for a rank that is gone
        self._destroy_process_groups()

    def _init_process_groups(self, store: dist.Store, start_timeout_s: float, comm_timeout_s: float) -> None:
        number = store.add(f"joined/{self.rank}", 1)
        self._store = dist.PrefixStore(f"run{number}", store)
        start, timeout = timedelta(seconds=start_timeout_s), timedelta(seconds=comm_timeout_s)
        join = partial(dist.init_process_group, store=self._store, rank=self.rank, world_size=self.world_size)
        in_thread(partial(join, "gloo", timeout=start))
        self._device_group = _new_group("nccl" if self.device.type == "cuda" else "gloo", timeout)
        self._host_group = _new_group("gloo", timeout)
        self._all_gather(None)

    def _destroy_process_groups(self) -> None:
        if self._pending is not None:
            self._pending[0].wait()
        dist.destroy_process_group()

    @contextmanager
    def share_errors(self) -> Iterator[None]:
        """Let an error of one rank end all: the others find it, and raise it in place of the broken connection."""
        try:
            yield
        except PeerLost:
            raise
        except Exception as error:
            if self.world_size > 1 and _is_of_connection(error):
                raise self._cause(error) from None
            if self._store is not None and not getattr(error, "on_all_ranks", False):
                left = (type(error).__name__, str(error))
                if not isinstance(error, RoadmapError):
                    left = (RoadmapError.__name__, f"rank {self.rank} failed ({': '.join(left)})")
                self._store.set("error", json.dumps(left))
            raise

    def _cause(self, error: Exception) -> RoadmapError:
        deadline = time.monotonic() + CAUSE_TIMEOUT_S
        while True:
            try:
                if self._store is not None and self._store.check(["error"]):
                    found = error_of(*json.loads(self._store.get("error")))
                    found.on_all_ranks = False  # the group is broken
                    return found
            except (RuntimeError, ValueError):  # the store went with rank 0
                self._store = None
            ended = self._status_of_rank0()
            if ended is not None or self.is_main or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        what = "did not answer in time" if _is_timeout(error) else "is gone"
        return ended or PeerLost(f"another rank {what}; run the same command again to continue")

    def _status_of_rank0(self) -> RoadmapError | None:
        try:
            status = read_json(self.status) if self.status else {}
        except (OSError, ValueError):
            return None
        if status.get("state") != "failed":
            return None
        kind, _, text = str(status.get("reason")).partition(": ")
        return error_of(kind, text)

    def _all_gather(self, value: Any) -> list[Any]:
        """Return every rank's value, all of them plain JSON."""
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(text)]))
        longest = max(int(size) for size in sizes)
        texts = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
        dist.all_gather(texts, torch.cat((text, torch.zeros(longest - len(text), dtype=torch.uint8))))
        return [json.loads(bytes(t[: int(size)].tolist())) for t, size in zip(texts, sizes, strict=True)]

    def all_or_raise(self, call: Callable[[], T]) -> T:
        """Call on every rank; where it fails on one of them, all raise that error."""
        if self.world_size == 1:
            return call()
        result, mine = None, None
        try:
            result = call()
        except RoadmapError as caught:
            mine = (type(caught).__name__, str(caught))
        errors = self._all_gather(mine)
        first = next((rank for rank, error in enumerate(errors) if error), None)
        if first is None:
            return result  # type: ignore[return-value]
        kind, text = errors[first]
        error = error_of(kind, text if errors[0] else f"rank {first}: {text}")
        error.on_all_ranks = True
        raise error

    def broadcast_from_rank0(self, call: Callable[[], T]) -> T:
        """Call on rank 0 alone and give its result, plain JSON, to all; where it fails all raise its error."""
        result = self.all_or_raise(lambda: call() if self.is_main else None)
        return result if self.world_size == 1 else self._all_gather(result)[0]  # type: ignore[return-value]

    def require_equal(self, values: dict[str, Any]) -> None:
        """Raise Refused where another rank was given another config, or sees other code or images, than rank 0."""
        if self.world_size == 1:
            return
        everyone = self._all_gather(values)
        for rank, theirs in enumerate(everyone):
            for key, expected in everyone[0].items():
                if (value := theirs.get(key)) != expected:
                    error = Refused(f"rank {rank} has another {key} than rank 0: {value} instead of {expected}")
                    error.on_all_ranks = True
                    raise error

    def all_reduce_max(self, *flags: int) -> list[int]:
        """Return the largest of each flag over all ranks; with several ranks, of the flags of the call before.

        That lag lets the exchange run beside a training step: nobody waits for it.
        """
        if self.world_size == 1:
            return list(flags)
        earlier, tensor = self._pending, torch.tensor(flags)
        self._pending = dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._host_group, async_op=True), tensor
        if earlier is None:
            return [0] * len(flags)
        earlier[0].wait()
        return earlier[1].tolist()

    def all_reduce_mean(self, value: Tensor) -> Tensor:
        """Return the mean of a number on the device over all ranks; the host does not wait for it on a GPU."""
        if self.world_size > 1:
            dist.all_reduce(value, group=self._device_group)
            value /= self.world_size
        return value

    def all_reduce_sum(self, table: Tensor) -> Tensor:
        """Return the sum of a table on the host over all ranks."""
        if self.world_size > 1:
            dist.all_reduce(table, group=self._host_group)
        return table

    def broadcast_buffers(self, net: nn.Module) -> None:
        """Give all ranks the buffers of rank 0: BatchNorm's running statistics are its own, as in the official code."""
        if self.world_size > 1:
            for buffer in net.buffers():
                dist.broadcast(buffer, 0, group=self._device_group)

    def wrap_ddp(self, net: nn.Module, example: Tensor) -> nn.Module:
        """Return the net as it is called in training: its gradients are averaged over the ranks during backward.

        Primed with passes over `example` (N, 3, H, W), which leave the net as it was: with three ranks or more a
        process that has just started would sum its first gradients in another order than one that goes on.
        """
        if self.world_size == 1:
            return net
        before = deepcopy(net.state_dict())
        # Newer torch has another word for broadcast_buffers.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            parallel = DistributedDataParallel(
                net,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                process_group=self._device_group,
                broadcast_buffers=False,  # only rank 0's are ever used: `broadcast_buffers`
                gradient_as_bucket_view=True,
            )
        parallel.train()
        for _ in range(PRIMING_PASSES):
            parallel(example).float().sum().backward()
        net.load_state_dict(before)
        net.zero_grad(set_to_none=True)
        return parallel

    def no_sync(self, net: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Return the context of one of several passes: only the last one averages the gradients."""
        return nullcontext() if self.world_size == 1 or last else net.no_sync()  # type: ignore[operator]


def _new_group(backend: str, timeout: timedelta) -> dist.ProcessGroup:
    group = dist.new_group(backend=backend, timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    return group


def _is_of_connection(error: Exception) -> bool:
    """Tell whether an error comes from another rank's silence or end; gloo says so in plain RuntimeErrors only."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _is_timeout(error: Exception) -> bool:
    """Tell whether a rank was waited for, and did not answer."""
    return re.search("timed? ?out", str(error), re.IGNORECASE) is not None
