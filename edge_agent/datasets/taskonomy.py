"""Aligned multi-task images of some buildings, split by points, loaded as batches of float32 arrays.

Reads what this project renders and a real Taskonomy download alike. Nothing here needs torch.
Every view of a point falls on the same side of the split, and the side depends on a hash of the names only, so it
stays the same on every machine and however many images there are; test buildings are never trained or validated on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_agent.datasets.images import ImageError, Pixels, SampleFault, read_image, resize
from edge_agent.datasets.layout import (
    BYTES_PER_PIXEL,
    ENCODINGS,
    DatasetError,
    Sample,
    image_path,
    list_buildings,
    list_samples,
    read_manifest,
)
from edge_agent.datasets.split import VALIDATION_SHARE, point_share
from models.tasks import DEPTH_DOMAIN, DEPTH_VALID_BELOW, INPUT_DOMAIN, TASKS, TaskSpec

FloatArray = npt.NDArray[np.float32]
#: The rule of the split is offered here as well, for it is how a dataset is cut.
__all__ = ["VALIDATION_SHARE", "Batch", "BuildingsDataset", "Split", "open_dataset", "point_share"]
Indices = npt.NDArray[np.int64]
DEFAULT_CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Batch:
    """`rgb` `[B, 3, H, W]` in 0..1; `targets[task]` `[B, C, H, W]` float32, class maps `[B, H, W]` int64;
    `mask` `[B, 1, H, W]`, 1 where depth is valid, None when no task needs it; `indices` `[B]` that were loaded."""

    rgb: FloatArray
    targets: dict[str, npt.NDArray[np.generic]]
    mask: FloatArray | None
    indices: Indices

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True, slots=True)
class Split:
    """Indices into a dataset's `index`; the three are disjoint and together cover it."""

    train: Indices
    val: Indices
    test: Indices


@dataclass(slots=True)
class BuildingsDataset:
    """The views of some buildings for some tasks. `faults` grows as samples turn out broken.

    Decoded images are kept as uint8 / uint16 while all of them fit into `cache_bytes`; otherwise each load decodes.
    """

    root: Path
    tasks: tuple[TaskSpec, ...]
    size: int
    index: tuple[Sample, ...]
    test_buildings: frozenset[str]
    cache_bytes: int = DEFAULT_CACHE_BYTES
    _faults: dict[int, tuple[SampleFault, ...]] = field(default_factory=dict)
    _cache: dict[int, dict[str, Pixels]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def domains(self) -> tuple[str, ...]:
        """Folders that a sample needs: its picture, each task's label, and depth where a task is masked."""
        needed = [INPUT_DOMAIN, *(task.domain for task in self.tasks)]
        if any(task.masked for task in self.tasks):
            needed.append(DEPTH_DOMAIN)
        return tuple(dict.fromkeys(needed))

    @property
    def faults(self) -> tuple[SampleFault, ...]:
        """Every fault met so far, in the order of the samples."""
        return tuple(fault for number in sorted(self._faults) for fault in self._faults[number])

    @property
    def skipped(self) -> int:
        """Number of samples left out for their faults."""
        return len(self._faults)

    @property
    def keeps_in_memory(self) -> bool:
        """Whether all images at this size fit the byte budget."""
        return len(self.index) * self._sample_bytes() <= self.cache_bytes

    def split(self, *, validation_share: float = VALIDATION_SHARE) -> Split:
        """Train, validation and test indices; see the module's docstring for the rule."""
        sides: tuple[list[int], list[int], list[int]] = ([], [], [])
        for number, sample in enumerate(self.index):
            if sample.building in self.test_buildings:
                sides[2].append(number)
            else:
                sides[1 if point_share(sample) < validation_share else 0].append(number)
        train, val, test = (np.asarray(side, np.int64) for side in sides)
        return Split(train, val, test)

    def preload(self) -> None:
        """Decode everything once, if it fits the budget, and so find every fault before training starts."""
        if self.keeps_in_memory:
            for number in range(len(self.index)):
                self._sample(number)

    def load(self, indices: Sequence[int] | Indices) -> Batch:
        """The named samples as one batch, in the given order; broken ones are left out and recorded in `faults`."""
        loaded = [(int(number), stored) for number in indices if (stored := self._sample(int(number))) is not None]
        rgb = self._stack([stored[INPUT_DOMAIN] for _, stored in loaded], 3).astype(np.float32) / np.float32(255)
        targets = {task.name: self._target(task, [stored[task.domain] for _, stored in loaded]) for task in self.tasks}
        mask = None
        if any(task.masked for task in self.tasks):
            depth = self._stack([stored[DEPTH_DOMAIN] for _, stored in loaded], 1)
            mask = (depth < DEPTH_VALID_BELOW).astype(np.float32)
        return Batch(rgb, targets, mask, np.asarray([number for number, _ in loaded], np.int64))

    def batches(self, indices: Indices, batch_size: int, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """All of `indices` once, in batches; `rng` shuffles them. Batches that lose every sample are left out."""
        order = indices if rng is None else rng.permutation(indices)
        for start in range(0, len(order), batch_size):
            batch = self.load(order[start : start + batch_size])
            if len(batch):
                yield batch

    def _target(self, task: TaskSpec, stored: list[Pixels]) -> npt.NDArray[np.generic]:
        raw = self._stack(stored, task.channels)
        if task.is_classes:
            return raw[:, 0].astype(np.int64)
        return task.normalise(raw)

    def _stack(self, stored: list[Pixels], channels: int) -> Pixels:
        """Stored pictures -> `[B, channels, H, W]`; class maps keep one channel whatever the number of classes."""
        if not stored:
            return np.zeros((0, channels, self.size, self.size), np.uint8)
        if stored[0].ndim == 2:
            return np.asarray([pixels[None] for pixels in stored])
        return np.asarray([np.moveaxis(pixels[..., :channels], -1, 0) for pixels in stored])

    def _sample(self, number: int) -> dict[str, Pixels] | None:
        if number in self._faults:
            return None
        cached = self._cache.get(number)
        if cached is not None:
            return cached
        stored, faults = self._read(self.index[number])
        if faults:
            self._faults[number] = tuple(faults)
            return None
        if self.keeps_in_memory:
            self._cache[number] = stored
        return stored

    def _read(self, sample: Sample) -> tuple[dict[str, Pixels], list[SampleFault]]:
        stored: dict[str, Pixels] = {}
        faults: list[SampleFault] = []
        for domain in self.domains:
            path = image_path(self.root, domain, sample)
            try:
                pixels = read_image(path, domain)
            except ImageError as error:
                faults.append(error.fault)
                continue
            faults.extend(_class_faults(path, domain, pixels))
            stored[domain] = resize(pixels, domain, self.size)
        return stored, faults

    def _sample_bytes(self) -> int:
        return self.size**2 * sum(BYTES_PER_PIXEL[ENCODINGS[domain]] for domain in self.domains)


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
    faults += [f"size is {size}, must be at least 8"] if size < 8 else []
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
        cache_bytes=cache_bytes,
    )
    faults = [f"{root / domain} is missing" for domain in dataset.domains if not (root / domain).is_dir()]
    faults += [f"{root}: no images of {', '.join(chosen) or 'any building'}"] if not dataset.index else []
    if faults:
        raise DatasetError(faults)
    return dataset


def _class_faults(path: Path, domain: str, pixels: Pixels) -> list[SampleFault]:
    spec = TASKS.get(domain)
    if spec is None or not spec.is_classes or not pixels.size or int(pixels.max()) < spec.channels:
        return []
    return [SampleFault(path, f"class id {int(pixels.max())}, the highest is {spec.channels - 1}")]
