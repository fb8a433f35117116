"""The command line of `run.py`: what may be typed, Hydra around each run, plain error messages and exit codes."""

import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import hydra
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from roadmap.config import Config
from roadmap.distributed.rank_env import RankEnv, rank_env
from roadmap.errors import RoadmapError, StoppedEarly
from roadmap.files import deny_others
from roadmap.runs.progress import SweepProgress
from roadmap.runs.weights_source import library_weights
from roadmap.steps import completion
from roadmap.steps.compose import accept_lazy_help, validate
from roadmap.steps.config_files import check_config_dirs
from roadmap.steps.help import config_dirs, help_text, short_help
from roadmap.steps.hydra_errors import HYDRA_ERRORS, of_defaults, plain_error
from roadmap.steps.hydra_guard import check_options, check_overrides
from roadmap.steps.tree import CONF, step_tree
from roadmap.steps.unused_settings import recipe_without_lengths, unused_settings, variant_without_effect
from roadmap.text import machine_error, printable_lines, redact_output

# Does one run, and returns a line about its outcome.
Run = Callable[[Config, SweepProgress, RankEnv], str]


def plain_kind(error: Exception) -> Exception | None:
    """Return an error that `report` says in plain words: ours, Hydra's or this machine's; None for any other."""
    if isinstance(error, RecursionError) and not of_defaults(error):
        return None
    return error if isinstance(error, (RoadmapError, *HYDRA_ERRORS)) else machine_error(error)


class CommandLine:
    """One command: a run, or a sweep of several. `main` returns its exit code."""

    def __init__(self, run: Run, argv: Sequence[str]) -> None:
        self.run, self.argv = run, list(argv)
        self.env, self.sweep = RankEnv(), SweepProgress()
        self.folders, self.overrides = [CONF], list[str]()
        self.codes: list[int] = []  # one per run: Hydra drops what a task returns in a sweep

    def main(self) -> int:
        """Check what was typed, then let Hydra call `task` for every run."""
        redact_output()
        deny_others()
        if not self.argv:
            print(short_help(), file=sys.stderr)
            return 64
        try:
            if {"--help", "-h"} & set(self.argv):
                options, words = check_options(self.argv)
                print(help_text(config_dirs(options), words))
                return 0
            if self.argv[0] in completion.OPTIONS:
                completion.complete(self.argv[1:])
                return 0
            self.env = rank_env()
            options, self.overrides = check_options(self.argv)
            sys.argv[1:] = [*options, *self.overrides]  # argparse accepts no option between two overrides
            self.folders = config_dirs(options)
            check_overrides(self.overrides, self.folders)
            check_config_dirs(self.folders, CONF)
            step_tree(self.folders)
            with TemporaryDirectory() as scratch:  # for what Hydra writes at a sweep's start, before any check
                os.environ["ROADMAP_SCRATCH"] = scratch
                accept_lazy_help()
                hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(self.task)()
        except BrokenPipeError:  # the reader of the help has left
            return 0
        except Exception as error:
            if (plain := plain_kind(error)) is None:
                raise
            return self.report(plain)
        except KeyboardInterrupt:
            return StoppedEarly.code if self.sweep.stopped else self.report(StoppedEarly("interrupted"))
        except SystemExit as error:  # argparse's 2 for what it does not know
            return 64 if error.code == 2 else int(error.code or 0)
        return max(self.codes, default=0)

    def task(self, cfg: DictConfig) -> None:
        """Do one run. In a sweep an error ends only this run, and a stop ends all."""
        hydra_config = HydraConfig.get()
        in_sweep = hydra_config.mode == RunMode.MULTIRUN
        if in_sweep:
            self.sweep.position, self.sweep.total = hydra_config.job.num + 1, self.num_runs(hydra_config)
        try:
            line = self.run(self.validated(cfg, hydra_config), self.sweep, self.env)
            if self.env.is_main:
                self.sweep.print(line)
        except Exception as found:
            if (error := plain_kind(found)) is None:
                raise
            self.codes.append(self.report(error))
            self.sweep.stopped |= isinstance(error, StoppedEarly)
            if self.env.world_size > 1 and not getattr(error, "on_all_ranks", False):
                # The ranks have lost each other: no other run can begin, and waiting for them would take minutes.
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(max(self.codes))
        if in_sweep and self.sweep.stopped:
            raise KeyboardInterrupt  # the one thing that ends Hydra's sweep at once

    def validated(self, cfg: DictConfig, hydra_config: HydraConf) -> Config:
        """Return the checked config of a run, and report settings without effect. Raises ConfigError."""
        folders = [Path(source.path) for source in hydra_config.runtime.config_sources if source.schema == "file"]
        if (library := library_weights(cfg.get("weights") and str(cfg.weights))) and library.tag is None:
            from roadmap.net.library_weights import default_tag  # which loads the library

            cfg.weights = f"{library}.{default_tag(library.library, library.net)}"
        config = validate(cfg, hydra_config, folders)
        config.check_mode()
        notes = [*unused_settings(config, hydra_config.overrides.task), *variant_without_effect(config, hydra_config)]
        for line in (*notes, *recipe_without_lengths(config, hydra_config.runtime.choices, folders)):
            self.write(f"note: {line}")
        return config

    def num_runs(self, hydra_config: HydraConf) -> int:
        """Return how many runs a sweep has: the product of its lists, those of the command line replacing the
        file's."""
        overrides = [f"{key}={value}" for key, value in (hydra_config.sweeper.params or {}).items()]
        overrides += [word for word in self.overrides if "=" in word]
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        lists = {override.get_key_element(): override for override in parser.parse_overrides(overrides)}
        return math.prod(sum(1 for _ in o.sweep_iterator()) for o in lists.values() if o.is_sweep_override())

    def report(self, error: Exception) -> int:
        """Write an error to stderr in plain words; return its exit code."""
        if isinstance(error, StoppedEarly):
            self.write(f"{error}; run the same command again to continue")
        elif isinstance(error, RoadmapError):
            self.write(f"error: {error}")
        else:
            self.write(f"error: {plain_error(error, self.folders)}")
        return error.code if isinstance(error, RoadmapError) else 64

    def write(self, line: str) -> None:
        """Write a line to stderr; of several ranks the first speaks for all."""
        if self.env.is_main:
            print(printable_lines(self.sweep.prefix() + line), file=sys.stderr, flush=True)
