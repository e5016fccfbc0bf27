"""Writing a dataset folder: an interruption leaves nothing broken, a second run goes on where the first ended."""

from __future__ import annotations

import os
from pathlib import Path

from edge_agent.datasets.layout import MANIFEST, Generator, Manifest, Sample, read_manifest
from edge_agent.datasets.split import VALIDATION_SHARE, point_share

#: Files being written start with this; whatever carries it after an interruption is waste.
_TEMP_PREFIX = ".writing-"
_PLAN_FILE = ".mas-dataset.plan"


class FolderError(Exception):
    """The output folder cannot be used; the message says what to do."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, then rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMP_PREFIX}{os.getpid()}-{path.name}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def claim(root: Path, generator: Generator) -> None:
    """Make sure that `root` is new or holds (part of) what `generator` makes, and clear half-written files.

    The manifest is taken away until `finish`. Raises FolderError for a folder with anything else in it.
    """
    identity = f"{generator.version} {generator.command}"
    note = root / _PLAN_FILE
    manifest = read_manifest(root)
    if note.is_file():
        held = note.read_text().strip()
    elif manifest is not None:
        held = f"{manifest.generator.version} {manifest.generator.command}"
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FolderError(f"{root} is not empty and was not begun by this command; choose another folder")
    else:
        held = identity
    if held != identity:
        raise FolderError(f"{root} holds another dataset ({held}); choose another folder or remove it")
    write_atomic(note, identity.encode() + b"\n")
    (root / MANIFEST).unlink(missing_ok=True)
    for waste in root.rglob(f"{_TEMP_PREFIX}*"):
        waste.unlink(missing_ok=True)


def finish(root: Path, manifest: Manifest) -> None:
    """Write the manifest: from now on the dataset is whole."""
    write_atomic(root / MANIFEST, manifest.to_json())
    (root / _PLAN_FILE).unlink(missing_ok=True)


def point_numbers(building: str, count: int) -> list[int]:
    """`count` point numbers, ascending, of which about 15 % (one at least, if there are two) are validation points.

    Which side a point falls on is a hash of its name; small buildings could come out with no validation at all, so
    the numbers are chosen, not the sides.
    """
    wanted_val = max(1, round(VALIDATION_SHARE * count)) if count > 1 else 0
    wanted = {True: wanted_val, False: count - wanted_val}
    chosen: list[int] = []
    number = 0
    while len(chosen) < count:
        is_val = point_share(Sample(building, number, 0)) < VALIDATION_SHARE
        if wanted[is_val]:
            wanted[is_val] -= 1
            chosen.append(number)
        number += 1
    return chosen
