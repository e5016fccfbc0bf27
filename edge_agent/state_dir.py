"""Whether the state directory can be used at all, before anything in it is touched.

<state>/format    the version of what is in the directory; without it, version 1
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from models.disk import FULL

#: Raised when a release can no longer read what an older one has left, or the other way round.
VERSION = 1
_FILE = "format"
_PROBE = ".probe"
_PROBE_BYTES = 64 * 1024


class StateDirError(Exception):
    """A state directory that cannot be used; the text says why and what to do."""


class NewerState(StateDirError):
    """A state directory of a newer release."""


def check_version(state_dir: Path) -> None:
    """Raises NewerState for a directory of a newer release, in which nothing is touched, and StateDirError."""
    try:
        said = (state_dir / _FILE).read_text().strip()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise StateDirError(f"{state_dir / _FILE} cannot be read: {error}; check its permissions") from error
    if not said.isdecimal() or int(said) > VERSION:
        raise (NewerState if said.isdecimal() else StateDirError)(
            f"{state_dir} is of format {said[:40]!r}, this release knows {VERSION}: install the release that wrote it, "
            "or name another folder in state_dir"
        )


def prepare(state_dir: Path, make_room: Callable[[], None]) -> None:
    """See that files can be written. `make_room` is called when the disk is full, and then it is tried once more.

    Raises StateDirError.
    """
    try:
        _probe(state_dir)
    except OSError as error:
        if error.errno not in FULL:
            raise _unusable(state_dir, error) from error
        try:
            make_room()
            _probe(state_dir)
        except OSError as again:
            raise _unusable(state_dir, again) from again
    try:
        if not (state_dir / _FILE).exists():
            _write_version(state_dir)
    except OSError as error:
        raise _unusable(state_dir, error) from error


def _write_version(state_dir: Path) -> None:
    """Whole or not at all: of a file that a power cut left empty nobody knows which release meant what."""
    fresh = state_dir / f"{_FILE}.new"
    with fresh.open("w") as file:
        file.write(f"{VERSION}\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, state_dir / _FILE)


def _unusable(state_dir: Path, error: OSError) -> StateDirError:
    if error.errno in FULL:
        return StateDirError(f"{state_dir} is full ({error.strerror}): make room on its file system and start again")
    advice = "mount it read-write" if error.errno == errno.EROFS else "check its permissions"
    return StateDirError(f"{state_dir} cannot be written: {error.strerror}; {advice}, or name another in state_dir")


def _probe(state_dir: Path) -> None:
    """Write something, as far as the disk, and remove it."""
    path = state_dir / _PROBE
    try:
        with path.open("wb") as file:
            file.write(b"\0" * _PROBE_BYTES)
            file.flush()
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)
