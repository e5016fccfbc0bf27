"""The demo's own folder: nothing in it is replaced unless a demo put it there, and only one demo uses it at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MARK = ".mas-demo"


class FolderTakenError(Exception):
    """A folder that the demo must not use; the message says why and what to do."""


@contextmanager
def own_folder(out: Path, photos: Path | None) -> Iterator[None]:
    """Hold `out` for one demo; `photos` are somebody's own pictures, which must lie elsewhere.

    Raises FolderTakenError for a folder with other things in it, one in use, or one that holds the photographs.
    """
    if photos is not None and (
        photos.resolve().is_relative_to(out.resolve()) or out.resolve().is_relative_to(photos.resolve())
    ):
        raise FolderTakenError(f"{photos} and the demo's folder {out} lie in each other; choose another --out")
    if out.exists() and not out.is_dir():
        raise FolderTakenError(f"{out} is no folder; choose another with --out")
    if out.exists() and any(out.iterdir()) and not (out / _MARK).exists():
        raise FolderTakenError(f"{out} holds other things than a demo's; choose another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    with (out / _MARK).open("w") as mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderTakenError(f"another demo is using {out}; choose another folder with --out") from None
        yield
