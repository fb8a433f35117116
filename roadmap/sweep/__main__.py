"""`python -m roadmap.sweep VERB STUDY ... [-- WORDS]`: plan, submit, status, watch, reconcile, cancel, sync. `make` calls it."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Never

from roadmap.errors import DONE, ConfigError, DataError, RoadmapError

if TYPE_CHECKING:  # each verb imports what it needs: status answers in a moment
    from roadmap.sweep.cluster import LocalConfig, SlurmConfig
    from roadmap.sweep.folder import StudyDir
    from roadmap.sweep.study import Cell, Study

Args = argparse.Namespace


class Parser(argparse.ArgumentParser):
    """argparse with the project's exit code for a wrong command."""

    def error(self, message: str) -> Never:
        """Raise ConfigError instead of ending the process with 2."""
        raise ConfigError(f"{message}; see python -m roadmap.sweep --help")


def parse(words: Sequence[str]) -> Args:
    """Read the command line. Raises ConfigError."""
    parser = Parser(
        prog="python -m roadmap.sweep",
        description="Plan, submit and watch studies; overrides for all cells follow a --.",
    )
    parser.add_argument("verb", choices=tuple(VERBS))
    parser.add_argument("studies", nargs="+", metavar="STUDY", help="a name in sweeps/, or FOLDER/NAME.yaml")
    parser.add_argument("--runs", default=os.environ.get("ROADMAP_RUNS", "runs"), help="the runs directory")
    parser.add_argument("--cluster", default="slurm", choices=("slurm", "local"))
    parser.add_argument("--steps", default="", help="only these steps")
    parser.add_argument("--seeds", default="", help="only these seeds")
    parser.add_argument("--json", action="store_true", help="status for scripts")
    parser.add_argument("--every", type=float, default=30.0, metavar="SECONDS", help="how often watch looks")
    mine = list(words)
    cut = mine.index("--") if "--" in mine else len(mine)
    args = parser.parse_args(mine[:cut])
    args.words = mine[cut + 1 :]
    args.studies = [name for word in args.studies for name in word.split()]
    return args


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    try:
        args = parse(sys.argv[1:] if words is None else words)
        return VERBS[args.verb](args)
    except RoadmapError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        return 75


def checked(args: Args) -> "tuple[LocalConfig | SlurmConfig, list[tuple[Study, StudyDir, Sequence[Cell]]]]":
    """Read the cluster's settings and every study, and check every cell. Raises RoadmapError."""
    from roadmap.sweep.cluster import LocalConfig, SlurmConfig, cluster_words, load_cluster
    from roadmap.sweep.folder import StudyDir
    from roadmap.sweep.local import visible_gpus
    from roadmap.sweep.study import narrowed, read_study
    from roadmap.sweep.submit import check_cells, on_gpu

    for_cells, for_cluster = cluster_words(args.words)
    here = args.cluster == "local"
    config = (
        load_cluster(LocalConfig, "local", for_cluster) if here else load_cluster(SlurmConfig, "slurm", for_cluster)
    )
    claims: list[tuple[Study, StudyDir, Sequence[Cell]]] = []
    for name in args.studies:
        study = read_study(name, for_cells, args.runs)
        cells = narrowed(study, split(args.steps), split(args.seeds))
        gpus = on_gpu(cells) and (not here or visible_gpus())
        check_cells(study, cells, ranks=config.per_cell if gpus or not here else 1, mixed=config.mixed_gpus)
        claims.append((study, StudyDir(args.runs, study.name), cells))
    return config, claims


def plan(args: Args) -> int:
    """Print what the studies cost, and queue nothing."""
    from roadmap.sweep import plan as room
    from roadmap.sweep.speed import images_per_s

    config, claims = checked(args)
    gpu_type = getattr(config, "gpu_type", None)
    for study, _, cells in claims:
        room.refuse_unknown_classes(cells)
        hardware = room.this_hardware(cells, gpu_type)
        here = not gpu_type and hardware is not None and not hardware.startswith("CPU")
        rows = room.plan(study, cells, Path(args.runs), hardware, images_per_s if here else lambda _: None)
        print(room.as_text(study, rows, "CPU" if (hardware or "").startswith("CPU") else "GPU"), flush=True)
    return DONE


def submit(args: Args) -> int:
    """Start what is neither done nor at work. Everything is checked before anything is queued."""
    from roadmap.sweep import slurm
    from roadmap.sweep.cluster import LocalConfig
    from roadmap.sweep.local import run_here
    from roadmap.sweep.submit import on_gpu
    from roadmap.sweep.submit import submit as submit_study

    if args.cluster == "slurm":
        slurm.require_slurm()
    config, claims = checked(args)
    if not isinstance(config, LocalConfig):
        slurm.check_gpu_types(config, any(on_gpu(cells) for _, _, cells in claims))
    for study, _, _ in claims:
        for left in study.left_out:
            print(f"{study.name}: left out: {' '.join(left.words)}: {left.reason}", flush=True)
    if isinstance(config, LocalConfig):
        return run_here(claims, config, lambda line: print(line, flush=True))
    for study, directory, cells in claims:
        print(f"{study.name}: {submit_study(study, directory, cells, config)}", flush=True)
        print(f"  make status STUDY={study.name}; the runs are in {directory.path}", flush=True)
    return DONE


def status(args: Args) -> int:
    """Print how the studies stand."""
    import json

    from roadmap.sweep import status as room
    from roadmap.sweep.folder import StudyDir, study_names

    found, missing = [], []
    for directory in (StudyDir(args.runs, name) for name in study_names(args.studies)):
        try:
            found.append((directory, *room.look(directory)))
        except DataError as error:
            missing.append(error)
    if not found:
        raise missing[0]
    for line in missing:
        print(line, file=sys.stderr)
    if args.json:
        values = [room.as_json(*one) for one in found]
        print(json.dumps(values[0] if len(values) == 1 else values, indent=1))
    else:
        print("\n\n".join(room.as_text(*one) for one in found), flush=True)
    return DONE


def watch(args: Args) -> int:
    """Print how the studies stand, again and again."""
    with suppress(KeyboardInterrupt):
        while True:
            print("\033[H\033[2J" if sys.stdout.isatty() else "", end="")
            status(args)
            time.sleep(max(args.every, 1.0))
    return DONE


def reconcile(args: Args) -> int:
    """Restart what died without being asked to."""
    from roadmap.sweep.folder import StudyDir, study_names
    from roadmap.sweep.reconcile import reconcile as again

    for name in study_names(args.studies):
        print(f"{name}: {again(StudyDir(args.runs, name))}", flush=True)
    return DONE


def cancel(args: Args) -> int:
    """Cancel what is queued or at work."""
    from roadmap.sweep.folder import StudyDir, study_names
    from roadmap.sweep.reconcile import cancel as end

    for name in study_names(args.studies):
        print(f"{name}: {end(StudyDir(args.runs, name))} cancelled; make roadmap goes on", flush=True)
    return DONE


def sync(args: Args) -> int:
    """Send to W&B what it lacks."""
    from roadmap.sweep.folder import StudyDir, study_names
    from roadmap.sweep.sync import sync as send

    for name in study_names(args.studies):
        sent = send(StudyDir(args.runs, name), lambda line: print(line, flush=True))
        print(f"{name}: {sent} rows sent", flush=True)
    return DONE


def split(words: str) -> list[str]:
    """Return the names of a list with spaces or commas."""
    return words.replace(",", " ").split()


VERBS: dict[str, Callable[[Args], int]] = {
    "plan": plan,
    "submit": submit,
    "status": status,
    "watch": watch,
    "reconcile": reconcile,
    "cancel": cancel,
    "sync": sync,
}

if __name__ == "__main__":
    sys.exit(main())
