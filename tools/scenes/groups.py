"""Groups of furniture that belong together: a bed with its nightstands, a kitchen line, chairs round a table."""

from __future__ import annotations

from tools.scenes.catalogue import Model
from tools.scenes.furnisher import Furnisher
from tools.scenes.space import WALL_YAW_DEG, Piece, facing


def sofa_group(furnisher: Furnisher) -> None:
    """A sofa, a coffee table before it on a rug, armchairs beside, a television opposite."""
    model = furnisher.pick("sofa")
    sofa = furnisher.room.against_wall(model, furnisher.rng) if model else None
    if sofa is None:
        return
    front, wall = facing(sofa.yaw_deg), WALL_YAW_DEG.index(sofa.yaw_deg)
    table = furnisher.pick("coffee_table")
    if table is not None:
        reach = sofa.model.size_m[2] / 2 + 0.4 + table.size_m[2] / 2
        spot = (sofa.position[0] + front[0] * reach, 0.0, sofa.position[2] + front[1] * reach)
        furnisher.rug(spot, 2.2, 1.6, turned=wall in (1, 3))
        if placed := furnisher.room.add(table, spot, sofa.yaw_deg):
            _beside(furnisher, placed, "armchair", sofa.yaw_deg)
    _television(furnisher, (wall + 2) % 4)


def _beside(furnisher: Furnisher, table: Piece, role: str, yaw_deg: float) -> None:
    front = facing(yaw_deg)
    for side in (1, -1):
        model = furnisher.pick(role)
        if model is None or furnisher.rng.random() < 0.35:
            continue
        reach = table.model.size_m[0] / 2 + 0.35 + model.size_m[2] / 2
        spot = (
            table.position[0] + side * front[1] * reach,
            0.0,
            table.position[2] - side * front[0] * reach,
        )
        # Facing the table from either side, not quite squarely.
        turn = yaw_deg - side * 90 + float(furnisher.rng.uniform(-18, 18))
        furnisher.room.add(model, spot, turn)


def _television(furnisher: Furnisher, wall: int) -> None:
    stand_model, screen = furnisher.pick("tv_stand"), furnisher.pick("tv")
    placed = furnisher.room.against_wall(stand_model, furnisher.rng, (wall,)) if stand_model else None
    if placed and screen and placed.model.top_m and placed.model.size_m[1] < 1:
        furnisher.on_top(placed, screen, centred=True)
    elif flat := furnisher.pick("wall_tv"):
        furnisher.room.against_wall(flat, furnisher.rng, (wall,))


def bed_group(furnisher: Furnisher) -> None:
    """A bed with its head to the wall, nightstands with lamps, a rug."""
    model = furnisher.pick("bed")
    bed = furnisher.room.against_wall(model, furnisher.rng) if model else None
    if bed is None:
        return
    front, wall = facing(bed.yaw_deg), WALL_YAW_DEG.index(bed.yaw_deg)
    for side in (1, -1):
        table = furnisher.pick("nightstand")
        if table is None:
            continue
        across = bed.model.size_m[0] / 2 + 0.06 + table.size_m[0] / 2
        back = (bed.model.size_m[2] - table.size_m[2]) / 2
        spot = (
            bed.position[0] + side * front[1] * across - front[0] * back,
            0.0,
            bed.position[2] - side * front[0] * across - front[1] * back,
        )
        placed = furnisher.room.add(table, spot, bed.yaw_deg)
        lamp = furnisher.pick("table_lamp")
        if placed and lamp and furnisher.rng.random() < 0.8:
            furnisher.on_top(placed, lamp, centred=True)
    reach = bed.model.size_m[2] / 2 + 0.5
    furnisher.rug(
        (bed.position[0] + front[0] * reach, 0.0, bed.position[2] + front[1] * reach),
        1.8,
        1.2,
        turned=wall in (1, 3),
    )


def kitchen_line(furnisher: Furnisher) -> None:
    """Base units, stove and refrigerator side by side on one or two walls, cabinets above."""
    walls = [int(wall) for wall in furnisher.rng.permutation(4)]
    for number, wall in enumerate(walls[: int(furnisher.rng.integers(1, 3))]):
        roles = ["kitchen_base"] * 6
        roles[int(furnisher.rng.integers(1, 4))] = "kitchen_stove"
        roles[int(furnisher.rng.integers(4, 6))] = "washer" if number else "tall_kitchen"
        along = 0.06
        for role in roles:
            model = furnisher.pick(role)
            if model is None or along + model.size_m[0] > furnisher.room.wall_length_m(wall) - 0.05:
                continue
            middle = along + model.size_m[0] / 2
            placed = _at_wall(furnisher, model, wall, middle, 0.0)
            if placed and placed.model.size_m[1] < 1.3 and furnisher.rng.random() < 0.8:
                upper = furnisher.pick("hood" if role == "kitchen_stove" else "kitchen_upper")
                if upper is not None:
                    _at_wall(furnisher, upper, wall, middle, max(upper.elevation_m, 1.45))
            along += model.size_m[0] + (0.004 if placed else 0.25)
    if furnisher.rng.random() < 0.35 and (island := furnisher.pick("kitchen_island")):
        furnisher.room.add(island, (furnisher.room.width_m / 2, 0.0, furnisher.room.depth_m / 2), 0.0, 0.6)


def _at_wall(furnisher: Furnisher, model: Model, wall: int, along_m: float, elevation_m: float) -> Piece | None:
    x, z = furnisher.room.on_wall(wall, along_m, model.size_m[2] / 2 + 0.01)
    return furnisher.room.add(model, (x, elevation_m, z), WALL_YAW_DEG[wall], gap_m=-0.01)


def table_group(furnisher: Furnisher, table_role: str = "dining_table", chair_role: str = "chair") -> None:
    """A table somewhere in the middle with chairs round it, perhaps on a rug."""
    table = furnisher.pick(table_role)
    chair = furnisher.pick(chair_role)
    if table is None:
        return
    for _ in range(12):
        spot = (
            furnisher.room.width_m * float(furnisher.rng.uniform(0.3, 0.7)),
            0.0,
            furnisher.room.depth_m * float(furnisher.rng.uniform(0.3, 0.7)),
        )
        turned = bool(furnisher.rng.random() < 0.5)
        placed = furnisher.room.add(table, spot, 90.0 if turned else 0.0, gap_m=0.5)
        if placed is None:
            continue
        if furnisher.rng.random() < 0.5:
            furnisher.rug(spot, table.size_m[0] + 1.0, table.size_m[2] + 1.0, turned=turned)
        if chair is not None:
            _seats(furnisher, placed, chair)
        return


def _seats(furnisher: Furnisher, table: Piece, chair: Model) -> None:
    width, _, depth = table.model.size_m
    rows = max(1, int(width // 0.62))
    places = [(depth / 2, yaw, (k + 0.5) / rows * width - width / 2) for yaw in (0.0, 180.0) for k in range(rows)]
    places += [(width / 2, yaw, 0.0) for yaw in (90.0, -90.0) if depth > 0.7]
    for reach, side, offset in places:
        if furnisher.rng.random() < 0.12:
            continue
        out = reach + chair.size_m[2] * float(furnisher.rng.uniform(0.45, 0.7)) + 0.04
        angle = table.yaw_deg + side
        front, cross = facing(angle), facing(angle + 90)
        spot = (
            table.position[0] + front[0] * out + cross[0] * offset,
            0.0,
            table.position[2] + front[1] * out + cross[1] * offset,
        )
        furnisher.room.add(chair, spot, angle + 180 + float(furnisher.rng.uniform(-9, 9)), gap_m=0.0)


def desks(furnisher: Furnisher) -> None:
    """Desks with a chair behind and a computer on top, against walls."""
    for _ in range(int(furnisher.rng.integers(1, 4))):
        model, seat, computer = furnisher.pick("desk"), furnisher.pick("office_chair"), furnisher.pick("computer")
        desk = furnisher.room.against_wall(model, furnisher.rng) if model else None
        if desk is None:
            continue
        front = facing(desk.yaw_deg)
        if seat is not None:
            out = desk.model.size_m[2] / 2 + seat.size_m[2] * 0.6 + 0.03
            spot = (desk.position[0] + front[0] * out, 0.0, desk.position[2] + front[1] * out)
            furnisher.room.add(seat, spot, desk.yaw_deg + 180 + float(furnisher.rng.uniform(-30, 30)))
        if computer is not None:
            furnisher.on_top(desk, computer, centred=True)


def games(furnisher: Furnisher) -> None:
    """One or two large things that need room: a piano, a pool table, a treadmill."""
    for _ in range(int(furnisher.rng.integers(1, 3))):
        if model := furnisher.pick("game"):
            furnisher.room.against_wall(model, furnisher.rng)
