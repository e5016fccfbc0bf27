"""OBJ models out of a furniture set, as triangles in metres with materials."""

from __future__ import annotations

import io
import logging
import posixpath
import zipfile
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.scenes.catalogue import Model
from tools.scenes.textures import Texture, from_picture, to_linear

FloatArray = npt.NDArray[np.float32]
#: A model with more triangles than this costs more than it shows at these picture sizes.
MAX_TRIANGLES = 200_000


class ModelError(Exception):
    """A furniture model that cannot be used; the scene goes on without it and says so."""


@dataclass(frozen=True, slots=True)
class Material:
    """Surface colour (linear RGB), optional texture, and what it adds of its own light."""

    colour: tuple[float, float, float]
    texture: Texture | None = None
    alpha: float = 1.0
    emission: float = 0.0
    #: Strength of a fine procedural grain, for surfaces whose model has no texture.
    grain: float = 0.0


@dataclass(frozen=True, slots=True)
class Mesh:
    """Triangles with corner data: `corners` `[F,3,3]` metres, `normals` `[F,3,3]` unit, `uv` `[F,3,2]`.

    Furniture stands on y = 0, centred on x = z = 0, its front facing +z.
    """

    corners: FloatArray
    normals: FloatArray
    uv: FloatArray
    material: npt.NDArray[np.int32]
    materials: tuple[Material, ...]

    @property
    def nbytes(self) -> int:
        """Memory of the triangles and of the textures on them."""
        pictures = {id(m.texture): m.texture.nbytes for m in self.materials if m.texture is not None}
        arrays = (self.corners, self.normals, self.uv, self.material)
        return sum(array.nbytes for array in arrays) + sum(pictures.values())


def load_model(model: Model, archive: zipfile.ZipFile | None = None) -> Mesh:
    """Read, rotate and scale one catalogue model to its stated size; `archive` is its set, if it is open already.

    Raises ModelError.
    """
    parts = _read_parts(model, archive)
    corners, normals, uv, material, materials = [], [], [], [], []
    for index, (geometry, surface) in enumerate(parts):
        faces = np.asarray(geometry.faces)
        corners.append(np.asarray(geometry.vertices, np.float64)[faces])
        normals.append(np.asarray(geometry.vertex_normals, np.float64)[faces])
        mapping = getattr(geometry.visual, "uv", None)
        has_map = mapping is not None and len(mapping) == len(geometry.vertices)
        uv.append(np.asarray(mapping, np.float64)[faces] if has_map else np.zeros((len(faces), 3, 2)))
        material.append(np.full(len(faces), index, np.int32))
        materials.append(surface)
    turned, bent = _to_size(np.concatenate(corners), np.concatenate(normals), model)
    if not np.isfinite(turned).all():
        raise ModelError(f"{model.key}: coordinates that are no numbers")
    mapped = np.nan_to_num(np.concatenate(uv))
    return Mesh(
        turned.astype(np.float32),
        bent.astype(np.float32),
        mapped.astype(np.float32),
        np.concatenate(material),
        tuple(materials),
    )


def _read_parts(model: Model, opened: zipfile.ZipFile | None) -> list[tuple[Any, Material]]:
    import trimesh

    # trimesh warns about every odd material line of these old files; what matters is reported below.
    logging.getLogger("trimesh").setLevel(logging.ERROR)
    folder = posixpath.dirname(model.obj)
    try:
        with nullcontext(opened) if opened else zipfile.ZipFile(model.archive) as archive:
            members = [name for name in archive.namelist() if name.startswith(folder + "/") and not name.endswith("/")]
            files = {name: io.BytesIO(archive.read(name)) for name in members}
            scene = trimesh.load(
                io.BytesIO(archive.read(model.obj)),
                file_type="obj",
                resolver=trimesh.resolvers.ZipResolver(files, namespace=folder),
                process=False,
                group_material=True,
            )
    except (OSError, KeyError, ValueError, IndexError, TypeError, zipfile.BadZipFile) as error:
        raise ModelError(f"{model.key}: {model.obj} cannot be read: {error}") from error
    geometries = list(getattr(scene, "geometry", {"": scene}).values())
    geometries = [geometry for geometry in geometries if len(getattr(geometry, "faces", ())) > 0]
    total = sum(len(geometry.faces) for geometry in geometries)
    if not 0 < total <= MAX_TRIANGLES:
        raise ModelError(f"{model.key}: {total} triangles (1 to {MAX_TRIANGLES} can be used)")
    return [(geometry, _material(geometry)) for geometry in geometries]


def _material(geometry: Any) -> Material:
    source = getattr(geometry.visual, "material", None)
    if source is None:
        return Material((0.5, 0.5, 0.5), grain=0.07)
    picture = getattr(source, "image", None)
    extra = getattr(source, "kwargs", {})
    alpha = float(np.ravel(extra.get("d", 1.0))[0]) if "d" in extra else 1.0
    if picture is not None and getattr(geometry.visual, "uv", None) is not None:
        return Material((1.0, 1.0, 1.0), texture=from_picture(picture), alpha=alpha)
    red, green, blue = (float(part) for part in to_linear(np.asarray(source.main_color[:3], np.float64) / 255))
    # Pure black and pure white reflect nothing or everything; real surfaces do neither.
    colour = (min(max(red, 0.015), 0.85), min(max(green, 0.015), 0.85), min(max(blue, 0.015), 0.85))
    return Material(colour, alpha=alpha, grain=0.07)


def _to_size(
    corners: npt.NDArray[np.float64], normals: npt.NDArray[np.float64], model: Model
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    rotation = np.asarray(model.rotation).reshape(3, 3)
    corners, normals = corners @ rotation.T, normals @ rotation.T
    low, high = corners.reshape(-1, 3).min(0), corners.reshape(-1, 3).max(0)
    scale = np.asarray(model.size_m) / np.maximum(high - low, 1e-9)
    middle = np.array([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
    bent = normals / np.maximum(scale, 1e-9)
    length = np.linalg.norm(bent, axis=-1, keepdims=True)
    return (corners - middle) * scale, np.divide(bent, length, out=np.zeros_like(bent), where=length > 0)
