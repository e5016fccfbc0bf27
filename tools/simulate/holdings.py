"""Clients' pictures in memory, as the network takes them: decoded once for all tasks of a job, on the device.

A fleet's agent opens its data anew for every group of tasks. Here one whole set serves them all: a view takes the
labels it needs. That is only the same when no picture is broken, so a client with broken pictures, or with more of
them than there is memory for, reads them as the agent does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import torch

from edge_agent.datasets import DatasetError
from edge_agent.trainer.perform import OrderSamples
from edge_agent.trainer.protocol import Setup
from edge_agent.trainer.samples import Stock
from models.losses import Batch
from models.tasks import TASKS

Side = Literal["train", "val", "test"]
_CHUNK = 64


@dataclass(frozen=True, slots=True)
class View:
    """The labels of some tasks out of a whole set without a fault."""

    whole: Batch
    tasks: tuple[str, ...]
    usable: int
    skipped_total: int = 0
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.usable

    def load(self, indices: Sequence[int]) -> Batch:
        """Copies of these samples, on the device of the set."""
        chosen = torch.as_tensor(indices, dtype=torch.int64, device=self.whole.rgb.device)
        masked = any(TASKS[task].masked for task in self.tasks)
        return Batch(
            rgb=self.whole.rgb[chosen],
            targets={task: self.whole.targets[task][chosen] for task in self.tasks},
            mask=self.whole.mask[chosen] if masked and self.whole.mask is not None else None,
        )

    def check_faults(self) -> None:
        """There are none."""


@dataclass(slots=True)
class TimedSamples:
    """Samples that add up the seconds their loading takes, and note how many each batch had."""

    inner: OrderSamples
    clock: Callable[[], float]
    load_s: float = 0.0
    loaded: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.inner)

    def load(self, indices: Sequence[int]) -> Batch:
        """These samples; broken ones are missing."""
        began_s = self.clock()
        batch = self.inner.load(indices)
        self.load_s += self.clock() - began_s
        self.loaded.append(len(batch))
        return batch

    @property
    def usable(self) -> int:
        """Samples that are not known to be broken."""
        return self.inner.usable

    @property
    def skipped_total(self) -> int:
        """Samples left out so far."""
        return self.inner.skipped_total

    @property
    def skipped(self) -> tuple[str, ...]:
        """The first faults."""
        return self.inner.skipped

    def check_faults(self) -> None:
        """Raises TooManyFaultsError as the samples do."""
        self.inner.check_faults()


_Key = tuple[Setup, Side, int, tuple[str, ...]]


@dataclass(slots=True)
class Holdings:
    """The sets last used, as many as fit `limit_bytes` on `device`; those of clients not used for long go first."""

    device: torch.device
    limit_bytes: int
    _sets: OrderedDict[_Key, Batch] = field(default_factory=OrderedDict)
    _unfit: set[_Key] = field(default_factory=set)
    _stocks: OrderedDict[Setup, Stock] = field(default_factory=OrderedDict)

    def samples(
        self, setup: Setup, side: Side, tasks: tuple[str, ...], job_tasks: tuple[str, ...], size: int, share: float
    ) -> OrderSamples:
        """Samples of one side for `tasks`, of which `job_tasks` has all that this client will need.

        Raises DatasetError, TooManyFaultsError as `Stock.samples` does.
        """
        key = (setup, side, size, job_tasks if set(tasks) <= set(job_tasks) else tasks)
        if key not in self._sets and key not in self._unfit:
            self._open(key)
        whole = self._sets.get(key)
        if whole is None:
            return self._stock(setup).samples(side, tasks, size, share)
        self._sets.move_to_end(key)
        return View(whole, tasks, len(whole))

    def _open(self, key: _Key) -> None:
        setup, side, size, tasks = key
        whole = self._decoded(setup, side, size, tasks)
        if whole is None:
            self._unfit.add(key)
            return
        while self._sets and _bytes(whole) + sum(map(_bytes, self._sets.values())) > self.limit_bytes:
            self._sets.popitem(last=False)
        self._sets[key] = whole

    def _decoded(self, setup: Setup, side: Side, size: int, tasks: tuple[str, ...]) -> Batch | None:
        """All samples on the device, or None when some are broken or they are too many."""
        try:
            # Without a cache of its own: what it would keep is kept here.
            samples = Stock(_without_cache(setup)).samples(side, tasks, size, 1.0)
        except DatasetError:
            return None  # told when the order's own samples are opened
        if not len(samples) or len(samples) * _sample_bytes(size, tasks) > self.limit_bytes:
            return None
        parts = []
        for start in range(0, len(samples), _CHUNK):
            parts.append(_on(samples.load(range(start, min(start + _CHUNK, len(samples)))), self.device))
            if samples.skipped_total:
                return None
        return _joined(parts)

    def _stock(self, setup: Setup) -> Stock:
        if setup not in self._stocks:
            while self._stocks and (len(self._stocks) + 1) * setup.cache_bytes > self.limit_bytes:
                self._stocks.popitem(last=False)
            self._stocks[setup] = Stock(setup)
        self._stocks.move_to_end(setup)
        return self._stocks[setup]


def _without_cache(setup: Setup) -> Setup:
    return msgspec.structs.replace(setup, cache_bytes=0)


def _sample_bytes(size: int, tasks: Sequence[str]) -> int:
    """Upper bound of one sample's bytes: four of every value of picture and mask, eight of every class id."""
    channels = sum(2 if TASKS[task].is_classes else TASKS[task].channels for task in tasks)
    return 4 * size * size * (4 + channels)


def _bytes(batch: Batch) -> int:
    tensors = [batch.rgb, *batch.targets.values(), *([] if batch.mask is None else [batch.mask])]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _on(batch: Batch, device: torch.device) -> Batch:
    targets = {name: target.to(device) for name, target in batch.targets.items()}
    return Batch(batch.rgb.to(device), targets, None if batch.mask is None else batch.mask.to(device))


def _joined(parts: Sequence[Batch]) -> Batch:
    masks = [part.mask for part in parts if part.mask is not None]
    return Batch(
        rgb=torch.cat([part.rgb for part in parts]),
        targets={name: torch.cat([part.targets[name] for part in parts]) for name in parts[0].targets},
        mask=torch.cat(masks) if masks else None,
    )
