"""From what a camera saw to Taskonomy's stored arrays, one function per domain.

A further label is one more entry of `ENCODERS` (and, if rays must be cast for it, one more field of `View`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tools.labels import edge_label, keypoint_label
from tools.scenes.render import Labels

Stored = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
DEPTH_UNITS_PER_M = 512
NO_SURFACE = 65_535


@dataclass(frozen=True, slots=True)
class View:
    """One rendered view: the 8-bit picture `[S, S, 3]` and the labels behind it."""

    rgb: npt.NDArray[np.uint8]
    labels: Labels


def depth(view: View) -> npt.NDArray[np.uint16]:
    """Distance along the optical axis in 1/512 m; 65535 where there is no surface."""
    metres = view.labels.depth_m
    raw = np.where(np.isfinite(metres), np.minimum(np.rint(metres * DEPTH_UNITS_PER_M), NO_SURFACE - 1), NO_SURFACE)
    return raw.astype(np.uint16)


def normal(view: View) -> npt.NDArray[np.uint8]:
    """Camera-frame normal (right, up, towards the camera) as 127 + 127 n; 127 where there is no surface."""
    return np.rint(127 + 127 * np.clip(view.labels.normal, -1, 1)).astype(np.uint8)


ENCODERS: dict[str, Callable[[View], Stored]] = {
    "rgb": lambda view: view.rgb,
    "depth_zbuffer": depth,
    "normal": normal,
    "segment_semantic": lambda view: view.labels.class_id,
    "keypoints2d": lambda view: keypoint_label(view.rgb),
    "edge_texture": lambda view: edge_label(view.rgb),
}


def encode_view(view: View) -> dict[str, Stored]:
    """Every domain's stored array."""
    return {domain: encoder(view) for domain, encoder in ENCODERS.items()}
