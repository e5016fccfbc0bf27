"""A room as one soup of triangles with materials, classes and lights: what the renderer casts rays at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tools.scenes.meshes import FloatArray, Material, Mesh
from tools.scenes.patterns import Colour


@dataclass(frozen=True, slots=True)
class PointLight:
    """A small light: position in metres, strength as linear RGB (brightness at one metre)."""

    position: tuple[float, float, float]
    strength: Colour


@dataclass(frozen=True, slots=True)
class Soup:
    """Triangles `[F, ...]` of a whole room. `sun` points towards the sun; its strength may be zero."""

    corners: FloatArray
    normals: FloatArray
    uv: FloatArray
    material: npt.NDArray[np.int32]
    class_id: npt.NDArray[np.uint8]
    materials: tuple[Material, ...]
    lights: tuple[PointLight, ...]
    sun: tuple[float, float, float]
    sun_strength: Colour


class Builder:
    """Collects meshes and flat faces until a room is complete."""

    def __init__(self) -> None:
        self.parts: list[tuple[FloatArray, FloatArray, FloatArray, npt.NDArray[np.int32], int]] = []
        self.materials: list[Material] = []

    def surface(self, material: Material) -> int:
        """Number of a new material."""
        self.materials.append(material)
        return len(self.materials) - 1

    def mesh(self, mesh: Mesh, class_id: int, emission: float) -> None:
        """Add placed furniture; `emission` lets all of it shine."""
        base = len(self.materials)
        self.materials.extend(
            Material(m.colour, m.texture, m.alpha, emission, m.grain) if emission else m for m in mesh.materials
        )
        self.parts.append((mesh.corners, mesh.normals, mesh.uv, mesh.material + base, class_id))

    def quad(self, corners: npt.NDArray[np.float64], uv: npt.NDArray[np.float64], material: int, class_id: int) -> None:
        """A flat four-cornered face; `corners` `[4, 3]` in order round it, `uv` `[4, 2]`."""
        order = np.array([[0, 1, 2], [0, 2, 3]])
        normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
        normal /= max(float(np.linalg.norm(normal)), 1e-12)
        normals = np.broadcast_to(normal, (2, 3, 3)).astype(np.float32)
        self.parts.append(
            (
                corners[order].astype(np.float32),
                normals,
                uv[order].astype(np.float32),
                np.full(2, material, np.int32),
                class_id,
            )
        )
