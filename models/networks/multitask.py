"""A network for several tasks: one shared encoder and one head per task, as MAS merges tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

_VECTOR_DIMENSIONS = 2


class MultiTaskNet(nn.Module):
    """`encoder`: picture [batch, 3, height, width] in 0..1 -> shared representation Z; `heads[task]`: Z -> its map,
    or its vector of the whole picture.

    Height and width may be anything: pictures are padded by repeating their border up to a multiple of `stride`, and
    maps cropped back. With n tasks the encoder's gradient is scaled by 1/sqrt(n), as in MAS. The scaling sits
    on the gradient of Z, not on each parameter: backward is linear, so it reaches every encoder parameter, costs one
    multiplication of one tensor, and holds for whoever differentiates through the network, the probe included.
    """

    def __init__(self, encoder: nn.Module, heads: Mapping[str, nn.Module], stride: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)
        self.stride = stride
        self._gradient_scale = 1.0 / math.sqrt(max(len(heads), 1))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names in the order of the heads."""
        return tuple(self.heads)

    def represent(self, rgb: Tensor) -> Tensor:
        """Shared representation Z of `rgb`; its gradient arrives at the encoder scaled by 1/sqrt(n)."""
        height, width = int(rgb.shape[-2]), int(rgb.shape[-1])
        down, right = -height % self.stride, -width % self.stride
        if down or right:
            rgb = functional.pad(rgb, (0, right, 0, down), mode="replicate")
        features: Tensor = self.encoder(rgb.contiguous(memory_format=torch.channels_last))
        if features.requires_grad and len(self.heads) > 1:
            features.register_hook(self._scale_gradient)  # type: ignore[no-untyped-call]
        return features

    def read(self, features: Tensor | Mapping[str, Tensor], height: int, width: int) -> dict[str, Tensor]:
        """Outputs [batch, channels, height, width] of every head for one Z, or for a view of Z of its own by task."""
        seen = {name: features if isinstance(features, Tensor) else features[name] for name in self.heads}
        return {name: _cropped(head(seen[name]), height, width).contiguous() for name, head in self.heads.items()}

    def forward(self, rgb: Tensor) -> dict[str, Tensor]:
        """Outputs by task name, maps at the picture's size."""
        return self.read(self.represent(rgb), int(rgb.shape[-2]), int(rgb.shape[-1]))

    def _scale_gradient(self, gradient: Tensor) -> Tensor:
        return gradient * self._gradient_scale


def _cropped(maps: Tensor, height: int, width: int) -> Tensor:
    """Without the padding; vectors and maps that have none are left as they are, which keeps exported graphs short."""
    if maps.ndim == _VECTOR_DIMENSIONS or (int(maps.shape[-2]), int(maps.shape[-1])) == (height, width):
        return maps
    return maps[..., :height, :width]
