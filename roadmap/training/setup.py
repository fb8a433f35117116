"""What the loop of `roadmap.training.train` works with: the run's ctx, the state that a checkpoint holds, and the checks before both."""

import hashlib
import json
from pathlib import Path
from typing import Any

from roadmap import data
from roadmap.config.choices import Norm
from roadmap.config.schema import Config
from roadmap.data import datasets, sampling
from roadmap.distributed.device import choose_compile, choose_graph, choose_precision
from roadmap.distributed.ranks import Ranks
from roadmap.errors import ConfigError, DataError, Refused
from roadmap.files import read_json
from roadmap.net import cost
from roadmap.net.kernels import forms_of, in_words
from roadmap.runs import provenance
from roadmap.runs.run_dir import RunDir, differences, identity
from roadmap.runs.schema import SUMMARY
from roadmap.training import mixup
from roadmap.training.grad_accumulation import check_micro_batch, micro_batch_size


def check_run(config: Config, images: datasets.ImageSet, ranks: Ranks) -> dict[str, Any]:
    """Check what needs images and ranks, before anything is written. Return what is known of the run. Raises ConfigError."""
    num_classes, size = len(images.classes), config.data.image_size
    sampling.train_index_batches(len(images.train.labels), config.recipe.batch_size, config.seed, 0)
    data.check(config.data, config.recipe, ranks.device)
    mixup.check_mixup(config.recipe)
    check_micro_batch(config.recipe, ranks.world_size)
    if config.recipe.sync_batch_norm and ranks.device.type != "cuda":
        raise ConfigError("recipe.sync_batch_norm=true: needs GPUs")
    if micro_batch_size(config.recipe) == 1 and size <= config.model.reduction and config.model.norm == Norm.batch_norm:
        raise ConfigError(
            f"recipe.micro_batch=1 with data.image_size={size}: BatchNorm has a single pixel left at the end of the net; at least 2 images"
        )
    precision = choose_precision(config.recipe.precision, ranks.device)
    try:
        net = cost(config.model, num_classes, size)
    except RuntimeError:
        raise ConfigError(
            f"data.image_size={size}: too small for this net, which divides it by {config.model.reduction}"
        ) from None
    return {
        "gmacs": net.gmacs,
        "params_m": net.params_m,
        "num_classes": num_classes,
        "data_fingerprint": images.fingerprint,
        "code_hash": provenance.code_hash(),
        "steps_per_epoch": len(images.train.labels) // config.recipe.batch_size,
        "precision": str(precision),
        "world_size": ranks.world_size,
        "compile": choose_compile(config, ranks.device),
        "cuda_graph": choose_graph(config, ranks.device, precision, ranks.world_size),
        "kernels": in_words(forms_of(config.model, ranks.device, config.kernels)),
    }


def load_summary(run: RunDir) -> dict[str, Any]:
    """Return the summary of a run that is done. Raises DataError where it cannot be read."""
    try:
        summary = read_json(run.path / SUMMARY)
        return summary | {key: float(summary[key]) for key in ("top1", "gmacs", "params_m")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{run.path / SUMMARY}: cannot be read ({error}); fresh=true starts over and keeps this aside"
        ) from None


def identity_hash(config: Config) -> str:
    """Return a hash of all that a result depends on."""
    return hashlib.sha256(json.dumps(identity(config.values()), sort_keys=True).encode()).hexdigest()[:16]


def require_same_run(path: Path, manifest: dict[str, Any], mine: dict[str, Any]) -> None:
    """Raise Refused where a checkpoint is of another config, or of epochs of another length."""
    changes = differences({key: manifest.get(key) for key in mine}, mine)
    if changes:
        raise Refused(f"{path}: its checkpoint is of another run ({'; '.join(changes)}); fresh=true sets it aside")
