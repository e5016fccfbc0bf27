"""The furniture catalogue: which models there are, how large they are, who made them and under which licence.

Format (Sweet Home 3D furniture libraries): a `.sh3f` file is a zip with `PluginFurnitureCatalog.properties`
(ISO 8859-1, `key#number=value`, sizes in centimetres) and OBJ models with their materials and textures.
"""

from __future__ import annotations

import re
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from tools.scenes.roles import classify

_LISTING = "PluginFurnitureCatalog.properties"
_ENTRY = re.compile(r"(\w+)#(\d+)\s*=\s*(.*)")
_HEADER = re.compile(r"(\w+)\s*=\s*(.*)")
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


class CatalogueError(Exception):
    """The catalogue cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Model:
    """One piece of furniture. Sizes are `(width x, height y, depth z)`; the front faces +z."""

    key: str
    name: str
    category: str
    creator: str
    set_name: str
    licence: str
    archive: Path
    obj: str
    size_m: tuple[float, float, float]
    elevation_m: float
    #: Height on which things can stand; None where nothing may.
    top_m: float | None
    rotation: tuple[float, ...]
    role: str
    class_id: int


def read_catalogue(folder: Path) -> tuple[Model, ...]:
    """Every usable model of the furniture sets (`*.sh3f`, or unpacked sets) under `folder`, in a stable order.

    Sets under another licence than CC0 / public domain / CC-BY are left out, and so are models that no room needs.
    Raises CatalogueError where nothing usable is found.
    """
    archives = sorted(folder.rglob("*.sh3f"), key=lambda path: path.name)
    if not archives:
        raise CatalogueError(f"no furniture set (*.sh3f) under {folder}; give the folder that holds them")
    models: list[Model] = []
    refused: list[str] = []
    for archive in archives:
        header, entries = _read_listing(archive)
        licence = free_licence(header.get("license", ""))
        if licence is None:
            refused.append(f"{archive.name} ({header.get('license', 'no licence stated')})")
            continue
        models.extend(filter(None, (_model(archive, licence, entry) for entry in entries)))
    if not models:
        raise CatalogueError(f"no usable model under {folder}; sets refused for their licence: {refused or 'none'}")
    return tuple(models)


def free_licence(text: str) -> str | None:
    """Short name of a licence that allows redistribution with attribution at most, else None."""
    lowered = text.lower()
    if any(
        word in lowered
        for word in ("noncommercial", "non-commercial", "noderiv", "no deriv", "sharealike", "-sa", "-nc")
    ):
        return None
    if "public domain" in lowered or "cc0" in lowered or "creative commons zero" in lowered:
        return "CC0 1.0"
    if "attribution" in lowered or "cc-by" in lowered:
        return "CC-BY 3.0 US" if "united states" in lowered else "CC-BY 3.0"
    return None


def _read_listing(archive: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    try:
        with zipfile.ZipFile(archive) as opened:
            text = opened.read(_LISTING).decode("latin-1")
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise CatalogueError(f"{archive} is no furniture set: {error}") from error
    header: dict[str, str] = {}
    entries: dict[int, dict[str, str]] = defaultdict(dict)
    for line in text.splitlines():
        if entry := _ENTRY.match(line):
            entries[int(entry[2])][entry[1]] = _unescape(entry[3].strip())
        elif pair := _HEADER.match(line):
            header[pair[1]] = _unescape(pair[2].strip())
    return header, [entries[number] for number in sorted(entries)]


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)


def _model(archive: Path, licence: str, entry: dict[str, str]) -> Model | None:
    size_m = (float(entry["width"]) / 100, float(entry["height"]) / 100, float(entry["depth"]) / 100)
    elevation_m = float(entry.get("elevation", 0)) / 100
    found = classify(entry["name"], entry["category"], size_m, elevation_m)
    if found is None:
        return None
    drop = float(entry.get("dropOnTopElevation", entry["height"])) / 100
    rotation = tuple(float(part) for part in entry["modelRotation"].split()) if "modelRotation" in entry else _IDENTITY
    return Model(
        key=entry.get("id", f"{archive.stem}#{entry['name']}"),
        name=entry["name"],
        category=entry["category"],
        creator=entry.get("creator", "unknown"),
        set_name=archive.stem,
        licence=licence,
        archive=archive,
        obj=entry["model"].lstrip("/"),
        size_m=size_m,
        elevation_m=elevation_m,
        top_m=drop if drop > 0 else None,
        rotation=rotation,
        role=found[0],
        class_id=found[1],
    )
