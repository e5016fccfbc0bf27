"""Network "pi": a small encoder with feature fusion for a Raspberry Pi's cores, and thin heads.

A strided convolution pyramid (strides 2, 4, 8, 16) sees the room; a top-down path in the manner of feature pyramid
networks (Lin et al., CVPR 2017, section 3) brings what it saw back to stride 2, where one more convolution of the
picture itself joins it, for the sake of edges and key points. Plain convolutions: on CPUs they run nearer to peak than
depthwise ones, which wait for memory. At 64x64 the encoder is 34 MMAC and a head 5, nearly all of them in its one
3x3 convolution: about the proportion of MAS's own networks (2.26 and 0.278 GMAC at 256x256).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDE = 16
WIDTHS = (24, 48, 96, 128)
FEATURES = 32
HEAD_WIDTH = 16
_OUTPUT_STRIDE = 2
#: From this many output channels on, maps are smooth only: class regions need no finer detail.
_COARSE_FROM_CHANNELS = 8


class PiEncoder(nn.Module):
    """Picture [batch, 3, height, width] in 0..1, sides multiples of 16 -> [batch, FEATURES, height / 2, width / 2]."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *WIDTHS[:-1])
        self.levels = nn.ModuleList(
            _level(before, after, deepen=after != WIDTHS[0]) for before, after in zip(inputs, WIDTHS, strict=True)
        )
        self.laterals = nn.ModuleList(_convolution(width, FEATURES, 1) for width in WIDTHS)
        self.detail = _convolution(3, FEATURES, 5, stride=2)
        self.fused = nn.Sequential(nn.ReLU(), _convolution(FEATURES, FEATURES, 3), nn.ReLU())

    def forward(self, rgb: Tensor) -> Tensor:
        pyramid: list[Tensor] = []
        level = centred = rgb * 2 - 1
        for step in self.levels:
            level = step(level)
            pyramid.append(level)
        fused: Tensor = self.laterals[-1](pyramid[-1])
        for lateral, fine in zip(list(self.laterals)[-2::-1], pyramid[-2::-1], strict=True):
            fused = functional.interpolate(functional.relu(fused), scale_factor=2.0, mode="nearest") + lateral(fine)
        result: Tensor = self.fused(fused + self.detail(centred))
        return result


class PiHead(nn.Module):
    """[batch, FEATURES, height / 2, width / 2] -> [batch, channels, height, width].

    A map is the sum of a smooth part, predicted at stride 2 and enlarged bilinearly, and of detail, a value of its own
    for each pixel of a cell. Detail begins at zero, so an untrained head is smooth: with pixels that begin apart, as
    they do in sub-pixel convolution alone (Shi et al., CVPR 2016), short training leaves a checkerboard behind.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gather = nn.Sequential(_convolution(FEATURES, HEAD_WIDTH, 3), nn.ReLU())
        self.channels = channels
        details = 0 if channels >= _COARSE_FROM_CHANNELS else channels * _OUTPUT_STRIDE**2
        self.predict = nn.Conv2d(HEAD_WIDTH, channels + details, 1)
        with torch.no_grad():
            for weights in self.predict.parameters():
                weights[channels:] = 0

    def forward(self, features: Tensor) -> Tensor:
        maps: Tensor = self.predict(self.gather(features))
        smooth = functional.interpolate(
            maps[:, : self.channels], scale_factor=float(_OUTPUT_STRIDE), mode="bilinear", align_corners=False
        )
        if self.predict.out_channels == self.channels:
            return smooth
        return smooth + functional.pixel_shuffle(maps[:, self.channels :], _OUTPUT_STRIDE)


def _convolution(before: int, after: int, kernel: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution and BatchNorm; the bias is BatchNorm's."""
    return nn.Sequential(nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after))


def _level(before: int, after: int, *, deepen: bool) -> nn.Sequential:
    """Halve the size; `deepen` adds a second convolution."""
    steps: list[nn.Module] = [_convolution(before, after, 3, stride=2), nn.ReLU()]
    if deepen:
        steps += [_convolution(after, after, 3), nn.ReLU()]
    return nn.Sequential(*steps)
