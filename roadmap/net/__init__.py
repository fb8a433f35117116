"""The net: one block, a few toggles. Takes a `NetConfig`; knows nothing of Hydra, data or training."""

from roadmap.net.kernels import use_kernels
from roadmap.net.macs import Cost, cost, count_params, describe
from roadmap.net.net import Net, build_net
from roadmap.net.weights import export_weights, load_weights

__all__ = [
    "Cost", "Net", "build_net", "cost", "count_params", "describe", "export_weights", "load_weights", "use_kernels",
]  # fmt: skip
