"""Networks "xception-small", "-half" and "-quad": the sizes of encoder that MAS was published with, and its head.

An Xception (Chollet, CVPR 2017): separable convolutions (a 3x3 for each channel, then a 1x1 across channels) in blocks
with a shortcut. What is known of MAS's own is its outline: convolutions of 24 (stride 2) and 48, blocks of 96, 192 and
512 that halve the sides, four more blocks of 512, a separable convolution to 256 channels at stride 16, and how many
parameters that has. The rest is chosen here so as to meet those numbers:

    network          encoder parameters    published   GMAC at 256x256        head parameters   GMAC at 256x256
    xception-small   4,089,256             4.089 M     2.29 (published 2.26)  0.116 M           0.261 to 0.279
    xception-half    2,051,888             2.052 M     1.10                   (published 0.116)  (published 0.278)
    xception-quad    15,960,752            15.96 M     8.96

Two separable convolutions a block, but four at stride 8 and three in the blocks of the middle; the published width of
256 comes in two steps. Half has 0.7 of small's widths in multiples of 8, quad twice, and the first of the last two
steps takes up what then remains. The representation is the same for all, so that a head costs the same under each.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDE = 16
#: Channels of the shared representation.
FEATURES = 256
_MIDDLE_BLOCKS = 4
_MIDDLE_DEPTH = 3
_ENTRY_DEPTHS = (2, 4, 2)
_HEAD_WIDTH = 64
#: Channels after each of the head's enlargements.
_HEAD_WIDTHS = (40, 40, 32, 16)


@dataclass(frozen=True, slots=True)
class Widths:
    """Channels of an encoder: of the two first convolutions, of the halving blocks, and before the last step."""

    stem: tuple[int, int]
    blocks: tuple[int, int, int]
    exit: int


HALF = Widths((16, 32), (64, 128, 360), 192)
SMALL = Widths((24, 48), (96, 192, 512), 256)
QUAD = Widths((48, 96), (192, 384, 1024), 480)


class XceptionEncoder(nn.Module):
    """Picture [batch, 3, height, width] in 0..1, sides multiples of 16 -> [batch, FEATURES, height/16, width/16]."""

    def __init__(self, widths: Widths = SMALL) -> None:
        super().__init__()
        first, second = widths.stem
        self.stem = nn.Sequential(
            _convolution(3, first, 3, stride=2), nn.ReLU(), _convolution(first, second, 3), nn.ReLU()
        )
        befores = (second, *widths.blocks[:-1])
        self.entry = nn.Sequential(
            *(
                HalvingBlock(before, after, depth, rectify_first=place > 0)
                for place, (before, after, depth) in enumerate(zip(befores, widths.blocks, _ENTRY_DEPTHS, strict=True))
            )
        )
        middle = widths.blocks[-1]
        self.middle = nn.Sequential(*(MiddleBlock(middle, _MIDDLE_DEPTH) for _ in range(_MIDDLE_BLOCKS)))
        # No BatchNorm after the last one: each head begins with a convolution and a BatchNorm of its own.
        self.exit = nn.Sequential(
            nn.ReLU(), _separable(middle, widths.exit), nn.ReLU(), _separable(widths.exit, FEATURES, normalised=False)
        )

    def forward(self, rgb: Tensor) -> Tensor:
        result: Tensor = self.exit(self.middle(self.entry(self.stem(rgb * 2 - 1))))
        return result


class HalvingBlock(nn.Module):
    """[batch, before, height, width] -> [batch, after, height / 2, width / 2]."""

    def __init__(self, before: int, after: int, depth: int, *, rectify_first: bool) -> None:
        super().__init__()
        widths = (before, *(after for _ in range(depth)))
        self.body = nn.Sequential(*_chain(widths, rectify_first=rectify_first), nn.MaxPool2d(3, 2, 1))
        self.shortcut = _convolution(before, after, 1, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.body(features) + self.shortcut(features)
        return result


class MiddleBlock(nn.Module):
    """[batch, width, height, w] -> the same shape: what the separable convolutions add to their input."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_chain((width,) * (depth + 1), rectify_first=True))

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = features + self.body(features)
        return result


class XceptionHead(nn.Module):
    """[batch, FEATURES, height / 16, width / 16] -> [batch, channels, height, width].

    Four transposed convolutions double the sides; the representation, narrowed and enlarged in one step, joins before
    the last convolution. Kernels of 4 at stride 2 cover every pixel equally often, and so leave no checkerboard of
    their own.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        befores = (_HEAD_WIDTH, *_HEAD_WIDTHS[:-1])
        last = _HEAD_WIDTHS[-1]
        self.gather = nn.Sequential(nn.ReLU(), _convolution(FEATURES, _HEAD_WIDTH, 1))
        self.enlarge = nn.Sequential(
            *(_doubling(before, after) for before, after in zip(befores, _HEAD_WIDTHS, strict=True))
        )
        self.shortcut = nn.Sequential(nn.ReLU(), _convolution(FEATURES, last, 1))
        self.predict = nn.Conv2d(last, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        coarse = functional.interpolate(
            self.shortcut(features), scale_factor=float(STRIDE), mode="bilinear", align_corners=False
        )
        maps: Tensor = self.predict(torch.relu(self.enlarge(self.gather(features)) + coarse))
        return maps


def _chain(widths: Sequence[int], *, rectify_first: bool) -> list[nn.Module]:
    """Separable convolutions through `widths`, a ReLU before each, or before each but the first."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.ReLU(), _separable(before, after)]
    return layers if rectify_first else layers[1:]


def _separable(before: int, after: int, *, normalised: bool = True) -> nn.Sequential:
    across = _convolution(before, after, 1) if normalised else nn.Conv2d(before, after, 1, bias=False)
    return nn.Sequential(_convolution(before, before, 3, groups=before), across)


def _convolution(before: int, after: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and BatchNorm; the bias is BatchNorm's."""
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(after)
    )


def _doubling(before: int, after: int) -> nn.Sequential:
    """ReLU, transposed convolution to twice the sides, BatchNorm."""
    return nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after))
