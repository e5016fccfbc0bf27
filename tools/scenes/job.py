"""What to render, and the rendering of one room: the unit of work that goes to a process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_agent.datasets.layout import (
    Sample,
    image_path,
)
from tools.scenes.assemble import build
from tools.scenes.camera import Camera, draw_camera, draw_target, view_score
from tools.scenes.encode import DOMAINS, View, domains_of, files_of
from tools.scenes.files import FolderError, point_numbers, write_atomic
from tools.scenes.library import Library, open_library
from tools.scenes.render import Renderer
from tools.scenes.rooms import furnish
from tools.scenes.space import Room
from tools.scenes.styles import Style, building_name, draw_style

POINTS_PER_ROOM = 3
_ROOM_ATTEMPTS = 8
_PROBE_SIZE = 24


class ScenesError(FolderError):
    """The dataset cannot be written as asked; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to render. `points` and `test_points` are per building, each looked at from `views` places.

    `tasks` (letters or names) limits the labels that are written; all of them where it is empty.
    """

    buildings: int = 12
    test_buildings: int = 3
    points: int = 18
    test_points: int = 12
    views: int = 2
    size: int = 64
    seed: int = 0
    tasks: str = ""

    @property
    def domains(self) -> tuple[str, ...]:
        """Folders that are written, in the manifest's order."""
        return domains_of(self.tasks) if self.tasks else DOMAINS

    def command(self) -> str:
        """The command line that makes this dataset again."""
        return (
            f"mas data scenes OUT --buildings {self.buildings} --test-buildings {self.test_buildings} "
            f"--points {self.points} --test-points {self.test_points} --views {self.views} "
            f"--size {self.size} --seed {self.seed}" + (f" --tasks {self.tasks}" if self.tasks else "")
        )

    def faults(self) -> list[str]:
        """Everything that is wrong with the numbers, one line each."""
        lowest = {
            "buildings": 1,
            "test_buildings": 0,
            "points": 1,
            "test_points": 1,
            "views": 1,
            "size": 16,
            "seed": 0,
        }
        faults = [
            f"--{name.replace('_', '-')} is {getattr(self, name)}, must be at least {low}"
            for name, low in lowest.items()
            if getattr(self, name) < low
        ]
        if self.size > 2048:
            faults.append(f"--size is {self.size}, must be at most 2048")
        try:
            _ = self.domains
        except ValueError as error:
            faults.append(f"--tasks: {error}")
        return faults

    def points_of(self, building: int) -> int:
        return self.points if building < self.buildings else self.test_points


@dataclass(frozen=True, slots=True)
class RoomJob:
    """One room of one building: its points, and where the files go."""

    plan: Plan
    catalogue: Path
    root: Path
    building: int
    room: int

    def samples(self) -> list[Sample]:
        name = building_name(self.building)
        first = self.room * POINTS_PER_ROOM
        points = point_numbers(name, self.plan.points_of(self.building))[first : first + POINTS_PER_ROOM]
        return [Sample(name, point, view) for point in points for view in range(self.plan.views)]


@dataclass(frozen=True, slots=True)
class RoomResult:
    """`written` and `kept` count views; `render_s` is the time spent on pictures and labels alone."""

    written: int
    kept: int
    render_s: float
    notes: tuple[str, ...]


def render_room(job: RoomJob) -> RoomResult:
    """Write every missing view of one room. Runs in a worker process."""
    missing = [sample for sample in job.samples() if not _complete(job, sample)]
    kept = len(job.samples()) - len(missing)
    if not missing:
        return RoomResult(0, kept, 0.0, ())
    notes: list[str] = []
    library = open_library(job.catalogue)
    style = draw_style(job.plan.seed, job.building, library.models)
    renderer, kind, cameras = _prepare_room(job, style, library, notes)
    started = time.monotonic()
    for sample in missing:
        camera = cameras[sample]
        rgb, surface = renderer.shoot(camera, job.plan.size)
        view = View(rgb, renderer.labels(camera, job.plan.size), surface, kind)
        for domain, data in files_of(view, job.plan.domains).items():
            write_atomic(image_path(job.root, domain, sample), data)
    return RoomResult(len(missing), kept, time.monotonic() - started, tuple(notes))


def _prepare_room(
    job: RoomJob, style: Style, library: Library, notes: list[str]
) -> tuple[Renderer, str, dict[Sample, Camera]]:
    """A room in which every wanted view exists, and its kind; rooms without enough good views are drawn again."""
    kind = style.room_kinds[job.room % len(style.room_kinds)]
    for attempt in range(_ROOM_ATTEMPTS):
        rng = np.random.default_rng([job.plan.seed, job.building, 2, job.room, attempt])
        room = furnish(style, kind, rng)
        renderer = Renderer(build(room, style, rng, library.load, notes.append), style)
        cameras = _cameras(job, room, style, renderer)
        if cameras is not None:
            return renderer, room.kind, cameras
        kind = style.room_kinds[(job.room + attempt + 1) % len(style.room_kinds)]
    raise ScenesError(
        f"building {style.name}, room {job.room}: no room with usable views in {_ROOM_ATTEMPTS} tries; "
        "the catalogue may hold too little furniture"
    )


def _cameras(job: RoomJob, room: Room, style: Style, renderer: Renderer) -> dict[Sample, Camera] | None:
    cameras: dict[Sample, Camera] = {}
    for sample in job.samples():
        if sample in cameras:
            continue
        rng = np.random.default_rng([job.plan.seed, job.building, 3, sample.point])
        for _ in range(6):
            target = draw_target(room, rng)
            found = [_best_camera(room, style, target, renderer, rng) for _ in range(job.plan.views)]
            usable = [camera for camera in found if camera is not None]
            if len(usable) == job.plan.views:
                cameras.update({Sample(sample.building, sample.point, view): c for view, c in enumerate(usable)})
                break
        else:
            return None
    return cameras


def _best_camera(
    room: Room, style: Style, target: tuple[float, float, float], renderer: Renderer, rng: np.random.Generator
) -> Camera | None:
    best: tuple[float, Camera] | None = None
    usable = 0
    for _ in range(40):
        camera = draw_camera(room, style, target, rng)
        if camera is None:
            continue
        probe = renderer.labels(camera, _PROBE_SIZE)
        score = view_score(probe.depth_m, probe.class_id)
        if score > 0 and (best is None or score > best[0]):
            best = (score, camera)
        usable += score > 0
        if usable >= 3:
            break
    return best[1] if best else None


def _complete(job: RoomJob, sample: Sample) -> bool:
    return all(image_path(job.root, domain, sample).is_file() for domain in job.plan.domains)
