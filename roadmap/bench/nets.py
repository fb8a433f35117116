"""`python -m roadmap.bench nets --out DIR`: nets that compile side by side, and are then timed one after the other.

Compiling takes most of the time that a comparison of nets needs, and fills a core or two. Here each net is a process of
`bench net` that waits once it is compiled and warm; when all are, or the time for it is over, each has the device to
itself in turn. Kernels of ours are compiled before, side by side, where a net would compile one after the other. DIR
gets a log and a JSON file a net. Words after `--` are options of `bench net`.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from roadmap.bench.bound import DTYPES
from roadmap.bench.forms import WITH_KERNELS
from roadmap.bench.kernels import compile_ahead, compilers, taken_by_auto
from roadmap.bench.net import READY, net_options
from roadmap.bench.operations import OpShape, shapes_of
from roadmap.bench.options import LIBRARIES, above_zero, empty_parser
from roadmap.bench.results import rate
from roadmap.bench.rows import Setting, choose_setting, row_configs
from roadmap.distributed.cores import num_cores
from roadmap.errors import ConfigError
from roadmap.files import disk_errors, last_error, read_json
from roadmap.runs.children import compiler_cache, end_with_parent
from roadmap.steps.tree import step_tree
from roadmap.text import nearest

# ROW/OURS OR A LIBRARY/FORM: what has most to tell first.
NETS = (
    "separate_downsampling/ours/captured,separate_downsampling/timm/compiled,resnet/ours/captured,"
    "resnet/torchvision/compiled,kernel_11/ours/captured"
)
TIMING_S = 5.0  # to time a net that is compiled and warm
POLL_S = 0.2


class Net(NamedTuple):
    """A net that is measured, and its process."""

    name: str
    log: Path
    json: Path
    process: subprocess.Popen[bytes]

    def is_ready(self) -> bool:
        """Tell whether it waits for the device."""
        return READY in self.log.read_text(errors="replace").splitlines()

    def end(self) -> None:
        """End its process, if it is still there."""
        self.process.kill()
        self.process.wait()


def main(argv: Sequence[str]) -> int:
    """Measure the nets; print a line for each. Returns an exit code: 1 where one could not be measured."""
    began = time.monotonic()
    options = empty_parser("nets", __doc__)
    options.add_argument("--out", type=Path, required=True, help="a folder for logs and JSON files")
    options.add_argument("--nets", default=NETS, help="ROW/ours/FORM or ROW/LIBRARY/FORM; default: %(default)s")
    options.add_argument("--limit", type=above_zero, default=180.0, help="seconds, for all; default: %(default)s")
    options.add_argument("more", nargs="*", metavar="OPTION", help="of `bench net`, after --")
    args = options.parse_args(argv)
    names = list(dict.fromkeys(args.nets.split(",")))
    words = [words_of(name) for name in names]
    forms, setting = kernels_of(names, args.more)
    with disk_errors(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
    started: dict[str, Net] = {}
    try:
        for is_ours in (False, True):  # other libraries' nets compile while our kernels do
            if is_ours:
                with compilers(setting.device) as pool:
                    compile_ahead(pool, forms, DTYPES[setting.precision], began + args.limit / 2)
            for name, own in zip(names, words, strict=True):
                if ("/ours/" in name) == is_ours:
                    started[name] = start(name, [*own, *args.more], args.out, len(names))
        nets = [started[name] for name in names]
        while time.monotonic() < began + args.limit - TIMING_S * len(nets):
            if all(net.is_ready() or net.process.poll() is not None for net in nets):
                break
            time.sleep(POLL_S)
        late = [net for net in nets if net.process.poll() is None and not net.is_ready()]
        for net in late:
            net.end()  # what compiles beside others would spoil their times
        failed = 0
        for net in nets:
            outcome = None if net in late else measured(net, began + args.limit)
            failed += outcome is None
            why = "not compiled in time" if net in late else last_error(net.log)[:200] or "no output"
            print(f"{net.name}: {outcome or f'not measured ({why}; {net.log})'}", flush=True)
    finally:
        for net in started.values():
            net.end()
    return int(failed > 0)


def kernels_of(names: Sequence[str], more: Sequence[str]) -> tuple[list[tuple[OpShape, str]], Setting]:
    """Return the operations of our nets with their forms, and how all nets are run. Raises ConfigError."""
    parts = [name.split("/", 2) for name in names]
    args = net_options("net", None).parse_args([*more, "--rows", ",".join(row for row, *_ in parts)])
    configs = row_configs(args)
    setting = choose_setting(args, configs)
    ours = [configs[row] for row, who, form in parts if who == "ours" and form in WITH_KERNELS]
    return taken_by_auto(shapes_of(ours, setting.image_size), setting.device), setting


def words_of(name: str) -> list[str]:
    """Return the options of `bench net` for a net. Raises ConfigError."""
    row, _, rest = name.partition("/")
    who, _, form = rest.partition("/")
    if row not in step_tree():
        raise ConfigError(f"--nets={name}: {row}: unknown; {nearest(row, step_tree())}")
    if who not in ("ours", *LIBRARIES) or not form:
        raise ConfigError(f"--nets={name}: must be ROW/WHO/FORM, WHO one of ours, {', '.join(LIBRARIES)}")
    peer = ["--peer", "none"] if who == "ours" else ["--peer", who, "--without-ours"]
    return ["--rows", row, "--forms", form, *peer]


def start(name: str, words: Sequence[str], out: Path, number: int) -> Net:
    """Start the process of a net, one of `number`."""
    base = out / f"net-{name.replace('/', '-')}"
    log, json = base.with_suffix(".log"), base.with_suffix(".json")
    command = [sys.executable, "-m", "roadmap.bench", "net", "--gate", "--json", str(json), *words]
    threads = {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, num_cores() // number))}
    with disk_errors(log), log.open("w") as lines:
        process = subprocess.Popen(
            command, env=compiler_cache() | threads | os.environ, stdin=subprocess.PIPE, stdout=lines, stderr=lines,
            preexec_fn=end_with_parent(),
        )  # fmt: skip
    return Net(name, log, json, process)


def measured(net: Net, end: float) -> str | None:
    """Let a net use the device; return its result, None if there is none."""
    try:
        net.process.communicate(b"\n", timeout=max(0.1, end - time.monotonic()))
        rows: list[dict[str, Any]] = read_json(net.json)["rows"]
        found = rows[0]["candidates"][0]
        speed, ms, memory = found["images_per_s"], 1e3 * found["median_s"], found["peak_memory_gb"]
        return f"{rate(speed)} images/s, {ms:.2f} ms, {memory:.1f} GiB"
    except (OSError, ValueError, LookupError, TypeError, subprocess.TimeoutExpired):
        return None
