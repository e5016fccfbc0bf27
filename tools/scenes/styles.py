"""What makes one building differ from the next: palette, surfaces, furniture, light and camera habits.

All draws come from `(seed, building number)`, so buildings are independent of one another and of how many there are.
Because every image of a building shares one style, buildings are truly non-identical clients of a federation.
"""

from __future__ import annotations

import colorsys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tools.scenes.catalogue import Model
from tools.scenes.patterns import FLOOR_PATTERNS, WALL_PATTERNS, Colour

ROOM_KINDS = ("living", "bedroom", "kitchen", "dining", "office", "bathroom", "leisure")
_NAMES = (
    "alder", "birch", "cedar", "damson", "elder", "fir", "gorse", "hazel", "ivy", "juniper", "kauri", "larch",
    "maple", "nutmeg", "oak", "poplar", "quince", "rowan", "spruce", "teak", "ulmus", "viburnum", "willow", "yew",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Style:
    """One building. Angles in degrees, lengths in metres, colours sRGB 0..1."""

    name: str
    room_kinds: tuple[str, ...]
    furniture: Mapping[str, tuple[Model, ...]]
    palette: tuple[Colour, ...]
    wall_patterns: tuple[str, ...]
    floor_patterns: tuple[str, ...]
    ceiling: str
    room_height_m: float
    room_scale: float
    clutter: float
    pictures: float
    #: Linear RGB of lamps and of daylight.
    lamp_colour: Colour
    sky_colour: Colour
    sun: float
    dome: float
    exposure: float
    open_windows: bool
    camera_height_m: float
    camera_pitch_deg: float
    field_of_view_deg: float


def building_name(number: int) -> str:
    """`alder`, `birch`, ...; from the 25th on with a number behind."""
    name = _NAMES[number % len(_NAMES)]
    return name if number < len(_NAMES) else f"{name}{number // len(_NAMES) + 1}"


def draw_style(seed: int, number: int, models: Sequence[Model]) -> Style:
    """The style of building `number`; `models` is the whole catalogue, of which each building owns a share."""
    rng = np.random.default_rng([seed, number, 1])
    hue, accent = rng.random(), rng.random()
    warm = float(rng.uniform(-1, 1))
    weights = rng.dirichlet(np.full(len(ROOM_KINDS), 1.2)) * 0.7 + np.array([0.09, 0.07, 0.05, 0.03, 0.03, 0.02, 0.01])
    kinds = rng.choice(len(ROOM_KINDS), size=16, p=weights / weights.sum())
    return Style(
        name=building_name(number),
        room_kinds=tuple(ROOM_KINDS[kind] for kind in kinds),
        furniture=_furniture(rng, models),
        palette=_palette(rng, hue, accent),
        wall_patterns=_some(rng, tuple(WALL_PATTERNS), 2, (0.34, 0.16, 0.16, 0.14, 0.14, 0.06)),
        floor_patterns=_some(rng, tuple(FLOOR_PATTERNS), 2, (0.3, 0.2, 0.18, 0.08, 0.14, 0.1)),
        ceiling=str(rng.choice(["paint", "paint", "panelling"])),
        room_height_m=float(rng.uniform(2.4, 3.1)),
        room_scale=float(rng.uniform(0.9, 1.2)),
        clutter=float(rng.uniform(0.4, 1.0)),
        pictures=float(rng.uniform(0.3, 1.0)),
        lamp_colour=(1.0, 0.9 - 0.1 * warm, 0.8 - 0.25 * warm),
        sky_colour=(0.85, 0.95, 1.1),
        sun=float(rng.choice([0.0, 1.0])) * float(rng.uniform(1.5, 3.5)),
        dome=float(rng.uniform(0.35, 0.8)),
        exposure=float(rng.uniform(0.8, 1.25)),
        open_windows=bool(rng.random() < 0.6),
        camera_height_m=float(rng.uniform(1.1, 1.75)),
        camera_pitch_deg=float(rng.uniform(-14, -1)),
        field_of_view_deg=float(rng.uniform(54, 68)),
    )


def _some(rng: np.random.Generator, names: tuple[str, ...], count: int, shares: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(names[index] for index in rng.choice(len(names), size=count, replace=False, p=shares))


def _furniture(rng: np.random.Generator, models: Sequence[Model]) -> dict[str, tuple[Model, ...]]:
    by_role: dict[str, list[Model]] = defaultdict(list)
    for model in models:
        by_role[model.role].append(model)
    owned: dict[str, tuple[Model, ...]] = {}
    for role in sorted(by_role):
        choice = by_role[role]
        count = min(len(choice), max(2, round(0.35 * len(choice))))
        owned[role] = tuple(choice[index] for index in sorted(rng.choice(len(choice), size=count, replace=False)))
    return owned


def _palette(rng: np.random.Generator, hue: float, accent: float) -> tuple[Colour, ...]:
    """Wall, second wall, pale, wood, floor, two accents, brick."""

    def colour(h: float, saturation: tuple[float, float], value: tuple[float, float]) -> Colour:
        return colorsys.hsv_to_rgb(h % 1.0, float(rng.uniform(*saturation)), float(rng.uniform(*value)))

    return (
        colour(hue, (0.03, 0.34), (0.6, 0.95)),
        colour(hue + rng.uniform(-0.08, 0.08), (0.08, 0.45), (0.45, 0.9)),
        colour(rng.random(), (0.0, 0.08), (0.85, 0.97)),
        colour(rng.uniform(0.04, 0.11), (0.35, 0.7), (0.3, 0.75)),
        colour(rng.uniform(0.0, 0.15), (0.03, 0.35), (0.35, 0.8)),
        colour(accent, (0.35, 0.75), (0.35, 0.8)),
        colour(accent + rng.uniform(0.06, 0.2), (0.3, 0.7), (0.35, 0.85)),
        colour(rng.uniform(0.0, 0.07), (0.05, 0.6), (0.45, 0.8)),
    )
