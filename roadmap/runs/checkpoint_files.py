"""The files of a run's checkpoints by their names: `step-<global step>-<epochs evaluated>.pt`, and `.json` beside it.

Files with other names are ignored.
"""

import os
import re
import stat
from pathlib import Path

from roadmap.runs.schema import CHECKPOINTS

CHECKPOINT = re.compile(r"step-(\d{10,19})-(\d{5,19})\.(pt|json)")  # global step, epochs evaluated


def checkpoint_name(global_step: int, epochs_evaluated: int) -> str:
    """Return the name of the checkpoint of a step and of the epochs that were evaluated by then."""
    return f"step-{global_step:010d}-{epochs_evaluated:05d}.pt"


def parse_checkpoint(name: str) -> tuple[int, int] | None:
    """Return global step and epochs evaluated of a checkpoint by its name, None for a name that is none of ours."""
    found = CHECKPOINT.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the files that have the name of a checkpoint, the newest first."""
    found = [(counts, path) for path in folder.glob("step-*.pt") if (counts := parse_checkpoint(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def newest_place(folder: Path) -> list[int]:
    """Return global step and epochs evaluated of the newest checkpoint, by its name; [0, 0] where there is none."""
    newest = next((parse_checkpoint(path.name) for path in list_checkpoints(folder)), None)
    return list(newest or (0, 0))


def checkpoint_sizes(run: Path) -> dict[Path, int]:
    """Return the bytes of each checkpoint and manifest of a run; {} where its folder cannot be read."""
    folder, found = run / CHECKPOINTS, dict[Path, int]()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                about = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(about.st_mode) and parse_checkpoint(entry.name):
                    found[folder / entry.name] = about.st_size
    except OSError:
        pass
    return found


def older_files(run: Path) -> dict[Path, int]:
    """Return the checkpoints of a run that are older than its newest, with their manifests, and their bytes."""
    place = tuple(newest_place(run / CHECKPOINTS))
    sizes = {path: size for path, size in checkpoint_sizes(run).items() if parse_checkpoint(path.name) != place}
    return dict(sorted(sizes.items(), key=lambda item: (item[0].stem, item[0].suffix == ".json")))
