"""Which rank of how many this process is, by what started it. Imports no torch, so that `run.py` can ask at once."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from roadmap.errors import ConfigError

# Slurm numbers batch scripts and interactive shells from here on: no job step of several tasks.
SPECIAL_STEPS = 2**32 - 16


class Launcher(StrEnum):
    """What started this process."""

    user = "user"  # a plain command: it may start ranks itself
    launch = "launch"  # `roadmap.distributed.launch`
    torchrun = "torchrun"
    slurm = "slurm"  # one task a GPU


@dataclass(frozen=True)
class RankEnv:
    """Which rank of how many a process is."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # among those of its node
    launcher: Launcher = Launcher.user

    @property
    def is_main(self) -> bool:
        """Tell whether this is the rank that writes."""
        return self.rank == 0


def rank_env(env: Mapping[str, str] = os.environ) -> RankEnv:
    """Return rank and world size of this process, from the variables of torchrun or of a Slurm job step.

    `SLURM_PROCID` alone means nothing: an interactive shell has it, too. Raises ConfigError.
    """
    try:
        if {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= env.keys():
            rank, world_size = int(env["RANK"]), int(env["WORLD_SIZE"])
            if not 0 <= rank < world_size:  # left over in a shell
                raise ConfigError(f"RANK={rank}, WORLD_SIZE={world_size}: a rank is from 0 to WORLD_SIZE - 1")
            return RankEnv(rank, world_size, int(env["LOCAL_RANK"]), Launcher.torchrun)
        tasks, step = int(env.get("SLURM_STEP_NUM_TASKS", 1)), int(env.get("SLURM_STEP_ID", SPECIAL_STEPS))
        if tasks > 1 and step < SPECIAL_STEPS and "SLURM_PROCID" in env:
            return RankEnv(int(env["SLURM_PROCID"]), tasks, int(env.get("SLURM_LOCALID", 0)), Launcher.slurm)
    except ValueError as error:
        raise ConfigError(f"RANK, WORLD_SIZE, LOCAL_RANK or Slurm's SLURM_*: not a whole number ({error})") from None
    return RankEnv()


def is_first() -> bool:
    """Tell whether this process speaks for the run: no other rank does."""
    try:
        return rank_env().is_main
    except ConfigError:
        return True
