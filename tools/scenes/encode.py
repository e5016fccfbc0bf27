"""From what a camera saw to Taskonomy's stored arrays and numbers, one function per domain.

A further label is one more entry of `ENCODERS` (an image) or `VECTORS` (numbers about the whole picture) and, if rays
must be cast for it, one more field of `View`. Where a ray meets nothing (an open window; depth 65535) classes are 0,
normals and curvatures 127, reshading 0; the loss leaves these pixels out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from models.tasks import DEPTH_DOMAIN, DEPTH_VALID_BELOW, INPUT_DOMAIN, TASKS, parse_tasks
from tools.labels import edge_label, keypoint_label, smooth, unit_px
from tools.scenes import png
from tools.scenes.render import Labels
from tools.scenes.roles import CLASSES
from tools.scenes.styles import ROOM_KINDS
from tools.scenes.surface import Surface, curvatures, halve, occlusion, shading

Stored = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
DEPTH_UNITS_PER_M = 512
NO_SURFACE = 65_535
#: Stored value of a line of full occlusion edges, one 64th of the picture wide; chosen so that rendered rooms have
#: about the mean and spread of the published normalisation (56 +- 239).
OCCLUSION_GAIN = 1_700.0
#: Curvature that is stored as 0 or 254, in 1/m (a radius of 6.25 cm).
CURVATURE_FULL_PER_M = 16.0
#: A class counts as present from this share of the picture on (20 pixels of 64 x 64).
PRESENT_SHARE = 0.005


@dataclass(frozen=True, slots=True)
class View:
    """One rendered view: the 8-bit picture `[S, S, 3]`, the labels behind it, the surfaces that its `2S` x `2S` rays
    met, and which kind of room it shows (a name of `ROOM_KINDS`)."""

    rgb: npt.NDArray[np.uint8]
    labels: Labels
    surface: Surface
    room_kind: str


def depth(view: View) -> npt.NDArray[np.uint16]:
    """Distance along the optical axis in 1/512 m; 65535 where there is no surface."""
    metres = view.labels.depth_m
    raw = np.where(np.isfinite(metres), np.minimum(np.rint(metres * DEPTH_UNITS_PER_M), NO_SURFACE - 1), NO_SURFACE)
    return raw.astype(np.uint16)


def normal(view: View) -> npt.NDArray[np.uint8]:
    """Camera-frame normal (right, up, towards the camera) as 127 + 127 n; 127 where there is no surface."""
    return np.rint(127 + 127 * np.clip(view.labels.normal, -1, 1)).astype(np.uint8)


def edge_occlusion(view: View) -> npt.NDArray[np.uint16]:
    """Heat map of the edges behind which something is hidden, 16 bit; drawn on the nearer surface, a little blurred."""
    lines = halve(occlusion(view.surface)).astype(np.float64)
    unit = unit_px(lines)
    # Lines are a pixel wide at every size; the factor keeps the picture's mean alike.
    heat = smooth(lines, 0.45 * unit) * unit * OCCLUSION_GAIN
    return np.rint(np.minimum(heat, 65_535)).astype(np.uint16)


def reshading(view: View) -> npt.NDArray[np.uint8]:
    """Grey picture of the bare shapes, lit by one lamp at the camera, in three equal channels; 0 without a surface."""
    grey = np.rint(255 * halve(shading(view.surface))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def principal_curvature(view: View) -> npt.NDArray[np.uint8]:
    """Both principal curvatures as 127 + 127 k / 16 per metre, clipped: the one of larger magnitude first, then the
    other, then 127. Above 127 is convex, below hollow, 127 flat (or no surface)."""
    step = round(unit_px(view.labels.depth_m))
    mean = halve(np.clip(curvatures(view.surface, step) / CURVATURE_FULL_PER_M, -1, 1))
    stored = np.full((*mean.shape[:2], 3), 127, np.uint8)
    stored[..., :2] = np.rint(127 + 127 * mean).astype(np.uint8)
    return stored


def class_scene(view: View) -> int:
    """Number of the kind of room, its place in `ROOM_KINDS`."""
    return ROOM_KINDS.index(view.room_kind)


def class_object(view: View) -> list[int]:
    """1 for every semantic class that covers at least `PRESENT_SHARE` of the picture, else 0; class 0 counts as one."""
    share = np.bincount(view.labels.class_id.ravel(), minlength=len(CLASSES)) / view.labels.class_id.size
    return [int(part >= PRESENT_SHARE) for part in share]


def distance(view: View) -> float:
    """Mean stored depth of the pixels nearer than 16 m, in metres, to a tenth of a millimetre."""
    raw = depth(view)
    near = raw[raw < DEPTH_VALID_BELOW]
    return round(float(near.mean()) / DEPTH_UNITS_PER_M, 4) if near.size else DEPTH_VALID_BELOW / DEPTH_UNITS_PER_M


ENCODERS: Mapping[str, Callable[[View], Stored]] = MappingProxyType({
    "rgb": lambda view: view.rgb,
    "depth_zbuffer": depth,
    "normal": normal,
    "segment_semantic": lambda view: view.labels.class_id,
    "keypoints2d": lambda view: keypoint_label(view.rgb),
    "edge_texture": lambda view: edge_label(view.rgb),
    "edge_occlusion": edge_occlusion,
    "reshading": reshading,
    "principal_curvature": principal_curvature,
})  # fmt: skip
VECTORS: Mapping[str, Callable[[View], int | float | list[int]]] = MappingProxyType({
    "class_scene": class_scene,
    "class_object": class_object,
    "distance": distance,
})  # fmt: skip
#: Everything that can be written, in the order of the manifest.
DOMAINS = (*ENCODERS, *VECTORS)
#: Labels of the first release: their files are as small as they can be made, for the pack in the package depends on it.
_SMALLEST = frozenset(list(ENCODERS)[:6])


def domains_of(tasks: str) -> tuple[str, ...]:
    """Domains that some tasks (letters or names) need, in the manifest's order: the picture, their labels, and depth
    where a loss is masked by it. Raises UnknownTasksError, ValueError for tasks that rooms have no labels for."""
    names = parse_tasks(tasks)
    if foreign := [name for name in names if TASKS[name].domain not in DOMAINS]:
        raise ValueError(f"rooms have no labels for {', '.join(foreign)}; they have {', '.join(DOMAINS)}")
    wanted = {INPUT_DOMAIN, *(TASKS[name].domain for name in names)}
    if any(TASKS[name].masked for name in names):
        wanted.add(DEPTH_DOMAIN)
    return tuple(domain for domain in DOMAINS if domain in wanted)


def encode_view(view: View, domains: Iterable[str] = ENCODERS) -> dict[str, Stored]:
    """Stored arrays of the named image domains."""
    return {domain: ENCODERS[domain](view) for domain in domains if domain in ENCODERS}


def files_of(view: View, domains: Iterable[str] = DOMAINS) -> dict[str, bytes]:
    """Contents of every domain's file: PNG, or JSON for numbers."""
    chosen = tuple(domains)
    stored = encode_view(view, chosen)
    files = {domain: png.encode(pixels, thorough=domain in _SMALLEST) for domain, pixels in stored.items()}
    for domain in chosen:
        if domain in VECTORS:
            files[domain] = json.dumps(VECTORS[domain](view)).encode() + b"\n"
    return files
