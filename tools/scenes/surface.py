"""What can be said of surfaces from the picture of them alone: occlusion edges, shading, principal curvatures.

A `Surface` holds, for a grid of rays, how far along the axis each one went and which way the surface there faces.
All functions are closed-form numpy in the camera's frame (right, up, backwards), metres; no ray is cast here.

Neighbouring rays are told apart with their planes, not with a threshold on depth: the inverse depth of a plane is
linear over the picture, so whether two surfaces meet between two pixels (a crease, a floor seen at a flat angle) or
one ends before the other (an occlusion) follows from the two depths and normals.
Sources: Taubin, ICCV 1995 (curvature tensor from the normals of a neighbourhood; here by least squares).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

#: A nearer surface has to stand this far before the farther one: rugs, paintings and skirting lie on theirs.
_MIN_GAP_M = 0.05
#: From this gap on an occlusion counts in full.
_FULL_GAP_M = 1.5
#: Steepest slope that is believed, in metres of depth per pixel's width on the surface (8: seen at 7 degrees).
_MAX_SLOPE = 8.0
#: Distance at which the lamp at the camera has faded to half, and how bright it is: with these the shading of rendered
#: rooms has the mean of the published normalisation (0.4962) and most of its spread.
_HALF_LIGHT_M = 4.0
_LAMP = 1.45
_NEIGHBOURS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))


@dataclass(frozen=True, slots=True)
class Surface:
    """What a grid of rays met. `depth_m` `[S, S]` along the axis, inf where nothing; `flat` and `bent` `[S, S, 3]`,
    unit normals of the triangle and of the smooth shape behind it, towards the camera, zero where nothing.

    `reach` is the tangent of half the field of view.
    """

    depth_m: FloatArray
    flat: FloatArray
    bent: FloatArray
    reach: float

    @property
    def seen(self) -> BoolArray:
        """Where there is a surface, `[S, S]`."""
        return np.isfinite(self.depth_m)

    @property
    def pixel(self) -> float:
        """Width of one ray's share of the picture at a distance of one metre, in metres."""
        return 2 * self.reach / len(self.depth_m)

    def positions(self) -> FloatArray:
        """Points in the camera's frame, `[S, S, 3]` metres; zero where there is nothing."""
        size = self.depth_m.shape[0]
        steps = (((np.arange(size) + 0.5) / size * 2 - 1) * self.reach).astype(np.float32)
        depth = np.where(self.seen, self.depth_m, 0).astype(np.float32)
        return np.stack([depth * steps[None, :], depth * -steps[:, None], -depth], axis=-1)


def occlusion(surface: Surface) -> FloatArray:
    """How strongly each pixel hides something behind its edge, `[S, S]` in 0..1; marked on the nearer surface only.

    0 for gaps under 5 cm, 1 from one and a half metres on (or before the void).
    """
    edges = _Planes(surface)
    strength = np.zeros_like(surface.depth_m)
    for step in ((0, 1), (1, 0)):
        here, there = _pair(strength.shape, step)
        gap, near = edges.gap(here, there, step)
        share = np.clip((gap - _MIN_GAP_M) / (_FULL_GAP_M - _MIN_GAP_M), 0, 1)
        strength[here] = np.maximum(strength[here], np.where(near, share, 0))
        strength[there] = np.maximum(strength[there], np.where(near, 0, share))
    return strength


def shading(surface: Surface) -> FloatArray:
    """Matt white surfaces under one lamp at the camera, `[S, S]` in 0..1; 0 where there is nothing.

    Lambert's cosine times `1.45 / (1 + (r / 4 m)^2)`, cut at 1. A lamp at the camera throws no shadow that it sees.
    """
    points = surface.positions()
    square = _dot(points, points)
    cosine = -_dot(points, surface.bent) / np.sqrt(np.maximum(square, 1e-12))
    light = _LAMP / (1 + square / _HALF_LIGHT_M**2)
    return np.asarray(np.clip(np.maximum(cosine, 0) * light, 0, 1), np.float32)


def curvatures(surface: Surface, step: int = 1) -> FloatArray:
    """The two principal curvatures, `[S, S, 2]` in 1/m, the one of larger magnitude first; 0 where there is nothing.

    Positive: convex, bulging towards the camera (a ball of radius r gives 1/r twice); negative: hollow. The shape
    operator comes from the normals and positions of the up to eight neighbours `step` pixels away that lie on the
    same surface; creases count as the curvature that they have at this distance.
    """
    points, normal = surface.positions(), surface.bent
    first, second = _tangents(normal)
    edges = _Planes(surface)
    sums = np.zeros((7, *surface.depth_m.shape), np.float32)
    for direction in _NEIGHBOURS:
        offset = (direction[0] * step, direction[1] * step)
        here, there = _pair(surface.depth_m.shape, offset)
        way = points[there] - points[here]
        a, b = _dot(way, first[here]), _dot(way, second[here])
        across = a * a + b * b
        near = np.square(surface.pixel * step * _MAX_SLOPE * np.minimum(-points[here][..., 2], -points[there][..., 2]))
        gap, _ = edges.gap(here, there, offset)
        joined = (gap < _MIN_GAP_M) & (across > 0) & (across < near)
        # Every neighbour counts alike, however far a slanted surface carries it away.
        weight = np.where(joined, 1 / np.maximum(across, 1e-12), 0)
        turned = normal[there]
        p, q = _dot(turned, first[here]), _dot(turned, second[here])
        for number, value in enumerate((a * a, a * b, b * b, a * p, b * p, a * q, b * q)):
            sums[number][here] += weight * value
    return _principal(sums)


def _principal(sums: FloatArray) -> FloatArray:
    """Eigenvalues of the symmetric 2 x 2 operator that fits best: from the sums of `curvatures`."""
    # The weights make aa + bb the number of neighbours; the small addition keeps a single row of them solvable.
    aa, ab, bb = sums[0] + 0.01, sums[1], sums[2] + 0.01
    ap, bp, aq, bq = sums[3:]
    inverse = 1 / (aa * bb - ab * ab)
    xx = (ap * bb - bp * ab) * inverse
    yy = (bq * aa - aq * ab) * inverse
    xy = ((bp * aa - ap * ab) + (aq * bb - bq * ab)) * inverse / 2
    middle, half = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    high, low = middle + half, middle - half
    ordered = np.where((np.abs(high) >= np.abs(low))[..., None], np.stack([high, low], -1), np.stack([low, high], -1))
    return np.asarray(ordered, np.float32)


class _Planes:
    """The plane through every ray's end, as inverse depth and its change from pixel to pixel."""

    def __init__(self, surface: Surface) -> None:
        seen = surface.seen
        self.inverse = np.where(seen, 1 / np.where(seen, surface.depth_m, 1), 0).astype(np.float32)
        offset = _dot(surface.positions(), surface.flat)
        safe = np.where(offset < -1e-9, offset, -1e-9)
        limit = _MAX_SLOPE * surface.pixel * self.inverse
        self.right = np.clip(surface.flat[..., 0] / safe * surface.pixel, -limit, limit)
        self.down = np.clip(-surface.flat[..., 1] / safe * surface.pixel, -limit, limit)

    def gap(
        self, here: tuple[slice, slice], there: tuple[slice, slice], step: tuple[int, int]
    ) -> tuple[FloatArray, BoolArray]:
        """Metres between two neighbours' surfaces where they come closest (0: they meet), and whether `here` is near.

        `step` (down, right) leads from the one to the other; inf before the void.
        """
        first, second = self.inverse[here], self.inverse[there]
        slope = self.down[here] * step[0] + self.right[here] * step[1]
        other = self.down[there] * step[0] + self.right[there] * step[1]
        at_first, at_second = first - (second - other), first + slope - second
        apart = np.where(at_first * at_second > 0, np.minimum(np.abs(at_first), np.abs(at_second)), 0)
        nearest = np.maximum(first, second)
        farther = nearest - apart
        void = (first > 0) != (second > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            gap = np.where(farther > 0, apart / (nearest * farther), np.inf)
        gap = np.where(void, np.inf, np.where(nearest > 0, gap, 0))
        return gap.astype(np.float32), first > second


def _pair(shape: tuple[int, ...], step: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Views of a grid on itself moved by `step`: every pixel that has a neighbour there, and the neighbours."""

    def cut(length: int, by: int) -> tuple[slice, slice]:
        return slice(max(0, -by), length - max(0, by)), slice(max(0, by), length - max(0, -by))

    (top, bottom), (left, right) = cut(shape[0], step[0]), cut(shape[1], step[1])
    return (top, left), (bottom, right)


def _tangents(normal: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Two unit vectors across each normal (Duff et al., JCGT 2017: no branch, no singular direction but one)."""
    x, y, z = normal[..., 0], normal[..., 1], normal[..., 2]
    sign = np.where(z < 0, np.float32(-1), np.float32(1))
    share = -1 / (sign + z)
    mixed = x * y * share
    first = np.stack([1 + sign * x * x * share, sign * mixed, -sign * x], axis=-1)
    second = np.stack([mixed, sign + y * y * share, -y], axis=-1)
    return first, second


def _dot(first: FloatArray, second: FloatArray) -> FloatArray:
    return np.asarray(first[..., 0] * second[..., 0] + first[..., 1] * second[..., 1] + first[..., 2] * second[..., 2])


def halve(values: FloatArray) -> FloatArray:
    """Mean of every 2 x 2 pixels, `[2S, 2S, ...]` -> `[S, S, ...]`."""
    quarters = (values[0::2, 0::2], values[0::2, 1::2], values[1::2, 0::2], values[1::2, 1::2])
    return np.asarray(sum(quarters[1:], quarters[0]) / np.float32(4))
