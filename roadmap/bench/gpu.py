"""`python -m roadmap.bench gpu --minutes 8 --out DIR`: what a GPU that is at hand for minutes can tell, in one command.

The GPU tests, whole rows beside other libraries, a row of `make mini` with one seed, single operations, input, then
runs of `make mini`, three seeds side by side, for as long as there is time. Each part is a process of its own with a
bound on its time, and writes what it has found by then into DIR; `report.json` there says how each ended. What there is
no time for is left out, and said. Nothing is fetched: wheels in DIR of `--wheels` are unpacked and come before what is
installed. `results.tar.gz` there has all of it but checkpoints, to be carried away.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

from roadmap.bench.options import empty_parser, folder, names
from roadmap.errors import ConfigError, DataError
from roadmap.files import atomic_file, disk_errors, last_error, write_json
from roadmap.runs.children import compiler_cache, end_with_parent

CHECKOUT = Path(__file__).resolve().parent.parent.parent
STOP_S = 15.0  # that a part may take to end when asked to
SPARE_S = 5.0  # of all the time, left over at the end
OPERATIONS = "gelu,norm,join,pointwise"  # of which no table has every form; those of depthwise convolutions are in it
LAST_ROW = "separate_downsampling"
NAMES = ("device", "tests", "nets", "one_seed", "kernels", "input", "runs")
ARCHIVE = "results.tar.gz"
PACKAGES, LEFT_BEHIND = "packages", ("checkpoints", "snapshots")


class Part(NamedTuple):
    """A process, the seconds that it may take at most, and those below which it is not worth starting."""

    name: str
    words: tuple[str, ...]  # for Python
    most_s: float
    least_s: float
    beside: tuple[tuple[str, ...], ...] = ()  # what else runs meanwhile, on cores that are free, and is then ended


def parts(args: argparse.Namespace) -> list[Part]:
    """Return the parts that are asked for, the most informative first."""

    def bench(name: str, *words: str, at_most: float, least: float) -> Part:
        file = ("--json", str(args.out / f"{name}.json"))
        return Part(name, ("-m", "roadmap.bench", name, *words, *file), at_most, least)

    def study(name: str, *words: str) -> tuple[str, ...]:
        root = () if args.root is None else (f"data.root='{args.root.absolute()}'",)
        command = ("-m", "roadmap.sweep", "submit", "mini", "--runs", str(args.out / name), "--cluster", "local", "--")
        return (*command, "wandb.mode=disabled", "device=cuda", *root, *words)

    files = [f"tests/test_{name}.py" for name in ("gpu", "graph", "recipe", "data_fast", "data_decode")]
    results = ("--results", str(args.out / "tests.jsonl"))
    has_xdist = PathFinder.find_spec("xdist", [str(args.out / PACKAGES), *sys.path])  # among the wheels, or installed
    side_by_side = ("-n", "6", "--dist", "loadgroup") if has_xdist else ()
    tests = ("-m", "pytest", "-m", "gpu", *side_by_side, "-v", "-p", "no:cacheprovider", *results, *files)
    nets = ("-m", "roadmap.bench", "nets", "--out", str(args.out / "nets"), "--limit", "155")
    ahead = ("-m", "roadmap.bench", "kernels", "--compile-only", "--regime", "mini", "--rows", LAST_ROW)
    one_seed = ("recipe.epochs=3", "compile=false", f"+step={LAST_ROW}", "seed=0")
    all_parts = [
        # The first import of torch, from a disk that nobody has read yet, takes its time.
        Part("device", ("-c", "import torch; print(torch.cuda.get_device_name())"), 45, 5),
        Part("tests", tests, 120, 30),
        Part("nets", nets, 160, 100, beside=(ahead,)),
        Part("one_seed", study("one_seed", *one_seed), 40, 25),
        bench("kernels", "--record", "--operations", OPERATIONS, "--minutes", "0.55", at_most=45, least=30),
        # The step that it feeds is one of `nets`, and compiled by then.
        bench("input", "--seconds", "3", "--limit", "60", "--train", LAST_ROW, at_most=115, least=40),
        Part("runs", study("runs"), 3600, 40),
    ]
    wanted = ("device", *(args.parts or NAMES))
    return sorted((part for part in all_parts if part.name in wanted), key=lambda part: wanted.index(part.name))


def main(argv: Sequence[str]) -> int:
    """Run one part after the other until the time is up. Returns an exit code: 1 if a part has failed."""
    began = time.monotonic()
    options = empty_parser("gpu", __doc__)
    options.add_argument("--minutes", type=float, default=8.0, help="that all may take; default: %(default)s")
    options.add_argument("--out", type=Path, help="a folder for what is found")
    options.add_argument("--root", type=folder, help="Fashion-MNIST for the runs of `make mini`")
    options.add_argument("--wheels", type=Path, default=CHECKOUT / "wheels", help="default: %(default)s, if there")
    only = f"only these, in the order given, after `device`; of {', '.join(NAMES)}"
    options.add_argument("--parts", type=names(NAMES), metavar="PART,PART", help=only)
    options.add_argument("--plan", action="store_true", help="print what would be done, and do nothing")
    args = options.parse_args(argv)
    if not 0 < args.minutes < 1e4:
        raise ConfigError(f"--minutes={args.minutes:g}: must be above 0")
    if args.out is None and not args.plan:
        raise ConfigError("--out=DIR: say where what is found is to lie; --plan prints what would be done")
    time_s = 60 * args.minutes - SPARE_S
    if args.plan:
        args.out = args.out or Path("DIR")
        print("\n".join(plan(parts(args), time_s)))
        return 0
    args.out = args.out.absolute()
    with disk_errors(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
    unpack(args.wheels, args.out / PACKAGES)
    found = run_parts(parts(args), began + time_s, args.out, environment(args.out))
    return int(any(part["state"] == "failed" for part in found.values()))


def plan(todo: Sequence[Part], time_s: float) -> list[str]:
    """Return a line for each part: when it begins at the latest, how long it takes at most, its command."""
    lines, at = [], 0.0
    for part in todo:
        bound = min(part.most_s, time_s - STOP_S - at)
        if bound < part.least_s:
            lines.append(f"left out        {part.name}: needs {part.least_s:.0f} s")
            continue
        lines.append(f"{at:4.0f} s, {bound:4.0f} s  {part.name}: {command(part)}")
        at += bound
    return [*lines, f"{at:4.0f} s at most; a part that ends earlier leaves its time to those after it"]


def command(part: Part) -> str:
    """Return a part as one would type it."""
    return shlex.join(["python", *part.words])


def run_parts(todo: Sequence[Part], end: float, out: Path, env: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Run parts until `end`, of the monotonic clock; return how each one ended, and write it after each.

    If the first part, the device, fails, the others are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for part in todo:
        left = end - STOP_S - time.monotonic()  # told to end, a part may take so long
        if left < part.least_s:
            found[part.name] = {"state": "left out", "reason": f"{max(0, left):.0f} s were left"}
        elif found.get(todo[0].name, {}).get("state", "done") != "done":
            found[part.name] = {"state": "left out", "reason": f"{todo[0].name} {found[todo[0].name]['state']}"}
        else:
            print(f"{part.name}: {command(part)}", flush=True)
            found[part.name] = run_part(part, min(part.most_s, left), out, env)
        about = found[part.name]
        with disk_errors(out):
            write_json(out / "report.json", {"parts": found})
        with suppress(OSError):  # a file that went while it was read is in the next one
            pack(out)
        print(f"{part.name}: {about['state']}, " + about.get("reason", f"{about.get('time_s')} s"), flush=True)
    return found


def run_part(part: Part, bound_s: float, out: Path, env: Mapping[str, str]) -> dict[str, Any]:
    """Run one part with a log of its own; when its time is up, it is asked to end and may save what it has."""
    log = out / f"{part.name}.log"
    began, state = time.monotonic(), "done"
    with ExitStack() as stack:
        for number, words in enumerate(part.beside, 1):
            stack.callback(end_group, start(words, log.with_name(f"beside_{log.stem}_{number}.log"), env))
        process = start(part.words, log, env)
        try:
            process.wait(bound_s)
        except subprocess.TimeoutExpired:
            state = "out of time"
        finally:
            end_group(process)
    if state == "done" and process.returncode:
        state = "failed"
    about = {"state": state, "exit_code": process.returncode, "time_s": round(time.monotonic() - began, 1)}
    about |= {"command": command(part), "log": log.name}
    if state == "failed":
        about["reason"] = f"exit code {process.returncode}: {last_error(log)[:200] or 'no output'}"
    return about


def start(words: Sequence[str], log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process, the first of a group, that writes into a log."""
    with disk_errors(log), log.open("w") as lines:
        return subprocess.Popen(
            [sys.executable, *words], cwd=CHECKOUT, env=dict(env), stdin=subprocess.DEVNULL, stdout=lines,
            stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=end_with_parent(),
        )  # fmt: skip


def pack(out: Path) -> None:
    """Write all that was found so far into one file, without what is large."""

    def chosen(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if Path(info.name).name in (ARCHIVE, PACKAGES, *LEFT_BEHIND) else info

    with atomic_file(out / ARCHIVE) as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for path in sorted(out.iterdir()):
            if path.name != Path(file.name).name:
                archive.add(path, path.name, filter=chosen)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process if it still runs, with time to save, then everything that it has started."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def unpack(wheels: Path, target: Path) -> None:
    """Unpack the wheels of a folder, if there are any: they are archives of packages. Raises DataError."""
    for wheel in sorted(wheels.glob("*.whl")):
        try:
            with disk_errors(target), zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
        except zipfile.BadZipFile as error:
            raise DataError(f"{wheel}: is not a wheel ({error})") from None


def environment(out: Path) -> dict[str, str]:
    """Return the environment of the parts: this checkout, then unpacked wheels, then what is installed.

    What `bench kernels` records lies with the rest.
    """
    path = [str(CHECKOUT), str(out / PACKAGES), os.environ.get("PYTHONPATH", "")]
    # One cache for all parts: what the tests have compiled is there for the runs.
    return {
        **compiler_cache(),
        "ROADMAP_KERNELS": str(out / "recorded.json"),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PYTHONUNBUFFERED": "1",  # a log has what was printed by a part that was cut off
        "WANDB_MODE": "disabled",
    }
