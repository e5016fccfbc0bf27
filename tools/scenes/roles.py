"""What a catalogue entry is for: its role in a room and its semantic class, from its name, category and size."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Semantic classes of the label maps; 0 is "ignored or uncertain", 18 channels in all.
CLASSES: dict[int, str] = {
    0: "ignored",
    1: "wall",
    2: "floor",
    3: "ceiling",
    4: "window",
    5: "door",
    6: "bed",
    7: "sofa",
    8: "chair",
    9: "table",
    10: "storage",
    11: "appliance",
    12: "sanitary",
    13: "lamp",
    14: "plant",
    15: "picture",
    16: "textile",
    17: "object",
}
WALL, FLOOR, CEILING, WINDOW, DOOR, PICTURE, TEXTILE = 1, 2, 3, 4, 5, 15, 16

Size = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class _Rule:
    """First match wins. `height_m` and `longest_m` are open ranges on the height and the longest side."""

    role: str
    class_id: int
    name: str
    category: str = ""
    height_m: tuple[float, float] = (0.0, 9.0)
    longest_m: tuple[float, float] = (0.0, 9.0)
    min_elevation_m: float = -1.0


_UNUSED = re.compile(
    r"arched|garage|elevator|screen door|shutter|outdoor|street|park light|lamppost|porch|container|fence|railing|"
    r"pallet|mower|chimney|furnace|plug|switch|socket|dimmer|bill \d|step ladder|ruler|pencil|marker|hospital|"
    r"wheelchair|urinal|emergency|number lock|hanger|hanging clothes|window blind|camping|contemporary living|"
    r"fitness tower|ceiling fan|fluorescent strip|wood logs|track lights|tatami|mezzanine|surveillance|cctv|"
    r"shower (head|door|curtain)|water heater|workbench|armchair ottoman|extinguisher|custom desk|rj45",
    re.IGNORECASE,
)
_GAMES = r"table tennis$|(pool|football) table|treadmill|indoor bike|(grand|upright) piano|punching|flipper|abdominal"
_PLANTS = r"plant|ficus|yucca|bamboo|cactus|bonsai|tulip|lily|flowers|orchid|spathiphyllum|christmas tree"

_RULES: tuple[_Rule, ...] = (
    _Rule("window", 4, r"window", "doors and windows", (0.9, 2.3)),
    _Rule("door", 5, r"door", "doors and windows", (1.9, 2.3)),
    _Rule("game", 0, _GAMES),
    _Rule("radiator", 0, r"radiator"),
    _Rule("floor_plant", 14, _PLANTS, height_m=(0.55, 2.1)),
    _Rule("small_plant", 14, _PLANTS, height_m=(0.0, 0.55)),
    _Rule(
        "ceiling_lamp",
        13,
        r"hanging|chandelier|pendant|ceiling lamp|fluorescent light|^lamp$",
        "lights",
        min_elevation_m=1.2,
    ),
    _Rule("wall_lamp", 13, r"wall", "lights", min_elevation_m=1.0),
    _Rule("floor_lamp", 13, r"lamp", "lights", (1.2, 2.2)),
    _Rule("table_lamp", 13, r"lamp|candle|lantern", "lights", (0.1, 0.9)),
    _Rule("nightstand", 9, r"bedside table"),
    _Rule("crib", 6, r"crib|baby bed"),
    _Rule("bed", 6, r"\bbed\b|day bed|futon$", height_m=(0.15, 1.7), longest_m=(1.8, 2.7)),
    _Rule("sofa", 7, r"sofa|couch", longest_m=(1.3, 3.0)),
    _Rule("office_chair", 8, r"chair|seat", "office"),
    _Rule("armchair", 7, r"armchair|puff", longest_m=(0.5, 1.3)),
    _Rule("bar_stool", 8, r"stool|bar chair", height_m=(0.75, 1.2)),
    _Rule("chair", 8, r"chair|stool|bench$", height_m=(0.4, 1.2), longest_m=(0.3, 1.25)),
    _Rule("computer", 11, r"laptop|imac|ibook"),
    _Rule("desk", 9, r"desk|table", "office", (0.6, 1.2)),
    _Rule("dresser", 10, r"dressing table|changing table"),
    _Rule("coffee_table", 9, r"table", "living room", (0.3, 0.62), (0.6, 1.6)),
    _Rule("dining_table", 9, r"table", "living room", (0.62, 0.95)),
    _Rule("wall_tv", 11, r"wall flat tv"),
    _Rule("tv", 11, r"\btv\b(?! (stand|remote))", height_m=(0.3, 0.8)),
    _Rule("tv_stand", 10, r"tv stand|television cabinet"),
    _Rule("bookcase", 10, r"bookcase|shelves$", longest_m=(0.7, 3.1), height_m=(0.7, 2.3)),
    _Rule("kitchen_upper", 10, r"cabinet|shelves", "kitchen", (0.4, 0.9), min_elevation_m=1.2),
    _Rule("hood", 11, r"hood", "kitchen"),
    _Rule("tall_kitchen", 11, r"fridge|refrigerator", "kitchen", (1.1, 2.3)),
    _Rule("tall_kitchen", 10, r"high cabinet", "kitchen", (1.1, 2.3)),
    _Rule("kitchen_corner", 10, r"corner", "kitchen"),
    _Rule("kitchen_island", 10, r"island", "kitchen"),
    _Rule("kitchen_base", 10, r"cabinet|sink", "kitchen", (0.8, 1.25)),
    _Rule("washer", 11, r"washing machine|dryer", "kitchen"),
    _Rule("kitchen_stove", 11, r"oven|stove", "kitchen", (0.5, 1.1), (0.5, 1.2)),
    _Rule("wardrobe", 10, r"wardrobe|cupboard", height_m=(1.4, 2.4)),
    _Rule(
        "dresser",
        10,
        r"chest$|dresser|vanity cabinet|filing|^box$|safe",
        height_m=(0.5, 1.2),
        longest_m=(0.5, 2.2),
    ),
    _Rule("wardrobe", 10, r"^box$", "office", (1.2, 2.4)),
    _Rule("toilet", 12, r"toilets unit|bidet"),
    _Rule("sink", 12, r"washbasin|vanity|lavatory", "bathroom"),
    _Rule("bath", 12, r"bath$|bathtub|island bath|shower stall", "bathroom"),
    _Rule("rug", 16, r"rug|carpet"),
    _Rule("mat", 16, r"bathmat|doormat"),
    _Rule("curtain", 16, r"^curtain"),
    _Rule("towel_rack", 16, r"towel rack", "bathroom"),
    _Rule("fireplace", 0, r"fireplace"),
    _Rule("whiteboard", 17, r"white board"),
    _Rule("wall_object", 17, r"clock|intercom|air conditioning|dart|thermometer", min_elevation_m=0.9),
    _Rule("floor_object", 17, r"", longest_m=(0.55, 1.3), height_m=(0.2, 1.5)),
    _Rule(
        "floor_object",
        17,
        r"suitcase|basket$|bin|trash|backpack|ball$|gift|guitar|box$|dustbin|speaker",
        height_m=(0.2, 1.4),
    ),
    _Rule("kitchen_object", 17, r"", "kitchen", (0.03, 0.55), (0.05, 0.65)),
    _Rule("office_object", 17, r"", "office", (0.02, 0.45), (0.05, 0.55)),
    _Rule("bath_object", 17, r"", "bathroom", (0.04, 0.45), (0.05, 0.55)),
    _Rule("home_object", 17, r"", "", (0.04, 0.6), (0.08, 0.55)),
)

_SKIPPED_CATEGORIES = frozenset({"characters", "vehicles", "exterior", "staircases"})


def classify(name: str, category: str, size_m: Size, elevation_m: float) -> tuple[str, int] | None:
    """Role and class id of a catalogue entry; None where no room has a use for it."""
    if category.lower() in _SKIPPED_CATEGORIES or _UNUSED.search(name):
        return None
    for rule in _RULES:
        if _matches(rule, name, category.lower(), size_m, elevation_m):
            return rule.role, rule.class_id
    return None


def _matches(rule: _Rule, name: str, category: str, size_m: Size, elevation_m: float) -> bool:
    longest = max(size_m)
    return (
        (not rule.category or rule.category == category)
        and rule.height_m[0] <= size_m[1] <= rule.height_m[1]
        and rule.longest_m[0] <= longest <= rule.longest_m[1]
        and elevation_m >= rule.min_elevation_m
        and re.search(rule.name, name, re.IGNORECASE) is not None
    )
