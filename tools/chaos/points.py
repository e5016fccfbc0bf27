"""`python -m tools.chaos.points FOLDER tools.cli.main aggregator run --config FILE`: an aggregator that kills itself at
every point of its journal, just before an event is in it and just after, and is started again each time. Its journal
puts a state in the place of its events after every few of them, and those moments are points too.

Each point is died for once, by SIGKILL; FOLDER keeps the list. The aggregator is the product's own in all else. Every
life is a fork of a process that has imported it already: a start then takes a moment instead of seconds.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from aggregator.journal import Journal
from tools.cli.main import app
from tools.demo.child import end_with_stdin

_LIST = "points.txt"
_SNAPSHOT = "snapshot"
_SNAPSHOTS = 3
#: A job alone makes about three times as many.
_EVENTS_KEPT = 5


def points(folder: Path) -> list[str]:
    """The points that were died for, in order: `before` or `after`, and the event's name."""
    path = folder / _LIST
    return path.read_text().splitlines() if path.exists() else []


def summary(folder: Path) -> str:
    """The points in a few words."""
    found = points(folder)
    kinds = {point.split()[1] for point in found} - {_SNAPSHOT}
    snapshots = sum(point.split()[1] == _SNAPSHOT for point in found)
    return f"at {len(found)} points of {len(kinds)} kinds of events, {snapshots} of them at snapshots"


def name_of(event: Any) -> str:
    """Names a point of the journal, the same whenever the same thing happens again."""
    holder = getattr(event, "report", event)
    key = getattr(holder, "key", None)
    if key is not None:
        return f"{type(event).__name__} {key.kind} {key.split} {key.round} {key.agent}"
    about = [getattr(event, field, "") for field in ("split", "round", "what", "agent")]
    return " ".join(str(each) for each in (type(event).__name__, *about) if each != "")


class Deaths:
    """Decides when to die, and keeps account of it on disk."""

    def __init__(self, folder: Path, die: Callable[[], None]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._die = folder / _LIST, die
        self._had = set(points(folder))

    def snapshots(self) -> int:
        """The number of the snapshot that was not died for on both sides yet, from 1."""
        return 1 + sum(point.startswith(f"after {_SNAPSHOT} ") for point in self._had)

    def at(self, point: str) -> None:
        """Die here, unless that has happened before."""
        if point in self._had:
            return
        self._had.add(point)
        with self._path.open("a") as file:
            file.write(f"{point}\n")
            file.flush()
            os.fsync(file.fileno())
        self._die()


def deadly(append: Callable[[Journal, Any, float], None], deaths: Deaths) -> Callable[[Journal, Any, float], None]:
    """`Journal.append`, with a death before and a death after. A start is no event of the job: it is let be, or there
    would be no end of them.
    """

    def append_and_die(journal: Journal, event: Any, at_s: float) -> None:
        name = name_of(event)
        if name == "Restarted":
            append(journal, event, at_s)
            return
        deaths.at(f"before {name}")
        append(journal, event, at_s)
        deaths.at(f"after {name}")

    return append_and_die


def deadly_keep(keep: Callable[[Journal, Any, float], bool], deaths: Deaths) -> Callable[[Journal, Any, float], bool]:
    """`Journal.keep`, with deaths before and after the first, the second and the third time that it comes to it."""

    def keep_and_die(journal: Journal, state: Any, at_s: float) -> bool:
        number = deaths.snapshots()
        if number <= _SNAPSHOTS:
            deaths.at(f"before {_SNAPSHOT} {number}")
        kept = keep(journal, state, at_s)
        if number <= _SNAPSHOTS:
            deaths.at(f"after {_SNAPSHOT} {number}")
        return kept

    return keep_and_die


def _live(folder: Path) -> None:
    """One life, in a process of its own."""
    threading.Thread(target=end_with_stdin, daemon=True).start()
    deaths = Deaths(folder, lambda: os.kill(os.getpid(), signal.SIGKILL))
    with (
        patch("aggregator.service.EVENTS_KEPT", _EVENTS_KEPT),
        patch.object(Journal, "append", deadly(Journal.append, deaths)),
        patch.object(Journal, "keep", deadly_keep(Journal.keep, deaths)),
    ):
        app()


def main() -> None:
    """Lives one after another, until one ends otherwise than by SIGKILL."""
    folder, sys.argv = Path(sys.argv[1]), sys.argv[2:]
    importlib.import_module("aggregator.service")  # which `mas` itself only does when it is asked to
    child = 0

    def stop(*_: object) -> None:
        if child:
            os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    while True:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _live(folder)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
