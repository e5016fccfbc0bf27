"""Light from outside: the sky behind the windows, and the directions that a dome of soft light comes from."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tools.scenes.styles import Style

FloatArray = npt.NDArray[np.float32]


def sky(style: Style, rays: FloatArray) -> FloatArray:
    """Linear RGB `[N, 3]` of rays that leave the room: a bright horizon, blue above, hedges below."""
    up = np.clip(rays[:, 1:2], -1, 1)
    tint = np.asarray(style.sky_colour, np.float32)
    high = np.clip(up * 2, 0, 1)
    colour = tint * (1.6 * (1 - high) + high * np.asarray([0.5, 0.75, 1.3], np.float32))
    bearing = np.arctan2(rays[:, 0], rays[:, 2])
    hedge = 0.05 + 0.05 * np.sin(5 * bearing) + 0.04 * np.sin(13 * bearing + 1) + 0.02 * np.sin(41 * bearing)
    green = np.asarray([0.16, 0.27, 0.1], np.float32) * (0.85 + 0.2 * np.sin(17 * bearing + 9 * up[:, 0]))[:, None]
    return np.where(up < hedge[:, None], green, colour).astype(np.float32)


def dome_directions() -> FloatArray:
    """Twenty directions over the sphere (Fibonacci lattice), the same for every pixel: soft shadows without noise."""
    count = 20
    index = np.arange(count) + 0.5
    height = 1 - 2 * index / count
    angle = math.pi * (1 + math.sqrt(5)) * index
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(angle), height, radius * np.sin(angle)], axis=1).astype(np.float32)
