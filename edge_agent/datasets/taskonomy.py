"""Taskonomy's layout as a dataset: what this project renders and a real download alike. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_agent.datasets.buildings import DEFAULT_CACHE_BYTES, Batch, BuildingsDataset, Split, Stored, class_fault
from edge_agent.datasets.images import ImageError, SampleFault, read_image
from edge_agent.datasets.layout import (
    DatasetError,
    Sample,
    domain_folder,
    image_path,
    list_buildings,
    list_samples,
    read_manifest,
)
from edge_agent.datasets.split import VALIDATION_SHARE, point_share
from edge_agent.datasets.vectors import read_vector
from models.tasks import TASKS

#: The rule of the split and the form of a batch are offered here as well.
__all__ = ["VALIDATION_SHARE", "Batch", "BuildingsDataset", "Split", "open_dataset", "point_share", "read_label"]
MIN_SIZE = 8


def read_label(root: Path, sample: Sample, domain: str) -> Stored:
    """One label as stored, its class ids in range. Raises ImageError for whatever is wrong with its file."""
    path, task = image_path(root, domain, sample), TASKS[domain]
    if task.is_vector:
        return read_vector(path, task)
    pixels = read_image(path, domain)
    if task.is_classes and pixels.size and int(pixels.max()) >= task.channels:
        raise ImageError(SampleFault(path, class_fault(task, pixels)))
    return pixels


def open_dataset(
    root: Path,
    buildings: Sequence[str] | None,
    tasks: Sequence[str],
    size: int,
    *,
    test_buildings: Sequence[str] | None = None,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> BuildingsDataset:
    """Index some buildings (None: all of them) for some tasks (full names) at `size` x `size` pixels.

    Test buildings come from the argument, else from `mas-dataset.json`, else there are none.
    Raises DatasetError with every reason at once: unknown tasks or buildings, missing domains, no images.
    """
    manifest = read_manifest(root)
    known = list_buildings(root)
    chosen = known if buildings is None else list(dict.fromkeys(buildings))
    faults = [f"{root}: no building {name!r}; there are {', '.join(known)}" for name in chosen if name not in known]
    faults += [f"no task {name!r}; known are {', '.join(TASKS)}" for name in tasks if name not in TASKS]
    faults += ["no task is given"] if not tasks else []
    faults += [f"size is {size}, must be at least {MIN_SIZE}"] if size < MIN_SIZE else []
    if faults:
        raise DatasetError(faults)
    if test_buildings is None:
        test_buildings = manifest.buildings.test if manifest else ()
    dataset = BuildingsDataset(
        root=root,
        tasks=tuple(TASKS[name] for name in dict.fromkeys(tasks)),
        size=size,
        index=tuple(sample for building in chosen for sample in list_samples(root, building)),
        test_buildings=frozenset(test_buildings),
        read=lambda sample, domain: read_label(root, sample, domain),
        cache_bytes=cache_bytes,
    )
    folders = [domain_folder(root, domain) for domain in dataset.domains]
    faults = [f"{folder} is missing" for folder in folders if not folder.is_dir()]
    faults += [f"{root}: no images of {', '.join(chosen) or 'any building'}"] if not dataset.index else []
    if faults:
        raise DatasetError(faults)
    return dataset
