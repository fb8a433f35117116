"""What a run's checkpoints take on the disk. Links are not followed; files of other names are nobody's here."""

import os
import stat
from pathlib import Path

from roadmap.runs.run_dir import newest_place
from roadmap.runs.schema import CHECKPOINTS, parse_checkpoint


def checkpoint_sizes(run: Path) -> dict[Path, int]:
    """Return the bytes of each checkpoint and manifest of a run; {} where its folder is a link or cannot be read."""
    folder, found = run / CHECKPOINTS, dict[Path, int]()
    if folder.is_symlink():
        return found
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


def size_text(size_gb: float) -> str:
    """Return a size in GB or MB."""
    return f"{size_gb:,.1f} GB" if size_gb >= 1 else f"{1000 * size_gb:.1f} MB"
