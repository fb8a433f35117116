"""The cost of starting: processor seconds of `python run.py +step=STEP` until its record has the first line."""

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from roadmap.errors import ConfigError
from roadmap.runs.schema import METRICS

CHECKOUT = Path(__file__).resolve().parent.parent.parent
POLL_S = 0.005


def seconds_to_first_row(step: str, device: str = "auto") -> float | None:
    """Run a step of the demo until its ledger has a line; return the processor seconds, of all its threads, by then.

    None on systems without /proc. Raises ConfigError if the run ends before.
    """
    if not Path("/proc/self/stat").exists():
        return None
    with TemporaryDirectory(prefix="roadmap-bench-") as runs:
        command = [sys.executable, "run.py", f"+step={step}", f"paths.runs={runs}", f"device={device}"]
        command += ["wandb.mode=offline"]
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            while not any(path.stat().st_size for path in Path(runs).rglob(METRICS)):
                if process.poll() is not None:
                    told = process.stderr.read().strip() if process.stderr else ""
                    raise ConfigError(f"{' '.join(command[1:])}: ended before its first step: {told[-300:]}")
                time.sleep(POLL_S)
            return processor_seconds(process.pid)
        finally:
            process.kill()
            process.communicate()


def processor_seconds(pid: int) -> float:
    """Return the processor seconds of a process so far, with those of its ended children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
