"""`dry=true`: what a run would be, without doing anything."""

import yaml

from roadmap.config import Config
from roadmap.net import cost
from roadmap.runs.recorded_config import identity_hash
from roadmap.runs.run_dir import run_path


def describe(config: Config) -> str:
    """Return the resolved config, then the run's directory, cell, identity, parameters and GMACs, a line each."""
    lines = [yaml.safe_dump(config.values(), sort_keys=False, allow_unicode=True)]
    if config.step:
        num_classes = config.data.num_classes or config.data.known.num_classes
        assumed = "" if num_classes else " (assumed; training counts the class folders)"
        num_classes = num_classes or 1000
        net = cost(config.model, num_classes, config.data.image_size)
        lines += [
            f"directory: {run_path(config)}",
            f"cell: {config.cell}",
            f"identity: {identity_hash(config.values())}",
            f"parameters: {net.params_m:.4g} M with {num_classes} classes{assumed}",
            f"GMACs: {net.gmacs:.4g} at {config.data.image_size} x {config.data.image_size} pixels",
            f"activations: {net.macts:.4g} M, outputs of convolutions and matrix products",
        ]
    return "\n".join(lines)
