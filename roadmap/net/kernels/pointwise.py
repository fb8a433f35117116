"""The pointwise convolution as a matrix product: of a channels-last map it is one, without a copy. Used by `roadmap.net.kernels`."""

import torch
from torch import nn
from torch.nn.functional import linear


class LinearPointwise(nn.Conv2d):
    """A 1x1 `nn.Conv2d` that computes as `nn.Linear` does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, c_in, H, W) -> (N, c_out, H, W), channels-last."""
        return linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
