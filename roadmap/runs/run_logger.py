"""What a start of a run leaves behind while it goes: metrics, status, checkpoints, log, progress on the screen, W&B.

The loop tells it of every step and every evaluation; losses stay on the device until a flush. It is rank 0's; the
`NullLogger` of the other ranks has the same methods and writes nothing.
"""

import logging
import os
import secrets
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

from roadmap.config.schema import Config
from roadmap.distributed.device import peak_memory_gb, reset_peak_memory
from roadmap.errors import DiskError, StoppedEarly, exit_code
from roadmap.files import atomic_write, disk_errors, sha256_of
from roadmap.runs import checkpoint, provenance
from roadmap.runs.checkpoint_files import newest_place
from roadmap.runs.deferred_metrics import DeferredMetrics, Row
from roadmap.runs.metrics import append_metrics, seconds_past, truncate_metrics
from roadmap.runs.process import process_start
from roadmap.runs.progress import Progress, SweepProgress
from roadmap.runs.result import config_summary, write_result
from roadmap.runs.run_dir import RunDir
from roadmap.runs.run_log import LogFile
from roadmap.runs.schema import CHECKPOINTS, LOG, METRICS
from roadmap.runs.throughput import Throughput
from roadmap.runs.wandb_logger import WandbLogger
from roadmap.text import redact, utc

log = logging.getLogger("roadmap")
T = TypeVar("T")


class RunLogger:
    """One start of a run. Entered, `status.json` says `running`; left, it says how the run ended, whatever ended it."""

    def __init__(
        self, run: RunDir, config: Config, run_info: dict[str, Any], device: torch.device, sweep: SweepProgress
    ) -> None:
        """`run_info` (net size, data fingerprint) goes into `status.json`, `summary.json` and W&B's config."""
        self.run, self.config, self.device, self.sweep = run, config, device, sweep
        self.run_info = {**run_info, **provenance.git_state()}
        self.metrics = run.path / METRICS
        self.progress: Progress | None = None
        self.wandb: WandbLogger | None = None
        self.summary: dict[str, Any] = {}
        self._group_size = run_info.get("group_size", 1)  # runs that share the device
        self._deferred = DeferredMetrics(run_info["precision"], config.recipe.clip_grad)
        self._saver = checkpoint.Saver(run.path / CHECKPOINTS, config.checkpoint.keep)
        self._throughput = Throughput()
        self._rows: list[Row] = []
        self._log_file: logging.Handler | None = None
        self._began = self._saved = time.monotonic()
        self._earlier_s = self._saved_s = 0.0  # of earlier starts; at the newest checkpoint
        self._save_requested = False
        self._speed = self._top1 = ""  # as the bar shows them: of the last flush, of the last evaluation
        self._noted: set[str] = set()

    def __enter__(self) -> Self:
        with disk_errors(self.run.path / LOG):
            self._log_file = LogFile(self.run.path / LOG)
        self.run.notes += self.run.remove_temporaries()
        self.run.write_config(self.config.values())
        earlier = self.run.status
        self.run.status = {
            "state": "running",
            "wandb_id": earlier.get("wandb_id") or secrets.token_hex(8),
            "wandb_rows": earlier.get("wandb_rows", 0),
            "starts": (earlier.get("starts") or 0) + (not earlier.get("start_counted")),
            "started": utc(),
            "deaths": earlier.get("deaths", 0),
            "began_at": newest_place(self.run.path / CHECKPOINTS),
            "lost_s": earlier.get("lost_s") or 0.0,
            "drift": earlier.get("drift") or [],
            "rounding": earlier.get("rounding") or [],
            **self.run_info,
            "pid": os.getpid(),
            "pid_start": process_start(os.getpid()),
            "exit_code": None,
            "reason": None,
        }
        self.run.update()
        for note in self.run.notes:
            self.info(note)
        if problem := provenance.git_problem():
            self.info_once(problem)
        return self

    def start(self, global_step: int, epochs_evaluated: int, time_s: float, digest: str | None = None) -> None:
        """Begin at a step, after `time_s` of earlier starts: drop metrics past it, open progress and W&B.

        Raises DataError where the metrics up to it are not those of `digest`.
        """
        lost_s = self.run.status["lost_s"] + max(0.0, seconds_past(self.metrics, time_s))
        with disk_errors(self.metrics):
            self._rows = truncate_metrics(self.metrics, global_step, epochs_evaluated, digest)
        if evaluated := [row for row in self._rows if row["kind"] == "val"]:
            self._show_top1(evaluated[-1])
        total_steps = self.config.recipe.epochs * self.run_info["steps_per_epoch"]
        self.progress = Progress(self.config.cell, total_steps, global_step, self.sweep)
        values = {**self.config.values(), **self.run_info}
        self.wandb = WandbLogger(self.config, self.run.path, self.run.status["wandb_id"], values, self.info)
        if self.wandb.location:
            self.info_once(self.wandb.location)
        self.run.update(epoch=epochs_evaluated, step=global_step, time_s=time_s, lost_s=round(lost_s, 1))
        self._earlier_s = time_s
        self._began = self._saved = time.monotonic()
        self._throughput.restart()
        reset_peak_memory(self.device)

    @property
    def time_s(self) -> float:
        """Return the seconds spent on this run, over all its starts."""
        return self._earlier_s + time.monotonic() - self._began

    @contextmanager
    def paused(self, *, restart: bool = False) -> Iterator[None]:
        """Let the clock of the run stand still, while it waits for others; `restart` takes back what it has counted."""
        since = self._began if restart else time.monotonic()
        yield
        waited = time.monotonic() - since
        self._began, self._saved = self._began + waited, self._saved + waited
        self._throughput.restart()

    @property
    def memory_gb(self) -> float:
        """Return the peak memory in GiB: on a GPU this run's share where several are trained side by side."""
        return peak_memory_gb(self.device) / (self._group_size if self.device.type == "cuda" else 1)

    def info(self, line: str) -> None:
        """Show a line and keep it in `run.log`."""
        log.info(line)
        self.sweep.write(line)

    def info_once(self, line: str) -> None:
        """Show a line for the first run of a sweep alone, and keep it in every `run.log`."""
        (self.info if self.sweep.position == 1 else log.info)(line)

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batches and measure how long training waits for them."""
        return self._throughput.timed(batches)

    def flush_due(self) -> bool:
        """Tell whether the next `log_step` flushes, and so waits for the device."""
        return self._deferred.is_due()

    def log_step(
        self, epoch: int, global_step: int, lr: float, loss: torch.Tensor, grad_norm: torch.Tensor, images: int
    ) -> None:
        """Note one optimizer step, without asking the device. Raises NonFiniteError, at a flush, and DiskError."""
        self._throughput.images += images
        row = {"kind": "train", "epoch": epoch, "global_step": global_step, "train/lr": lr}
        if self._deferred.add(row, loss, grad_norm):
            self.flush()
        if self.progress is not None:
            self.progress.advance(f"epoch {epoch}/{self.config.recipe.epochs}{self._speed}{self._top1}")
        self._checkpoint_written(self._saver.finished())

    def flush(self) -> None:
        """Read what the device has kept and write it to `metrics.jsonl`.

        Raises NonFiniteError naming the first bad step; the lines up to it are written.
        """
        rows, error = self._deferred.read()
        if not rows:
            return
        time_s = {"time_s": round(self.time_s, 3)}
        shared = time_s | self._throughput.read() | {"train/memory_gb": round(self.memory_gb, 3)}
        self._append([row | shared for row in rows])
        if advice := self._throughput.advice(self.config.data.pipeline, self.device.type, shared, len(rows)):
            self.info(advice)
        self._speed = f", loss {rows[-1]['train/loss']:.3f}, {shared['train/images_per_s']:,.0f} images/s"
        if error is not None:
            raise error

    def log_evaluation(self, epoch: int, global_step: int, values: dict[str, float], files: dict[str, bytes]) -> None:
        """Note an evaluation: `val/loss`, `val/top1` and `val/top5` in percent, ...; and its files by name."""
        row = {"kind": "val", "epoch": epoch, "global_step": global_step, "time_s": round(self.time_s, 3), **values}
        self._append([row])
        self._show_top1(row)
        log.info("epoch %d/%d, top-1 %.2f %%%s", epoch, self.config.recipe.epochs, values["val/top1"], self._speed)
        self.write_evaluation(files)
        self._throughput.restart()

    def _show_top1(self, row: Row) -> None:
        self._top1 = f", top-1 {row['val/top1']:.2f} % after epoch {row['epoch']}"

    def write_evaluation(self, files: dict[str, bytes]) -> None:
        """Write what an evaluation says of each image, `correct.npy` and the like. Raises DiskError."""
        self.run.require_own()
        for name, data in files.items():
            with disk_errors(self.run.path / name):
                atomic_write(self.run.path / name, data)

    def _append(self, rows: list[Row]) -> None:
        self.run.require_own()
        with disk_errors(self.metrics):
            append_metrics(self.metrics, rows)
        self._rows += rows

    def checkpoint_due(self) -> bool:
        """Tell, once, that the time between two checkpoints within an epoch has passed."""
        due = not self._save_requested and time.monotonic() - self._saved > 60 * self.config.checkpoint.every_min
        self._save_requested |= due
        return due

    def save_checkpoint(self, state: dict[str, Any], manifest: dict[str, Any]) -> None:
        """Let a checkpoint be written beside training, after its metrics. Raises NonFiniteError, DiskError."""
        self.flush()
        self.wait_for_checkpoint()
        self.run.require_own()
        with disk_errors(self.metrics):
            ledger = {"rows": len(self._rows), "rows_sha256": sha256_of(self.metrics)}
        manifest = {**manifest, **ledger, "time": time.time(), **self.run_info}
        self._saved_s = self.time_s
        self._saver.start({**state, "time_s": self._saved_s}, manifest)
        self._saved, self._save_requested = time.monotonic(), False
        self._throughput.restart()

    def wait_for_checkpoint(self) -> None:
        """Wait until the checkpoint that is being written, if any, is whole. Raises DiskError."""
        self._checkpoint_written(self._saver.wait())

    def _checkpoint_written(self, saved: tuple[dict[str, Any], list[str]] | None) -> None:
        """Send to W&B what lies behind a checkpoint that is whole by now, if one is; note what stays in its way."""
        if saved is None:
            return
        manifest, notes = saved
        for note in notes:
            if note not in self._noted:
                self.info(f"warning: {note}")
        self._noted.update(notes)
        sent = self.run.status["wandb_rows"]
        if self.wandb is not None and self.wandb.log(self._rows[sent : manifest["rows"]]):
            self.run.status["wandb_rows"] = max(sent, manifest["rows"])
        epoch, step = manifest["epochs_evaluated"], manifest["global_step"]
        self.run.update(epoch=epoch, step=step, time_s=round(self._saved_s, 1))

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Write and return `summary.json`: result, names of the config, speed, memory, versions. Raises DiskError."""
        self.wait_for_checkpoint()
        seconds, to_hours = self.time_s, self.run_info["world_size"] / self._group_size / 3600
        lost_s = self.run.status["lost_s"]
        speeds = [row["train/images_per_s"] for row in self._rows if row["kind"] == "train"]
        self.summary = {
            **config_summary(self.config),
            **result,
            **self.run_info,
            "train_images_per_s": statistics.median(speeds),
            "gpu_hours": round(seconds * to_hours, 4) if self.device.type == "cuda" else None,
            "lost_gpu_hours": round(lost_s * to_hours, 4) if self.device.type == "cuda" else None,
            "time_s": round(seconds, 1),
            "lost_s": lost_s,
            "peak_memory_gb": round(self.memory_gb, 3),
            "drift": self.run.status["drift"],
            "rounding": self.run.status["rounding"],
            "state": "done",
        }
        self.summary = write_result(self.run.path, self.summary)
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
        code = exit_code(error)
        state = {0: "done", StoppedEarly.code: "stopped"}.get(code, "failed")
        reason = None if error is None else redact(f"{type(error).__name__}: {error}")[:500]
        log.info("%s%s", state, f" ({reason})" if reason else "", exc_info=error if code == 1 else None)
        try:
            self.run.update(state=state, exit_code=code, reason=reason)
        finally:
            if self.wandb is not None:
                self.wandb.finish(self.summary, code, reason)
            if self._log_file is not None:
                self._log_file.close()
