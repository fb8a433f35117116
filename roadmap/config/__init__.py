"""The schema of a run."""

from roadmap.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    NetConfig,
    PathsConfig,
    RecipeConfig,
    RegimeConfig,
    WandbConfig,
    resolved,
)

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "NetConfig",
    "PathsConfig",
    "RecipeConfig",
    "RegimeConfig",
    "WandbConfig",
    "resolved",
]
