"""Procedural patterns of walls, floors, ceilings, rugs and paintings: square sRGB pictures that repeat."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Colour = tuple[float, float, float]
SIDE = 256


def noise(rng: np.random.Generator, side: int, roughness: float, stretch: float = 1.0) -> npt.NDArray[np.float64]:
    """Repeating 1/f noise `[side, side]`, mean 0, deviation 1; `stretch` > 1 draws it out along x."""
    spectrum = np.fft.rfft2(rng.standard_normal((side, side)))
    down = np.fft.fftfreq(side)[:, None] * side
    across = np.fft.rfftfreq(side)[None, :] * side * stretch
    distance = np.hypot(down, across)
    distance[0, 0] = np.inf
    field = np.fft.irfft2(spectrum / np.maximum(distance, 1.0) ** roughness, s=(side, side))
    return np.asarray((field - field.mean()) / field.std())


def _grid(side: int = SIDE) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    axis = (np.arange(side) + 0.5) / side
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return x, y


def _shade(base: Colour, factor: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.asarray(base) * factor[..., None])


def _mix(first: Colour, second: Colour, share: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.asarray(first) * (1 - share[..., None]) + np.asarray(second) * share[..., None])


Pattern = Callable[[np.random.Generator, Sequence[Colour]], npt.NDArray[np.float64]]


def paint(rng: np.random.Generator, colours: Sequence[Colour]) -> npt.NDArray[np.float64]:
    """Painted plaster: one colour with faint cloudiness."""
    return _shade(colours[0], 1 + 0.02 * noise(rng, SIDE, 1.6))


def stripes(rng: np.random.Generator, colours: Sequence[Colour]) -> npt.NDArray[np.float64]:
    """Vertical wallpaper stripes of two widths."""
    x, _ = _grid()
    count = int(rng.integers(3, 6))
    phase = (x * count) % 1.0
    share = ((phase < 0.45) | ((phase > 0.65) & (phase < 0.72))).astype(np.float64)
    return _mix(colours[0], colours[1], 0.8 * share)


def ornament(rng: np.random.Generator, colours: Sequence[Colour]) -> npt.NDArray[np.float64]:
    """Repeating medallions, as on old wallpaper and carpets."""
    x, y = _grid()
    count = int(rng.integers(2, 5))
    u, v = (x * count) % 1 - 0.5, (y * count) % 1 - 0.5
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    petals = int(rng.integers(4, 9))
    flower = radius < 0.26 + 0.12 * np.cos(petals * angle)
    ring = np.abs(radius - 0.12) < 0.04
    return _mix(colours[0], colours[1], 0.75 * (flower & ~ring))


def bricks(rng: np.random.Generator, colours: Sequence[Colour]) -> npt.NDArray[np.float64]:
    """Running bond of 4 x 8 bricks with joints, each brick a little different."""
    return _blocks(rng, colours[0], colours[1], columns=4, rows=10, shift=0.5, joint=0.06, spread=0.16)


def tiles(rng: np.random.Generator, colours: Sequence[Colour]) -> npt.NDArray[np.float64]:
    """Square tiles with light joints."""
    count = int(rng.integers(4, 7))
    return _blocks(rng, colours[0], colours[2], columns=count, rows=count, shift=0.0, joint=0.05, spread=0.04)


def checker(rng: np.random.Generator, colours: Sequence[Colour]) -> npt.NDArray[np.float64]:
    """Two-coloured tiles."""
    x, y = _grid()
    odd = (np.floor(x * 4) + np.floor(y * 4)) % 2
    return _mix(colours[0], colours[1], odd) * (1 + 0.03 * noise(rng, SIDE, 1.2)[..., None])


def planks(rng: np.random.Generator, colours: Sequence[Colour]) -> npt.NDArray[np.float64]:
    """Wooden boards along x with grain."""
    boards = _blocks(rng, colours[0], _darker(colours[0], 0.45), columns=2, rows=8, shift=0.37, joint=0.03, spread=0.13)
    return boards * (1 + 0.09 * noise(rng, SIDE, 1.1, stretch=9.0)[..., None])


def parquet(rng: np.random.Generator, colours: Sequence[Colour]) -> npt.NDArray[np.float64]:
    """Basket-weave parquet: squares of strips, turned alternately."""
    x, y = _grid()
    turned = ((np.floor(x * 4) + np.floor(y * 4)) % 2).astype(bool)
    along = np.where(turned, x, y) * 16
    strip = np.floor(along).astype(np.intp) % 16
    tone = 1 + 0.12 * rng.standard_normal((16, 4, 4))[strip, (y * 4).astype(np.intp), (x * 4).astype(np.intp)]
    seam = (along % 1) < 0.08
    return _shade(colours[0], np.where(seam, 0.55, np.clip(tone, 0.6, 1.4)))


def carpet(rng: np.random.Generator, colours: Sequence[Colour]) -> npt.NDArray[np.float64]:
    """Woven floor: coarse mottling over fine threads."""
    x, y = _grid()
    threads = 0.03 * np.sin(2 * np.pi * 32 * x) * np.sin(2 * np.pi * 32 * y)
    return _shade(colours[0], 1 + threads + 0.05 * noise(rng, SIDE, 0.8))


def stone(rng: np.random.Generator, colours: Sequence[Colour]) -> npt.NDArray[np.float64]:
    """Marble-like veins."""
    x, y = _grid()
    veins = np.abs(np.sin(np.pi * (2 * x + 2 * y) + 1.6 * noise(rng, SIDE, 1.8)))
    return _mix(colours[0], _darker(colours[0], 0.6), np.clip(1 - 3 * veins, 0, 1)) * (
        1 + 0.04 * noise(rng, SIDE, 1.2)[..., None]
    )


def panelling(rng: np.random.Generator, colours: Sequence[Colour]) -> npt.NDArray[np.float64]:
    """Upright boards, as in wainscots and ceilings."""
    x, _ = _grid()
    groove = ((x * 8) % 1) < 0.07
    tone = np.repeat(1 + 0.05 * rng.standard_normal(8), SIDE // 8)[None, :]
    return _shade(colours[0], np.where(groove, 0.6, tone + 0 * x) * (1 + 0.03 * noise(rng, SIDE, 1.2)))


def painting(rng: np.random.Generator, colours: Sequence[Colour]) -> npt.NDArray[np.float64]:
    """A picture for the wall: layered hills, overlapping shapes, or bands of colour."""
    drawn = (_hills, _shapes, _bands)[int(rng.integers(3))](rng, colours)
    x, y = _grid()
    edge = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y))
    frame = _darker(colours[int(rng.integers(len(colours)))], 0.4)
    margin = float(rng.uniform(0.04, 0.07))
    drawn[edge < margin + float(rng.choice([0.0, 0.06]))] = (0.92, 0.9, 0.86)
    drawn[edge < margin] = frame
    return drawn


def rug(rng: np.random.Generator, colours: Sequence[Colour]) -> npt.NDArray[np.float64]:
    """A rug with a patterned field inside borders."""
    field = (ornament, stripes, checker, carpet)[int(rng.integers(4))](rng, colours)
    x, y = _grid()
    edge = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y))
    field[edge < 0.1] = colours[2]
    field[edge < 0.06] = colours[1]
    return field


WALL_PATTERNS: dict[str, Pattern] = {
    "paint": paint,
    "stripes": stripes,
    "ornament": ornament,
    "bricks": bricks,
    "panelling": panelling,
    "tiles": tiles,
}
FLOOR_PATTERNS: dict[str, Pattern] = {
    "planks": planks,
    "parquet": parquet,
    "carpet": carpet,
    "checker": checker,
    "tiles": tiles,
    "stone": stone,
}


def _blocks(
    rng: np.random.Generator,
    face: Colour,
    joint_colour: Colour,
    *,
    columns: int,
    rows: int,
    shift: float,
    joint: float,
    spread: float,
) -> npt.NDArray[np.float64]:
    x, y = _grid()
    row = np.floor(y * rows).astype(np.intp)
    along = x * columns + shift * row
    column = np.floor(along).astype(np.intp) % columns
    tone = np.clip(1 + spread * rng.standard_normal((rows, columns)), 0.6, 1.4)[row, column]
    aspect = rows / columns
    seam = ((along % 1) < joint / max(aspect, 1.0)) | ((y * rows % 1) < joint * min(aspect, 1.5))
    drawn = _shade(face, tone * (1 + 0.03 * noise(rng, SIDE, 1.0)))
    drawn[seam] = joint_colour
    return drawn


def _darker(colour: Colour, factor: float) -> Colour:
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def _hills(rng: np.random.Generator, colours: Sequence[Colour]) -> npt.NDArray[np.float64]:
    x, y = _grid()
    drawn = _mix((0.95, 0.85, 0.7), (0.45, 0.65, 0.85), 1 - y)
    for layer in range(4):
        wave = sum(np.sin(2 * np.pi * x * k + rng.uniform(0, 6.3)) / k for k in range(1, 5))
        crest = 0.45 + 0.13 * layer + 0.07 * wave
        drawn[y > crest] = _darker(colours[layer % len(colours)], 0.9 - 0.15 * layer)
    return drawn


def _shapes(rng: np.random.Generator, colours: Sequence[Colour]) -> npt.NDArray[np.float64]:
    x, y = _grid()
    drawn = np.tile(np.asarray(colours[0], np.float64), (SIDE, SIDE, 1))
    for _ in range(int(rng.integers(5, 10))):
        cx, cy, r = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.3)
        inside = np.hypot(x - cx, y - cy) < r if rng.random() < 0.5 else (abs(x - cx) < r) & (abs(y - cy) < r * 0.7)
        drawn[inside] = np.clip(np.asarray(colours[int(rng.integers(len(colours)))]) * rng.uniform(0.5, 1.4), 0, 1)
    return drawn


def _bands(rng: np.random.Generator, colours: Sequence[Colour]) -> npt.NDArray[np.float64]:
    x, y = _grid()
    bent = y + 0.06 * noise(rng, SIDE, 1.8)
    number = np.clip(np.floor(bent * 6), 0, 5).astype(np.intp)
    palette = np.asarray(
        [np.clip(np.asarray(colours[k % len(colours)]) * rng.uniform(0.6, 1.3), 0, 1) for k in range(6)]
    )
    return np.asarray(palette[number] + 0 * x[..., None])
