"""Cameras: where they stand, where they look, and which views are worth keeping."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tools.scenes.roles import CEILING, DOOR, FLOOR, WALL, WINDOW
from tools.scenes.space import Room
from tools.scenes.styles import Style

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole camera without roll. Yaw 0 looks along +z, pitch is positive upwards; square pictures."""

    position: Vector
    yaw_deg: float
    pitch_deg: float
    field_of_view_deg: float

    def axes(self) -> npt.NDArray[np.float64]:
        """Rows: the camera's right, up and backward directions in the world, `[3, 3]`."""
        yaw, pitch = math.radians(self.yaw_deg), math.radians(self.pitch_deg)
        forward = np.array([math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)])
        right = np.array([-math.cos(yaw), 0.0, math.sin(yaw)])
        return np.stack([right, np.cross(right, forward), -forward])

    def rays(self, size: int) -> npt.NDArray[np.float32]:
        """Unit directions `[size * size, 3]` through the pixels' centres, row by row from the top left."""
        reach = math.tan(math.radians(self.field_of_view_deg) / 2)
        steps = ((np.arange(size) + 0.5) / size * 2 - 1) * reach
        right, up, back = self.axes()
        rays = steps[None, :, None] * right - steps[:, None, None] * up - back
        length = np.sqrt(1 + steps[None, :] ** 2 + steps[:, None] ** 2)
        return np.asarray((rays / length[..., None]).reshape(-1, 3), np.float32)


def draw_target(room: Room, rng: np.random.Generator) -> Vector:
    """A point worth looking at: on a piece of furniture, larger ones more often."""
    boxes = [piece.box for piece in room.pieces if piece.model.role not in ("door", "ceiling_lamp")]
    if not boxes:
        return room.width_m / 2, 1.0, room.depth_m / 2
    sizes = np.array([np.cbrt(np.prod(np.subtract(box.high, box.low))) for box in boxes])
    chosen = boxes[int(rng.choice(len(boxes), p=sizes / sizes.sum()))]
    x, y, z = chosen.centre
    return x, float(np.clip(y, 0.4, 1.5)), z


def draw_camera(room: Room, style: Style, target: Vector, rng: np.random.Generator) -> Camera | None:
    """A camera in free space 2 to 6.5 m from the target; None when this draw found no place."""
    margin = 0.3
    x = float(rng.uniform(margin, room.width_m - margin))
    z = float(rng.uniform(margin, room.depth_m - margin))
    y = float(np.clip(style.camera_height_m + rng.normal(0, 0.1), 0.8, room.height_m - 0.4))
    distance = math.hypot(target[0] - x, target[2] - z)
    if not 1.9 < distance < 6.5 or any(piece.box.contains((x, y, z), 0.25) for piece in [*room.pieces, *room.windows]):
        return None
    yaw = math.degrees(math.atan2(target[0] - x, target[2] - z)) + float(rng.normal(0, 7))
    towards = math.degrees(math.atan2(target[1] - y, distance))
    pitch = float(np.clip(0.5 * (towards + style.camera_pitch_deg) + rng.normal(0, 2), -24, 10))
    return Camera((x, y, z), yaw, pitch, style.field_of_view_deg + float(rng.normal(0, 1)))


def view_score(depth_m: npt.NDArray[np.float64], class_id: npt.NDArray[np.uint8]) -> float:
    """How good a view is, from a coarse probe of it; below 0 means unusable.

    Unusable: something within half a metre, a blocked view, or hardly any furniture. Otherwise varied classes and
    content some metres away score high.
    """
    seen = depth_m[np.isfinite(depth_m)]
    if seen.size < 0.5 * depth_m.size:
        return -1.0
    near, middle = float(np.quantile(seen, 0.03)), float(np.median(seen))
    furniture = float(np.mean(~np.isin(class_id, (WALL, FLOOR, CEILING, WINDOW, DOOR))))
    if near < 0.6 or middle < 1.6 or furniture < 0.13:
        return -1.0
    kinds = sum(np.mean(class_id == kind) > 0.01 for kind in np.unique(class_id))
    return float(kinds + 8 * min(furniture, 0.6) + min(middle, 4.5))
