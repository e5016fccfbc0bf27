"""A network that is small enough to follow by hand."""

from __future__ import annotations

from torch import Tensor, nn

from models.networks import NetworkParts
from models.networks.vector import VectorHead

FEATURES = 16
STRIDE = 4


class MiniEncoder(nn.Module):
    """Picture [batch, 3, height, width] in 0..1, sides multiples of 4 -> [batch, 16, height / 4, width / 4]."""

    def __init__(self) -> None:
        super().__init__()
        # A convolution before each BatchNorm: the exporter folds the two into one.
        self.layers = nn.Sequential(
            nn.Conv2d(3, FEATURES, 3, 2, 1, bias=False), nn.BatchNorm2d(FEATURES), nn.ReLU(),
            nn.Conv2d(FEATURES, FEATURES, 3, 2, 1, bias=False), nn.BatchNorm2d(FEATURES), nn.ReLU(),
        )  # fmt: skip

    def forward(self, rgb: Tensor) -> Tensor:
        result: Tensor = self.layers(rgb)
        return result


class MiniHead(nn.Module):
    """[batch, 16, height / 4, width / 4] -> a map [batch, channels, height, width]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(FEATURES, channels, STRIDE, STRIDE)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.enlarge(features)
        return result


def mini_vector_head(channels: int) -> nn.Module:
    """[batch, 16, height / 4, width / 4] -> [batch, channels], for tasks of the whole picture."""
    return VectorHead(FEATURES, channels)


MINI = NetworkParts(encoder=MiniEncoder, head=MiniHead, stride=STRIDE, vector_head=mini_vector_head)
