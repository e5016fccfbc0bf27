"""Writing a whole dataset of rendered buildings: jobs, files, manifest, attributions.

A job is one room, because building a room costs more than looking at it. What a room looks like depends only on
`(seed, building, room)`, and each view only on its point and view number besides, so neither the number of workers
nor an interruption changes a byte. Files appear by rename; the manifest comes last, so a dataset that has one is whole.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path

from edge_agent.datasets.layout import (
    MANIFEST_FORMAT,
    Buildings,
    Generator,
    Manifest,
)
from tools.scenes.attributions import attributions
from tools.scenes.catalogue import Model, read_catalogue
from tools.scenes.files import claim, finish, write_atomic
from tools.scenes.job import POINTS_PER_ROOM, Plan, RoomJob, RoomResult, ScenesError, render_room
from tools.scenes.roles import CLASSES
from tools.scenes.styles import ROOM_KINDS, building_name, draw_style

#: Goes up whenever the same seed would give other pictures.
GENERATOR_VERSION = "scenes-1"


class ScenesManifest(Manifest, frozen=True):
    """The manifest of rendered rooms: `label_names[domain]` says what the numbers of a whole picture's label mean."""

    label_names: dict[str, dict[int, str]]


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did; `notes` names furniture that could not be used."""

    root: Path
    written: int
    kept: int
    render_s: float
    wall_s: float
    notes: tuple[str, ...]


def write_scenes(
    plan: Plan,
    catalogue: Path,
    root: Path,
    *,
    workers: int = 1,
    progress: Callable[[int], None] = lambda views: None,
) -> Summary:
    """Render every missing view of the plan under `root`, then write attributions and manifest.

    `progress` is told how many views each finished room added. Raises ScenesError where the numbers make no sense,
    FolderError where `root` holds something else, CatalogueError where the furniture cannot be used. On
    KeyboardInterrupt rooms under way are finished, the rest is left for the next run of the same command.
    """
    started = time.monotonic()
    if faults := plan.faults():
        raise ScenesError("; ".join(faults))
    models = read_catalogue(catalogue)
    generator = Generator(plan.command(), plan.seed, GENERATOR_VERSION)
    claim(root, generator)
    results: list[RoomResult] = []
    for result in _run(rooms_of(plan, catalogue, root), workers):
        results.append(result)
        progress(result.written + result.kept)
    _finish(plan, generator, models, root)
    return Summary(
        root,
        sum(result.written for result in results),
        sum(result.kept for result in results),
        sum(result.render_s for result in results),
        time.monotonic() - started,
        tuple(sorted({note for result in results for note in result.notes})),
    )


def total_views(plan: Plan) -> int:
    """Number of views of the whole plan."""
    return plan.views * (plan.buildings * plan.points + plan.test_buildings * plan.test_points)


def rooms_of(plan: Plan, catalogue: Path, root: Path) -> list[RoomJob]:
    """Every room of a plan, building by building."""
    return [
        RoomJob(plan, catalogue, root, building, room)
        for building in range(plan.buildings + plan.test_buildings)
        for room in range(-(-plan.points_of(building) // POINTS_PER_ROOM))
    ]


def _run(jobs: list[RoomJob], workers: int) -> Iterable[RoomResult]:
    if workers <= 1:
        yield from map(render_room, jobs)
        return
    shelves = Shelves(jobs)
    with ExitStack() as stack:
        # One process to a pool, so that it can be told which room comes next.
        pools = [
            stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_ignore_interrupt))
            for _ in range(workers)
        ]
        # One job a worker and none in line: an interruption then waits for the rooms under way, no others.
        running = {pools[w].submit(render_room, job): w for w in range(workers) if (job := shelves.take(w))}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                worker = running.pop(future)
                if job := shelves.take(worker):
                    running[pools[worker].submit(render_room, job)] = worker
                yield future.result()


class Shelves:
    """Rooms by building. A worker keeps to its building, for it has read that furniture; then it takes a new one, and
    at last it helps where most is left."""

    def __init__(self, jobs: list[RoomJob]) -> None:
        self._new = deque(deque(rooms) for _, rooms in groupby(jobs, key=lambda job: job.building))
        self._own: dict[int, deque[RoomJob]] = {}

    def take(self, worker: int) -> RoomJob | None:
        """The next room for a worker, None when no room is left."""
        if not self._own.get(worker):
            most = max(self._own.values(), key=len, default=deque[RoomJob]())
            self._own[worker] = self._new.popleft() if self._new else most
        own = self._own[worker]
        return own.popleft() if own else None


def _ignore_interrupt() -> None:
    """Ctrl-C is the parent's to handle: it lets rooms under way finish and starts no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _finish(plan: Plan, generator: Generator, models: tuple[Model, ...], root: Path) -> None:
    names = [building_name(number) for number in range(plan.buildings + plan.test_buildings)]
    names_of = {"class_scene": dict(enumerate(ROOM_KINDS)), "class_object": dict(CLASSES)}
    manifest = ScenesManifest(
        format=MANIFEST_FORMAT,
        name="scenes",
        generator=generator,
        size=plan.size,
        domains=list(plan.domains),
        buildings=Buildings(names[: plan.buildings], names[plan.buildings :]),
        classes=dict(CLASSES),
        images={name: plan.points_of(number) * plan.views for number, name in enumerate(names)},
        label_names={domain: named for domain, named in names_of.items() if domain in plan.domains},
    )
    styles = [draw_style(plan.seed, number, models) for number in range(len(names))]
    write_atomic(root / "ATTRIBUTIONS.md", attributions(styles).encode())
    finish(root, manifest)
