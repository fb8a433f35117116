"""What comes before a run's first step: images, checks, the run directory, and the state that an earlier start left."""

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from roadmap import data
from roadmap.config.schema import Config
from roadmap.config.toggles import NetConfig
from roadmap.data import datasets, sampling
from roadmap.data.verify import verification_note
from roadmap.distributed.device import choose_compile, choose_graph, choose_precision
from roadmap.distributed.ranks import Ranks
from roadmap.errors import ConfigError, DataError, DiskError, Refused
from roadmap.files import MAX_JSON
from roadmap.net import build_net, cost
from roadmap.net.kernels import announcement, format_forms, forms_of
from roadmap.runs import checkpoint, provenance
from roadmap.runs.checkpoint_files import newest_place
from roadmap.runs.recorded_config import differences, identity
from roadmap.runs.run_dir import RunDir
from roadmap.runs.schema import CHECKPOINTS
from roadmap.text import printable, reason
from roadmap.training import mixup
from roadmap.training.cuda_graph import with_captured_step
from roadmap.training.device_errors import device_errors, memory_errors
from roadmap.training.state import RunContext, TrainState, build_state, require_like

log = logging.getLogger("roadmap")
MAX_NAMES = MAX_JSON // 4  # bytes of the names of all classes in each record, of which readers take no longer ones


def load_images(config: Config, cache: dict[str, Any]) -> datasets.ImageSet:
    """Load a set, or reuse the one that an earlier run of this process loaded. Raises DataError, ConfigError."""
    if not config.data.known.in_memory:
        return datasets.load(config.data)
    key = config.data.values()
    if cache.get("images", (None,))[0] != key:
        cache.pop("images", None)  # frees its memory before the next set is loaded
        cache["images"] = key, datasets.load(config.data)
    images: datasets.ImageSet = cache["images"][1]
    return images


def check_run(config: Config, images: datasets.ImageSet, ranks: Ranks) -> dict[str, Any]:
    """Check what depends on images and ranks; return the facts of the run that are recorded. Raises ConfigError."""
    recipe, size, device = config.recipe, config.data.image_size, ranks.device
    sampling.train_index_batches(len(images.train.labels), recipe.batch_size, config.seed, 0)
    data.check_pipeline(config.data, recipe, device)
    mixup.check_mixup(recipe)
    recipe.check_passes(ranks.world_size)
    if recipe.sync_batch_norm and device.type != "cuda":
        raise ConfigError("recipe.sync_batch_norm=true: needs GPUs")
    costs = cost(config.model, len(images.classes), size)
    if recipe.images_per_pass == 1:
        require_one_image_enough(config.model, len(images.classes), size)
    precision = choose_precision(recipe.precision, device)
    return {
        **asdict(costs),
        "num_classes": len(images.classes),
        "classes": recorded_names(images.classes),
        "data_fingerprint": images.fingerprint,
        "code_hash": provenance.code_hash(),
        "steps_per_epoch": len(images.train.labels) // recipe.batch_size,
        "precision": str(precision),
        "world_size": ranks.world_size,
        "compile": choose_compile(config, device),
        "cuda_graph": choose_graph(config, device, precision, ranks.world_size),
        "kernels": format_forms(forms_of(config.model, device, config.kernels)),
        "versions": provenance.versions(),
        **provenance.hardware(device),
    }


def require_one_image_enough(model: NetConfig, num_classes: int, size: int) -> None:
    """Raise ConfigError where a BatchNorm gets a single value a channel from one image: torch refuses to train so."""
    with torch.device("meta"):
        modules = [*build_net(model, num_classes).modules()]
    if not any(isinstance(module, _BatchNorm) for module in modules):
        return
    try:
        with torch.no_grad():
            build_net(model, num_classes)(torch.zeros(1, 3, size, size))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        left = "BatchNorm has a single pixel left at the end of the net; at least 2 images"
        raise ConfigError(f"recipe.micro_batch=1 with data.image_size={size}: {left}") from None


def recorded_names(classes: Sequence[str]) -> list[str] | None:
    """Return the names of classes as a run's records have them; None where they would fill a record."""
    names = [printable(name) for name in classes]
    return names if len(json.dumps(names, indent=2)) <= MAX_NAMES else None


def open_run(run: RunDir, config: Config, run_info: dict[str, Any], stack: ExitStack) -> bool:
    """Lock the run directory until the stack is left, load its status; return whether the run was done before.

    Raises Busy, Refused, NoProgress, DiskError.
    """
    stack.enter_context(run.lock())
    if config.fresh and run.set_aside():
        stack.enter_context(run.lock())
    run.load_status(config.values(), run_info, allow_drift=config.allow_drift)
    run.count_deaths()
    return run.status.get("state") == "done"


def restore(ctx: RunContext, run: RunDir) -> TrainState:
    """Build net and optimizer, load the newest valid checkpoint, start the logger.

    Raises DataError, Refused; DiskError where this rank cannot read what rank 0 has found.
    """
    state, time_s = build_state(ctx), 0.0
    if ctx.initial is not None:
        ctx.logger.info(ctx.initial.note)
    found = ctx.ranks.broadcast_from_rank0(lambda: find_checkpoint(ctx, run)) or {}
    if found:
        try:
            saved = checkpoint.load(Path(found["path"]))
        except OSError as error:
            which = f"rank {ctx.ranks.rank} cannot read it ({reason(error)})"
            raise DiskError(f"{found['path']}: {which}; every node must see the runs directory") from None
        try:
            state.load_state_dict(saved)
            require_like(saved, {"time_s": time_s}, "")
        except ValueError as error:  # written by other code, with allow_drift=true, or by nobody's
            raise DataError(f"{found['path']}: does not fit this run ({error}); fresh=true starts over") from None
        time_s = saved["time_s"]
        for skipped in found["skipped"]:
            ctx.logger.info(f"skipped {skipped}")
        done = f"{state.epochs_evaluated} of {ctx.config.recipe.epochs} epochs done"
        ctx.logger.info(f"{ctx.config.cell}: resuming at step {state.global_step}, {done}")
    # The others wait: until the record is open, W&B's server may take its time.
    begin = (state.global_step, state.epochs_evaluated, time_s, found.get("rows_sha256"))
    ctx.ranks.broadcast_from_rank0(lambda: ctx.logger.start(*begin))
    log_setup(ctx)
    if ctx.cuda_graph:
        with device_errors(ctx, state):
            return with_captured_step(ctx, state)
    return state


@memory_errors()
def find_checkpoint(ctx: RunContext, run: RunDir) -> dict[str, Any] | None:
    """Return this run's newest checkpoint, if any: path, skipped ones, hash of metrics.

    Raises DataError, DiskError, Refused, OutOfMemory.
    """
    folder = run.path / CHECKPOINTS
    for note in checkpoint.tidy(folder):
        ctx.logger.info(f"warning: {note}")
    try:
        found = checkpoint.find_newest(folder)
    except DataError as error:
        raise DataError(f"{error}; fresh=true starts over and sets this aside") from None
    if found is None:
        return None
    require_same_run(run, found.manifest, ctx.config, ctx.steps_per_epoch)
    checkpoint.set_aside(found.newer)
    run.update(began_at=newest_place(folder))
    return {"path": str(found.path), "skipped": found.skipped, "rows_sha256": found.manifest["rows_sha256"]}


def log_setup(ctx: RunContext) -> None:
    """Log how the batches are split into passes, the kernels, and whether the images were checked."""
    config, recipe, world_size = ctx.config, ctx.config.recipe, ctx.ranks.world_size
    log.info(
        "batch %d = %d device%s x micro-batch %d x %d passes; %s; base rate %g; %d images per epoch dropped",
        recipe.batch_size, world_size, "s" * (world_size > 1), ctx.micro_batch, ctx.grad_accumulation // world_size,
        ctx.precision, recipe.base_lr, len(ctx.images.train.labels) % recipe.batch_size,
    )  # fmt: skip
    log.info(announcement(forms_of(config.model, ctx.device, config.kernels), ctx.device, config.kernels))
    log.info(verification_note(ctx.images, config.data, config.paths.runs))
    if recorded_names(ctx.images.classes) is None:
        log.info("the names of %d classes are too long for the record: it has their numbers", len(ctx.images.classes))
    if config.data.holdout:
        log.info("evaluated on %d held-out training images; the validation images are not read", len(ctx.images.val))
    if note := data.pipeline_note(config.data, ctx.device):
        log.info(note)


def require_same_run(run: RunDir, manifest: dict[str, Any], config: Config, steps_per_epoch: int) -> None:
    """Raise Refused if a checkpoint belongs to another config, or to epochs of another length."""
    changes = differences(identity(manifest["identity"]), identity(config.values()))
    changes += differences({"steps_per_epoch": manifest.get("steps_per_epoch")}, {"steps_per_epoch": steps_per_epoch})
    if changes:
        told = "; ".join(changes)
        raise Refused(f"{run.path}: its checkpoint belongs to another run ({told}); fresh=true sets it aside")
