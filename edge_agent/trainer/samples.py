"""A device's pictures as torch batches, with an account of what could not be used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from edge_agent.datasets import Batch as StoredBatch
from edge_agent.datasets import BuildingsDataset, DatasetError, SampleFault, opener, read_manifest
from edge_agent.trainer.columns import Column, ColumnStore, Gatherer, gatherer
from edge_agent.trainer.protocol import Setup
from models.losses import Batch

#: Faults named in a report; the rest are counted.
MAX_NAMED_FAULTS = 20
#: Datasets kept open: an index of names each, for as many groups of tasks as a job may have.
_MAX_OPEN = 32
_CPU = torch.device("cpu")
Side = Literal["train", "val", "test"]


class TooManyFaultsError(Exception):
    """More samples are broken than the order allows."""


@dataclass(slots=True)
class DeviceSamples:
    """The samples of one order. Broken ones are left out, never replaced, and counted against `max_skipped_share`.

    `indices` are those of `dataset`; where all fit in memory, `gathered` has them at the same `places`.
    """

    dataset: BuildingsDataset
    indices: list[int]
    needed: int
    max_skipped_share: float
    device: torch.device = _CPU
    gathered: Gatherer | None = None
    places: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, indices: Sequence[int]) -> Batch:
        """These samples as a batch on the device; broken ones are missing from it."""
        if self.gathered is not None:
            return self.gathered.load([self.places[index] for index in indices])
        loaded = self.dataset.load([self.indices[index] for index in indices])
        return Batch(
            rgb=torch.from_numpy(loaded.rgb).to(self.device, non_blocking=True),
            targets={task.name: self._target(loaded, task.name, task.is_classes) for task in self.dataset.tasks},
            mask=None if loaded.mask is None else torch.from_numpy(loaded.mask).to(self.device, non_blocking=True),
        )

    def _target(self, loaded: StoredBatch, name: str, is_map_of_classes: bool) -> Tensor:
        target = torch.from_numpy(loaded.targets[name]).to(self.device, non_blocking=True)
        return target[:, None] if is_map_of_classes else target

    @property
    def usable(self) -> int:
        """Samples that are not known to be broken."""
        return self.needed - self.skipped_total

    @property
    def skipped_total(self) -> int:
        """Samples left out so far."""
        return self.dataset.skipped

    @property
    def skipped(self) -> tuple[str, ...]:
        """The first faults, as `path: reason` with paths below the dataset's root."""
        named = self.dataset.faults[:MAX_NAMED_FAULTS]
        return tuple(f"{fault.path.relative_to(self.dataset.root)}: {fault.reason}" for fault in named)

    def check_faults(self) -> None:
        """Raises TooManyFaultsError when more than the allowed share of the needed samples is broken."""
        if self.skipped_total > self.max_skipped_share * self.needed:
            raise TooManyFaultsError(
                f"{self.skipped_total} of {self.needed} samples cannot be used ({self.max_skipped_share:.0%} allowed); "
                f"mend or remove them: {'; '.join(self.skipped)}"
            )


class Stock:
    """One device's data, opened for whatever an order needs, and kept in memory where it fits.

    `device` is where batches are made. `store` keeps decoded labels, and may be shared with other clients' stocks;
    without one, this stock has its own of `Setup.cache_bytes` on `device`. A larger store than that changes no batch:
    a set with broken samples that a store of its own could not keep is read batch by batch, as without the other.
    """

    def __init__(self, setup: Setup, device: torch.device = _CPU, store: ColumnStore | None = None) -> None:
        self._setup = setup
        self._root = Path(setup.data_root)
        self._store = store if store is not None else ColumnStore(setup.cache_bytes, device)
        self._open: OrderedDict[tuple[Side, tuple[str, ...], int], BuildingsDataset] = OrderedDict()

    def samples(self, side: Side, tasks: Sequence[str], size: int, max_skipped_share: float) -> DeviceSamples:
        """Samples of one side: of the training buildings those to train on ("train") or those kept for validation
        ("val"), or all of the test buildings ("test").

        What fits is decoded now, so that broken samples are known before the work begins.
        Raises DatasetError, TooManyFaultsError.
        """
        dataset = self._dataset(side, tuple(tasks), size)
        split = dataset.split()
        chosen = {"train": split.train, "val": split.val, "test": split.test}[side]
        indices: list[int] = chosen.tolist()
        samples = DeviceSamples(dataset, indices, len(indices), max_skipped_share, self._store.device)
        if indices and self._store.fits(dataset, len(indices)):
            columns = self._store.columns(self._source(side), dataset, indices)
            broken = _faults_of(columns, indices)
            if not broken or dataset.stored_bytes(len(indices)) <= self._setup.cache_bytes:
                dataset.note(broken)
                sound = [place for place, index in enumerate(indices) if index not in broken]
                samples.indices, samples.places = [indices[place] for place in sound], tuple(sound)
                samples.gathered = gatherer(dataset.tasks, columns)
        samples.check_faults()
        return samples

    def _source(self, side: Side) -> tuple[str | tuple[str, ...], ...]:
        """What decides which samples a side has; clients that test on the same buildings share their columns."""
        setup = self._setup
        buildings = setup.test_buildings if side == "test" else setup.train_buildings
        return (side, setup.data_format, setup.data_root, buildings, tuple(sorted(setup.test_buildings)))

    def _dataset(self, side: Side, tasks: tuple[str, ...], size: int) -> BuildingsDataset:
        key = (side, tasks, size)
        if key not in self._open:
            opened = self._fresh(side, tasks, size)
            while len(self._open) >= _MAX_OPEN:
                self._open.popitem(last=False)
            self._open[key] = opened
        self._open.move_to_end(key)
        return self._open[key]

    def _fresh(self, side: Side, tasks: tuple[str, ...], size: int) -> BuildingsDataset:
        buildings = self._setup.test_buildings if side == "test" else self._setup.train_buildings
        if not buildings:
            purpose = "test" if side == "test" else "train"
            raise DatasetError([f"this device has no {purpose} buildings; name some in its configuration"])
        manifest = read_manifest(self._root)
        held_out = {*self._setup.test_buildings, *(manifest.buildings.test if manifest else ())}
        # The dataset keeps nothing decoded: columns do.
        return opener(self._setup.data_format)(
            self._root, buildings, tasks, size, test_buildings=sorted(held_out), cache_bytes=0
        )


def _faults_of(columns: dict[str, Column], indices: Sequence[int]) -> dict[int, dict[str, SampleFault]]:
    """Faults of the columns by index and domain."""
    broken: dict[int, dict[str, SampleFault]] = {}
    for domain, column in columns.items():
        for place, fault in column.faults.items():
            broken.setdefault(indices[place], {})[domain] = fault
    return broken
