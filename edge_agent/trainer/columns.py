"""Labels in memory as they are stored, domain by domain, on the device that trains: gathered and normalised there.

A column holds one domain of all samples of one side. Columns are shared by every group of tasks that needs them, and a
store by as many clients as its budget allows: a job that goes from five tasks to two groups decodes nothing again.
Eight or sixteen bits a value are a quarter to a half of what the targets take, and normalising a batch costs far less
than a training step. On a CPU the targets have the bits that `BuildingsDataset.load` gives.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edge_agent.datasets import BuildingsDataset, SampleFault
from models.losses import Batch
from models.tasks import DEPTH_DOMAIN, DEPTH_VALID_BELOW, INPUT_DOMAIN, TaskSpec

_CPU = torch.device("cpu")
#: Sixteen bits are kept as int16, this much lower: torch gathers no uint16.
_SHIFT = 2**15


@dataclass(frozen=True, slots=True)
class Column:
    """One domain: `values` `[samples, ...]` as `buildings.Stored` has them, and faults by place; broken ones are 0."""

    values: Tensor
    faults: Mapping[int, SampleFault]

    @property
    def size_bytes(self) -> int:
        """What it takes on its device."""
        return self.values.numel() * self.values.element_size()


@dataclass(slots=True)
class ColumnStore:
    """The columns last used, as many as fit `budget_bytes` on `device`. Not to be shared between threads."""

    budget_bytes: int
    device: torch.device = _CPU
    _columns: OrderedDict[Hashable, Column] = field(default_factory=OrderedDict)

    @property
    def used_bytes(self) -> int:
        """What the kept columns take."""
        return sum(column.size_bytes for column in self._columns.values())

    def fits(self, dataset: BuildingsDataset, samples: int) -> bool:
        """Whether all that the dataset's tasks need of so many samples can be kept at once."""
        return dataset.stored_bytes(samples) <= self.budget_bytes

    def columns(self, source: Hashable, dataset: BuildingsDataset, indices: Sequence[int]) -> dict[str, Column]:
        """The dataset's domains for the samples of `indices`; `source` tells these samples from others.

        What is missing is decoded; columns not used for longest go to make room for it.
        """
        wanted = {domain: (source, dataset.size, domain) for domain in dataset.domains}
        for key in wanted.values():
            if key in self._columns:
                self._columns.move_to_end(key)
        for domain, key in wanted.items():
            if key not in self._columns:
                self._make_room(dataset.stored_bytes(len(indices), [domain]), set(wanted.values()))
                values, faults = dataset.column(domain, indices)
                self._columns[key] = Column(_on(values, self.device), faults)
        return {domain: self._columns[key] for domain, key in wanted.items()}

    def _make_room(self, size_bytes: int, keep: set[tuple[Hashable, int, str]]) -> None:
        for key in [key for key in self._columns if key not in keep]:
            if self.used_bytes + size_bytes <= self.budget_bytes:
                return
            del self._columns[key]


@dataclass(frozen=True, slots=True)
class Gatherer:
    """Batches from columns. `scales` are each task's mean and standard deviation on the columns' device."""

    tasks: tuple[TaskSpec, ...]
    columns: Mapping[str, Column]
    scales: Mapping[str, tuple[Tensor, Tensor]]

    def load(self, places: Sequence[int]) -> Batch:
        """The samples at these places, as `models.losses.Batch` says; the device is not waited for."""
        device = self.columns[INPUT_DOMAIN].values.device
        chosen = torch.tensor(places, dtype=torch.int64).to(device, non_blocking=True)
        raw = {domain: column.values.index_select(0, chosen) for domain, column in self.columns.items()}
        masked = any(task.masked for task in self.tasks)
        return Batch(
            rgb=_numbers(raw[INPUT_DOMAIN]).div_(torch.full((), 255.0, device=device)),
            targets={task.name: self._target(task, raw[task.domain]) for task in self.tasks},
            mask=(raw[DEPTH_DOMAIN] < DEPTH_VALID_BELOW - _SHIFT).to(torch.float32) if masked else None,
        )

    def _target(self, task: TaskSpec, raw: Tensor) -> Tensor:
        if task.loss == "cross_entropy":
            return raw.to(torch.int64)
        values = _numbers(raw)
        if not task.is_values:
            return values
        mean, std = self.scales[task.name]
        if task.averaged:
            values = values.sum(1, keepdim=True).div_(torch.full((), float(raw.shape[1]), device=raw.device))
        return values.mul_(task.scale).sub_(mean).div_(std)


def gatherer(tasks: Sequence[TaskSpec], columns: Mapping[str, Column]) -> Gatherer:
    """A gatherer of `tasks`, whose columns lie on one device."""
    device = columns[INPUT_DOMAIN].values.device
    scales = {}
    for task in tasks:
        shape = (1, -1) if task.is_vector else (1, -1, 1, 1)
        mean, std = (torch.tensor(each, dtype=torch.float32).view(shape).to(device) for each in (task.mean, task.std))
        scales[task.name] = (mean, std)
    return Gatherer(tuple(tasks), columns, scales)


def _on(values: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    if values.dtype == np.uint16:
        values = (values ^ np.uint16(_SHIFT)).view(np.int16)
    return torch.from_numpy(values).to(device)


def _numbers(raw: Tensor) -> Tensor:
    """float32 of its own, which may be changed in place."""
    return raw.to(torch.float32).add_(_SHIFT) if raw.dtype == torch.int16 else raw.to(torch.float32, copy=True)
