"""One run of the roadmap, `python run.py +step=NAME`: compose the config, check it, do what its `mode` says."""

import atexit
import gc
import os
import sys
from collections.abc import Callable
from functools import cache

from roadmap.distributed.cores import limit_threads
from roadmap.distributed.rank_env import RankEnv, is_first
from roadmap.distributed.signals import ignore_stops, leave_at_once

if __name__ == "__main__":  # the imports below take seconds: whoever stops the run meanwhile is answered
    leave_at_once(silent=not is_first())
    atexit.register(ignore_stops)
    limit_threads()

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra's short errors end the process; ours are in plain words
# Two runs on one CPU: OpenMP's threads, waiting busily, starve each other (on 2 cores 570 ms a step instead of 66).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # c10d's warnings say in C++ what our errors say in plain words

from roadmap.config import Config
from roadmap.config.choices import Mode
from roadmap.errors import ConfigError
from roadmap.runs.progress import SweepProgress
from roadmap.runs.result import load_result, result_line
from roadmap.runs.run_dir import RunDir, run_path
from roadmap.steps.command_line import CommandLine

# The imports below wait for the config: torch takes seconds that a wrong one need not wait for.


@cache
def import_torch() -> None:
    """Import torch, and never look for garbage among its 270,000 objects: that is a tenth of a run's start, and 0.2 s
    now and then while it trains."""
    gc.disable()
    import torch  # noqa: F401

    gc.freeze()
    gc.enable()


def train(config: Config, sweep: SweepProgress, env: RankEnv) -> str:
    """Train one step, or go on where an earlier start ended."""
    run = RunDir(run_path(config))
    if env.world_size == 1 and not config.fresh and run.is_done(config.values()):  # several ranks agree on it later
        sweep.write("; ".join([f"{config.cell}: already finished", *run.notes]))
        return result_line(config, load_result(run.path))
    if env.is_main:
        sweep.write(f"{config.cell}: starting")
        if not config.fresh:
            run.count_start(config.values())
    import_torch()
    from roadmap.training.train import train

    summary = train(config, sweep)
    return result_line(config, summary) if env.is_main else ""


def evaluate(config: Config, sweep: SweepProgress, env: RankEnv) -> str:
    """Score the weights of a file or of a run directory in the net of one step."""
    from roadmap.training import evaluation

    return evaluation.result_line(config, evaluation.evaluate_weights(config, sweep))


def predict(config: Config, sweep: SweepProgress, env: RankEnv) -> str:
    """Name the likeliest classes of images."""
    from roadmap.training.output_file import predictions_files

    predictions_files(config)  # before torch is imported, which takes seconds
    from roadmap.training.predict import predict

    return predict(config, sweep)


def export(config: Config, sweep: SweepProgress, env: RankEnv) -> str:
    """Write a net for other programs."""
    from roadmap.training.output_file import exported_file

    exported_file(config)  # before torch is imported, which takes seconds
    from roadmap.training.export import export

    return export(config, sweep)


def check_data(config: Config, sweep: SweepProgress, env: RankEnv) -> str:
    """Open every image of a set and count; needs no step."""
    from roadmap.data.verify import data_check

    return data_check(config, sweep)


def describe(config: Config, sweep: SweepProgress, env: RankEnv) -> str:
    """Print what the run would be (`dry=true`), and do nothing."""
    from roadmap.steps.dry_run import describe

    return describe(config)


MODES: dict[str, Callable[[Config, SweepProgress, RankEnv], str]] = {
    Mode.train: train,
    Mode.evaluate: evaluate,
    Mode.predict: predict,
    Mode.export: export,
    Mode.data_check: check_data,
}


def run(config: Config, sweep: SweepProgress, env: RankEnv) -> str:
    """Do what `mode` says; return the line in which the run ends. Raises RoadmapError."""
    if env.world_size > 1 and config.mode != Mode.train:
        raise ConfigError(f"mode={config.mode}: takes one process, {env.launcher} has started {env.world_size}")
    return (describe if config.dry else MODES[config.mode])(config, sweep, env)


def main() -> int:
    """Run the command line; return the exit code."""
    code = CommandLine(run, sys.argv[1:]).main()
    leave_at_once(code, silent=True)  # all is done: a late signal changes no code
    return code


if __name__ == "__main__":
    sys.exit(main())
