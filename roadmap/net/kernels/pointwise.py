"""The pointwise convolution as a matrix product: of a channels-last map it is one, without a copy."""

import torch
from torch import nn
from torch.nn.functional import linear


class LinearPointwise(nn.Conv2d):
    """A 1x1 `nn.Conv2d` that computes as `nn.Linear` does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, c_in, H, W) -> (N, c_out, H, W), channels-last."""
        # Permuted like the map, so that the gradient lies in memory as a channels-last weight does: ranks average it
        # without a copy.
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return linear(x.permute(0, 2, 3, 1), weight, self.bias).permute(0, 3, 1, 2)
