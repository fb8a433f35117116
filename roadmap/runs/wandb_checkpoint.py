"""The checkpoint of a finished run as an artifact of its W&B run, where `wandb.checkpoints` asks for it."""

from pathlib import Path
from typing import Any

from roadmap.config.choices import WandbCheckpoints
from roadmap.runs.schema import CHECKPOINTS, Manifest, list_checkpoints, parse_checkpoint, read_record

KIND = "model"


def checkpoint_artifact(wandb: Any, path: Path, which: WandbCheckpoints, run_id: str) -> Any:
    """Return the last or the best checkpoint of a run directory with its manifest, as `checkpoint-RUN_ID`.

    The client reads the file where it lies, and copies it nowhere. Raises OSError, and ValueError where there is none.
    """
    found = list_checkpoints(path / CHECKPOINTS)
    manifest = read_record(Manifest, found[0].with_suffix(".json")) if found else {}
    if which == WandbCheckpoints.best:
        steps = {file: parse_checkpoint(file.name) for file in found}
        found = [file for file in found if (steps[file] or (None,))[0] == manifest.get("best_step")]
    if not found:
        raise ValueError(f"there is none in {CHECKPOINTS}/")
    manifest = read_record(Manifest, found[0].with_suffix(".json"))
    metadata = {key: manifest[key] for key in ("global_step", "epochs_evaluated", "sha256")}
    artifact = wandb.Artifact(f"checkpoint-{run_id}", type=KIND, metadata=metadata)
    for file in (found[0], found[0].with_suffix(".json")):
        artifact.add_file(str(file), policy="immutable", skip_cache=True)
    return artifact
