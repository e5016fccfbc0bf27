"""From a furnished room to triangles: load and place the furniture, glaze the windows, hang the lights."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tools.scenes.catalogue import Model
from tools.scenes.meshes import Material, Mesh, ModelError
from tools.scenes.patterns import Colour
from tools.scenes.roles import WINDOW
from tools.scenes.shell import add_panel, add_shell
from tools.scenes.soup import Builder, PointLight, Soup
from tools.scenes.space import Piece, Room
from tools.scenes.styles import Style

_GLASS_ALPHA = 0.75


def build(
    room: Room,
    style: Style,
    rng: np.random.Generator,
    load: Callable[[Model], Mesh],
    report: Callable[[str], None],
) -> Soup:
    """Turn a furnished room into triangles. Models that cannot be read are left out and named through `report`."""
    builder = Builder()
    add_shell(builder, room, style, rng)
    for piece in [*room.pieces, *room.windows]:
        try:
            mesh = load(piece.model)
        except ModelError as error:
            report(str(error))
            continue
        placed = _place(mesh, piece)
        if piece.model.class_id == WINDOW:
            placed = _glaze(placed, style.open_windows)
        builder.mesh(placed, piece.model.class_id, 0.5 if piece.model.role.endswith("_lamp") else 0.0)
    for panel in room.panels:
        add_panel(builder, room, panel, style, rng)
    return _finish(builder, room, style, rng)


def _finish(builder: Builder, room: Room, style: Style, rng: np.random.Generator) -> Soup:
    corners, normals, uv, material = (np.concatenate([part[k] for part in builder.parts]) for k in range(4))
    class_id = np.concatenate([np.full(len(part[0]), part[4], np.uint8) for part in builder.parts])
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    keep = area > 1e-9
    angle = math.radians(float(rng.uniform(0, 360)))
    height = math.radians(float(rng.uniform(22, 50)))
    sun = (math.cos(height) * math.cos(angle), math.sin(height), math.cos(height) * math.sin(angle))
    strength = style.sun if style.open_windows else 0.0
    return Soup(
        corners[keep], normals[keep], uv[keep], material[keep], class_id[keep], tuple(builder.materials),
        _lights(room, style), sun, (strength, 0.93 * strength, 0.8 * strength),
    )  # fmt: skip


def _lights(room: Room, style: Style) -> tuple[PointLight, ...]:
    lights: list[PointLight] = []
    for piece in room.pieces:
        x, y, z = piece.position
        if piece.model.role == "ceiling_lamp":
            lights.append(PointLight((x, y - 0.08, z), _times(style.lamp_colour, 2.2)))
        elif piece.model.role in ("floor_lamp", "table_lamp") and len(lights) < 5:
            lights.append(PointLight((x, piece.box.high[1] + 0.08, z), _times(style.lamp_colour, 0.35)))
    if not lights:
        lights.append(
            PointLight((room.width_m / 2, room.height_m - 0.3, room.depth_m / 2), _times(style.lamp_colour, 2.2))
        )
    middle = np.array([room.width_m / 2, 0, room.depth_m / 2])
    for window in room.windows[:3]:
        centre = np.asarray(window.box.centre)
        inward = (
            np.sign(middle - centre)
            * (np.array(window.box.high) - np.array(window.box.low) < 0.3)
            * np.array([1, 0, 1])
        )
        x, y, z = (float(part) for part in centre + 0.35 * inward)
        lights.append(
            PointLight((x, y, z), _times(style.sky_colour, 0.9 * window.model.size_m[0] * window.model.size_m[1]))
        )
    return tuple(lights)


def _times(colour: Colour, factor: float) -> Colour:
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def _place(mesh: Mesh, piece: Piece) -> Mesh:
    angle = math.radians(piece.yaw_deg)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    squeeze = np.array([1, 1, piece.flatten])
    corners = (mesh.corners * squeeze) @ turn.T + np.asarray(piece.position)
    normals = (mesh.normals / squeeze) @ turn.T
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    normals = np.divide(normals, length, out=np.zeros_like(normals), where=length > 0)
    return Mesh(corners.astype(np.float32), normals.astype(np.float32), mesh.uv, mesh.material, mesh.materials)


def _glaze(mesh: Mesh, is_open: bool) -> Mesh:
    """Take the panes out of a window, or let them shine like frosted daylight."""
    panes = [material.alpha < _GLASS_ALPHA for material in mesh.materials]
    if is_open:
        keep = ~np.asarray(panes)[mesh.material]
        return Mesh(mesh.corners[keep], mesh.normals[keep], mesh.uv[keep], mesh.material[keep], mesh.materials)
    bright = tuple(
        Material((0.75, 0.85, 0.95), None, 1.0, 1.1) if pane else material
        for pane, material in zip(panes, mesh.materials, strict=True)
    )
    return Mesh(mesh.corners, mesh.normals, mesh.uv, mesh.material, bright)
