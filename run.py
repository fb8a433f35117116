"""One run of the roadmap: compose the config, check it, do what its `mode` says.  python run.py +step=inverted_bottleneck"""

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra's short errors end the process; `main` says them in plain words
# Two runs on one CPU: OpenMP's threads, waiting busily, starve each other (on 2 cores 570 ms a step instead of 66).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # c10d's warnings say in C++ what our errors say in plain words

import hydra
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from roadmap.config.choices import Mode
from roadmap.config.schema import Config
from roadmap.distributed.rank_env import RankEnv, rank_env
from roadmap.errors import ConfigError, RoadmapError, StoppedEarly
from roadmap.runs.progress import SweepProgress
from roadmap.steps.compose import validate
from roadmap.steps.help import config_dirs, help_text
from roadmap.steps.hydra_errors import HYDRA_ERRORS, plain_error
from roadmap.steps.hydra_guard import check_config_dirs, check_overrides
from roadmap.steps.tree import CONF, step_tree
from roadmap.steps.unused_settings import unused_settings

env = RankEnv()
codes: list[int] = []  # one exit code a run: Hydra drops what a task returns in a sweep
sweep = SweepProgress()


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def task(cfg: DictConfig) -> None:
    """Do one run. In a sweep an error ends this run alone, and a stop ends them all."""
    hydra_config = HydraConfig.get()
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    if in_sweep:
        sweep.position, sweep.total = hydra_config.job.num + 1, cells_of(hydra_config)
    try:
        one_run(cfg, hydra_config)
    except (RoadmapError, *HYDRA_ERRORS) as error:
        codes.append(tell(error))
        sweep.stopped |= isinstance(error, StoppedEarly)
        if env.world_size > 1 and not getattr(error, "on_all_ranks", False):
            leave(
                max(codes)
            )  # the ranks have lost each other: no other run can begin, and waiting for them would take minutes
    if in_sweep and sweep.stopped:
        raise KeyboardInterrupt  # the one thing that ends Hydra's sweep at once


def one_run(cfg: DictConfig, hydra_config: HydraConf) -> None:
    """Do what `mode` says, and print in one line what came out."""
    mode, weights = str(cfg.get("mode")), cfg.get("weights")
    if weights and mode in MODES and mode != Mode.evaluate:
        raise ConfigError(f"weights={weights}: only mode=evaluate takes weights, this is mode={mode}")
    if env.world_size > 1 and mode != Mode.train:
        raise ConfigError(f"mode={mode}: takes one process, {env.launcher} has started {env.world_size}")
    line = MODES.get(mode, train_step)(
        cfg, hydra_config
    )  # a mode that there is not is told with the config's other values
    if env.is_main:
        print(sweep.prefix() + line, flush=True)


def train_step(cfg: DictConfig, hydra_config: HydraConf) -> str:
    """Train one step. The imports wait for the config: torch takes seconds that a wrong one need not wait for."""
    config = step_config(cfg, hydra_config)
    say(f"{config.cell}: starting")
    from roadmap.training.train import result_line, train

    summary = train(config, sweep)
    return result_line(config, summary) if env.is_main else ""


def evaluate_step(cfg: DictConfig, hydra_config: HydraConf) -> str:
    """Score the weights of a file or of a run directory in the net of one step."""
    config = step_config(cfg, hydra_config)
    if not config.weights:
        raise ConfigError("weights=null: mode=evaluate needs weights=FILE, or weights= one of our run directories")
    from roadmap.training.evaluate_weights import evaluate_weights, result_line

    return result_line(config, evaluate_weights(config, sweep))


def check_images(cfg: DictConfig, hydra_config: HydraConf) -> str:
    """Open every image of a set and count; needs no step."""
    config = step_config(cfg, hydra_config)
    from roadmap.data.verify import data_check

    return data_check(config, sweep)


MODES: dict[str, Callable[[DictConfig, HydraConf], str]] = {
    Mode.train: train_step,
    Mode.evaluate: evaluate_step,
    Mode.data_check: check_images,
}


def step_config(cfg: DictConfig, hydra_config: HydraConf) -> Config:
    """Return the validate config of one step, or of none where the mode needs none. Raises ConfigError."""
    folders = [Path(source.path) for source in hydra_config.runtime.config_sources if source.schema == "file"]
    config = validate(cfg, hydra_config, folders)
    for line in unused_settings(config, hydra_config.overrides.task):
        say(f"note: {line}")
    return config


def cells_of(hydra_config: HydraConf) -> int:
    """Return how many runs a sweep has: the product of its lists, those of the command line replacing the file's."""
    words = [f"{key}={value}" for key, value in (hydra_config.sweeper.params or {}).items()]
    words += [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    lists = {
        o.get_key_element(): o
        for o in OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(words)
    }
    return math.prod(sum(1 for _ in o.sweep_iterator()) for o in lists.values() if o.is_sweep_override())


def say(line: str) -> None:
    """Write a line to stderr, with the rank_env in the sweep; of several ranks the first speaks for all."""
    if env.is_main:
        print(sweep.prefix() + line, file=sys.stderr, flush=True)


def tell(error: Exception) -> int:
    """Write an error of the user's to stderr in plain words; return its exit code."""
    if isinstance(error, StoppedEarly):
        say(f"{error}; the same command goes on")
        return error.code
    if isinstance(error, RoadmapError):
        say(f"error: {error}")
        return error.code
    say(f"error: {plain_error(error, config_dirs(sys.argv[1:]))}")
    return 64


def leave(code: int) -> NoReturn:
    """End this process at once, whatever connections are still open."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> int:
    """Run the command line; return the exit code."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text(config_dirs(sys.argv[1:])))
        return 0
    global env
    try:
        env = rank_env()
        check_overrides(sys.argv[1:])
        check_config_dirs(config_dirs(sys.argv[1:]), CONF)
        step_tree(config_dirs(sys.argv[1:]))
        with (
            TemporaryDirectory() as scratch
        ):  # for what Hydra writes at the start of a sweep, before anything is validate
            os.environ["ROADMAP_SCRATCH"] = scratch
            task()
    except (RoadmapError, *HYDRA_ERRORS) as error:
        return tell(error)
    except KeyboardInterrupt:
        return StoppedEarly.code if sweep.stopped else tell(StoppedEarly("interrupted"))
    except SystemExit as error:  # argparse's 2 for a word it does not know
        return 64 if error.code == 2 else int(error.code or 0)
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
