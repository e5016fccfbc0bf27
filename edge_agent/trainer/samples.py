"""A device's pictures as torch batches, with an account of what could not be used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from edge_agent.datasets import BuildingsDataset, DatasetError, open_dataset, read_manifest
from edge_agent.trainer.protocol import Setup
from models.losses import Batch

#: Faults named in a report; the rest are counted.
MAX_NAMED_FAULTS = 20
_PRELOAD_CHUNK = 32
_MAX_BYTES_PER_VALUE = 3
Side = Literal["train", "test"]


class TooManyFaultsError(Exception):
    """More samples are broken than the order allows."""


@dataclass(slots=True)
class DeviceSamples:
    """The samples of one order. Broken ones are left out, never replaced, and counted against `max_skipped_share`."""

    dataset: BuildingsDataset
    indices: list[int]
    needed: int
    max_skipped_share: float

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, indices: Sequence[int]) -> Batch:
        """These samples as a batch; broken ones are missing from it."""
        loaded = self.dataset.load([self.indices[index] for index in indices])
        targets = {name: torch.from_numpy(target) for name, target in loaded.targets.items()}
        return Batch(
            rgb=torch.from_numpy(loaded.rgb),
            targets={name: target if target.ndim == 4 else target[:, None] for name, target in targets.items()},
            mask=None if loaded.mask is None else torch.from_numpy(loaded.mask),
        )

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
    """Opens datasets and keeps those last used, as many as fit the cache."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._root = Path(setup.data_root)
        self._open: OrderedDict[tuple[Side, tuple[str, ...], int], BuildingsDataset] = OrderedDict()

    def samples(self, side: Side, tasks: Sequence[str], size: int, max_skipped_share: float) -> DeviceSamples:
        """Training samples (neither validation nor test), or all samples of the test buildings.

        What fits the cache is decoded now, so that broken samples are known before the work begins.
        Raises DatasetError, TooManyFaultsError.
        """
        dataset = self._dataset(side, tuple(tasks), size)
        split = dataset.split()
        indices = [int(index) for index in (split.train if side == "train" else split.test)]
        samples = DeviceSamples(dataset, indices, len(indices), max_skipped_share)
        if dataset.keeps_in_memory:
            chunks = [indices[start : start + _PRELOAD_CHUNK] for start in range(0, len(indices), _PRELOAD_CHUNK)]
            whole = np.concatenate([np.zeros(0, np.int64), *(dataset.load(chunk).indices for chunk in chunks)])
            samples.indices = whole.tolist()
        samples.check_faults()
        return samples

    def _dataset(self, side: Side, tasks: tuple[str, ...], size: int) -> BuildingsDataset:
        key = (side, tasks, size)
        if key not in self._open:
            opened = self._fresh(side, tasks, size)
            while self._open and _bytes(opened) + sum(map(_bytes, self._open.values())) > self._setup.cache_bytes:
                self._open.popitem(last=False)
            self._open[key] = opened
        self._open.move_to_end(key)
        return self._open[key]

    def _fresh(self, side: Side, tasks: tuple[str, ...], size: int) -> BuildingsDataset:
        buildings = self._setup.train_buildings if side == "train" else self._setup.test_buildings
        if not buildings:
            raise DatasetError([f"this device has no {side} buildings; name some in its configuration"])
        manifest = read_manifest(self._root)
        held_out = {*self._setup.test_buildings, *(manifest.buildings.test if manifest else ())}
        return open_dataset(
            self._root,
            buildings,
            tasks,
            size,
            test_buildings=sorted(held_out),
            cache_bytes=self._setup.cache_bytes,
        )


def _bytes(dataset: BuildingsDataset) -> int:
    """Upper bound of what its decoded images take."""
    return len(dataset) * dataset.size**2 * len(dataset.domains) * _MAX_BYTES_PER_VALUE
