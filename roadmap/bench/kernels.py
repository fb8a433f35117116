"""`python -m roadmap.bench kernels`: every form of every operation that the nets of a regime have, one at a time.

An operation is timed at each shape that a row of the regime has it at, beside what moving its maps and its arithmetic
take at least on this device. Forms that sum otherwise are compared with float64 first. With `--record` the forms that
won are written to the file that `kernels=auto` reads (roadmap/net/kernels/measured.py): a run on this GPU and this
torch then takes them. Shapes for which there is no time keep their earlier records.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch

from roadmap.bench.bound import DTYPES, Rates, measured_rates
from roadmap.bench.measure import free_memory, seconds
from roadmap.bench.operations import (
    CHECKED,
    OpShape,
    compile_form,
    forms_at,
    operation_at,
    relative_errors,
    shapes_of,
)
from roadmap.bench.options import above_zero, names, plain_parser
from roadmap.bench.results import Results
from roadmap.bench.rows import add_batch, add_rows, choose_setting, row_configs
from roadmap.config.choices import Precision
from roadmap.distributed.cores import num_cores
from roadmap.errors import ConfigError
from roadmap.net.kernels import FORMS, base
from roadmap.net.kernels.measured import Row, Table, best_form, origin_here, record, user_file
from roadmap.text import one_line

MOST_WORKERS = 12  # processes that compile tiles ahead
FEW = 2  # tiles that are tried at an operation's later shapes
OURS = ("triton", "columns")  # forms that are compiled
GPU_CALLS, CPU_CALLS = 20, 9  # of a form
FLUSH_BYTES = 2**28  # more than any cache holds
WORSE = 1.5  # times torch's own error, beyond which a form does not count
NO_TIME = "no time was left"


class Measured(NamedTuple):
    """A form's median milliseconds and relative error, or why it failed."""

    ms: float | None
    error: float | None
    failed: str | None = None


def main(argv: Sequence[str]) -> int:
    """Measure the operations that are asked for; print a line for each shape. Returns an exit code."""
    options = plain_parser("kernels", __doc__)
    add_rows(options)
    add_batch(options)
    options.add_argument("--operations", type=names(FORMS), metavar="NAME,NAME", help=f"of {', '.join(FORMS)}")
    options.add_argument("--minutes", type=above_zero, default=10.0, help="that it takes at most; default: %(default)s")
    options.add_argument("--record", action="store_true", help=f"write what won to {user_file() or 'ROADMAP_KERNELS'}")
    ahead = "compile what kernels=auto takes, or every form of --operations"
    options.add_argument("--compile-only", action="store_true", help=ahead)
    args = options.parse_args(argv)
    end = time.monotonic() + 60 * args.minutes
    if args.record and user_file() is None:
        why = "ROADMAP_KERNELS= is empty, or there is no home folder"
        raise ConfigError(f"--record: there is no file to record in: {why}; ROADMAP_KERNELS=FILE names one")
    configs = row_configs(args)
    setting = choose_setting(args, configs)
    device, batch, size, precision = setting.device, setting.batch, setting.image_size, setting.precision
    shapes = [s for s in shapes_of(configs.values(), size) if s.operation in (args.operations or FORMS)]
    if not shapes:
        raise ConfigError(f"none of these rows has one of: {', '.join(args.operations or FORMS)}")
    if args.compile_only:
        if args.operations:
            forms = [(shape, form) for shape in shapes for form in forms_at(shape, device)]
        else:
            forms = taken_by_auto(shapes, device)
        with compilers(device, urgent=False) as pool:
            number = compile_ahead(pool, forms, DTYPES[precision], end)
        print(f"{number} forms are compiled")
        return 0
    results = Results("kernels", argv, device, args, batch=batch, image_size=size, precision=str(precision))
    rates = measured_rates(device, precision), measured_rates(device, Precision.fp32)
    results.note(
        "rates",
        [rate._asdict() for rate in rates],
        f"the device: {rates[0].flop_per_s / 1e12:.3g} TFLOP/s ({precision}), "
        f"{rates[1].flop_per_s / 1e12:.3g} (fp32), {rates[0].bytes_per_s / 1e9:.4g} GB/s",
    )
    rows = measure_all(shapes, device, DTYPES[precision], batch, rates, end, results)
    left = len(shapes) - len(rows)
    if left:
        print(f"no time for {left} of {len(shapes)} shapes; --minutes gives more")
    if args.record and rows:
        calls = GPU_CALLS if device.type == "cuda" else CPU_CALLS
        about = f"batch {batch}, {precision}, channels-last, median of {calls} calls"
        name, hardware, version = origin_here(device)
        table = Table(device=name, hardware=hardware, torch=version, about=about, rows=rows)
        print(f"{len(rows)} shapes recorded in {record(table)}")
    return 0


def measure_all(
    shapes: Sequence[OpShape],
    device: torch.device,
    kind: torch.dtype,
    batch: int,
    rates: tuple[Rates, Rates],
    end: float,
    results: Results,
) -> list[Row]:
    """Measure shape by shape until `end`, a time of `time.monotonic`; return the best form of each."""
    rows: list[Row] = []
    firsts: dict[tuple[object, ...], OpShape] = {}
    for shape in shapes:
        firsts.setdefault(shape.family, shape)
    fastest: dict[tuple[object, ...], list[str]] = {}  # of an operation's tiles, at its first shape
    others = [shape for shape in shapes if firsts[shape.family] != shape]
    with compilers(device) as pool:
        for part, most in ((list(firsts.values()), None), (others, FEW)):
            tried = {shape: chosen_forms(shape, device, most, fastest) for shape in part}
            ahead = [(shape, form) for shape, forms in tried.items() for form in forms]
            compile_ahead(pool, ahead, kind, (time.monotonic() + end) / 2)
            for shape, forms in tried.items():
                if time.monotonic() > end:
                    break
                found = measure_shape(shape, forms, device, kind, batch, end)
                fastest.setdefault(shape.family, sorted(found, key=lambda form: found[form].ms or math.inf))
                bounds = {name: 1e3 * s for name, s in bounds_s(shape, kind, batch, rates).items()}
                if row := best_row(shape, found, bounds):
                    rows.append(row)
                measured = {form: outcome._asdict() for form, outcome in found.items()}
                results.rows.append(shape._asdict() | {"forms": measured, "bounds_ms": bounds})
                results.note("shapes", len(results.rows), described(shape, found, bounds))
                free_memory(device)
    return rows


def chosen_forms(
    shape: OpShape, device: torch.device, most: int | None, fastest: Mapping[tuple[object, ...], Sequence[str]]
) -> list[str]:
    """Return the forms to try at a shape: all, or of each kind the `most` that were fastest before."""
    forms = list(forms_at(shape, device))
    if most is None:
        return forms
    order = [form for form in fastest.get(shape.family, forms) if form in forms]
    kinds = dict.fromkeys(base(form) for form in forms)
    return [form for kind in kinds for form in [f for f in order if base(f) == kind][:most]]


def taken_by_auto(shapes: Sequence[OpShape], device: torch.device) -> list[tuple[OpShape, str]]:
    """Return shapes as they are computed, and their forms with `kernels=auto`."""
    return [(s.cut, best_form(s.spec(device))) for s in shapes if s.kernel is None or s.height > 1]


@contextmanager
def compilers(device: torch.device, *, urgent: bool = True) -> Iterator[ProcessPoolExecutor | None]:
    """Give processes that compile for a GPU side by side; they import torch once, together. None without a GPU."""
    if device.type != "cuda":
        yield None
        return
    most, nice = (MOST_WORKERS, 0) if urgent else (MOST_WORKERS // 2, 10)
    workers = max(1, min(most, num_cores() - 1))
    context = get_context("forkserver")
    context.set_forkserver_preload([compile_form.__module__])
    pool = ProcessPoolExecutor(workers, context, initializer=os.nice, initargs=(nice,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def compile_ahead(
    pool: ProcessPoolExecutor | None, forms: Sequence[tuple[OpShape, str]], kind: torch.dtype, end: float
) -> int:
    """Compile forms of ours in processes side by side, until `end`; return how many. Triton keeps them on disk."""
    jobs = {(shape[:4], form): shape for shape, form in forms if base(form) in OURS}
    if pool is None or not jobs:
        return 0
    started = []
    with suppress(BrokenExecutor):  # a compiler has crashed: the rest is compiled where it is measured
        for (_, form), shape in jobs.items():
            started.append(pool.submit(compile_form, shape, form, kind))
    done, late = wait(started, timeout=max(0.0, end - time.monotonic()))
    wait([job for job in late if not job.cancel()])  # what still compiles would spoil what is measured next
    return len(done)


def measure_shape(
    shape: OpShape, forms: Sequence[str], device: torch.device, kind: torch.dtype, batch: int, end: float
) -> dict[str, Measured]:
    """Check and time some forms of an operation at a shape, until `end`."""
    error_of, many = errors_at(shape, device, kind), operation_at(shape, batch, kind, device)

    def measure(form: str) -> Measured:
        if time.monotonic() > end:
            return Measured(None, None, NO_TIME)
        try:
            return Measured(error=error_of(form), ms=median_ms(partial(many, form), device))
        except Exception as problem:  # whatever a compiler raises: the others go on, and the reason is shown
            return Measured(None, None, f"{type(problem).__name__}: {one_line(problem)}")

    return {form: measure(form) for form in forms}


def errors_at(shape: OpShape, device: torch.device, kind: torch.dtype) -> Callable[[str], float]:
    """Return a function that computes an operation on a few images in a form, and returns its error.

    That is the largest relative error of all results, against float64.
    """
    exact = operation_at(shape, CHECKED, kind, device, exact=True)("plain")
    few = operation_at(shape, CHECKED, kind, device)
    return lambda form: relative_errors(few(form), exact)


def median_ms(call: Callable[[], object], device: torch.device) -> float:
    """Return the milliseconds of a call, median; on a GPU as a graph and with cold caches, as in a long step."""
    for _ in range(3):
        call()
    if device.type != "cuda":
        return 1e3 * float(np.median([seconds(device, call) for _ in range(CPU_CALLS)]))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(GPU_CALLS)]
    for start, stop in events:
        flush.zero_()
        start.record()
        graph.replay()
        stop.record()
    torch.cuda.synchronize(device)
    return float(np.median([start.elapsed_time(stop) for start, stop in events]))


def best_row(shape: OpShape, found: Mapping[str, Measured], bounds: Mapping[str, float]) -> Row | None:
    """Return the row to record for a shape: the fastest form that is about as exact as torch's own.

    None where torch's own has failed, or not every form was measured.
    """
    plain = found["plain"]
    if plain.ms is None or plain.error is None or any(m.failed == NO_TIME for m in found.values()):
        return None
    allowed = WORSE * plain.error + 1e-6
    ms = {form: m.ms for form, m in found.items() if m.ms is not None and (m.error or 0.0) <= allowed}
    best = min(ms, key=lambda form: ms[form])
    shown = ms | {f"{name} bound": bound for name, bound in bounds.items()}
    rounded = {name: round(value, 4) for name, value in shown.items()}
    return Row(
        operation=shape.operation, kernel=shape.kernel, stride=shape.stride, channels=shape.channels,
        height=shape.height, form=best, gain=round(plain.ms / ms[best], 3), ms=rounded,
    )  # fmt: skip


def bounds_s(shape: OpShape, kind: torch.dtype, batch: int, rates: tuple[Rates, Rates]) -> dict[str, float]:
    """Return the least seconds for moving an operation's values, and for its arithmetic."""
    # Of matrix units, and of the multiply-adds in fp32 that depthwise convolutions are made of.
    products, scalars = rates
    rate = products if shape.has_products else scalars
    moved = shape.moved(batch) * kind.itemsize
    return {"memory": moved / products.bytes_per_s, "arithmetic": shape.flop(batch) / rate.flop_per_s}


def described(shape: OpShape, found: Mapping[str, Measured], bounds: Mapping[str, float]) -> str:
    """Return a line about a shape: its forms, fastest first, with milliseconds."""
    size = f" {shape.kernel}x{shape.kernel}/{shape.stride}" if shape.kernel else ""
    order = sorted(found.items(), key=lambda item: item[1].ms if item[1].ms is not None else float("inf"))
    texts = {form: f"failed ({(m.failed or '')[:80]})" if m.ms is None else f"{m.ms:.3f}" for form, m in order}
    forms = [f"{form} {text}" for form, text in texts.items()]
    least = ", ".join(f"{name} {ms:.3f}" for name, ms in bounds.items() if ms)
    where = f"{shape.operation}{size}, {shape.channels} channels, {shape.height}x{shape.height}"
    return f"{where}: {', '.join(forms)} ms; bounds: {least}"
