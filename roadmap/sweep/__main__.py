"""`python -m roadmap.sweep VERB STUDY ... [-- OVERRIDES]`: from plan to prune, what is done with studies."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from roadmap.errors import DONE, ConfigError, DataError, NonFiniteError
from roadmap.files import deny_others
from roadmap.runs.provenance import git_problem
from roadmap.sweep import launchers
from roadmap.sweep.study_dir import StudyDir, study_names
from roadmap.text import ArgumentParser, command_line, printable_lines

if TYPE_CHECKING:  # each verb imports what it needs: status answers in a moment
    from roadmap.sweep.cluster import ClusterConfig
    from roadmap.sweep.submit import Selection

Args = argparse.Namespace


def echo(line: str) -> None:
    """Print a line, or a table."""
    print(printable_lines(line), flush=True)


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    deny_others()
    args = parse_args(sys.argv[1:] if argv is None else argv)
    return VERBS[args.verb](args)


def parse_args(argv: Sequence[str]) -> Args:
    """Read the command line. Raises ConfigError."""
    verbs = [f"  {name:11}{str(function.__doc__).splitlines()[0]}" for name, function in VERBS.items()]
    parser = ArgumentParser(
        prog="python -m roadmap.sweep",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="\n".join(["Plan, submit and watch studies:", "", *verbs]),
        epilog="Overrides for all cells follow after --: submit demo --cluster local -- recipe.epochs=5.",
    )
    parser.add_argument("verb", choices=tuple(VERBS), help="what to do, see above")
    parser.add_argument("studies", nargs="+", metavar="STUDY", help="a name in sweeps/, or FOLDER/NAME.yaml")
    parser.add_argument(
        "--runs",
        default=os.environ.get("ROADMAP_RUNS", "runs"),
        help="the directory of all runs (default: ROADMAP_RUNS, or runs)",
    )
    parser.add_argument("--cluster", default="slurm", choices=launchers.names(), help="default: %(default)s")
    parser.add_argument("--steps", default="", help="only these steps, 'resnet gelu'")
    parser.add_argument("--seeds", default="", help="only these seeds, '0 1'")
    parser.add_argument("--json", action="store_true", help="print status as JSON")
    parser.add_argument("--yes", action="store_true", help="prune without asking")
    parser.add_argument("--gone", metavar="HOST", help="cancel: this machine is gone, and its processes with it")
    parser.add_argument("--every", type=float, default=30.0, metavar="SECONDS", help="interval of watch")
    own = list(argv)
    end = own.index("--") if "--" in own else len(own)
    for before, word in pairwise(["", *own[:end]]):
        if "=" in word and not word.endswith(".yaml") and not word.startswith("-") and not before.startswith("--"):
            raise ConfigError(f"{word}: is no study; overrides for all cells follow after --: -- {word}")
    args = parser.parse_args(own[:end])
    args.overrides = own[end + 1 :]
    args.studies = [name for word in args.studies for name in word.split()]
    return args


def plan(args: Args) -> int:
    """Print what the studies cost, and queue nothing."""
    from roadmap.sweep import plan as costs
    from roadmap.sweep.plan import read_bench

    config, selections = select(args)
    bench = read_bench(config.bench)
    for study, _, cells in selections:
        hardware = costs.this_hardware(cells, getattr(config, "gpu_type", None), here=args.cluster == "local")
        rows = costs.plan(cells, Path(args.runs), hardware, config.images_per_s, bench)
        echo(costs.as_text(study, rows, "CPU" if (hardware or "").startswith("CPU") else "GPU"))
    return DONE


def submit(args: Args) -> int:
    """Start what is neither done nor at work. Everything is checked before anything is queued.

    Where the cells were run right here and more of a study are known by now, these too.
    """
    from roadmap.sweep.submit import only_results

    launcher = launchers.find(args.cluster)
    launcher.require()
    config, selections = select(args)
    if problem := git_problem():
        echo(problem)
    for study, _, _ in selections:
        for left in study.left_out:
            echo(f"{study.name}: left out: {' '.join(left.overrides)}: {left.reason}")
    code, begun = DONE, set[str]()
    while True:
        for study, _, _ in selections:
            for line in study.generator.news():
                echo(f"{study.name}: {line}")
        code = max(code, int(launcher.launch(selections, config, echo)))
        begun |= cell_names(selections)
        if not any(study.generator.is_staged for study, _, _ in selections):
            return code
        config, selections = select(args)
        if cell_names(selections) <= begun:
            return DONE if code == NonFiniteError.code and all(map(only_results, selections)) else code


def cell_names(selections: "list[Selection]") -> set[str]:
    """Return the cells of some studies."""
    return {f"{study.name}/{cell.key}" for study, _, cells in selections for cell in cells}


def select(args: Args) -> "tuple[ClusterConfig, list[Selection]]":
    """Read the launcher's settings and every study, and check the cells that are asked for. Raises RoadmapError."""
    from roadmap.steps.tree import CONF, step_tree
    from roadmap.sweep.cluster import is_cluster_key, load_cluster
    from roadmap.sweep.study import read_study, select_cells
    from roadmap.sweep.submit import Selection, check_cells, check_images_folder

    launcher = launchers.find(args.cluster)
    config = load_cluster(launcher.Config, args.cluster, args.overrides)
    overrides = [word for word in args.overrides if not is_cluster_key(word)]
    steps, seeds = (text.replace(",", " ").split() for text in (args.steps, args.seeds))
    selections = []
    for name in args.studies:
        study = read_study(name, overrides, args.runs, check_images_folder)
        cells = select_cells(study, steps, seeds)
        rows = [*step_tree([study.file.parent, CONF]), *(cell.config.cell for cell in study.cells)]
        config.check_rows(dict.fromkeys(rows))
        check_cells(study, cells, ranks=launcher.ranks(cells, config), mixed=config.mixed_gpus)
        selections.append(Selection(study, StudyDir(args.runs, study.name), cells))
    return config, selections


def status(args: Args) -> int:
    """Print how the studies stand."""
    from roadmap.sweep import status as views
    from roadmap.sweep.cell_states import cell_states

    found, missing = [], []
    for study in directories(args):
        try:
            found.append((study, *cell_states(study)))
        except DataError as error:
            missing.append(error)
    if not found:
        raise missing[0]
    for line in missing:
        print(line, file=sys.stderr)
    if args.json:
        values = [views.as_json(*one) for one in found]
        print(json.dumps(values[0] if len(values) == 1 else values, indent=1))
    else:
        echo("\n\n".join(views.as_text(*one) for one in found))
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
    from roadmap.sweep import jobs

    return for_each(args, jobs.reconcile)


def cancel(args: Args) -> int:
    """Cancel what is queued or at work."""
    from roadmap.sweep import jobs

    return for_each(args, lambda study: jobs.cancel(study, args.gone))


def sync(args: Args) -> int:
    """Send to W&B what it lacks."""
    from roadmap.sweep.sync import sync as sync_study

    return for_each(args, lambda study: f"{sync_study(study, echo)} rows sent")


def prune(args: Args) -> int:
    """Show which checkpoints finished runs no longer need, ask, and remove them."""
    from roadmap.sweep import prune as disk

    found = [surplus for study in directories(args) for surplus in disk.find_surplus(study, echo)]
    echo(disk.as_text(found))
    if not found:
        return DONE
    if not args.yes:
        print("Remove them? [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            echo("nothing was removed; YES=1 (--yes) removes without asking")
            return DONE
    echo(disk.prune(found, echo))
    return DONE


def for_each(args: Args, act: Callable[[StudyDir], object]) -> int:
    """Do something with every study, and print what came of it."""
    for study in directories(args):
        echo(f"{study.name}: {act(study)}")
    return DONE


def directories(args: Args) -> list[StudyDir]:
    """Return the directories of the studies. Raises ConfigError for a wrong name."""
    return [StudyDir(args.runs, name) for name in study_names(args.studies)]


VERBS: dict[str, Callable[[Args], int]] = {
    function.__name__: function for function in (plan, submit, status, watch, reconcile, cancel, sync, prune)
}

if __name__ == "__main__":
    sys.exit(main())
