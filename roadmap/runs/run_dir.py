"""The run directory: where it is, who may write it, and its `config.yaml` and `status.json`.

`<runs>/<study>/<regime>-<data>/<cell>/seed<k>/`, a function of the config and never of the clock.
"""

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import yaml

from roadmap import catalog
from roadmap.config import Affects, Config
from roadmap.errors import DataError, DiskError, LoaderError, NoProgress, PeerLost, Refused, RoadmapError
from roadmap.files import (
    atomic_write,
    disk_errors,
    expand,
    file_lock,
    read_json_or_empty,
    read_yaml,
    remove_temporaries,
    same_path,
)
from roadmap.runs.checkpoint_files import list_checkpoints, newest_place
from roadmap.runs.permissions import make_folder, refuse_unsafe
from roadmap.runs.process import lives
from roadmap.runs.recorded_config import differences, identity, lost_keys
from roadmap.runs.schema import (
    CHECKPOINTS,
    CONFIG,
    CORRECT,
    LABELS,
    LOG,
    METRICS,
    PREDICTIONS,
    STATUS,
    SUMMARY,
    Status,
    info_keys,
    read_record,
    write_record,
)
from roadmap.text import one_line, utc

LOCK = ".lock"
RESULT_FILES = (CONFIG, STATUS, SUMMARY, METRICS, CORRECT)  # what a run that is done has
DEATHS = 3  # so often a run may die without a new checkpoint
ORPHANS_S = 20.0  # how long the worker processes of a killed run may hold its directory


def run_path(config: Config) -> Path:
    """Return the directory of a run."""
    place = f"{config.regime.name}-{config.data.name}"
    return expand(config.paths.runs).absolute() / config.study / place / config.cell / f"seed{config.seed}"


def alive(holder: str) -> bool:
    """Tell whether `process PID on HOST` may still be running; on another host it counts as running."""
    found = re.fullmatch(r"process (\d+) on (.*)", holder)
    return found is None or lives(found[2], found[1], None) is not False


def same_run_elsewhere(path: Path, values: dict[str, Any]) -> Path | None:
    """Return the directory of a finished run beside `path` that is the same run under another cell's name, if any.

    Older names repeated what is the default (`gelu,recipe.epochs=20`).
    """
    mine, head = identity(values), path.parent.name.split(",")[0]
    for other in sorted(path.parent.parent.glob(f"{glob.escape(head)}*/{path.name}/{SUMMARY}")):
        try:
            if other.parent != path and identity(read_yaml(other.with_name(CONFIG))) == mine:
                return other.parent
        except (OSError, ValueError):
            continue
    return None


class RunDir:
    """One run's directory, held by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.status: dict[str, Any] = {}
        self.notes: list[str] = []  # for the log of this start
        self._lock: TextIO | None = None  # where this process holds the directory

    def load_status(self, values: dict[str, Any], run_info: dict[str, Any], *, allow_drift: bool) -> None:
        """Load the status that an earlier start left, if any, and add to `run_info` what is kept of it.

        Raises Refused where it was a run of another config, or of other code or data (unless drift is allowed), and
        DataError where it is done and files are missing.
        """
        if (before := self._read_record(values)) is None:
            if other := same_run_elsewhere(self.path, values):
                self.notes.append(f"the same run is finished under another name: {other}; a report counts it once")
            return
        if self.status.get("state") == "done":
            return
        if lost := lost_keys(before):
            self.notes.append(f"{CONFIG} has keys that this version does not know and ignores: {', '.join(lost)}")
        self.status["state"] = "begun"
        newest, recorded = newest_place(self.path / CHECKPOINTS)[0], self.status.get("step") or 0
        if newest < recorded:
            gone = f"the checkpoint of step {recorded}, which its {STATUS} names, is gone"
            if not newest:
                raise DataError(f"{self.path}: {gone}, and there is no other; fresh=true starts over")
            self.notes.append(gone)
        if not list_checkpoints(self.path / CHECKPOINTS):
            return  # nothing was trained yet that other code or data could spoil
        drift = self._changes(run_info, [*info_keys(Affects.result), "code_hash"])
        if drift and not allow_drift:
            raise Refused(
                f"{self.path}: was started with other code, data, precision or devices ({'; '.join(drift)}); "
                "fresh=true starts over, allow_drift=true continues"
            )
        self._keep_threads(run_info)
        rounding = self._changes(run_info, [key for key in info_keys(Affects.rounding) if key != "code_hash"])
        self.notes += [f"continues with other {change} (differs in rounding only)" for change in rounding]
        self.status["drift"] = [*(self.status.get("drift") or []), *drift]
        self.status["rounding"] = [*(self.status.get("rounding") or []), *rounding]

    def _read_record(self, values: dict[str, Any]) -> dict[str, Any] | None:
        """Read the status; return the config that an earlier start recorded, None where there was none.

        Raises Refused, DataError and DiskError as `load_status`.
        """
        status, summary = (read_json_or_empty(self.path / name) for name in (STATUS, SUMMARY))
        hashes = summary.get("sha256")  # what the run has, once it is done, besides what every one has
        wanted = [*RESULT_FILES, *(n for n in (PREDICTIONS, LABELS) if isinstance(hashes, dict) and n in hashes)]
        missing = [name for name in wanted if not (self.path / name).exists()]
        if missing and "done" in (status.get("state"), summary.get("state")):
            lacks = f"the run is done, but its {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
            raise DataError(f"{self.path}: {lacks}; fresh=true starts over and sets this aside")
        try:
            before = read_yaml(self.path / CONFIG)
            self.status = read_record(Status, self.path / STATUS)
            changes = differences(identity(before), identity(values))
        except FileNotFoundError as error:
            begun = [name for name in (METRICS, SUMMARY) if (self.path / name).exists()]
            begun += [CHECKPOINTS] if any((self.path / CHECKPOINTS).glob("*.pt")) else []
            if begun:
                lacks = Path(error.filename).name
                raise Refused(f"{self.path}: holds {begun[-1]}, but no {lacks}; fresh=true sets it aside") from None
            return None
        except NotADirectoryError:  # a file is in the way: making the directory reports it
            return None
        except OSError as error:
            raise DiskError(f"{self.path}: cannot be read ({error.strerror})") from None
        except ValueError as error:
            what = f"contains a record that cannot be read ({one_line(error)})"
            raise Refused(f"{self.path}: {what}; fresh=true sets it aside") from None
        if changes:
            what = f"contains a run with another config ({'; '.join(changes[:5])})"
            raise Refused(f"{self.path}: {what}; fresh=true sets it aside")
        return before

    def is_done(self, values: dict[str, Any]) -> bool:
        """Tell whether the run is done by its record, which is read and left as it is. Raises as `load_status`.

        Its images are not listed again: where those asked for lie in another folder, that is noted.
        """
        refuse_unsafe(self.path)
        before = self._read_record(values)
        if before is None or self.status.get("state") != "done":
            return False
        there, here = ((each.get("data") or {}).get("root") for each in (before, values))
        own = catalog.find(str(values["data"]["name"]), values["data"]["kind"]).num_classes is None
        if own and there and here and not same_path(str(there), str(here)):
            self.notes.append(
                f"on the images of data.root={there}; if those of data.root={here} are others, "
                "a data set with a name of its own keeps them apart (docs/data.md)"
            )
        return True

    def _keep_threads(self, run_info: dict[str, Any]) -> None:
        """Keep the number of threads that the run started with, if known: it changes the order of sums."""
        threads, here = self.status.get("threads"), run_info.get("threads")
        if threads and here and threads != here:
            run_info["threads"] = threads
            self.notes.append(f"uses {threads} threads, as when it started; this machine would use {here}")

    def _changes(self, run_info: dict[str, Any], keys: list[str]) -> list[str]:
        """Return what of a run's facts has changed since its status was written; what an older status lacks has not."""
        known = [key for key in keys if key in self.status and key in run_info]
        return differences(*({key: info[key] for key in known} for info in (self.status, run_info)))

    def count_start(self, values: dict[str, Any]) -> None:
        """Count a start of a run that was begun, before all that may kill it: imports, images, other ranks.

        What is wrong with the directory, or who has it, is told later.
        """
        with suppress(RoadmapError):
            if (self.path / STATUS).exists():
                with self.lock():
                    self._read_record(values)
                    self.update(starts=(self.status.get("starts") or 0) + 1, start_counted=True)

    def count_deaths(self) -> None:
        """Count how often the run died since its newest checkpoint was written; a stop that was asked for is no death.

        Raises NoProgress at the third, since the cause is likely to persist. A later start, which a user wants,
        counts from zero.
        """
        if not self.status:
            return
        of_a_process = (PeerLost.__name__, LoaderError.__name__)
        died = self.status.get("exit_code") is None or str(self.status.get("reason")).startswith(of_a_process)
        newest = newest_place(self.path / CHECKPOINTS)
        deaths = self.status.get("deaths", 0) if self.status.get("began_at") == newest else 0
        self.status["deaths"] = deaths + 1 if died and self.status.get("began_at") == newest else deaths
        if self.status["deaths"] < DEATHS:
            return
        where = f"at step {newest[0]}; see {self.path / LOG}"
        reason = f"died {DEATHS} times without progress, {where}; starting it again resets the count"
        self.update(state="failed", exit_code=NoProgress.code, reason=f"{NoProgress.__name__}: {reason}", deaths=0)
        raise NoProgress(f"{self.path}: {reason}")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the directory: raises Busy if a live process has it; a dead one's lock is void. Raises Refused for
        an unsafe place."""
        make_folder(self.path)
        busy = f"{self.path}: another process is writing this run"
        # A killed holder's worker processes notice within seconds; a live one is not waited for.
        with file_lock(self.path / LOCK, busy, ORPHANS_S, may_end=lambda holder: not alive(holder)) as self._lock:
            try:
                yield
            finally:
                self._lock = None

    def require_own(self) -> None:
        """Raise DiskError where the locked directory was moved away, and another run has begun in its place."""
        with suppress(OSError):  # nobody has
            if self._lock and not os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self.path / LOCK)):
                raise DiskError(f"{self.path}: is another run's now; the folder in which this one began was moved away")

    def set_aside(self) -> Path | None:
        """Rename an earlier run directory, so that this run starts over; never deletes anything."""
        if not any((self.path / name).exists() for name in (*RESULT_FILES, CHECKPOINTS)):
            return None
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old{number}")).exists():
            number += 1
        os.rename(self.path, aside)
        return aside

    def remove_temporaries(self) -> list[str]:
        """Remove what killed writers of this run left; return a line for each file that cannot be removed."""
        return remove_temporaries(self.path, *RESULT_FILES, PREDICTIONS, LABELS)

    def write_config(self, values: dict[str, Any]) -> None:
        """Write the resolved config. Raises DiskError."""
        with disk_errors(self.path / CONFIG):
            atomic_write(self.path / CONFIG, yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())

    def update(self, **values: Any) -> None:
        """Change fields of `status.json`. Raises DiskError."""
        self.require_own()
        self.status |= {**values, "updated": utc()}
        with disk_errors(self.path / STATUS):
            write_record(Status, self.path / STATUS, self.status)
