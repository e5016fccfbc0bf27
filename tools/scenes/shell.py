"""The room itself as triangles: walls with holes for windows, floor, ceiling, paintings, rugs, skirting."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tools.scenes.meshes import Material
from tools.scenes.patterns import FLOOR_PATTERNS, WALL_PATTERNS, paint, painting, panelling, rug
from tools.scenes.roles import CEILING, FLOOR, WALL
from tools.scenes.soup import Builder
from tools.scenes.space import Panel, Piece, Room
from tools.scenes.styles import Style
from tools.scenes.textures import from_srgb, to_linear

#: How wide one repeat of a surface pattern is, in metres.
_REPEAT_M = {"planks": 1.6, "parquet": 1.2, "carpet": 2.0, "checker": 1.6, "tiles": 1.5, "stone": 2.0,
             "paint": 3.0, "stripes": 1.1, "ornament": 1.2, "bricks": 1.1, "panelling": 1.2}  # fmt: skip


def add_shell(builder: Builder, room: Room, style: Style, rng: np.random.Generator) -> None:
    """Walls (one may differ), floor and ceiling, with the holes that windows need."""
    palette = style.palette
    wet = room.kind in ("bathroom", "kitchen") and rng.random() < 0.6
    # Rooms of a building are painted alike, not equally.
    tone = 1 + 0.12 * float(rng.standard_normal())
    first = (
        min(palette[0][0] * tone, 0.97),
        min(palette[0][1] * tone, 0.97),
        min(palette[0][2] * tone, 0.97),
    )
    names = [("tiles" if wet else style.wall_patterns[0])] * 4
    if rng.random() < 0.6:
        names[int(rng.integers(4))] = style.wall_patterns[1]
    for wall, name in enumerate(names):
        colours = (first, palette[1], palette[2]) if name == names[0] else (palette[1], first, palette[2])
        if name == "bricks":
            colours = (palette[7], palette[2], palette[2])
        texture = from_srgb(WALL_PATTERNS[name](rng, colours))
        _wall(builder, room, wall, builder.surface(Material((1, 1, 1), texture)), _REPEAT_M[name])
    floor = "tiles" if wet else style.floor_patterns[int(rng.random() < 0.35)]
    wooden = floor in ("planks", "parquet")
    base = palette[3] if wooden else palette[4]
    width, depth, height = room.width_m, room.depth_m, room.height_m
    texture = from_srgb(FLOOR_PATTERNS[floor](rng, (base, palette[2], palette[2])))
    plan = np.array([[0.0, 0, 0], [width, 0, 0], [width, 0, depth], [0, 0, depth]])
    builder.quad(plan, plan[:, [0, 2]] / _REPEAT_M[floor], builder.surface(Material((1, 1, 1), texture)), FLOOR)
    above = panelling(rng, (palette[3],)) if style.ceiling == "panelling" else paint(rng, (palette[2],))
    top = plan + np.array([0, height, 0])
    builder.quad(top, plan[:, [0, 2]] / 1.5, builder.surface(Material((1, 1, 1), from_srgb(above))), CEILING)


def _wall(builder: Builder, room: Room, wall: int, material: int, repeat_m: float) -> None:
    """One wall as a grid of rectangles, leaving out those that lie in a window."""
    length, height = room.wall_length_m(wall), room.height_m
    holes = [hole for window in room.windows if (hole := _hole(room, wall, window)) is not None]
    across = sorted({0.0, length, *(edge for hole in holes for edge in hole[:2])})
    upward = sorted({0.0, height, *(edge for hole in holes for edge in hole[2:])})
    for left, right in pairwise(across):
        for low, high in pairwise(upward):
            x, y = (left + right) / 2, (low + high) / 2
            if any(hole[0] < x < hole[1] and hole[2] < y < hole[3] for hole in holes):
                continue
            flat = np.array([[left, low], [right, low], [right, high], [left, high]])
            points = [room.on_wall(wall, float(u), 0.0) for u, _ in flat]
            corners = np.array([[px, v, pz] for (px, pz), (_, v) in zip(points, flat, strict=True)])
            builder.quad(corners, flat / repeat_m, material, WALL)


def _hole(room: Room, wall: int, window: Piece) -> tuple[float, float, float, float] | None:
    axis = 0 if wall in (0, 2) else 2
    across = 2 - axis
    plane = 0.0 if wall in (0, 1) else (room.depth_m if wall == 2 else room.width_m)
    if abs(window.box.centre[across] - plane) > 0.01:
        return None
    inset = 0.025
    low, high = window.box.low, window.box.high
    return low[axis] + inset, high[axis] - inset, max(0.0, low[1] + inset), high[1] - inset


def add_panel(builder: Builder, room: Room, panel: Panel, style: Style, rng: np.random.Generator) -> None:
    palette = style.palette
    if panel.kind == "skirting":
        red, green, blue = to_linear(np.asarray(palette[2] if rng.random() < 0.5 else palette[3]))
        material = builder.surface(Material((float(red), float(green), float(blue))))
    else:
        draw = rug if panel.kind == "rug" else painting
        colours = (
            [palette[index] for index in rng.permutation([5, 6, 1, 3, 7])]
            if panel.kind == "painting"
            else [palette[5], palette[6], palette[2]]
        )
        material = builder.surface(Material((1, 1, 1), from_srgb(draw(rng, colours))))
    for corners, uv in _box_faces(panel, room):
        builder.quad(corners, uv, material, panel.class_id)


def _box_faces(panel: Panel, room: Room) -> Sequence[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """The five visible faces of a thin box: the broad one carries the whole pattern, the rims its edge."""
    low, high = np.asarray(panel.box.low), np.asarray(panel.box.high)
    flat_axis = 1 if panel.kind == "rug" else (2 if panel.wall in (0, 2) else 0)
    front = high[flat_axis] if panel.kind == "rug" or panel.wall in (0, 1) else low[flat_axis]
    first, second = [axis for axis in (0, 2, 1) if axis != flat_axis]
    unit = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    faces = []
    face = np.empty((4, 3))
    face[:, first] = low[first] + unit[:, 0] * (high[first] - low[first])
    face[:, second] = low[second] + unit[:, 1] * (high[second] - low[second])
    face[:, flat_axis] = front
    faces.append((face, unit))
    back = low[flat_axis] + high[flat_axis] - front
    for k in range(4):
        start, end = face[k], face[(k + 1) % 4]
        behind = np.stack([start, end, end, start])
        behind[2:, flat_axis] = back
        faces.append((behind, np.stack([unit[k], unit[(k + 1) % 4]] * 2) * 0.98 + 0.01))
    return faces
