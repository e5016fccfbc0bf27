"""A room's space: boxes that may not overlap, and pieces standing in them.

Coordinates in metres: y up, floor at y = 0, the room spans x 0..width and z 0..depth. A piece at `yaw` 0 faces +z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from tools.scenes.catalogue import Model

Vector = tuple[float, float, float]
#: Wall number -> yaw of a piece whose back is on that wall: z = 0, x = 0, z = depth, x = width.
WALL_YAW_DEG = (0.0, 90.0, 180.0, -90.0)


@dataclass(frozen=True, slots=True)
class Box:
    """Axis-aligned box between two corners."""

    low: Vector
    high: Vector

    def overlaps(self, other: Box, gap_m: float = 0.0) -> bool:
        """Whether the boxes share space, or come nearer than `gap_m` along every axis."""
        return all(self.low[k] < other.high[k] + gap_m and other.low[k] < self.high[k] + gap_m for k in range(3))

    def contains(self, point: Vector, margin_m: float = 0.0) -> bool:
        """Whether a point lies inside or within `margin_m` of the box."""
        return all(self.low[k] - margin_m < point[k] < self.high[k] + margin_m for k in range(3))

    @property
    def centre(self) -> Vector:
        return tuple((a + b) / 2 for a, b in zip(self.low, self.high, strict=True))  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Piece:
    """A catalogue model in its place: base centre `position`, turned by `yaw_deg` about the vertical."""

    model: Model
    position: Vector
    yaw_deg: float
    box: Box
    #: Depth scale; windows and doors are pressed flat to fit their wall.
    flatten: float = 1.0


@dataclass(frozen=True, slots=True)
class Panel:
    """A thin textured box of our own making: a painting, a rug, a skirting board."""

    kind: str
    box: Box
    class_id: int
    wall: int = 0


@dataclass(slots=True)
class Room:
    """A room being furnished. `blocked` holds places to keep free of furniture: in front of doors and windows."""

    kind: str
    width_m: float
    depth_m: float
    height_m: float
    pieces: list[Piece] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    blocked: list[Box] = field(default_factory=list)
    windows: list[Piece] = field(default_factory=list)

    def wall_length_m(self, wall: int) -> float:
        return self.width_m if wall in (0, 2) else self.depth_m

    def on_wall(self, wall: int, along_m: float, out_m: float) -> tuple[float, float]:
        """Floor point `(x, z)` at `along_m` from the wall's low corner and `out_m` into the room."""
        if wall == 0:
            return along_m, out_m
        if wall == 1:
            return out_m, along_m
        if wall == 2:
            return along_m, self.depth_m - out_m
        return self.width_m - out_m, along_m

    def fits(self, box: Box, gap_m: float = 0.02, *, ignore_blocked: bool = False) -> bool:
        """Whether a box lies inside the room, clear of every piece, panel and blocked place."""
        limits = (self.width_m, self.height_m, self.depth_m)
        if any(box.low[k] < -1e-6 or box.high[k] > limits[k] + 1e-6 for k in range(3)):
            return False
        taken = [piece.box for piece in self.pieces] + [panel.box for panel in self.panels if panel.kind != "rug"]
        if any(box.overlaps(other, gap_m) for other in taken):
            return False
        return ignore_blocked or not any(box.overlaps(other) for other in self.blocked)

    def add(self, model: Model, position: Vector, yaw_deg: float, gap_m: float = 0.02) -> Piece | None:
        """Put a model down if it fits; the piece, or None."""
        piece = stand(model, position, yaw_deg)
        if not self.fits(piece.box, gap_m):
            return None
        self.pieces.append(piece)
        return piece

    def against_wall(
        self, model: Model, rng: np.random.Generator, walls: tuple[int, ...] = (), tries: int = 24
    ) -> Piece | None:
        """Put a model with its back to one of `walls` (any by default), at its own elevation."""
        order = walls or tuple(int(wall) for wall in rng.permutation(4))
        for attempt in range(tries):
            wall = order[attempt % len(order)]
            half = model.size_m[0] / 2
            length = self.wall_length_m(wall)
            if length < 2 * half + 0.1:
                continue
            along = float(rng.uniform(half + 0.04, length - half - 0.04))
            x, z = self.on_wall(wall, along, model.size_m[2] / 2 + 0.03)
            piece = self.add(model, (x, model.elevation_m, z), WALL_YAW_DEG[wall])
            if piece is not None:
                return piece
        return None

    def floor_share(self) -> float:
        """Share of the floor that is taken."""
        area = sum(
            (piece.box.high[0] - piece.box.low[0]) * (piece.box.high[2] - piece.box.low[2])
            for piece in self.pieces
            if piece.box.low[1] < 0.3
        )
        return area / (self.width_m * self.depth_m)


def stand(model: Model, position: Vector, yaw_deg: float, flatten: float = 1.0) -> Piece:
    """The piece that results from putting a model somewhere, with the box it fills."""
    cos, sin = abs(math.cos(math.radians(yaw_deg))), abs(math.sin(math.radians(yaw_deg)))
    width, height, depth = model.size_m[0], model.size_m[1], model.size_m[2] * flatten
    half_x, half_z = (width * cos + depth * sin) / 2, (width * sin + depth * cos) / 2
    x, y, z = position
    return Piece(
        model,
        position,
        yaw_deg,
        Box((x - half_x, y, z - half_z), (x + half_x, y + height, z + half_z)),
        flatten,
    )


def facing(yaw_deg: float) -> tuple[float, float]:
    """Floor direction `(x, z)` that a piece of this yaw faces."""
    return math.sin(math.radians(yaw_deg)), math.cos(math.radians(yaw_deg))
