"""The format "shelf": one .npz file a client, with arrays `rgb` uint8 [picture, height, width, 3] and one of labels for
each task, by the task's name: [picture] or [picture, channels].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.datasets import BuildingsDataset, DatasetError, Sample
from edge_agent.datasets.vectors import as_vector
from models.tasks import INPUT_DOMAIN, TASKS

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


def open_shelf(
    root: Path,
    buildings: Sequence[str] | None,
    tasks: Sequence[str],
    size: int,
    *,
    test_buildings: Sequence[str] | None = None,
    cache_bytes: int = 256 * 2**20,
) -> BuildingsDataset:
    """The files `<building>.npz` below `root` (None: all), for tasks by full name, at `size` x `size`.

    Raises DatasetError with every fault at once: a run on many devices should fail before it starts.
    """
    names = sorted(path.stem for path in root.glob("*.npz")) if buildings is None else list(buildings)
    wanted = [INPUT_DOMAIN, *(task for task in tasks if task != INPUT_DOMAIN)]
    faults = [f"{root / name}.npz is missing" for name in names if not (root / f"{name}.npz").is_file()]
    faults += [
        f"the format shelf has pictures and whole-picture labels, not {task}" for task in tasks if not _holds(task)
    ]
    if faults or not names:
        raise DatasetError(faults or [f"{root}: no .npz file"])
    shelf = {name: _load(root / f"{name}.npz", wanted, faults) for name in names}
    if faults:
        raise DatasetError(faults)

    def read(sample: Sample, domain: str) -> Array:
        """A label as it is stored; mas-edge resizes pictures, normalises, caches and splits."""
        stored: Array = shelf[sample.building][domain][sample.point]
        if domain == INPUT_DOMAIN:
            return stored
        return as_vector(root / f"{sample.building}.npz", TASKS[domain], np.atleast_1d(stored).astype(float).tolist())

    return BuildingsDataset(
        root=root,
        tasks=tuple(TASKS[name] for name in tasks),
        size=size,
        index=tuple(Sample(name, number, 0) for name in names for number in range(len(shelf[name][INPUT_DOMAIN]))),
        test_buildings=frozenset(test_buildings or ()),
        read=read,
        cache_bytes=cache_bytes,
    )


def _holds(task: str) -> bool:
    return task == INPUT_DOMAIN or (task in TASKS and TASKS[task].is_vector)


def _load(path: Path, wanted: Sequence[str], faults: list[str]) -> Arrays:
    with np.load(path) as arrays:
        faults += [f"{path} has no array {name}" for name in wanted if name not in arrays]
        return {name: arrays[name] for name in wanted if name in arrays}
