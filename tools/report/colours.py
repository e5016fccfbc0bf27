"""Label arrays as pictures: class palettes, ramps for distances and responses, hues for directions."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.tasks import DEPTH_DOMAIN, DEPTH_VALID_BELOW, TASKS

Array = npt.NDArray[np.generic]
Image8 = npt.NDArray[np.uint8]

_DEPTH_RAMP = ("#fff3c4", "#f9b45c", "#de6a52", "#9c3468", "#4b2163", "#160f2e")
_HEAT_RAMP = ("#0c1020", "#1d3d6b", "#1f7a8c", "#4fb286", "#c9d85b", "#fff7b8")
_NOTHING = (128, 128, 128)
_PALETTE = (
    "#808080", "#d9d2c3", "#a9794f", "#c2ccd8", "#8cc7e8", "#6b4423", "#c05299", "#d1495b", "#f2a541",
    "#edc948", "#76a646", "#3f6f9f", "#7fd1c7", "#ffe66d", "#2e7d32", "#9b72cf", "#e59aa9", "#4f5d75",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """Values at the two ends of a task's colour ramp, in label units."""

    low: float
    high: float


def class_colour(class_id: int) -> str:
    """`#rrggbb` of a class id; ids beyond the palette start over after the ignored one."""
    return _PALETTE[class_id] if class_id < len(_PALETTE) else _PALETTE[1 + (class_id - 1) % (len(_PALETTE) - 1)]


def limits(task: str, truth: Sequence[Array]) -> Limits | None:
    """Colour limits for a one-channel task, from the truth alone so that a wild prediction cannot hide in its own.

    None for tasks that are shown without a ramp. The ends are the 1st and 99th percentile of the valid pixels.
    """
    spec = TASKS.get(task)
    if spec is None or spec.is_classes or spec.channels != 1:
        return None
    values = np.concatenate([np.asarray(item, np.float64).ravel() for item in truth])
    values = values[np.isfinite(values) & ((values < DEPTH_VALID_BELOW) | (task != DEPTH_DOMAIN))]
    if not values.size:
        return Limits(0.0, 1.0)
    low, high = np.percentile(values, (1, 99))
    if task != DEPTH_DOMAIN:
        low = 0.0
    return Limits(float(low), float(max(high, low + 1e-6)))


def paint(task: str, values: Array, shared: Limits | None, truth: Array) -> Image8:
    """`[channels, H, W]` in label units -> RGB `[H, W, 3]`; pixels where `truth` says nothing is known are grey."""
    spec = TASKS.get(task)
    if spec is not None and spec.is_classes:
        return _classes(values[0], truth[0])
    if task == "orientation":
        return _directions(values)
    if shared is not None:
        unknown = (truth[0].astype(np.float64) >= DEPTH_VALID_BELOW) & (task == DEPTH_DOMAIN)
        return _ramp(values[0], shared, _DEPTH_RAMP if task == DEPTH_DOMAIN else _HEAT_RAMP, unknown)
    return rgb(values)


def rgb(values: Array) -> Image8:
    """`[3, H, W]` in 0..255 -> `[H, W, 3]`; other channel counts are filled up with mid grey."""
    levels = np.nan_to_num(np.asarray(values[:3], np.float64), nan=127.0)
    full = np.full((3, *levels.shape[1:]), 127.0)
    full[: len(levels)] = levels
    return np.moveaxis(np.clip(np.rint(full), 0, 255).astype(np.uint8), 0, -1)


def ramp_css(task: str) -> str:
    """The task's ramp as a CSS gradient, low end first."""
    return f"linear-gradient(90deg, {', '.join(_DEPTH_RAMP if task == DEPTH_DOMAIN else _HEAT_RAMP)})"


def _hex(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _classes(ids: Array, truth: Array) -> Image8:
    whole = np.nan_to_num(np.asarray(ids, np.float64)).astype(np.int64).clip(0)
    table = np.array([_hex(class_colour(index)) for index in range(int(whole.max(initial=0)) + 1)], np.uint8)
    shown: Image8 = table[whole]
    # Where the label is "ignored" the loss asks for nothing, so the prediction is faded there.
    ignored = np.asarray(truth) == 0
    shown[ignored] = (shown[ignored] * 0.25 + np.array(_NOTHING) * 0.75).astype(np.uint8)
    return shown


def _ramp(values: Array, shared: Limits, colours: Sequence[str], unknown: npt.NDArray[np.bool_]) -> Image8:
    level = (np.asarray(values, np.float64) - shared.low) / (shared.high - shared.low)
    unknown = unknown | ~np.isfinite(level)
    stops = np.linspace(0, 1, len(colours))
    table = np.array([_hex(colour) for colour in colours], np.float64)
    level = np.where(unknown, 0.0, level).clip(0, 1)
    image = np.stack([np.interp(level, stops, table[:, channel]) for channel in range(3)], axis=-1)
    image[unknown] = _NOTHING
    return np.rint(image).astype(np.uint8)


def _directions(values: Array) -> Image8:
    """Double-angle pairs centred on 127.5: the direction is the hue, its clearness the brightness."""
    cosine, sine = (np.nan_to_num(np.asarray(values[index], np.float64), nan=127.5) / 127.5 - 1 for index in (0, 1))
    angle = (np.arctan2(sine, cosine) / (2 * np.pi)) % 1.0
    clear = np.hypot(cosine, sine).clip(0, 1)
    wheel = np.array([colorsys.hsv_to_rgb(step / 256, 0.72, 1.0) for step in range(256)])
    return np.rint(wheel[(angle * 255).astype(np.int64)] * (0.12 + 0.88 * clear[..., None]) * 255).astype(np.uint8)
