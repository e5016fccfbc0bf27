"""Textures with mip levels, in linear light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
_SIDE = 256


@dataclass(frozen=True, slots=True)
class Texture:
    """Mip levels `[side, side, 3]` float32, linear light, largest first; repeats in both directions."""

    levels: tuple[FloatArray, ...]

    @property
    def nbytes(self) -> int:
        """Memory of all levels."""
        return sum(level.nbytes for level in self.levels)

    def sample(self, uv: FloatArray, uv_per_pixel: FloatArray) -> FloatArray:
        """Colours `[N, 3]` at `uv` `[N, 2]`, from the level whose texels match the pixel's footprint `[N]`."""
        side = self.levels[0].shape[0]
        wanted = np.log2(np.maximum(uv_per_pixel * side, 1.0))
        level_of = np.minimum(np.rint(wanted), len(self.levels) - 1).astype(np.intp)
        colours = np.empty((len(uv), 3), np.float32)
        for number in np.unique(level_of):
            chosen = level_of == number
            colours[chosen] = _bilinear(self.levels[number], uv[chosen])
        return colours


def from_picture(picture: Any) -> Texture:
    """Texture of a PIL picture, resampled to a power of two of at most 256."""
    longest = max(picture.size)
    side = min(_SIDE, 1 << max(0, (longest - 1).bit_length()))
    pixels = np.asarray(picture.convert("RGB").resize((side, side)), np.float64) / 255
    return from_srgb(pixels)


def from_srgb(pixels: npt.NDArray[np.float64]) -> Texture:
    """Texture of a square sRGB picture `[side, side, 3]` in 0..1, side a power of two; row 0 is the top."""
    level = to_linear(np.clip(pixels, 0, 1)).astype(np.float32)
    levels = [level]
    while level.shape[0] > 1:
        level = level.reshape(level.shape[0] // 2, 2, level.shape[1] // 2, 2, 3).mean(axis=(1, 3))
        levels.append(level)
    return Texture(tuple(levels))


def to_linear(srgb: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """sRGB values in 0..1 -> linear light (pure power law, as the renderer's tone curve inverts it)."""
    return np.asarray(np.power(srgb, 2.2))


def _bilinear(level: FloatArray, uv: FloatArray) -> FloatArray:
    side = level.shape[0]
    x = (uv[:, 0] % 1.0) * side - 0.5
    y = ((1.0 - uv[:, 1]) % 1.0) * side - 0.5
    left, top = np.floor(x).astype(np.intp), np.floor(y).astype(np.intp)
    across, down = (x - left).astype(np.float32)[:, None], (y - top).astype(np.float32)[:, None]
    right, bottom = (left + 1) % side, (top + 1) % side
    left, top = left % side, top % side
    upper = level[top, left] * (1 - across) + level[top, right] * across
    lower = level[bottom, left] * (1 - across) + level[bottom, right] * across
    return np.asarray(upper * (1 - down) + lower * down)


def grain(points: FloatArray) -> FloatArray:
    """A cheap wood- or cloth-like waviness in -1..1 at points `[N, 3]`, fixed in space."""
    x, y, z = points[:, 0], points[:, 1], points[:, 2]
    bend = np.sin(9 * x + 4 * z) + np.sin(7 * y - 5 * x)
    return np.asarray((np.sin(46 * y + 3 * bend) + np.sin(38 * (x + z) + 2.5 * bend)) / 2)
