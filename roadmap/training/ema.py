"""The moving average of a net's weights and buffers, through torch's `AveragedModel`.

As in the authors' code it starts from the first weights and covers the buffers. Off in the roadmap (Table 10): nets
with BatchNorm suffer from it.
"""

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def build_ema(net: nn.Module, decay: float | None) -> AveragedModel | None:
    """Return the average of a net, begun at its weights as they are now; None where the recipe has none.

    After each optimizer step `update_parameters(net)` makes it `decay * average + (1 - decay) * net`.
    """
    if decay is None:
        return None
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    average.update_parameters(net)  # torch's first update is a copy
    return average
