"""A furniture set of boxes, small enough to make in a test: one model for each role that rooms are furnished with."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

#: name, category, width, depth, height and elevation in centimetres
MODELS = (
    ("Bed", "Bedroom", 140, 200, 60, 0),
    ("Bedside table", "Bedroom", 45, 40, 50, 0),
    ("Wardrobe", "Bedroom", 120, 60, 200, 0),
    ("Sofa", "Living room", 180, 80, 80, 0),
    ("Armchair", "Living room", 80, 80, 80, 0),
    ("Coffee table", "Living room", 110, 60, 45, 0),
    ("Table", "Living room", 140, 90, 74, 0),
    ("Chair", "Living room", 45, 50, 90, 0),
    ("Bookcase", "Living room", 100, 35, 180, 0),
    ("Plant", "Living room", 60, 60, 110, 0),
    ("Desk", "Office", 140, 70, 74, 0),
    ("Chair", "Office", 60, 60, 95, 0),
    ("Lower cabinet", "Kitchen", 60, 60, 88, 0),
    ("Fridge", "Kitchen", 60, 60, 170, 0),
    ("Toilets unit", "Bathroom", 40, 60, 77, 0),
    ("Washbasin", "Bathroom", 60, 45, 90, 0),
    ("Bath", "Bathroom", 170, 75, 60, 0),
    ("Pool table", "Miscellaneous", 220, 130, 80, 0),
    ("Vase", "Miscellaneous", 22, 22, 30, 0),
    ("Door", "Doors and windows", 90, 15, 210, 0),
    ("Window", "Doors and windows", 110, 30, 130, 90),
    ("Hanging light", "Lights", 40, 40, 60, 180),
)


def box_obj(material: str = "paint") -> str:
    """A unit cube with texture coordinates, as OBJ."""
    corners = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    faces = [(1, 3, 4, 2), (5, 6, 8, 7), (1, 2, 6, 5), (3, 7, 8, 4), (1, 5, 7, 3), (2, 4, 8, 6)]
    lines = ["mtllib box.mtl", *(f"v {x} {y} {z}" for x, y, z in corners)]
    lines += ["vt 0 0", "vt 1 0", "vt 1 1", "vt 0 1", f"usemtl {material}"]
    lines += ["f " + " ".join(f"{v}/{t}" for t, v in enumerate(face, 1)) for face in faces]
    return "\n".join(lines) + "\n"


def write_set(
    folder: Path, name: str = "Tiny", licence: str = "Public domain", models: tuple[tuple[object, ...], ...] = MODELS
) -> Path:
    """Write `<name>.sh3f` with one box per model (every third one textured) and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    listing = [f"name={name}", f"license={licence}"]
    texture = io.BytesIO()
    checks = np.kron(np.indices((4, 4)).sum(0) % 2, np.ones((8, 8)))
    Image.fromarray(np.stack([checks * 200, checks * 90, 120 - checks * 60], -1).astype(np.uint8)).save(texture, "PNG")
    with zipfile.ZipFile(folder / f"{name}.sh3f", "w") as archive:
        for number, (title, category, width, depth, height, elevation) in enumerate(models, 1):
            base = f"tiny/m{number}"
            map_line = "map_Kd check.png\n" if number % 3 == 0 else ""
            colour = " ".join(f"{(number * k % 7) / 8 + 0.1:.2f}" for k in (1, 2, 3))
            archive.writestr(f"{base}/box.obj", box_obj())
            archive.writestr(f"{base}/box.mtl", f"newmtl paint\nKd {colour}\n{map_line}")
            archive.writestr(f"{base}/check.png", texture.getvalue())
            listing += [
                f"id#{number}={name}#m{number}", f"name#{number}={title}", f"category#{number}={category}",
                f"model#{number}=/{base}/box.obj", f"width#{number}={width}", f"depth#{number}={depth}",
                f"height#{number}={height}", f"elevation#{number}={elevation}", f"creator#{number}=Maker {number}",
            ]  # fmt: skip
        archive.writestr("PluginFurnitureCatalog.properties", "\n".join(listing).encode("latin-1"))
    return folder
