"""The moving average of a net's weights and buffers, through torch's `AveragedModel`.

As in the authors' code it starts from the first weights and covers the buffers. Off in the roadmap (Table 10): nets
with BatchNorm suffer from it.
"""

from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class MovingAverage(AveragedModel):
    """An `AveragedModel` of parameters and buffers that the host does not wait for."""

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in a net as it is now: as torch's own, but without its copy of a count to the device for each type."""
        if self.n_averaged == 0:
            super().update_parameters(model)  # a copy
            return
        by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        values = (chain(net.parameters(), net.buffers()) for net in (self.module, model))
        for average, value in zip(*values, strict=True):
            averages, now = by_type.setdefault(average.dtype, ([], []))
            averages.append(average)
            now.append(value)
        assert self.multi_avg_fn is not None
        for averages, now in by_type.values():
            self.multi_avg_fn(averages, now, self.n_averaged)
        self.n_averaged += 1


def build_ema(net: nn.Module, decay: float | None) -> AveragedModel | None:
    """Return the average of a net, begun at its weights as they are now; None where the recipe has none.

    After each optimizer step `update_parameters(net)` makes it `decay * average + (1 - decay) * net`.
    """
    if decay is None:
        return None
    average = MovingAverage(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    average.update_parameters(net)  # torch's first update is a copy
    return average
