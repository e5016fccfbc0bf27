"""The head of a task of the whole picture: what the representation holds on average, and a linear map of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class VectorHead(nn.Module):
    """[batch, features, height, width] -> [batch, channels]: class scores, logits, or normalised values.

    Global average pooling (Lin et al., "Network in Network", ICLR 2014) makes it independent of the picture's size.
    """

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.predict = nn.Linear(features, channels)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.predict(torch.relu(features).mean(dim=(-2, -1)))
        return result
