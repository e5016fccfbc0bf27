"""Furnishing rooms: each kind of room is a short recipe of furniture groups."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tools.scenes.furnisher import Furnisher
from tools.scenes.groups import bed_group, desks, games, kitchen_line, sofa_group, table_group
from tools.scenes.space import Room
from tools.scenes.styles import Style

_SIZES_M = {
    "living": ((4.6, 6.4), (5.0, 7.2)),
    "bedroom": ((3.9, 5.2), (4.2, 5.6)),
    "kitchen": ((3.8, 5.2), (4.4, 6.2)),
    "dining": ((4.2, 5.6), (4.8, 6.6)),
    "office": ((4.2, 6.0), (4.6, 6.8)),
    "bathroom": ((3.2, 4.2), (3.6, 4.8)),
    "leisure": ((4.8, 6.6), (5.4, 7.4)),
}

#: A group, or `(role, at least, at most)` pieces with their backs to walls.
Step = Callable[[Furnisher], None] | tuple[str, int, int]


def _meeting_table(furnisher: Furnisher) -> None:
    table_group(furnisher, "desk", "office_chair")


_RECIPES: dict[str, tuple[Step, ...]] = {
    "living": (
        sofa_group, ("bookcase", 1, 2), ("fireplace", 0, 1), table_group, ("armchair", 0, 2),
        ("floor_plant", 1, 3), ("floor_lamp", 0, 1), ("dresser", 0, 1),
    ),
    "bedroom": (
        bed_group, ("wardrobe", 1, 2), ("dresser", 1, 2), ("desk", 0, 1), ("chair", 1, 3), ("crib", 0, 1),
        ("bookcase", 0, 2), ("floor_plant", 1, 2), ("armchair", 0, 2), ("floor_lamp", 0, 1), ("floor_object", 1, 3),
    ),
    "kitchen": (
        kitchen_line, table_group, ("bar_stool", 0, 2), ("dresser", 0, 1), ("floor_plant", 0, 1),
        ("radiator", 0, 1),
    ),
    "dining": (
        table_group, ("dresser", 1, 2), ("bookcase", 1, 2), ("sofa", 0, 1), ("floor_plant", 1, 3),
        ("floor_lamp", 0, 1), ("chair", 0, 2),
    ),
    "office": (
        desks, ("bookcase", 1, 2), ("wardrobe", 0, 1), _meeting_table, ("dresser", 1, 2),
        ("whiteboard", 0, 1), ("floor_plant", 1, 2), ("radiator", 0, 1),
    ),
    "bathroom": (
        ("bath", 1, 2), ("sink", 1, 2), ("toilet", 1, 2), ("washer", 0, 1), ("dresser", 0, 1), ("towel_rack", 1, 2),
        ("mat", 1, 2), ("radiator", 0, 1), ("small_plant", 0, 1),
    ),
    "leisure": (
        games, sofa_group, ("bookcase", 0, 2), ("dresser", 0, 1), ("armchair", 0, 2),
        table_group, ("floor_plant", 0, 2), ("floor_object", 1, 3),
    ),
}  # fmt: skip


def furnish(style: Style, kind: str, rng: np.random.Generator) -> Room:
    """A furnished room of one kind in one building's style; pieces stand inside the room and apart from each other."""
    (narrow, wide), (short, long) = _SIZES_M[kind]
    scale = math.sqrt(style.room_scale)
    room = Room(
        kind,
        float(rng.uniform(narrow, wide)) * scale,
        float(rng.uniform(short, long)) * scale,
        style.room_height_m,
    )
    furnisher = Furnisher(style, room, rng)
    furnisher.openings()
    for step in _RECIPES[kind]:
        if isinstance(step, tuple):
            furnisher.along_walls(*step)
        else:
            step(furnisher)
    furnisher.ceiling()
    furnisher.along_walls("wall_object", 0, 2)
    furnisher.along_walls("wall_lamp", 0, 2)
    furnisher.along_walls("curtain", 0, 2)
    furnisher.clutter()
    furnisher.pictures()
    furnisher.skirting()
    return room
