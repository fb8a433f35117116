"""What a start of a run leaves behind while it goes: ledger, status, log, progress on the screen, W&B.

`roadmap.training.train` tells it of every step and every evaluation; losses stay on the device until a flush.
"""

import logging
import os
import secrets
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

from roadmap.config.choices import Precision
from roadmap.config.schema import Config
from roadmap.distributed.device import peak_memory_gb, reset_peak_memory
from roadmap.errors import DiskError, RoadmapError
from roadmap.files import atomic_write, disk_errors, write_json
from roadmap.runs import checkpoint, provenance
from roadmap.runs.deferred_metrics import DeferredMetrics, Row
from roadmap.runs.metrics import append_metrics, read_metrics, truncate_metrics
from roadmap.runs.progress import Progress, SweepProgress
from roadmap.runs.run_dir import RunDir, newest_place
from roadmap.runs.schema import CHECKPOINTS, CORRECT, LOG, METRICS, SUMMARY
from roadmap.runs.wandb_logger import WandbLogger

log = logging.getLogger("roadmap")
T = TypeVar("T")


class RunLogger:
    """One start of a run. Entered, it says `running`; left, it says how the run ended, whatever ended it."""

    def __init__(
        self,
        run: RunDir,
        config: Config,
        facts: dict[str, Any],
        device: torch.device,
        total_steps: int,
        sweep: SweepProgress,
    ) -> None:
        """`facts` (net size, data fingerprint) go into `status.json` and W&B's config."""
        self.run, self.config, self.device, self.sweep = run, config, device, sweep
        self.total_steps = total_steps
        self.facts = {**facts, **provenance.git_state(), "versions": provenance.versions()}
        self.earlier = dict(run.status)
        self.metrics = run.path / METRICS
        self.progress: Progress | None = None
        self.mirror: WandbLogger | None = None
        self.summary: dict[str, Any] = {}
        self._pending = DeferredMetrics(may_overflow=facts["precision"] == Precision.fp16)
        self._saver = checkpoint.Saver(run.path / CHECKPOINTS, config.checkpoint.keep)
        self._rows: list[Row] = []
        self._handler: logging.Handler | None = None
        self._began = self._flushed = self._saved = time.monotonic()
        self._base_s = self._waited_s = 0.0
        self._images = 0
        self._note, self._due_told = "", False

    def __enter__(self) -> Self:
        self._handler = log_to(self.run.path / LOG)
        self.run.write_config(self.config.values())
        self.run.status = {
            "state": "running",
            "wandb_id": self.earlier.get("wandb_id") or secrets.token_hex(8),
            "wandb_rows": self.earlier.get("wandb_rows", 0),
            "starts": self.earlier.get("starts", 0) + 1,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "deaths": self.earlier.get("deaths", 0),
            "began_at": newest_place(self.run.path / CHECKPOINTS),
            "drift": self.earlier.get("drift", []),
            **self.facts,
            **provenance.hardware(self.device),
            "pid": os.getpid(),
            "exit_code": None,
            "reason": None,
        }
        self.run.update()
        return self

    def start(self, global_step: int, epochs_evaluated: int, time_s: float) -> None:
        """Begin at a step: drop ledger lines past it, open progress and W&B."""
        with disk_errors(self.metrics):
            truncate_metrics(self.metrics, global_step, epochs_evaluated)
            self._rows = read_metrics(self.metrics).rows if self.metrics.exists() else []
        self.progress = Progress(self.config.cell, self.total_steps, global_step, self.sweep)
        values = {**self.config.values(), **self.facts}
        self.mirror = WandbLogger(self.config, self.run.path, self.run.status["wandb_id"], values, self.say)
        if self.mirror.place:
            (self.say if self.sweep.position == 1 else log.info)(self.mirror.place)  # once a sweep is enough
        self.run.update(epoch=epochs_evaluated, step=global_step)
        self._base_s = time_s
        self._began = self._flushed = self._saved = time.monotonic()
        reset_peak_memory(self.device)

    @property
    def time_s(self) -> float:
        """Return the seconds spent on this run, over all its starts."""
        return self._base_s + time.monotonic() - self._began

    def say(self, line: str) -> None:
        """Show a line and keep it in `run.log`."""
        log.info(line)
        if self.progress is not None:
            self.progress.say(line)
        else:
            print(self.sweep.prefix() + line, file=sys.stderr, flush=True)

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batches and measure how long training waits for them."""
        source = iter(batches)
        while True:
            before = time.monotonic()
            batch = next(source, None)
            self._waited_s += time.monotonic() - before
            if batch is None:
                return
            yield batch

    def log_step(
        self, epoch: int, global_step: int, lr: float, loss: torch.Tensor, grad_norm: torch.Tensor, images: int
    ) -> None:
        """Note one optimizer step, without asking the device. Raises NonFiniteError, at a flush, and DiskError."""
        self._images += images
        if self._pending.add(
            {"kind": "train", "epoch": epoch, "global_step": global_step, "train/lr": lr}, loss, grad_norm
        ):
            self.flush()
        if self.progress is not None:
            self.progress.advance(f"epoch {epoch}/{self.config.recipe.epochs}{self._note}")
        self._notice_saved(self._saver.finished())

    def flush(self) -> None:
        """Read what the device has kept and write it to the ledger.

        Raises NonFiniteError naming the first bad step; the lines up to it are written.
        """
        rows, error = self._pending.read()
        if not rows:
            return
        now = time.monotonic()
        seconds = max(now - self._flushed, 1e-9)
        shared = {
            "time_s": round(self.time_s, 3),
            "train/images_per_s": round(self._images / seconds, 1),
            "train/data_wait": round(min(self._waited_s / seconds, 1.0), 4),
            "train/memory_gb": round(peak_memory_gb(self.device), 3),
        }
        self._append([row | shared for row in rows])
        self._images, self._waited_s, self._flushed = 0, 0.0, now
        self._note = (
            f"{self._last_top1()}, loss {rows[-1]['train/loss']:.3f}, {shared['train/images_per_s']:,.0f} images/s"
        )
        if error is not None:
            raise error

    def log_evaluation(self, epoch: int, global_step: int, values: dict[str, float], correct: bytes) -> None:
        """Note an evaluation: `val/top1` and `val/top5` in percent, `val/loss`, and what else was measured; which images were right."""
        row = {"kind": "val", "epoch": epoch, "global_step": global_step, "time_s": round(self.time_s, 3), **values}
        self._append([row])
        log.info("epoch %d/%d%s", epoch, self.config.recipe.epochs, self._note)
        with disk_errors(self.run.path / CORRECT):
            atomic_write(self.run.path / CORRECT, correct)
        self._flushed = time.monotonic()

    def checkpoint_due(self) -> bool:
        """Tell, once, that the time between two checkpoints within an epoch has passed."""
        due = not self._due_told and time.monotonic() - self._saved > 60 * self.config.checkpoint.every_min
        self._due_told |= due
        return due

    def save_checkpoint(self, state: dict[str, Any], manifest: dict[str, Any], best_step: int | None) -> None:
        """Let a checkpoint be written beside training, after the ledger lines that it covers. Raises NonFiniteError, DiskError."""
        self.flush()
        self.wait_for_checkpoint()
        where = {"epoch": manifest["epochs_evaluated"], "step": manifest["global_step"], "rows": len(self._rows)}
        facts = {"time": time.time(), **self.facts}
        self._saver.start({**state, "time_s": self.time_s}, {**manifest, **facts}, best_step, where)
        self._saved, self._due_told = time.monotonic(), False
        self._flushed = time.monotonic()

    def wait_for_checkpoint(self) -> None:
        """Wait until the checkpoint that is being written, if any, is whole. Raises DiskError."""
        self._notice_saved(self._saver.wait())

    def _notice_saved(self, where: dict[str, int] | None) -> None:
        """Note that a checkpoint is whole: what lies behind it goes up to W&B."""
        if where is None:
            return
        if self.mirror is not None:
            self.run.status["wandb_rows"] = self.mirror.follow(self.run.status["wandb_rows"], where["rows"])
        self.run.update(epoch=where["epoch"], step=where["step"])

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Write and return `summary.json`: the result, the config's names, speed, memory, versions. Raises DiskError."""
        self.wait_for_checkpoint()
        config, seconds = self.config, self.time_s
        speeds = [row["train/images_per_s"] for row in self._rows if row["kind"] == "train"]
        names = ("study", "cell", "step", "variant", "parent", "label", "adopted", "seed")
        self.summary = {
            **{name: getattr(config, name) for name in names},
            "regime": config.regime.name,
            "data": str(config.data.name),
            "recipe": str(config.recipe.name),
            "epochs": config.recipe.epochs,
            "batch_size": config.recipe.batch_size,
            "image_size": config.data.image_size,
            **result,
            **self.facts,
            "train_images_per_s": statistics.median(speeds),
            "gpu_hours": round(seconds * self.facts["world_size"] / 3600, 4) if self.device.type == "cuda" else None,
            "time_s": round(seconds, 1),
            "peak_memory_gb": round(peak_memory_gb(self.device), 3),
            "drift": self.run.status["drift"],
            **provenance.hardware(self.device),
            "state": "done",
        }
        with disk_errors(self.run.path / SUMMARY):
            write_json(self.run.path / SUMMARY, self.summary)
        return self.summary

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.progress is not None:
            self.progress.close()
        try:
            self.wait_for_checkpoint()
        except DiskError as late:
            log.info("%s", late)
        self._saver.close()
        code = (
            0
            if error is None
            else error.code
            if isinstance(error, RoadmapError)
            else 75
            if kind is KeyboardInterrupt
            else 1
        )
        state = {0: "done", 75: "stopped"}.get(code, "failed")
        reason = None if error is None else f"{type(error).__name__}: {error}"[:500]
        log.info("%s%s", state, f" ({reason})" if reason else "", exc_info=error if code == 1 else None)
        try:
            self.run.update(state=state, exit_code=code, reason=reason)
        finally:
            if self.mirror is not None:
                self.mirror.finish(self.summary, code)
            if self._handler is not None:
                log.removeHandler(self._handler)
                self._handler.close()

    def _append(self, rows: list[dict[str, Any]]) -> None:
        with disk_errors(self.metrics):
            append_metrics(self.metrics, rows)
        self._rows += rows

    def _last_top1(self) -> str:
        last = next((row for row in reversed(self._rows) if row["kind"] == "val"), None)
        return f", top-1 {last['val/top1']:.2f} %" if last else ""


class NullLogger:
    """The record of a rank that writes nothing: it reads the same numbers, and stops with the others where they are not finite."""

    def __init__(self, *, may_overflow: bool = False) -> None:
        self._pending = DeferredMetrics(may_overflow=may_overflow)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def start(self, global_step: int, epochs_evaluated: int, time_s: float) -> None:
        """Do nothing."""

    def say(self, line: str) -> None:
        """Do nothing."""

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batches."""
        return iter(batches)

    def log_step(
        self, epoch: int, global_step: int, lr: float, loss: torch.Tensor, grad_norm: torch.Tensor, images: int
    ) -> None:
        """Note one optimizer step. Raises NonFiniteError, in the step in which rank 0 does."""
        if self._pending.add({"global_step": global_step}, loss, grad_norm):
            self.flush()

    def flush(self) -> None:
        """Look at what the device has kept. Raises NonFiniteError."""
        if error := self._pending.read()[1]:
            raise error

    def log_evaluation(self, epoch: int, global_step: int, values: dict[str, float], correct: bytes) -> None:
        """Do nothing."""

    def checkpoint_due(self) -> bool:
        """Leave it to rank 0."""
        return False

    def save_checkpoint(self, state: dict[str, Any], manifest: dict[str, Any], best_step: int | None) -> None:
        """Leave it to rank 0; the same look at the numbers as there."""
        self.flush()

    def wait_for_checkpoint(self) -> None:
        """Do nothing."""

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return what is known here."""
        return result


def log_to(path: Path) -> logging.Handler:
    """Let the package's log go to a file. Raises DiskError."""
    with disk_errors(path):
        handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    return handler
