"""What training starts from where `weights` says so, instead of from drawn numbers."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from roadmap.config import Config
from roadmap.errors import DataError
from roadmap.net import build_net, load_weights
from roadmap.runs.checkpoint_files import list_checkpoints
from roadmap.runs.progress import SweepProgress
from roadmap.runs.schema import CHECKPOINTS
from roadmap.runs.weights_source import name_initial_weights
from roadmap.training.saved_weights import Weights, errors_of_weights, read_weights


@dataclass(frozen=True)
class InitialWeights:
    """The state of a net by its own keys, but for the head where that is initialised anew; and a line that says so."""

    tensors: dict[str, torch.Tensor]
    note: str

    def load(self, net: nn.Module) -> None:
        """Load them into a net just built: what is not among them stays as it was drawn."""
        net.load_state_dict(net.state_dict() | self.tensors)


def read_initial_weights(
    config: Config, classes: tuple[str, ...], run: Path, sweep: SweepProgress
) -> InitialWeights | None:
    """Read what a run starts from; None where it starts from drawn numbers, or goes on from a checkpoint.

    Every tensor of the net is there and nothing else, or it is a DataError that names the first key; the head alone is
    left out, where it is for other classes. Raises DataError too where the weights are not those of the run's identity.
    """
    if not config.initial_weights or (not config.fresh and list_checkpoints(run / CHECKPOINTS)):
        return None
    now = name_initial_weights(str(config.weights), config.weights_key)
    if now != config.initial_weights:
        raise DataError(f"weights={config.weights}: are {now}, and the run is one from {config.initial_weights}")
    with errors_of_weights(config):
        weights = read_weights(config, sweep, any_net=True)
        why = why_new_head(weights, classes)
        net = build_net(config.model, len(classes))
        tensors, own = dict(weights.tensors), net.state_dict()
        heads = ("head.weight", "head.bias") if why else ()
        for key in heads:
            tensors[key.replace("head", weights.head)] = own[key]
        load_weights(net, tensors)
    state = {key: value for key, value in net.state_dict().items() if key not in heads}
    return InitialWeights(state, f"starts from weights={config.weights}: {weights.origin}{why}")


def why_new_head(weights: Weights, classes: tuple[str, ...]) -> str:
    """Return, to be added to a line, why the last layer is initialised anew; nothing where the classes are the same."""
    if weights.num_classes != len(classes):
        return f"; the head is initialised anew, for {len(classes)} classes instead of {weights.num_classes}"
    if other := weights.other_class(classes):
        return f"; the head is initialised anew, for other classes ({other}, the first)"
    return ""
