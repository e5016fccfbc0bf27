"""Putting single things into a room: along walls, on tables, under the ceiling, on the walls, in the walls."""

from __future__ import annotations

import numpy as np

from tools.scenes.catalogue import Model
from tools.scenes.roles import PICTURE, TEXTILE, WALL
from tools.scenes.space import WALL_YAW_DEG, Box, Panel, Piece, Room, facing, stand
from tools.scenes.styles import Style

_OBJECTS = {
    "kitchen": "kitchen_object",
    "dining": "kitchen_object",
    "office": "office_object",
    "bathroom": "bath_object",
}
_SUPPORTS = frozenset({
    "desk", "dining_table", "coffee_table", "nightstand", "dresser", "tv_stand", "bookcase", "game",
    "kitchen_base", "kitchen_island", "washer", "sink",
})  # fmt: skip
_MAX_FLOOR_SHARE = 0.45


class Furnisher:
    """Draws models of one building's style and puts them into one room."""

    def __init__(self, style: Style, room: Room, rng: np.random.Generator) -> None:
        self.style = style
        self.room = room
        self.rng = rng

    def pick(self, role: str) -> Model | None:
        """A model of a role that this building owns, or None if the catalogue has none."""
        owned = self.style.furniture.get(role, ())
        return owned[int(self.rng.integers(len(owned)))] if owned else None

    def along_walls(self, role: str, low: int, high: int) -> None:
        """Between `low` and `high` pieces of a role with their backs to walls."""
        for _ in range(int(self.rng.integers(low, high + 1))):
            if self.room.floor_share() > _MAX_FLOOR_SHARE:
                return
            if model := self.pick(role):
                self.room.against_wall(model, self.rng)

    def openings(self) -> None:
        """A door or two and some windows, with the floor before them kept free."""
        room, rng = self.room, self.rng
        walls = [int(wall) for wall in rng.permutation(4)]
        for wall in walls[: int(rng.integers(1, 3))]:
            self._opening("door", wall)
        for wall in walls[-2:] if rng.random() < 0.6 else walls[-1:]:
            for _ in range(int(rng.integers(1, 4 if room.wall_length_m(wall) > 5 else 3))):
                self._opening("window", wall)

    def _opening(self, role: str, wall: int) -> None:
        model = self.pick(role)
        if model is None or model.elevation_m + model.size_m[1] > self.room.height_m - 0.08:
            return
        half = model.size_m[0] / 2
        flatten = min(1.0, 0.14 / model.size_m[2])
        for _ in range(8):
            length = self.room.wall_length_m(wall)
            if length < 2 * half + 0.3:
                return
            along = float(self.rng.uniform(half + 0.15, length - half - 0.15))
            # Windows sit half inside the wall, doors stand on its face.
            out = 0.0 if role == "window" else model.size_m[2] * flatten / 2
            x, z = self.room.on_wall(wall, along, out)
            piece = stand(model, (x, model.elevation_m, z), WALL_YAW_DEG[wall], flatten)
            zone = _into_room(self.room, wall, along, half, 0.8 if role == "door" else 0.3, piece.box)
            if any(zone.overlaps(other, 0.1) for other in self.room.blocked):
                continue
            (self.room.windows if role == "window" else self.room.pieces).append(piece)
            self.room.blocked.append(zone)
            return

    def rug(self, spot: tuple[float, float, float], width_m: float, depth_m: float, *, turned: bool) -> None:
        """A rug of our own making, now and then, cut to stay inside the room."""
        if self.rng.random() < 0.3:
            return
        half_x, half_z = (
            ((depth_m, width_m) if turned else (width_m, depth_m))[0] / 2,
            (width_m if turned else depth_m) / 2,
        )
        low = (max(0.05, spot[0] - half_x), 0.0, max(0.05, spot[2] - half_z))
        high = (
            min(self.room.width_m - 0.05, spot[0] + half_x),
            0.012,
            min(self.room.depth_m - 0.05, spot[2] + half_z),
        )
        if high[0] - low[0] > 0.5 and high[2] - low[2] > 0.5:
            self.room.panels.append(Panel("rug", Box(low, high), TEXTILE))

    def ceiling(self) -> None:
        """One to three lamps under the ceiling, hung high enough to walk beneath."""
        room, model = self.room, self.pick("ceiling_lamp")
        if model is None:
            return
        count = 2 if room.depth_m > 6 else 1
        for number in range(count):
            low = max(room.height_m - model.size_m[1] - 0.005, 1.0)
            room.add(model, (room.width_m / 2, low, room.depth_m * (number + 0.5) / count), 0.0, gap_m=0.0)

    def pictures(self) -> None:
        """Paintings at eye level, where the wall is free."""
        for wall in range(4):
            for _ in range(int(self.rng.binomial(4, self.style.pictures * 0.8))):
                width, height = (float(side) for side in self.rng.uniform(0.35, 1.1, 2))
                if self.room.wall_length_m(wall) < width + 0.4:
                    continue
                along = float(self.rng.uniform(width / 2 + 0.2, self.room.wall_length_m(wall) - width / 2 - 0.2))
                middle = float(self.rng.uniform(1.45, 1.75))
                box = _slab(self.room, wall, along, width / 2, middle - height / 2, middle + height / 2, 0.03)
                if self.room.fits(box, 0.08):
                    self.room.panels.append(Panel("painting", box, PICTURE, wall))

    def skirting(self) -> None:
        """A board along the foot of each wall; part of the wall class."""
        for wall in range(4):
            half = self.room.wall_length_m(wall) / 2
            self.room.panels.append(Panel("skirting", _slab(self.room, wall, half, half, 0.0, 0.09, 0.012), WALL, wall))

    def clutter(self) -> None:
        """Small things on whatever can carry them, larger ones on the floor."""
        role = _OBJECTS.get(self.room.kind, "home_object")
        for support in [piece for piece in self.room.pieces if piece.model.role in _SUPPORTS and piece.model.top_m]:
            span = support.model.size_m[0] * support.model.size_m[2]
            for _ in range(int(self.rng.binomial(round(4 + 6 * span), 0.55 * self.style.clutter))):
                chosen = (
                    role
                    if self.rng.random() < 0.75
                    else str(self.rng.choice(["home_object", "small_plant", "table_lamp"]))
                )
                if model := self.pick(chosen):
                    self.on_top(support, model)
        for _ in range(int(self.rng.binomial(6, self.style.clutter * 0.6))):
            model = self.pick("floor_object")
            if model is None or self.room.floor_share() > _MAX_FLOOR_SHARE + 0.05:
                return
            self.room.against_wall(model, self.rng, tries=6)

    def on_top(self, support: Piece, model: Model, *, centred: bool = False) -> None:
        top = support.position[1] + (support.model.top_m or 0.0)
        half_w, half_d = (
            support.model.size_m[0] / 2 - model.size_m[0] / 2,
            support.model.size_m[2] / 2 - model.size_m[2] / 2,
        )
        if half_w < -0.02 or half_d < -0.02:
            return
        for _ in range(5):
            across, out = (
                (0.0, 0.0)
                if centred
                else (
                    float(self.rng.uniform(-1, 1)) * half_w * 0.85,
                    float(self.rng.uniform(-1, 1)) * half_d * 0.85,
                )
            )
            front, cross = facing(support.yaw_deg), facing(support.yaw_deg + 90)
            spot = (
                support.position[0] + front[0] * out + cross[0] * across,
                top + 0.003,
                support.position[2] + front[1] * out + cross[1] * across,
            )
            turn = 0.0 if centred else float(self.rng.uniform(-40, 40))
            piece = stand(model, spot, support.yaw_deg + turn)
            others = [other for other in self.room.pieces if other is not support]
            if piece.box.high[1] < self.room.height_m and not any(
                piece.box.overlaps(other.box, -0.005) for other in others
            ):
                self.room.pieces.append(piece)
                return


def _slab(room: Room, wall: int, along_m: float, half_m: float, low_m: float, high_m: float, out_m: float) -> Box:
    first, second = room.on_wall(wall, along_m - half_m, 0.0), room.on_wall(wall, along_m + half_m, out_m)
    (x0, x1), (z0, z1) = sorted((first[0], second[0])), sorted((first[1], second[1]))
    return Box((x0, low_m, z0), (x1, high_m, z1))


def _into_room(room: Room, wall: int, along_m: float, half_m: float, reach_m: float, opening: Box) -> Box:
    return _slab(room, wall, along_m, half_m, max(0.0, opening.low[1]), opening.high[1], reach_m)
